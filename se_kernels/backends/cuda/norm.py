"""A batch norm before the block: one native call each way, and its sweeps alone."""

import torch

from se_kernels.backends.cuda import library
from se_kernels.backends.cuda.launch import (
    alone,
    device_of,
    launch,
    on_elements,
    on_vectors,
    place,
    pointer,
    sizes_of,
    type_of,
)
from se_kernels.core.layout import (
    empty_mask,
    empty_norm_gradients,
    empty_output,
    flat,
    like_layout,
    places_of_numbers,
    readable,
)
from se_kernels.core.precision import compute_dtype, norm_compute_dtype


def norm_moments(u, wide):
    """mean and Σ (u - mean)² (N, C) in float64 of each image's channel; so summed if ``wide``."""
    dtype = torch.float64 if wide else compute_dtype(u, u)
    mean, m2 = (torch.empty(u.shape[:2], dtype=torch.float64, device=u.device) for _ in range(2))
    (u,) = on_elements(u)
    layout, u = readable(u)
    sizes = alone(sizes_of(u, 0, dtype, layout))
    workspace = _workspace(u, sizes)
    library.native.norm_moments(
        *launch(u, workspace), *sizes, *place(u), mean.data_ptr(), m2.data_ptr()
    )
    return mean, m2


def norm_squeeze(u, norm, pre):
    """z (N, C), the mean of pre(t)."""
    z = norm.new_empty(u.shape[:2])
    (u,) = on_elements(u)
    layout, u = readable(u)
    norm, constants = _constants(norm)
    sizes = alone(sizes_of(u, 0, norm.dtype, layout))
    workspace = _workspace(u, sizes)
    library.native.norm_squeeze(
        *launch(u, workspace), *sizes, *constants, pre, *place(u), z.data_ptr()
    )
    return z


def norm_scale(u, norm, s, residual, pre, post, keep):
    """y (N, C, H, W) = post(s pre(t) + residual); where ``keep``, its mask."""
    y = empty_output(u)
    mask = empty_mask(u, keep)
    u, residual = on_elements(u, residual)
    layout, u = readable(u)
    residual = like_layout(residual, layout)
    norm, constants = _constants(norm)
    (s,) = on_vectors(s)
    library.native.norm_scale(
        *launch(u),
        *alone(sizes_of(u, 0, norm.dtype, layout)),
        *(*constants, pre, post),
        *place(u),
        *place(residual),
        *place(y),
        s.data_ptr(),
        pointer(mask if keep else None),
    )
    return y, mask


def norm_scale_backward(dy, u, mask, norm, pre, write):
    """g = dy where the mask is open, (N, C, H, W), empty unless ``write``; its sums (K, N, C)."""
    dr = empty_output(u) if write else u.new_empty(0)
    sums = norm.new_empty((2 if pre == "identity" else 5, *u.shape[:2]))
    dy, u = on_elements(dy, u)
    layout, u = readable(u)
    dy = like_layout(dy, layout)
    norm, constants = _constants(norm)
    sizes = alone(sizes_of(u, 0, norm.dtype, layout))
    workspace = _workspace(u, sizes)
    library.native.norm_scale_backward(
        *launch(u, workspace),
        *(*sizes, *constants, pre),
        *place(dy),
        *place(u),
        pointer(mask),
        *place(dr if write else None),
        sums.data_ptr(),
    )
    return dr, sums


def norm_squeeze_backward(g, u, mask, norm, s, d, pre, slope, offset):
    """du (N, C, H, W) = scale pre'(t) (g s + d) + slope (u - mean) + offset."""
    du = empty_output(u)
    g, u = on_elements(g, u)
    layout, u = readable(u)
    g = like_layout(g, layout)
    norm, constants = _constants(norm)
    s, d, slope, offset = on_vectors(s, d, slope, offset)
    library.native.norm_squeeze_backward(
        *launch(u),
        *alone(sizes_of(u, 0, norm.dtype, layout)),
        *(*constants, pre),
        *place(g),
        *place(u),
        pointer(mask),
        *map(pointer, (s, d, slope, offset)),
        *place(du),
    )
    return du


