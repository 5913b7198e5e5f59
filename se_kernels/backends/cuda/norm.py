"""A batch norm before the block: one launch a sweep."""

import sys
from functools import partial

import torch

from se_kernels.backends import composed_norm
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
)
from se_kernels.layout import empty_mask, empty_output, like_layout, readable
from se_kernels.reference import compute_dtype


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


norm_inference, norm_forward, norm_backward = (
    partial(composed, sys.modules[__name__])
    for composed in (
        composed_norm.norm_inference,
        composed_norm.norm_forward,
        composed_norm.norm_backward,
    )
)


def _constants(norm):
    """norm (3, C), which has to live until the launch, and where its mean, scale and bias lie."""
    (norm,) = on_vectors(norm)
    row = norm.shape[1] * norm.element_size()
    return norm, tuple(norm.data_ptr() + i * row for i in range(3))


def _workspace(u, sizes):
    size = library.native.norm_workspace_bytes(device_of(u), *sizes)
    return torch.empty(size, dtype=torch.uint8, device=u.device) if size else None
