"""The block and its phases: one launch forward, one launch backward."""

import os

import torch
from torch import Tensor

from se_kernels.backends.cuda import library
from se_kernels.backends.cuda.launch import (
    alone,
    device_of,
    launch,
    on_elements,
    place,
    pointer,
    sizes_of,
    workspace_of,
)
from se_kernels.layout import (
    empty_gradients,
    empty_mask,
    empty_output,
    empty_scale_gradients,
    flat,
    like_layout,
    packed,
    readable,
    row_major,
    unpacked,
)
from se_kernels.products import weight_gradients
from se_kernels.reference import compute_dtype

# "cluster" or "two_sweeps" makes every launch go that way or raise; see docs/kernels.md
way = os.environ.get("SE_KERNELS_CUDA_WAY") or "automatic"


def inference(x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post):
    """y (N, C, H, W)."""
    y = empty_output(x)
    if x.shape[0] > 0 and x.shape[1] > 0:
        _run_forward(x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post, y)
    return y


def forward(x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post):
    """y (N, C, H, W), mask, z (N, C), a (N, R), s (N, C)."""
    small = dict(dtype=compute_dtype(x, w1), device=x.device)
    y = empty_output(x)
    images, channels = x.shape[:2]
    z, s = (torch.empty(images, channels, **small) for _ in range(2))
    if images == 0 or channels == 0:
        a = torch.zeros(images, w1.shape[0], **small)
        return y, empty_mask(x, post == "relu"), z, a if b1 is None else a + b1, s
    a = torch.empty(images, w1.shape[0], **small)
    _run_forward(x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post, y, z, a, s)
    return y, packed(y, x) if post == "relu" else empty_mask(x, False), z, a, s


def _run_forward(
    x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post, y, z=None, a=None, s=None
):
    x, residual, w1, w2, b1, b2 = on_elements(x, residual, w1, w2, b1, b2)
    layout, x = readable(x)
    residual = like_layout(residual, layout)
    w1, w2, b1, b2 = row_major(w1), row_major(w2), flat(b1), flat(b2)
    sizes = sizes_of(x, w1.shape[0], w1.dtype, layout)
    workspace = workspace_of(x, sizes)
    library.native.forward(
        *launch(x, workspace),
        way,
        *(*sizes, squeeze, act, act_slope, gate, post),
        *place(x),
        *place(residual),
        *place(y),
        *map(pointer, (w1, w2, b1, b2, z, a, s)),
    )


def backward(dy, x, w1, w2, mask, z, a, s, squeeze, act, act_slope, gate, needs):
    """dx, dr (N, C, H, W), dw1, dw2, db1 (R,), db2 (C,); each empty where ``needs`` says so."""
    gradients = empty_gradients(x, w1, w2, needs)
    if x.shape[0] == 0 or x.shape[1] == 0:
        for gradient in gradients[2:]:
            gradient.zero_()
        return gradients
    dx, dr = (g if n else None for g, n in zip(gradients[:2], needs[:2], strict=True))
    y, post = _stand_in(mask, x)
    x, dy, w1, w2 = on_elements(x, dy, w1, w2)
    layout, x = readable(x)
    dy, y = like_layout(dy, layout), like_layout(y, layout)
    w1, w2 = row_major(w1), row_major(w2)
    z, a, s = z.contiguous(), a.contiguous(), s.contiguous()
    de, da, h = torch.empty_like(s), torch.empty_like(a), torch.empty_like(a)
    sizes = sizes_of(x, w1.shape[0], w1.dtype, layout)
    workspace = workspace_of(x, sizes)
    library.native.backward(
        *launch(x, workspace),
        way,
        *(*sizes, squeeze, act, act_slope, gate, post),
        *place(x),
        *place(dy),
        *place(y),
        *place(dx),
        *place(dr),
        *map(pointer, (w1, w2, a, s, de, da, h)),
    )
    weight_gradients(gradients[2:], needs[2:], de, da, h, z)
    return gradients


def _stand_in(mask, x):
    """What the kernels still read for y: positive where a bit is set, else 0; and post."""
    return (None, "none") if mask is None else (unpacked(mask, x).to(x.dtype), "relu")


def squeeze(x, squeeze):
    """z (N, C) in the dtype of the sums."""
    z = torch.empty(x.shape[:2], dtype=compute_dtype(x, x), device=x.device)
    if z.numel() > 0:
        (x,) = on_elements(x)
        layout, x = readable(x)
        sizes = sizes_of(x, 0, z.dtype, layout)
        workspace = workspace_of(x, sizes)
        library.native.squeeze(
            *launch(x, workspace), *alone(sizes), squeeze, *place(x), z.data_ptr()
        )
    return z


def scale(x, s, residual, post, keep):
    """y (N, C, H, W), and its mask if it is to be kept."""
    y = empty_output(x)
    if y.numel() > 0:
        x, s, residual = on_elements(x, s, residual)
        layout, x = readable(x)
        residual, s = like_layout(residual, layout), s.contiguous()
        sizes = sizes_of(x, 0, s.dtype, layout)
        workspace = workspace_of(x, sizes)
        library.native.scale(
            *launch(x, workspace),
            *(*alone(sizes), post),
            *place(x),
            *place(residual),
            *place(y),
            s.data_ptr(),
        )
    return y, packed(y, x) if keep else empty_mask(x, False)


def scale_backward(dy, x, mask, s, needs):
    """dx = g s and dr = g (N, C, H, W), ds (N, C); each empty where ``needs`` says so."""
    gradients = empty_scale_gradients(x, s, needs)
    dx, dr, ds = (g if n else None for g, n in zip(gradients, needs, strict=True))
    if s.numel() > 0:
        y, post = _stand_in(mask, x)
        dy, x, s = on_elements(dy, x, s)
        layout, x = readable(x)
        dy, y, s = like_layout(dy, layout), like_layout(y, layout), s.contiguous()
        sizes = sizes_of(x, 0, s.dtype, layout)
        workspace = workspace_of(x, sizes)
        library.native.scale_backward(
            *launch(x, workspace),
            *(*alone(sizes), post),
            *place(x),
            *place(dy),
            *place(y),
            *place(dx),
            *place(dr),
            *map(pointer, (s, ds)),
        )
    return gradients


def squeeze_backward(g, x, s, dz, squeeze):
    """dx (N, C, H, W) = g s, where there is a g, + what dz gives."""
    dx = empty_output(x)
    if dx.numel() > 0:
        g, x, s, dz = on_elements(g, x, s, dz)
        layout, x = readable(x)
        g, s, dz = like_layout(g, layout), flat(s), dz.contiguous()
        sizes = sizes_of(x, 0, dz.dtype, layout)
        workspace = workspace_of(x, sizes)
        library.native.squeeze_backward(
            *launch(x, workspace),
            *(*alone(sizes), squeeze),
            *place(x),
            *place(g),
            *place(dx),
            *map(pointer, (s, dz)),
        )
    return dx


def explain(x: Tensor, w1: Tensor) -> str:
    """Which way the forward kernel goes for x (N, C, H, W) and w1 (R, C), and why, in words."""
    layout, x = readable(x)
    sizes = sizes_of(x, w1.shape[0], w1.dtype, layout)
    y = empty_output(x)
    return library.native.explain(
        *(device_of(x), 0, 0, way, *sizes, "avg", "relu", 0.0, "sigmoid", "none"),
        *place(x),
        *place(None),
        *place(y),
        *[0] * 7,
    )
