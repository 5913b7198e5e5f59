"""A batch norm and the block: torch tensors in, a launch for each sweep and for each step of the
solve between them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from se_kernels.backends.protocol import NormForward
from se_kernels.backends.triton.launch import place_of
from se_kernels.core.layout import (
    NormGradients,
    empty_mask,
    empty_norm_gradients,
    empty_norm_numbers,
    empty_output,
    flat,
    like_layout,
    readable,
    row_major,
)
from se_kernels.core.precision import compute_dtype


def norm_moments(u: Tensor, wide: bool) -> tuple[Tensor, Tensor]:
    """mean and m2 (N, C) in float64: of each image's channel, m2 = Σ (u - mean)²."""
    means, squares, splits, part = _moments(u, torch.float64 if wide else compute_dtype(u, u))
    if splits == 1:
        return means[:, 0], squares[:, 0]
    pixels = u.shape[2] * u.shape[3]
    last = pixels - (splits - 1) * part  # pixels of the last part

    def over_pixels(of_parts: Tensor) -> Tensor:
        return part * of_parts[:, :-1].sum(1) + last * of_parts[:, -1]

    mean = over_pixels(means) / pixels
    return mean, squares.sum(1) + over_pixels((means - mean[:, None]).square())


def norm_squeeze(u: Tensor, norm: Tensor, pre: str) -> Tensor:
    """z (N, C), the mean of v."""
    return _squeeze(u, norm.contiguous(), pre)[0].sum(1)


def norm_scale(
    u: Tensor, norm: Tensor, s: Tensor, residual: Tensor | None, pre: str, post: str, keep: bool
) -> tuple[Tensor, Tensor]:
    """y (N, C, H, W), and its mask if it is to be kept."""
    from se_kernels.backends.triton.kernels.scale import run_scale

    y = empty_output(u)
    mask = empty_mask(u, keep)
    layout, u = readable(u)
    at_residual = place_of(like_layout(residual, layout), layout)
    places = place_of(u, layout), at_residual, place_of(y, layout)
    small = mask if keep else None, norm.contiguous(), s.contiguous()
    run_scale(layout, *places, *small, pre, post)
    return y, mask


def norm_scale_backward(
    dy: Tensor, u: Tensor, mask: Tensor | None, norm: Tensor, pre: str, write: bool
) -> tuple[Tensor, Tensor]:
    """dr = g (N, C, H, W) if it is to be written, and the sums (2 or 5, N, C)."""
    dr, sums, _ = _scale_backward(dy, u, mask, norm.contiguous(), pre, write)
    return dr, sums.sum(2)


def norm_squeeze_backward(
    g: Tensor, u: Tensor, mask: Tensor | None, norm: Tensor, s: Tensor, d: Tensor, pre: str,
    slope: Tensor | None, offset: Tensor | None,
) -> Tensor:  # fmt: skip
    """du (N, C, H, W) = scale pre'(t) (g s + d) + slope (u - mean) + offset."""
    adds = None if slope is None or offset is None else torch.stack((slope, offset))
    return _squeeze_backward(g, u, mask, norm.contiguous(), s, d, pre, adds)


def norm_inference(
    u: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None, mean: Tensor, var: Tensor,
    eps: float, w1: Tensor, w2: Tensor, b1: Tensor | None, b2: Tensor | None,
    residual: Tensor | None, *variant: Any,
) -> Tensor:  # fmt: skip
    """y (N, C, H, W), the norm in evaluation mode."""
    pre, act, act_slope, gate, post = variant
    return norm_forward(
        u, bn_weight, bn_bias, mean, var, None, w1, w2, b1, b2, residual,
        False, 0.0, eps, pre, act, act_slope, gate, post, False,
    )[0]  # fmt: skip


def norm_forward(
    u: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None, mean: Tensor | None,
    var: Tensor | None, means: Tensor | None, w1: Tensor, w2: Tensor, b1: Tensor | None,
    b2: Tensor | None, residual: Tensor | None, training: bool, momentum: float, eps: float,
    pre: str, act: str, act_slope: float, gate: str, post: str, keep: bool,
) -> NormForward:  # fmt: skip
    """What ``ops.norm_forward`` returns."""
    from se_kernels.backends.triton.kernels.solve import run_excite, run_solve_norm

    images, pixels, affine = u.shape[0], u.shape[2] * u.shape[3], pre == "identity"
    moves = training and mean is not None
    numbers, a, moved = empty_norm_numbers(u, bn_weight, w1, moves)
    if training or (means is None and affine):
        parts: tuple[Tensor | None, Tensor | None, int, int] = _moments(u, numbers.dtype)
    else:
        parts = flat(means), None, 1, pixels
    norm = flat(mean), flat(var), flat(bn_weight), flat(bn_bias), moved if moves else None
    run_solve_norm(numbers, parts, *norm, momentum, eps, pixels, training, affine)
    z_parts, splits = (None, 1) if affine else _squeeze(u, numbers, pre)
    weights = row_major(w1), row_major(w2), flat(b1), flat(b2)
    run_excite(numbers, z_parts, splits, *weights, a, act, act_slope, gate)
    s = numbers[4 + images :]
    y, mask = norm_scale(u, numbers, s, residual, pre, post, keep)
    return y, mask, numbers, a, moved


