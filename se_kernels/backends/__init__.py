"""One module a backend: why it is missing, whom it serves, and its three calls."""
