"""The block's cases, which ``python -m se_kernels check`` judges too, and what only tests need."""

import torch
from torch import Tensor

from se_kernels.verification.block_case import (  # noqa: F401
    DTYPES,
    LAYOUTS,
    NAMES,
    Case,
    act_module,
    check,
    check_against_eager,
    eager,
    gate_module,
    make,
    run,
    run_judge,
)
from se_kernels.verification.judge import NoInputs  # noqa: F401


def storage_bytes(t: Tensor) -> Tensor:
    """A copy of the whole storage behind t, what lies between its elements included."""
    return torch.empty(0, dtype=torch.uint8, device=t.device).set_(t.untyped_storage()).clone()
