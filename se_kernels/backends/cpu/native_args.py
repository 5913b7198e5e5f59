"""What the native core is told: sizes, types and names, then where each tensor lies."""

import torch

from se_kernels.backends.cpu.extension import DTYPES
from se_kernels.core.layout import walk


def phase(x, s, layout, squeeze="avg", post="none"):
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


def problem(x, w1, layout, squeeze, act, act_slope, gate, post):
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


def place(t):
    """Address, strides of image, channel and pixel; a null address for None."""
    return (0, 0, 0, 0) if t is None else (t.data_ptr(), *walk(t))


def pointer(t):
    return 0 if t is None else t.data_ptr()
