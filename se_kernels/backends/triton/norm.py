"""The sweeps with a batch norm: torch tensors in, a launch each."""

import sys
from functools import partial

import torch

from se_kernels.backends import composed_norm
from se_kernels.backends.triton.launch import place_of
from se_kernels.layout import empty_mask, empty_output, flat, like_layout, readable
from se_kernels.reference import compute_dtype


def norm_moments(u, wide):
    """mean and m2 (N, C) in float64: of each image's channel, m2 = Σ (u - mean)²."""
    from se_kernels.backends.triton.kernels.norm_squeeze import run_norm_moments

    mean, m2 = (torch.empty(u.shape[:2], dtype=torch.float64, device=u.device) for _ in range(2))
    layout, u = readable(u)
    sums = torch.float64 if wide else compute_dtype(u, u)
    run_norm_moments(layout, place_of(u, layout), mean, m2, sums)
    return mean, m2


def norm_squeeze(u, norm, pre):
    """z (N, C), the mean of v."""
    from se_kernels.backends.triton.kernels.norm_squeeze import run_norm_squeeze

    z = norm.new_empty(u.shape[:2])
    layout, u = readable(u)
    run_norm_squeeze(layout, place_of(u, layout), norm.contiguous(), z, pre)
    return z


def norm_scale(u, norm, s, residual, pre, post, keep):
    """y (N, C, H, W), and its mask if it is to be kept."""
    from se_kernels.backends.triton.kernels.norm_scale import run_norm_scale

    y = empty_output(u)
    mask = empty_mask(u, keep)
    layout, u = readable(u)
    places = (place_of(t, layout) for t in (u, like_layout(residual, layout), y))
    small = mask if keep else None, norm.contiguous(), s.contiguous()
    run_norm_scale(layout, *places, *small, pre, post)
    return y, mask


def norm_scale_backward(dy, u, mask, norm, pre, write):
    """dr = g (N, C, H, W) if it is to be written, and the sums (2 or 5, N, C)."""
    from se_kernels.backends.triton.kernels.norm_scale import run_norm_scale_backward

    dr = empty_output(u) if write else u.new_empty(0)
    sums = norm.new_empty((2 if pre == "identity" else 5, *u.shape[:2]))
    layout, u = readable(u)
    images = like_layout(dy, layout), u, dr if write else None
    places = (place_of(t, layout) for t in images)
    run_norm_scale_backward(layout, *places, mask, norm.contiguous(), sums, pre)
    return dr, sums


def norm_squeeze_backward(g, u, mask, norm, s, d, pre, slope, offset):
    """du (N, C, H, W) = scale pre'(t) (g s + d) + slope (u - mean) + offset."""
    from se_kernels.backends.triton.kernels.norm_squeeze import run_norm_squeeze_backward

    du = empty_output(u)
    layout, u = readable(u)
    places = (place_of(t, layout) for t in (like_layout(g, layout), u, du))
    small = norm.contiguous(), s.contiguous(), d.contiguous()
    run_norm_squeeze_backward(layout, *places, mask, *small, pre, flat(slope), flat(offset))
    return du


norm_inference, norm_forward, norm_backward = (
    partial(composed, sys.modules[__name__])
    for composed in (
        composed_norm.norm_inference,
        composed_norm.norm_forward,
        composed_norm.norm_backward,
    )
)
