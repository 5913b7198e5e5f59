"""What the native core is told: sizes, types and names, then where each tensor lies."""

import torch
from torch import Tensor

from se_kernels.backends.cpu.extension import DTYPES
from se_kernels.core.layout import walk

# the parameters of ``_C.squeeze`` and ``_C.forward`` that come before the first tensor
PhaseArgs = tuple[int, int, int, int, int, bool, str, str, int]
ProblemArgs = tuple[int, int, int, int, int, int, bool, str, str, float, str, str, int]


def phase(x: Tensor, s: Tensor, layout: str, squeeze: str = "avg", post: str = "none") -> PhaseArgs:
    """What a phase on its own needs to know; s (N, C) is in the dtype of the sums."""
    images, channels, height, width = x.shape
    return (
        images,
        channels,
        height * width,
        DTYPES[x.dtype],
        DTYPES[s.dtype],
        layout == "nhwc",
        squeeze,
        post,
        torch.get_num_threads(),
    )


def problem(
    x: Tensor,
    w1: Tensor,
    layout: str,
    squeeze: str,
    act: str,
    act_slope: float,
    gate: str,
    post: str,
) -> ProblemArgs:
    images, channels, height, width = x.shape
    return (
        images,
        channels,
        w1.shape[0],
        height * width,
        DTYPES[x.dtype],
        DTYPES[w1.dtype],
        layout == "nhwc",
        squeeze,
        act,
        act_slope,
        gate,
        post,
        torch.get_num_threads(),
    )


def place(t: Tensor | None) -> tuple[int, int, int, int]:
    """Address, strides of image, channel and pixel; a null address for None."""
    return (0, 0, 0, 0) if t is None else (t.data_ptr(), *walk(t))  # type: ignore[misc]


def pointer(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()
