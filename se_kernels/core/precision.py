"""The dtype in which sums are carried, whatever autocast says."""

import contextlib

import torch
from torch import Tensor


def compute_dtype(x: Tensor, w: Tensor) -> torch.dtype:
    """The dtype in which every sum is carried: float64 if x or w is float64, else float32."""
    wide = torch.float64 in (x.dtype, w.dtype)
    return torch.float64 if wide else torch.float32


def norm_compute_dtype(u: Tensor, bn_weight: Tensor | None, w1: Tensor) -> torch.dtype:
    """``compute_dtype`` with a batch norm: float64 if u or a weight of norm or FC is float64."""
    wide = bn_weight is not None and bn_weight.dtype == torch.float64
    return torch.float64 if wide else compute_dtype(u, w1)


def outside_autocast(device_type: str) -> contextlib.AbstractContextManager:
    """A context in which autocast rewrites nothing; free of cost where autocast is off."""
    available = torch.amp.is_autocast_available(device_type)  # not on meta
    if available and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()
