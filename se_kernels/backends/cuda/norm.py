"""A batch norm before the block: one native call each way, and its sweeps alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from se_kernels.backends.cuda import library
from se_kernels.backends.cuda.launch import (
    PhaseSizes,
    alone,
    device_of,
    launch,
    on_elements,
    on_vectors,
    phase,
    place,
    pointer,
    problem,
    sizes_of,
    type_of,
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
    places_of_numbers,
    readable,
)
from se_kernels.core.precision import compute_dtype, norm_compute_dtype


def norm_moments(u: Tensor, wide: bool) -> tuple[Tensor, Tensor]:
    """mean and Σ (u - mean)² (N, C) in float64 of each image's channel; so summed if ``wide``."""
    dtype = torch.float64 if wide else compute_dtype(u, u)
    mean, m2 = (torch.empty(u.shape[:2], dtype=torch.float64, device=u.device) for _ in range(2))
    layout, u = readable(on_elements(u))
    sizes = alone(sizes_of(u, 0, dtype, layout))
    workspace = _workspace(u, sizes)
    library.native.norm_moments(
        *launch(u, workspace), *phase(sizes), *place(u), mean.data_ptr(), m2.data_ptr()
    )
    return mean, m2


def norm_squeeze(u: Tensor, norm: Tensor, pre: str) -> Tensor:
    """z (N, C), the mean of pre(t)."""
    z = norm.new_empty(u.shape[:2])
    layout, u = readable(on_elements(u))
    norm, constants = _constants(norm)
    sizes = alone(sizes_of(u, 0, norm.dtype, layout))
    workspace = _workspace(u, sizes)
    library.native.norm_squeeze(
        *launch(u, workspace), *phase(sizes), *place(u), *constants, pre, z.data_ptr()
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
    norm, constants = _constants(norm)
    s = on_vectors(s)
    library.native.norm_scale(
        *launch(u),
        *phase(alone(sizes_of(u, 0, norm.dtype, layout)), post=post),
        *place(u),
        *place(residual),
        *place(y),
        *constants,
        pre,
        s.data_ptr(),
        pointer(mask if keep else None),
    )
    return y, mask


def norm_scale_backward(
    dy: Tensor, u: Tensor, mask: Tensor | None, norm: Tensor, pre: str, write: bool
) -> tuple[Tensor, Tensor]:
    """g = dy where the mask is open, (N, C, H, W), empty unless ``write``; its sums (K, N, C)."""
    dr = empty_output(u) if write else u.new_empty(0)
    sums = norm.new_empty((2 if pre == "identity" else 5, *u.shape[:2]))
    layout, u = readable(on_elements(u))
    dy = like_layout(on_elements(dy), layout)
    norm, constants = _constants(norm)
    sizes = alone(sizes_of(u, 0, norm.dtype, layout))
    workspace = _workspace(u, sizes)
    library.native.norm_scale_backward(
        *launch(u, workspace),
        *phase(sizes),
        *place(dy),
        *place(u),
        *place(dr if write else None),
        *constants,
        pre,
        pointer(mask),
        sums.data_ptr(),
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
    norm, constants = _constants(norm)
    s, d, slope, offset = on_vectors(s), on_vectors(d), on_vectors(slope), on_vectors(offset)
    library.native.norm_squeeze_backward(
        *launch(u),
        *phase(alone(sizes_of(u, 0, norm.dtype, layout))),
        *place(g),
        *place(u),
        *place(du),
        *constants,
        pre,
        pointer(mask),
        *map(pointer, (s, d, slope, offset)),
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
    sizes = sizes_of(u, w1.shape[0], w1.dtype, layout)
    workspace = _bytes(u, library.native.norm_forward_workspace_bytes(device_of(u), *sizes))
    library.native.norm_forward(
        *launch(u, workspace),
        *problem(sizes, "avg", act, act_slope, gate, post),
        *place(u),
        *place(residual),
        *place(y),
        training,
        *_vector(mean),
        *_vector(var),
        pointer(means),
        momentum,
        eps,
        pointer(weight),
        pointer(bias),
        pre,
        *map(pointer, (w1, w2, b1, b2)),
        pointer(mask if keep else None),
        pointer(moved if moves else None),
        *places_of_numbers(numbers, u.shape[0]),
        a.data_ptr(),
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
    dweight, dbias, *others = gradients
    du, dr, d, *weights = (g if need else None for g, need in zip(others, needs, strict=True))
    layout, u = readable(on_elements(u))
    dy = like_layout(on_elements(dy), layout)
    numbers, a = on_vectors(numbers), on_vectors(a)
    sizes = sizes_of(u, w1.shape[0], w1.dtype, layout)
    workspace = _bytes(u, library.native.norm_backward_workspace_bytes(device_of(u), *sizes, pre))
    library.native.norm_backward(
        *launch(u, workspace),
        *problem(sizes, "avg", act, act_slope, gate, "none"),
        *place(dy),
        *place(u),
        *place(dr),
        *place(du),
        pointer(mask),
        training,
        *places_of_numbers(numbers, u.shape[0]),
        a.data_ptr(),
        pre,
        *map(pointer, (w1, w2, dweight, dbias, d, *weights)),
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


def _vector(t: Tensor | None) -> tuple[int, int]:
    """Address and type of t (C), or none."""
    return (0, 0) if t is None else (t.data_ptr(), type_of(t.dtype))


def _constants(norm: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """norm (3, C), which has to live until the launch, and where its mean, scale and bias lie."""
    norm = on_vectors(norm)
    first, row = norm.data_ptr(), norm.shape[1] * norm.element_size()
    return norm, (first, first + row, first + 2 * row)


def _workspace(u: Tensor, sizes: PhaseSizes) -> Tensor | None:
    size = library.native.norm_workspace_bytes(device_of(u), *sizes)
    return _bytes(u, size) if size else None


def _bytes(u: Tensor, size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device=u.device)
