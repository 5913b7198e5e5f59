"""Which of the library's registered ops a piece of code runs."""

from torch.utils._python_dispatch import TorchDispatchMode


class OpsCalled(TorchDispatchMode):
    """``with OpsCalled() as called:`` lists in ``called.names`` each op as it runs."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "se_kernels":
            self.names.append(func._schema.name.removeprefix("se_kernels::"))
        return func(*args, **(kwargs or {}))
