"""The sweeps with a batch norm: torch tensors in, plain pointers to csrc/ out."""

import torch

from se_kernels.backends.cpu.extension import _C
from se_kernels.backends.cpu.places import phase, place, pointer, problem
from se_kernels.layout import (
    empty_mask,
    empty_output,
    flat,
    like_layout,
    readable,
    row_major,
)
from se_kernels.reference import compute_dtype, norm_compute_dtype


def norm_moments(x, wide):
    """mean and m2 (N, C) in float64: of each image's channel, m2 = Σ (x - mean)²."""
    mean, m2 = (torch.empty(x.shape[:2], dtype=torch.float64) for _ in range(2))
    layout, x = readable(x)
    sums = mean if wide else torch.empty(0, dtype=compute_dtype(x, x))
    _C.norm_moments(*phase(x, sums, layout), *place(x), mean.data_ptr(), m2.data_ptr())
    return mean, m2


def norm_squeeze(x, norm, pre):
    """z (N, C)."""
    z = torch.empty(x.shape[:2], dtype=norm.dtype)
    layout, x = readable(x)
    norm = norm.contiguous()
    _C.norm_squeeze(*phase(x, norm, layout), *place(x), *_norm(norm, pre), z.data_ptr())
    return z


def norm_scale(x, norm, s, residual, pre, post, keep):
    """y (N, C, H, W), and its mask if it is to be kept."""
    y = empty_output(x)
    mask = empty_mask(x) if keep else x.new_empty(0, dtype=torch.uint8)
    layout, x = readable(x)
    residual, s, norm = like_layout(residual, layout), s.contiguous(), norm.contiguous()
    _C.norm_scale(
        *phase(x, norm, layout, post=post),
        *place(x),
        *place(residual),
        *place(y),
        *_norm(norm, pre),
        s.data_ptr(),
        mask.data_ptr() if keep else 0,
    )
    return y, mask


def norm_scale_backward(dy, x, mask, norm, pre, write):
    """dr = g (N, C, H, W) if it is to be written, and the sums (2 or 5, N, C)."""
    dr = empty_output(x) if write else x.new_empty(0)
    sums = torch.empty((2 if pre == "identity" else 5, *x.shape[:2]), dtype=norm.dtype)
    layout, x = readable(x)
    dy, norm = like_layout(dy, layout), norm.contiguous()
    _C.norm_scale_backward(
        *phase(x, norm, layout),
        *place(dy),
        *place(x),
        *place(dr if write else None),
        *_norm(norm, pre),
        pointer(mask),
        sums.data_ptr(),
    )
    return dr, sums


def norm_squeeze_backward(g, x, mask, norm, s, d, pre, slope, offset):
    """dx (N, C, H, W) = scale pre'(t) (g s + d) + slope (x - mean) + offset."""
    dx = empty_output(x)
    layout, x = readable(x)
    g, norm = like_layout(g, layout), norm.contiguous()
    s, d, slope, offset = s.contiguous(), d.contiguous(), flat(slope), flat(offset)
    _C.norm_squeeze_backward(
        *phase(x, norm, layout),
        *place(g),
        *place(x),
        *place(dx),
        *_norm(norm, pre),
        pointer(mask),
        s.data_ptr(),
        d.data_ptr(),
        pointer(slope),
        pointer(offset),
    )
    return dx


def norm_inference(
    x, bn_weight, bn_bias, mean, var, eps, w1, w2, b1, b2, residual, pre, act, act_slope, gate, post
):
    """y (N, C, H, W), the norm in evaluation mode."""
    y = empty_output(x)
    dtype = norm_compute_dtype(x, bn_weight, w1)
    layout, x = readable(x)
    residual = like_layout(residual, layout)
    w1, w2, b1, b2 = row_major(w1), row_major(w2), flat(b1), flat(b2)
    if dtype == torch.float64 and w1.dtype != dtype:  # the sums go by the weights' type
        w1, w2, b1, b2 = (None if t is None else t.to(dtype) for t in (w1, w2, b1, b2))
    channels = [
        None if t is None else t.to(dtype).contiguous() for t in (mean, var, bn_weight, bn_bias)
    ]
    _C.norm_forward(
        *problem(x, w1, layout, "avg", act, act_slope, gate, post),
        *place(x),
        *place(residual),
        *place(y),
        *map(pointer, channels),
        eps,
        pre,
        w1.data_ptr(),
        w2.data_ptr(),
        pointer(b1),
        pointer(b2),
    )
    return y


def _norm(norm, pre):
    """Addresses of mean, scale and bias, rows of norm (3, C), and what comes after it."""
    return *(row.data_ptr() for row in norm), pre
