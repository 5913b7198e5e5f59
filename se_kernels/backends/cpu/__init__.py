"""The native CPU backend."""

from torch import Tensor

from se_kernels.backends.cpu import extension
from se_kernels.backends.cpu.block import (
    backward,
    forward,
    inference,
    scale,
    scale_backward,
    squeeze,
    squeeze_backward,
)
from se_kernels.backends.cpu.norm import (
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
    "instruction_set",
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

DEVICE = "cpu"  # whose tensors this backend is chosen for by itself


def why_not() -> str | None:
    """Why the extension cannot be used on this machine, or None where it can."""
    return extension.reason


def why_not_for(x: Tensor) -> str | None:
    """Why this backend does not serve x, or None where it does."""
    if not x.is_cpu:
        return f"expected x on a CPU, got {x.device}"
    return extension.reason


def instruction_set() -> str:
    """The instruction set that the kernels chose on this processor."""
    name: str = extension._C.instruction_set()
    return name
