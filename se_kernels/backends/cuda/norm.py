"""A batch norm before the block: one native call each way, and its sweeps alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from se_kernels.backends.cuda import library
from se_kernels.backends.cuda.launch import (
    device_of,
    launch,
    norm_workspace,
    on_elements,
    on_vectors,
    workspace_of,
)
from se_kernels.backends.protocol import NormForward
from se_kernels.core.layout import (
    NormGradients,
    empty_mask,
    empty_norm_gradients,
    empty_norm_numbers,
    empty_output,
    flat,
    like_layout,
    readable,
)
from se_kernels.core.precision import compute_dtype, norm_compute_dtype


def norm_moments(u: Tensor, wide: bool) -> tuple[Tensor, Tensor]:
    """mean and Σ (u - mean)² (N, C) in float64 of each image's channel; so summed if ``wide``."""
    dtype = torch.float64 if wide else compute_dtype(u, u)
    mean, m2 = (torch.empty(u.shape[:2], dtype=torch.float64, device=u.device) for _ in range(2))
    layout, u = readable(on_elements(u))
    nhwc = layout == "nhwc"
    library.native.norm_moments(
        *launch(u, norm_workspace(u, nhwc, dtype)), *(nhwc, u, mean, m2, wide)
    )
    return mean, m2


def norm_squeeze(u: Tensor, norm: Tensor, pre: str) -> Tensor:
    """z (N, C), the mean of pre(t)."""
    z = norm.new_empty(u.shape[:2])
    layout, u = readable(on_elements(u))
    norm, nhwc = on_vectors(norm), layout == "nhwc"
    library.native.norm_squeeze(
        *launch(u, norm_workspace(u, nhwc, norm.dtype)), *(nhwc, u, norm, pre, z)
    )
    return z


def norm_scale(
    u: Tensor, norm: Tensor, s: Tensor, residual: Tensor | None, pre: str, post: str, keep: bool
) -> tuple[Tensor, Tensor]:
    """y (N, C, H, W) = post(s pre(t) + residual); where ``keep``, its mask."""
    y = empty_output(u)
    mask = empty_mask(u, keep)
    layout, u = readable(on_elements(u))
    residual = like_layout(on_elements(residual), layout)
    norm, s = on_vectors(norm), on_vectors(s)
    library.native.norm_scale(
        *launch(u), *(layout == "nhwc", u, residual, y, norm, pre, s, mask, post)
    )
    return y, mask


def norm_scale_backward(
    dy: Tensor, u: Tensor, mask: Tensor | None, norm: Tensor, pre: str, write: bool
) -> tuple[Tensor, Tensor]:
    """g = dy where the mask is open, (N, C, H, W), empty unless ``write``; its sums (K, N, C)."""
    dr = empty_output(u) if write else u.new_empty(0)
    sums = norm.new_empty((2 if pre == "identity" else 5, *u.shape[:2]))
    layout, u = readable(on_elements(u))
    dy, nhwc = like_layout(on_elements(dy), layout), layout == "nhwc"
    norm = on_vectors(norm)
    library.native.norm_scale_backward(
        *launch(u, norm_workspace(u, nhwc, norm.dtype)),
        *(nhwc, dy, u, dr, norm, pre, mask, sums),
    )
    return dr, sums


def norm_squeeze_backward(
    g: Tensor, u: Tensor, mask: Tensor | None, norm: Tensor, s: Tensor, d: Tensor, pre: str,
    slope: Tensor | None, offset: Tensor | None,
) -> Tensor:  # fmt: skip
    """du (N, C, H, W) = scale pre'(t) (g s + d) + slope (u - mean) + offset."""
    du = empty_output(u)
    layout, u = readable(on_elements(u))
    g = like_layout(on_elements(g), layout)
    norm, s, d = on_vectors(norm), on_vectors(s), on_vectors(d)
    slope, offset = on_vectors(slope), on_vectors(offset)
    library.native.norm_squeeze_backward(
        *launch(u), *(layout == "nhwc", g, u, du, norm, pre, mask, s, d, slope, offset)
    )
    return du


def norm_inference(
    u: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None, mean: Tensor, var: Tensor,
    eps: float, w1: Tensor, w2: Tensor, b1: Tensor | None, b2: Tensor | None,
    residual: Tensor | None, pre: str, act: str, act_slope: float, gate: str, post: str,
) -> Tensor:  # fmt: skip
    """y (N, C, H, W), the norm in evaluation mode."""
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
    dtype = norm_compute_dtype(u, bn_weight, w1)
    y = empty_output(u)
    mask = empty_mask(u, keep)
    moves = training and mean is not None
    numbers, a, moved = empty_norm_numbers(u, bn_weight, w1, moves)
    layout, u = readable(on_elements(u))
    residual = like_layout(on_elements(residual), layout)
    w1, w2, b1, b2 = _weights(dtype, w1, w2, b1, b2)
    weight, bias = (
        t if t is None or t.dtype == dtype else t.to(dtype) for t in (bn_weight, bn_bias)
    )
    weight, bias = flat(on_elements(weight)), flat(on_elements(bias))
    mean, var, means = (flat(on_elements(t)) for t in (mean, var, means))
    nhwc = layout == "nhwc"
    size = library.native.norm_forward_workspace_bytes(device_of(u), nhwc, u, w1)
    library.native.norm_forward(
        *launch(u, workspace_of(u, size)),
        *(nhwc, "avg", act, act_slope, gate, post),
        *(u, residual, y, training, mean, var, means, momentum, eps, weight, bias, pre),
        *(w1, w2, b1, b2, mask, moved, numbers, a),
    )
    return y, mask, numbers, a, moved


def norm_backward(
    dy: Tensor, u: Tensor, mask: Tensor | None, numbers: Tensor, a: Tensor, w1: Tensor, w2: Tensor,
    training: bool, pre: str, act: str, act_slope: float, gate: str, needs: Sequence[bool],
) -> NormGradients:  # fmt: skip
    """What ``ops.norm_backward`` returns."""
    w_type = w1.dtype
    w1, w2, _, _ = _weights(numbers.dtype, w1, w2)
    gradients = empty_norm_gradients(u, numbers, w1, w2, needs)
    dweight, dbias, du, dr, *others = gradients  # the kernels see no elements as not wanted
    layout, u = readable(on_elements(u))
    dy, nhwc = like_layout(on_elements(dy), layout), layout == "nhwc"
    numbers, a = on_vectors(numbers), on_vectors(a)
    size = library.native.norm_backward_workspace_bytes(device_of(u), nhwc, u, w1, pre)
    library.native.norm_backward(
        *launch(u, workspace_of(u, size)),
        *(nhwc, "avg", act, act_slope, gate, "none"),
        *(dy, u, dr, du, mask, training, numbers, a, pre, w1, w2, dweight, dbias, *others),
    )
    if w1.dtype != w_type:
        dw1, dw2, db1, db2 = (g.to(w_type) for g in gradients[5:])
        return *gradients[:5], dw1, dw2, db1, db2
    return gradients


def _weights(
    dtype: torch.dtype, w1: Tensor, w2: Tensor, b1: Tensor | None = None, b2: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """w1, w2, b1, b2 as they are read: in the type of the sums where that is float64."""
    if dtype == torch.float64:
        w1, w2 = w1.to(dtype), w2.to(dtype)
        b1, b2 = None if b1 is None else b1.to(dtype), None if b2 is None else b2.to(dtype)
    w1, w2 = flat(on_elements(w1)), flat(on_elements(w2))
    return w1, w2, flat(on_elements(b1)), flat(on_elements(b2))
