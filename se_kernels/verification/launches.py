"""Each launch told before it is made, so that of one which never ends the name is known."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from se_kernels.verification.backends import Served


class Announced(TorchDispatchMode):
    """Prints each registered op of the library before it runs, and waits for its end after it."""

    def __init__(self, of: Served, trial: str):
        super().__init__()
        self.of, self.trial = of, trial

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace != "se_kernels":
            return func(*args, **(kwargs or {}))
        print(f"  {self.of.backend} {func._schema.name[12:]}: {self.trial}", flush=True)
        out = func(*args, **(kwargs or {}))
        if torch.device(self.of.device).type == "cuda":
            torch.cuda.synchronize(self.of.device)
        return out
