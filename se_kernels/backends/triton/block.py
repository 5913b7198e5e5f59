"""The block and its phases: torch tensors in, one launch forward, one launch backward."""

import torch

from se_kernels.backends.triton.launch import place_of
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
from se_kernels.reference import compute_dtype


def inference(x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post):
    """y (N, C, H, W)."""
    return forward(x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post)[0]


def forward(x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post):
    """y (N, C, H, W), mask, z (N, C), a (N, R), s (N, C)."""
    from se_kernels.backends.triton.kernels.forward import run_forward

    y = empty_output(x)
    small = dict(dtype=compute_dtype(x, w1), device=x.device)
    images, channels = x.shape[:2]
    z, s = (torch.empty(images, channels, **small) for _ in range(2))
    if images == 0 or channels == 0:
        a = torch.zeros(images, w1.shape[0], **small)
        return y, empty_mask(x, post == "relu"), z, a if b1 is None else a + b1, s
    a = torch.empty(images, w1.shape[0], **small)
    layout, x = readable(x)
    residual = like_layout(residual, layout)
    weights = row_major(w1), row_major(w2), flat(b1), flat(b2)
    variant = squeeze, act, act_slope, gate, post
    places = (place_of(t, layout) for t in (x, residual, y))
    run_forward(layout, *places, *weights, z, a, s, *variant)
    return y, packed(y, x) if post == "relu" else empty_mask(x, False), z, a, s


def backward(dy, x, w1, w2, mask, z, a, s, squeeze, act, act_slope, gate, needs):
    """dx, dr (N, C, H, W), dw1, dw2, db1 (R,), db2 (C,); each empty where ``needs`` says so."""
    from se_kernels.backends.triton.kernels.backward import run_backward
    from se_kernels.backends.triton.kernels.solve import run_gradients

    gradients = empty_gradients(x, w1, w2, needs)
    if x.shape[0] == 0 or x.shape[1] == 0:
        for gradient in gradients[2:]:
            gradient.zero_()
        return gradients
    dx, dr = (g if n else None for g, n in zip(gradients[:2], needs[:2], strict=True))
    y, post = _stand_in(mask, x)
    layout, x = readable(x)
    places = [
        place_of(t, layout) for t in (x, like_layout(dy, layout), like_layout(y, layout), dx, dr)
    ]
    variant = squeeze, act, act_slope, gate, post
    z, a, s = z.contiguous(), a.contiguous(), s.contiguous()
    de, da = run_backward(layout, *places, row_major(w1), row_major(w2), a, s, *variant)
    wanted = [g if n else None for g, n in zip(gradients[2:], needs[2:], strict=True)]
    run_gradients(a, de, da, z, wanted, None, act, act_slope)
    return gradients


def _stand_in(mask, x):
    """What the kernels still read for y: positive where a bit is set, else 0; and post."""
    return (None, "none") if mask is None else (unpacked(mask, x).to(x.dtype), "relu")


def squeeze(x, squeeze):
    """z (N, C) in the dtype of the sums."""
    from se_kernels.backends.triton.kernels.squeeze import run_squeeze

    z = torch.empty(x.shape[:2], dtype=compute_dtype(x, x), device=x.device)
    if z.numel() > 0:
        layout, x = readable(x)
        run_squeeze(layout, place_of(x, layout), z, squeeze)
    return z


def scale(x, s, residual, post, keep):
    """y (N, C, H, W), and its mask if it is to be kept."""
    from se_kernels.backends.triton.kernels.scale import run_scale

    y = empty_output(x)
    if y.numel() > 0:
        layout, x = readable(x)
        places = (place_of(t, layout) for t in (x, like_layout(residual, layout), y))
        run_scale(layout, *places, s.contiguous(), post)
    return y, packed(y, x) if keep else empty_mask(x, False)


def scale_backward(dy, x, mask, s, needs):
    """dx = g s and dr = g (N, C, H, W), ds (N, C); each empty where ``needs`` says so."""
    from se_kernels.backends.triton.kernels.scale import run_scale_backward

    gradients = empty_scale_gradients(x, s, needs)
    dx, dr, ds = (g if n else None for g, n in zip(gradients, needs, strict=True))
    if s.numel() > 0:
        y, post = _stand_in(mask, x)
        layout, x = readable(x)
        images = dy, x, y, dx, dr
        places = (place_of(like_layout(t, layout), layout) for t in images)
        run_scale_backward(layout, *places, s.contiguous(), ds, post)
    return gradients


def squeeze_backward(g, x, s, dz, squeeze):
    """dx (N, C, H, W) = g s, where there is a g, + what dz gives."""
    from se_kernels.backends.triton.kernels.squeeze import run_squeeze_backward

    dx = empty_output(x)
    if dx.numel() > 0:
        layout, x = readable(x)
        places = (place_of(t, layout) for t in (like_layout(g, layout), x, dx))
        run_squeeze_backward(layout, *places, flat(s), dz.contiguous(), squeeze)
    return dx
