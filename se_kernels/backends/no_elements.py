"""The sweeps with a batch norm over images without an element: all sums are 0."""

import functools

import torch

from se_kernels.core.layout import empty_mask, empty_norm_gradients, empty_output
from se_kernels.core.precision import norm_compute_dtype


def norm_moments(u, wide):
    """mean and m2 (N, C) in float64."""
    return tuple(u.new_zeros(u.shape[:2], dtype=torch.float64) for _ in range(2))


def norm_squeeze(u, norm, pre):
    """z (N, C)."""
    return norm.new_zeros(u.shape[:2])


def norm_scale(u, norm, s, residual, pre, post, keep):
    """y and its mask."""
    return empty_output(u), empty_mask(u, keep)


def norm_scale_backward(dy, u, mask, norm, pre, write):
    """dr, and the sums (2 or 5, N, C)."""
    sums = norm.new_zeros((2 if pre == "identity" else 5, *u.shape[:2]))
    return empty_output(u) if write else u.new_empty(0), sums


def norm_squeeze_backward(g, u, *_):
    """du."""
    return empty_output(u)


def norm_inference(u, *_):
    """y."""
    return empty_output(u)


def norm_forward(
    u, bn_weight, bn_bias, mean, var, means, w1, w2, b1, b2, residual,
    training, momentum, eps, pre, act, act_slope, gate, post, keep,
):  # fmt: skip
    """y, its mask, and what backward would need, zero; the running statistics stay."""
    images, channels = u.shape[:2]
    new = functools.partial(u.new_zeros, dtype=norm_compute_dtype(u, bn_weight, w1))
    moved = u.new_empty(0, dtype=torch.float64)
    if training and mean is not None:
        moved = torch.stack((mean, var)).double()
    numbers, a = new((4 + 2 * images, channels)), new((images, w1.shape[0]))
    return empty_output(u), empty_mask(u, keep), numbers, a, moved


def norm_backward(dy, u, mask, numbers, a, w1, w2, training, pre, act, act_slope, gate, needs):
    """Every gradient is zero."""
    return tuple(t.zero_() for t in empty_norm_gradients(u, numbers, w1, w2, needs))