def norm_backward(
    dy: Tensor, u: Tensor, mask: Tensor | None, numbers: Tensor, a: Tensor, w1: Tensor, w2: Tensor,
    training: bool, pre: str, act: str, act_slope: float, gate: str, needs: Sequence[bool],
) -> NormGradients:  # fmt: skip
    """What ``ops.norm_backward`` returns."""
    from se_kernels.backends.triton.kernels.solve import run_excite_backward, run_gradients

    need_du, write, need_d, *_ = needs
    images, pixels = u.shape[0], u.shape[2] * u.shape[3]
    d_weight, d_bias, du, dr, d, *weights = empty_norm_gradients(u, numbers, w1, w2, needs)
    numbers, a, affine = numbers.contiguous(), a.contiguous(), pre == "identity"
    w1, w2, s = row_major(w1), row_major(w2), numbers[4 + images :]
    dr, sums, splits = _scale_backward(dy, u, mask, numbers, pre, write)
    de, da = torch.empty_like(s), torch.empty_like(a)
    run_excite_backward(numbers, sums, splits, w2, a, de, da, affine, act, act_slope, gate)
    each = d if need_d else torch.empty_like(s)
    adds = numbers.new_empty(2, numbers.shape[1])  # slope and offset of du
    norm = numbers, sums, splits, pixels, affine, w1, each, d_weight, d_bias, adds
    wanted = [g if need else None for g, need in zip(weights, needs[3:], strict=True)]
    run_gradients(a, de, da, None, wanted, norm, act, act_slope)
    if need_du:
        g, g_mask = (dr, None) if write else (dy, mask)
        of_batch = adds if training else None
        du = _squeeze_backward(g, u, g_mask, numbers, s, each, pre, of_batch)
    dw1, dw2, db1, db2 = weights
    return d_weight, d_bias, du, dr, d, dw1, dw2, db1, db2


def _moments(u: Tensor, sums: torch.dtype) -> tuple[Tensor, Tensor, int, int]:
    """mean and Σ (u - mean)² of parts of the pixels (N, splits, C), splits, a part's pixels."""
    from se_kernels.backends.triton.kernels.squeeze import run_moments

    layout, u = readable(u)
    moments: tuple[Tensor, Tensor, int, int] = run_moments(layout, place_of(u, layout), sums)
    return moments


def _squeeze(u: Tensor, norm: Tensor, pre: str) -> tuple[Tensor, int]:
    """Parts of z (N, splits, C), and splits."""
    from se_kernels.backends.triton.kernels.squeeze import run_squeeze

    layout, u = readable(u)
    parts = run_squeeze(layout, place_of(u, layout), norm, norm.dtype, "avg", pre)[0]
    return parts, parts.shape[1]


def _scale_backward(
    dy: Tensor, u: Tensor, mask: Tensor | None, norm: Tensor, pre: str, write: bool
) -> tuple[Tensor, Tensor, int]:
    """dr, parts of the sums (2 or 5, N, splits, C), and splits."""
    from se_kernels.backends.triton.kernels.scale import run_scale_backward

    dr = empty_output(u) if write else u.new_empty(0)
    layout, u = readable(u)
    at_dr = place_of(dr if write else None, layout)
    places = place_of(like_layout(dy, layout), layout), place_of(u, layout), None, at_dr
    small = mask, norm, None, 2 if pre == "identity" else 5, norm.dtype
    parts = run_scale_backward(layout, *places, *small, "avg", pre)
    return dr, parts, parts.shape[2]


def _squeeze_backward(
    g: Tensor,
    u: Tensor,
    mask: Tensor | None,
    norm: Tensor,
    s: Tensor,
    d: Tensor,
    pre: str,
    adds: Tensor | None,
) -> Tensor:
    """du (N, C, H, W); adds (2, C), slope and offset, or None."""
    from se_kernels.backends.triton.kernels.squeeze import run_squeeze_backward

    du = empty_output(u)
    layout, u = readable(u)
    at_g = place_of(like_layout(g, layout), layout)
    places = at_g, place_of(u, layout), place_of(du, layout)
    small = mask, norm, s.contiguous(), d.contiguous(), adds, None, None
    run_squeeze_backward(layout, *places, *small, "avg", pre)
    return du
