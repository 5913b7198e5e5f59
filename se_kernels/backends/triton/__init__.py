"""The Triton backend. Triton is imported by the first call, not before."""

import torch
from torch import Tensor

from se_kernels.backends.triton import installation
from se_kernels.backends.triton.block import (
    backward,
    forward,
    inference,
    scale,
    scale_backward,
    squeeze,
    squeeze_backward,
)
from se_kernels.backends.triton.norm import (
    norm_backward,
    norm_forward,
    norm_inference,
    norm_moments,
    norm_scale,
    norm_scale_backward,
    norm_squeeze,
    norm_squeeze_backward,
)

__all__ = [
    "DEVICE",
    "backward",
    "forward",
    "inference",
    "norm_backward",
    "norm_forward",
    "norm_inference",
    "norm_moments",
    "norm_scale",
    "norm_scale_backward",
    "norm_squeeze",
    "norm_squeeze_backward",
    "scale",
    "scale_backward",
    "squeeze",
    "squeeze_backward",
    "why_not",
    "why_not_for",
]

DEVICE = "cuda"  # whose tensors this backend is chosen for by itself
_MOST_PIXELS = 2**31 - 2**16  # of a channel: they are numbered in 32 bits
_OLDEST = (7, 5)  # compute capability that Triton compiles for
_FAULT, _BUILD_FAULT = installation.fault(), installation.build_fault()


def why_not() -> str | None:
    """Why Triton cannot be used on this machine, or None where it can."""
    if _FAULT is not None or installation.INTERPRETED:
        return _FAULT
    if not torch.cuda.is_available():
        return "torch finds no GPU; with TRITON_INTERPRET=1 it takes tensors on a CPU"
    return _BUILD_FAULT


def why_not_for(x: Tensor) -> str | None:
    """Why this backend does not serve x, or None where it does."""
    if not (x.is_cuda or (x.is_cpu and installation.INTERPRETED)):
        return f"expected x on a GPU (on a CPU with TRITON_INTERPRET=1), got {x.device}"
    if x.dim() == 4 and x.shape[2] * x.shape[3] > _MOST_PIXELS:
        return f"expected at most {_MOST_PIXELS} pixels, got {tuple(x.shape)}"
    return _why_not_on(x.device.index) if x.is_cuda else why_not()


def _why_not_on(index: int) -> str | None:
    reason = why_not()
    if reason is None:
        gpu = torch.cuda.get_device_properties(index)  # a constant to torch.compile
        if (gpu.major, gpu.minor) < _OLDEST:
            return f"expected a GPU of compute capability 7.5 or later, got {gpu.major}.{gpu.minor}"
    return reason
