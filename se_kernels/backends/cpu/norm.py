"""A batch norm and the block, and its sweeps alone, in csrc/cpu, which reads the tensors itself."""

from collections.abc import Sequence

import torch
from torch import Tensor

from se_kernels.backends.cpu.extension import _C
from se_kernels.backends.protocol import NormForward
from se_kernels.core.layout import (
    NormGradients,
    OptionalTensor,
    empty_mask,
    empty_norm_gradients,
    empty_norm_numbers,
    empty_output,
    flat,
    like_layout,
    readable,
)
from se_kernels.core.precision import norm_compute_dtype


def norm_moments(x: Tensor, wide: bool) -> tuple[Tensor, Tensor]:
    """mean and m2 (N, C) in float64: of each image's channel, m2 = Σ (x - mean)²."""
    mean, m2 = (torch.empty(x.shape[:2], dtype=torch.float64) for _ in range(2))
    layout, x = readable(x)
    _C.norm_moments(layout == "nhwc", x, mean, m2, wide)
    return mean, m2


def norm_squeeze(x: Tensor, norm: Tensor, pre: str) -> Tensor:
    """z (N, C)."""
    z = torch.empty(x.shape[:2], dtype=norm.dtype)
    layout, x = readable(x)
    _C.norm_squeeze(layout == "nhwc", x, norm.contiguous(), pre, z)
    return z


def norm_scale(
    x: Tensor, norm: Tensor, s: Tensor, residual: Tensor | None, pre: str, post: str, keep: bool
) -> tuple[Tensor, Tensor]:
    """y (N, C, H, W), and its mask if it is to be kept."""
    y = empty_output(x)
    mask = empty_mask(x, keep)
    layout, x = readable(x)
    residual = like_layout(residual, layout)
    norm, s = norm.contiguous(), s.contiguous()
    _C.norm_scale(layout == "nhwc", x, residual, y, norm, pre, s, mask, post)
    return y, mask


def norm_scale_backward(
    dy: Tensor, x: Tensor, mask: Tensor | None, norm: Tensor, pre: str, write: bool
) -> tuple[Tensor, Tensor]:
    """dr = g (N, C, H, W) if it is to be written, and the sums (2 or 5, N, C)."""
    dr = empty_output(x) if write else x.new_empty(0)
    sums = torch.empty((2 if pre == "identity" else 5, *x.shape[:2]), dtype=norm.dtype)
    layout, x = readable(x)
    dy = like_layout(dy, layout)
    _C.norm_scale_backward(layout == "nhwc", dy, x, dr, norm.contiguous(), pre, mask, sums)
    return dr, sums


def norm_squeeze_backward(
    g: Tensor, x: Tensor, mask: Tensor | None, norm: Tensor, s: Tensor, d: Tensor, pre: str,
    slope: Tensor | None, offset: Tensor | None,
) -> Tensor:  # fmt: skip
    """dx (N, C, H, W) = scale pre'(t) (g s + d) + slope (x - mean) + offset."""
    dx = empty_output(x)
    layout, x = readable(x)
    g, norm = like_layout(g, layout), norm.contiguous()
    small = s.contiguous(), d.contiguous(), flat(slope), flat(offset)
    _C.norm_squeeze_backward(layout == "nhwc", g, x, dx, norm, pre, mask, *small)
    return dx


def norm_inference(
    x: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None, mean: Tensor, var: Tensor,
    eps: float, w1: Tensor, w2: Tensor, b1: Tensor | None, b2: Tensor | None,
    residual: Tensor | None, pre: str, act: str, act_slope: float, gate: str, post: str,
) -> Tensor:  # fmt: skip
    """y (N, C, H, W), the norm in evaluation mode."""
    y = empty_output(x)
    dtype = norm_compute_dtype(x, bn_weight, w1)
    layout, x = readable(x)
    residual = like_layout(residual, layout)
    w1, w2, b1, b2 = _weights(dtype, w1, w2, b1, b2)
    mean, var = _of_channels(mean, dtype), _of_channels(var, dtype)
    weight, bias = _of_channels(bn_weight, dtype), _of_channels(bn_bias, dtype)
    _C.norm_inference(
        *(layout == "nhwc", "avg", act, act_slope, gate, post),
        *(x, residual, y, mean, var, weight, bias, eps, pre, w1, w2, b1, b2),
    )
    return y


def norm_forward(
    x: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None, mean: Tensor | None,
    var: Tensor | None, means: Tensor | None, w1: Tensor, w2: Tensor, b1: Tensor | None,
    b2: Tensor | None, residual: Tensor | None, training: bool, momentum: float, eps: float,
    pre: str, act: str, act_slope: float, gate: str, post: str, keep: bool,
) -> NormForward:  # fmt: skip
    """What ``ops.norm_forward`` returns."""
    dtype = norm_compute_dtype(x, bn_weight, w1)
    y = empty_output(x)
    mask = empty_mask(x, keep)
    moves = training and mean is not None
    numbers, a, moved = empty_norm_numbers(x, bn_weight, w1, moves)
    layout, x = readable(x)
    residual = like_layout(residual, layout)
    w1, w2, b1, b2 = _weights(dtype, w1, w2, b1, b2)
    weight, bias = _of_channels(bn_weight, dtype), _of_channels(bn_bias, dtype)
    mean, var, means = flat(mean), flat(var), flat(means)
    _C.norm_forward(
        *(layout == "nhwc", "avg", act, act_slope, gate, post),
        *(x, residual, y, training, mean, var, means, momentum, eps, weight, bias, pre),
        *(w1, w2, b1, b2, mask, moved, numbers, a),
    )
    return y, mask, numbers, a, moved


def norm_backward(
    dy: Tensor, x: Tensor, mask: Tensor | None, numbers: Tensor, a: Tensor, w1: Tensor, w2: Tensor,
    training: bool, pre: str, act: str, act_slope: float, gate: str, needs: Sequence[bool],
) -> NormGradients:  # fmt: skip
    """What ``ops.norm_backward`` returns."""
    w_type = w1.dtype
    w1, w2, _, _ = _weights(numbers.dtype, w1, w2)
    gradients = empty_norm_gradients(x, numbers, w1, w2, needs)
    dweight, dbias, dx, dr, *others = gradients  # the native core sees no elements as not wanted
    layout, x = readable(x)
    dy = like_layout(dy, layout)
    _C.norm_backward(
        *(layout == "nhwc", "avg", act, act_slope, gate, "none"),
        *(dy, x, dr, dx, mask, training, numbers, a, pre, w1, w2, dweight, dbias, *others),
    )
    if w1.dtype != w_type:
        dw1, dw2, db1, db2 = (g.to(w_type) for g in gradients[5:])
        return *gradients[:5], dw1, dw2, db1, db2
    return gradients


def _weights(
    dtype: torch.dtype, w1: Tensor, w2: Tensor, b1: Tensor | None = None, b2: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """w1, w2, b1, b2 as they are read: the sums go by their type, so float64 sums need them so."""
    if dtype == torch.float64:
        w1, w2 = w1.to(dtype), w2.to(dtype)
        b1, b2 = None if b1 is None else b1.to(dtype), None if b2 is None else b2.to(dtype)
    return flat(w1), flat(w2), flat(b1), flat(b2)


def _of_channels(t: OptionalTensor, dtype: torch.dtype) -> OptionalTensor:
    """t (C), or None, in ``dtype`` and its elements side by side."""
    return flat(t if t is None or t.dtype == dtype else t.to(dtype))
