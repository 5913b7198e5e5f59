"""The sweeps with a batch norm over images without an element: all sums are 0."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from se_kernels.backends.protocol import NormForward
from se_kernels.core.layout import NormGradients, empty_mask, empty_norm_gradients, empty_output
from se_kernels.core.precision import norm_compute_dtype


def norm_moments(u: Tensor, wide: bool) -> tuple[Tensor, Tensor]:
    """mean and m2 (N, C) in float64."""
    mean, m2 = (u.new_zeros(u.shape[:2], dtype=torch.float64) for _ in range(2))
    return mean, m2


def norm_squeeze(u: Tensor, norm: Tensor, pre: str) -> Tensor:
    """z (N, C)."""
    return norm.new_zeros(u.shape[:2])


def norm_scale(
    u: Tensor, norm: Tensor, s: Tensor, residual: Tensor | None, pre: str, post: str, keep: bool
) -> tuple[Tensor, Tensor]:
    """y and its mask."""
    return empty_output(u), empty_mask(u, keep)


def norm_scale_backward(
    dy: Tensor, u: Tensor, mask: Tensor | None, norm: Tensor, pre: str, write: bool
) -> tuple[Tensor, Tensor]:
    """dr, and the sums (2 or 5, N, C)."""
    sums = norm.new_zeros((2 if pre == "identity" else 5, *u.shape[:2]))
    return empty_output(u) if write else u.new_empty(0), sums


def norm_squeeze_backward(g: Tensor, u: Tensor, *_: object) -> Tensor:
    """du."""
    return empty_output(u)


def norm_inference(u: Tensor, *_: object) -> Tensor:
    """y."""
    return empty_output(u)


def norm_forward(
    u: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None, mean: Tensor | None,
    var: Tensor | None, means: Tensor | None, w1: Tensor, w2: Tensor, b1: Tensor | None,
    b2: Tensor | None, residual: Tensor | None, training: bool, momentum: float, eps: float,
    pre: str, act: str, act_slope: float, gate: str, post: str, keep: bool,
) -> NormForward:  # fmt: skip
    """y, its mask, and what backward would need, zero; the running statistics stay."""
    images, channels = u.shape[:2]
    new = functools.partial(u.new_zeros, dtype=norm_compute_dtype(u, bn_weight, w1))
    moved = u.new_empty(0, dtype=torch.float64)
    if training and mean is not None and var is not None:
        moved = torch.stack((mean, var)).double()
    numbers, a = new((4 + 2 * images, channels)), new((images, w1.shape[0]))
    return empty_output(u), empty_mask(u, keep), numbers, a, moved


def norm_backward(
    dy: Tensor, u: Tensor, mask: Tensor | None, numbers: Tensor, a: Tensor, w1: Tensor, w2: Tensor,
    training: bool, pre: str, act: str, act_slope: float, gate: str, needs: Sequence[bool],
) -> NormGradients:  # fmt: skip
    """Every gradient is zero."""
    gradients = empty_norm_gradients(u, numbers, w1, w2, needs)
    for gradient in gradients:
        gradient.zero_()
    return gradients
