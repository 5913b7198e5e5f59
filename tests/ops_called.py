"""Which of the library's registered ops a piece of code runs."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class OpsCalled(TorchDispatchMode):
    """``with OpsCalled() as called:`` lists in ``called.names`` each op as it runs.

    ``called.others`` lists every other operator that computes a tensor of more than ``larger_than``
    elements.
    """

    def __init__(self, larger_than=float("inf")):
        super().__init__()
        self.names, self.others, self.larger_than = [], [], larger_than

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.namespace == "se_kernels":
            self.names.append(func._schema.name.removeprefix("se_kernels::"))
        elif not func.is_view:
            tensors = (t for t in tree_leaves(out) if isinstance(t, torch.Tensor))
            if any(t.untyped_storage().nbytes() > self.larger_than * t.itemsize for t in tensors):
                self.others.append(func.name())
        return out
