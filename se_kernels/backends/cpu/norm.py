"""The sweeps with a batch norm: torch tensors in, plain pointers to csrc/ out."""

import torch

from se_kernels.backends.cpu.extension import _C, DTYPES
from se_kernels.backends.cpu.native_args import phase, place, pointer, problem
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
    mask = empty_mask(x, keep)
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
    w1, w2, b1, b2 = _weights(dtype, w1, w2, b1, b2)
    channels = [_of_channels(t, dtype) for t in (mean, var, bn_weight, bn_bias)]
    _C.norm_inference(
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


def norm_forward(
    x, bn_weight, bn_bias, mean, var, means, w1, w2, b1, b2, residual,
    training, momentum, eps, pre, act, act_slope, gate, post, keep,
):  # fmt: skip
    """What ``ops.norm_forward`` returns."""
    dtype, (images, channels) = norm_compute_dtype(x, bn_weight, w1), x.shape[:2]
    y = empty_output(x)
    mask = empty_mask(x, keep)
    numbers = torch.empty(4 + 2 * images, channels, dtype=dtype)
    a = torch.empty(images, w1.shape[0], dtype=dtype)
    moves = training and mean is not None
    moved = torch.empty((2, channels) if moves else 0, dtype=torch.float64)
    layout, x = readable(x)
    residual = like_layout(residual, layout)
    w1, w2, b1, b2 = _weights(dtype, w1, w2, b1, b2)
    weight, bias = _of_channels(bn_weight, dtype), _of_channels(bn_bias, dtype)
    mean, var, means = flat(mean), flat(var), flat(means)
    _C.norm_forward(
        *problem(x, w1, layout, "avg", act, act_slope, gate, post),
        *place(x),
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
        w1.data_ptr(),
        w2.data_ptr(),
        pointer(b1),
        pointer(b2),
        mask.data_ptr() if keep else 0,
        moved.data_ptr() if moves else 0,
        *places_of_numbers(numbers, images),
        a.data_ptr(),
    )
    return y, mask, numbers, a, moved


def norm_backward(dy, x, mask, numbers, a, w1, w2, training, pre, act, act_slope, gate, needs):
    """What ``ops.norm_backward`` returns."""
    w_type = w1.dtype
    w1, w2 = _weights(numbers.dtype, w1, w2)
    gradients = empty_norm_gradients(x, numbers, w1, w2, needs)
    dweight, dbias, *others = gradients
    dx, dr, d, *weights = (g if need else None for g, need in zip(others, needs, strict=True))
    layout, x = readable(x)
    dy = like_layout(dy, layout)
    _C.norm_backward(
        *problem(x, w1, layout, "avg", act, act_slope, gate, "none"),
        *place(dy),
        *place(x),
        *place(dr),
        *place(dx),
        pointer(mask),
        training,
        *places_of_numbers(numbers, x.shape[0]),
        a.data_ptr(),
        pre,
        w1.data_ptr(),
        w2.data_ptr(),
        dweight.data_ptr(),
        dbias.data_ptr(),
        pointer(d),
        *map(pointer, weights),
    )
    if w1.dtype != w_type:
        gradients = *gradients[:5], *(g.to(w_type) for g in gradients[5:])
    return gradients


def _weights(dtype, *weights):
    """w1, w2, b1, b2 as they are read: the sums go by their type, so float64 sums need them so."""
    if dtype == torch.float64:
        weights = (None if t is None else t.to(dtype) for t in weights)
    return map(flat, weights)


def _of_channels(t, dtype):
    """t (C), or None, in ``dtype`` and its elements side by side."""
    return flat(t if t is None or t.dtype == dtype else t.to(dtype))


def _vector(t):
    """Address and type of t (C), or none."""
    return (0, 0) if t is None else (t.data_ptr(), DTYPES[t.dtype])


def _norm(norm, pre):
    """Addresses of mean, scale and bias, rows of norm (3, C), and what comes after it."""
    return *(row.data_ptr() for row in norm), pre
