"""The block and its phases: one launch forward, one launch backward."""

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
from se_kernels.core.layout import (
    empty_gradients,
    empty_mask,
    empty_output,
    empty_scale_gradients,
    flat,
    like_layout,
    readable,
    row_major,
)
from se_kernels.core.precision import compute_dtype


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
    mask = empty_mask(x, post == "relu")
    kept = (mask if post == "relu" else None, z, a, s)
    _run_forward(x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post, y, *kept)
    return y, mask, z, a, s


def _run_forward(x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post, y, *kept):
    """``kept``: mask, z, a and s, which may be None; none of them for an inference."""
    x, residual, w1, w2, b1, b2 = on_elements(x, residual, w1, w2, b1, b2)
    layout, x = readable(x)
    residual = like_layout(residual, layout)
    w1, w2, b1, b2 = row_major(w1), row_major(w2), flat(b1), flat(b2)
    sizes = sizes_of(x, w1.shape[0], w1.dtype, layout)
    workspace = workspace_of(x, sizes)
    library.native.forward(
        *launch(x, workspace),
        *(*sizes, squeeze, act, act_slope, gate, post),
        *place(x),
        *place(residual),
        *place(y),
        *map(pointer, (w1, w2, b1, b2, *(kept or [None] * 4))),
    )


def backward(dy, x, w1, w2, mask, z, a, s, squeeze, act, act_slope, gate, needs):
    """dx, dr (N, C, H, W), dw1, dw2, db1 (R,), db2 (C,); each empty where ``needs`` says so."""
    gradients = empty_gradients(x, w1, w2, needs)
    if x.shape[0] == 0 or x.shape[1] == 0:
        for gradient in gradients[2:]:
            gradient.zero_()
        return gradients
    dx, dr, *weights = (g if n else None for g, n in zip(gradients, needs, strict=True))
    x, dy, w1, w2 = on_elements(x, dy, w1, w2)
    layout, x = readable(x)
    dy, mask = like_layout(dy, layout), flat(mask)
    w1, w2 = row_major(w1), row_major(w2)
    z, a, s = z.contiguous(), a.contiguous(), s.contiguous()
    de, da, h = torch.empty_like(s), torch.empty_like(a), torch.empty_like(a)
    sizes = sizes_of(x, w1.shape[0], w1.dtype, layout)
    workspace = workspace_of(x, sizes)
    library.native.backward(
        *launch(x, workspace),
        *(*sizes, squeeze, act, act_slope, gate),
        *place(x),
        *place(dy),
        *place(dx),
        *place(dr),
        *map(pointer, (w1, w2, mask, a, s, de, da, h)),
    )
    if any(needs[2:]):
        library.native.weight_gradients(*launch(x), *sizes, *map(pointer, (de, da, h, z, *weights)))
    return gradients


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
    y, mask = empty_output(x), empty_mask(x, keep)
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
            *map(pointer, (s, mask if keep else None)),
        )
    return y, mask


def scale_backward(dy, x, mask, s, needs):
    """dx = g s and dr = g (N, C, H, W), ds (N, C); each empty where ``needs`` says so."""
    gradients = empty_scale_gradients(x, s, needs)
    dx, dr, ds = (g if n else None for g, n in zip(gradients, needs, strict=True))
    if s.numel() > 0:
        dy, x, s = on_elements(dy, x, s)
        layout, x = readable(x)
        dy, mask, s = like_layout(dy, layout), flat(mask), s.contiguous()
        sizes = sizes_of(x, 0, s.dtype, layout)
        workspace = workspace_of(x, sizes)
        library.native.scale_backward(
            *launch(x, workspace),
            *alone(sizes),
            *place(x),
            *place(dy),
            *place(dx),
            *place(dr),
            *map(pointer, (mask, s, ds)),
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
    """How the forward kernel cuts x (N, C, H, W) with w1 (R, C), in words."""
    layout, x = readable(x)
    sizes = sizes_of(x, w1.shape[0], w1.dtype, layout)
    return library.native.explain(device_of(x), *sizes)