def norm_inference(
    u, bn_weight, bn_bias, mean, var, eps, w1, w2, b1, b2, residual, pre, act, act_slope, gate, post
):
    """y (N, C, H, W), the norm in evaluation mode."""
    return norm_forward(
        u, bn_weight, bn_bias, mean, var, None, w1, w2, b1, b2, residual,
        False, 0.0, eps, pre, act, act_slope, gate, post, False,
    )[0]  # fmt: skip


def norm_forward(
    u, bn_weight, bn_bias, mean, var, means, w1, w2, b1, b2, residual,
    training, momentum, eps, pre, act, act_slope, gate, post, keep,
):  # fmt: skip
    """What ``ops.norm_forward`` returns."""
    dtype, (images, channels) = norm_compute_dtype(u, bn_weight, w1), u.shape[:2]
    y = empty_output(u)
    mask = empty_mask(u, keep)
    numbers = u.new_empty((4 + 2 * images, channels), dtype=dtype)
    a = u.new_empty((images, w1.shape[0]), dtype=dtype)
    moves = training and mean is not None
    moved = u.new_empty((2, channels) if moves else 0, dtype=torch.float64)
    u, residual = on_elements(u, residual)
    layout, u = readable(u)
    residual = like_layout(residual, layout)
    w1, w2, b1, b2 = _weights(dtype, w1, w2, b1, b2)
    weight, bias = (
        t if t is None or t.dtype == dtype else t.to(dtype) for t in (bn_weight, bn_bias)
    )
    weight, bias, mean, var, means = map(flat, on_elements(weight, bias, mean, var, means))
    sizes = sizes_of(u, w1.shape[0], w1.dtype, layout)
    workspace = _bytes(u, library.native.norm_forward_workspace_bytes(device_of(u), *sizes))
    library.native.norm_forward(
        *launch(u, workspace),
        *(*sizes, act, act_slope, gate, post),
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
        *places_of_numbers(numbers, images),
        a.data_ptr(),
    )
    return y, mask, numbers, a, moved


def norm_backward(dy, u, mask, numbers, a, w1, w2, training, pre, act, act_slope, gate, needs):
    """What ``ops.norm_backward`` returns."""
    w_type = w1.dtype
    w1, w2 = _weights(numbers.dtype, w1, w2)
    gradients = empty_norm_gradients(u, numbers, w1, w2, needs)
    dweight, dbias, *others = gradients
    du, dr, d, *weights = (g if need else None for g, need in zip(others, needs, strict=True))
    dy, u = on_elements(dy, u)
    layout, u = readable(u)
    dy = like_layout(dy, layout)
    numbers, a = on_vectors(numbers, a)
    sizes = sizes_of(u, w1.shape[0], w1.dtype, layout)
    workspace = _bytes(u, library.native.norm_backward_workspace_bytes(device_of(u), *sizes, pre))
    library.native.norm_backward(
        *launch(u, workspace),
        *(*sizes, act, act_slope, gate),
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
        gradients = *gradients[:5], *(g.to(w_type) for g in gradients[5:])
    return gradients


def _weights(dtype, *weights):
    """w1, w2, b1, b2 as they are read: in the type of the sums where that is float64."""
    if dtype == torch.float64:
        weights = (None if t is None else t.to(dtype) for t in weights)
    return map(flat, on_elements(*weights))


def _vector(t):
    """Address and type of t (C), or none."""
    return (0, 0) if t is None else (t.data_ptr(), type_of(t.dtype))


def _constants(norm):
    """norm (3, C), which has to live until the launch, and where its mean, scale and bias lie."""
    (norm,) = on_vectors(norm)
    row = norm.shape[1] * norm.element_size()
    return norm, tuple(norm.data_ptr() + i * row for i in range(3))


def _workspace(u, sizes):
    size = library.native.norm_workspace_bytes(device_of(u), *sizes)
    return _bytes(u, size) if size else None


def _bytes(u, size):
    return torch.empty(size, dtype=torch.uint8, device=u.device)
