"""What every call goes through: checks, autograd, the registered ops, the choice of a backend."""
