"""The CUDA backend: torch tensors in, plain pointers to csrc/cuda out.

On the current stream of x's GPU; everything that a launch needs is allocated by torch.
"""

from se_kernels.backends.cuda.block import (
    backward,
    explain,
    forward,
    inference,
    scale,
    scale_backward,
    squeeze,
    squeeze_backward,
)
from se_kernels.backends.cuda.library import DEVICE, why_not, why_not_for
from se_kernels.backends.cuda.norm import (
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
    "explain",
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
