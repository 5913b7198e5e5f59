"""The block and its phases: torch tensors in, one launch forward, one launch backward."""

from collections.abc import Sequence

import torch
from torch import Tensor

from se_kernels.backends.protocol import Forward
from se_kernels.backends.triton.launch import Place, place_of
from se_kernels.core.layout import (
    Gradients,
    ScaleGradients,
    empty_forward,
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


def inference(
    x: Tensor, w1: Tensor, w2: Tensor, b1: Tensor | None, b2: Tensor | None,
    residual: Tensor | None, squeeze: str, act: str, act_slope: float, gate: str, post: str,
) -> Tensor:  # fmt: skip
    """y (N, C, H, W)."""
    return forward(x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post)[0]


def forward(
    x: Tensor, w1: Tensor, w2: Tensor, b1: Tensor | None, b2: Tensor | None,
    residual: Tensor | None, squeeze: str, act: str, act_slope: float, gate: str, post: str,
) -> Forward:  # fmt: skip
    """y (N, C, H, W), mask, z (N, C), a (N, R), s (N, C)."""
    from se_kernels.backends.triton.kernels.forward import run_forward

    y, mask, z, a, s = empty_forward(x, w1, post)
    if z.numel() == 0:
        a.zero_()
        return y, mask, z, a if b1 is None else a + b1, s
    layout, x = readable(x)
    residual = like_layout(residual, layout)
    weights = row_major(w1), row_major(w2), flat(b1), flat(b2)
    variant = squeeze, act, act_slope, gate, post
    places = place_of(x, layout), place_of(residual, layout), place_of(y, layout)
    bits = mask if post == "relu" else None
    run_forward(layout, *places, bits, *weights, z, a, s, *variant)
    return y, mask, z, a, s


def backward(
    dy: Tensor, x: Tensor, w1: Tensor, w2: Tensor, mask: Tensor | None, z: Tensor, a: Tensor,
    s: Tensor, squeeze: str, act: str, act_slope: float, gate: str, needs: Sequence[bool],
) -> Gradients:  # fmt: skip
    """dx, dr (N, C, H, W), dw1, dw2, db1 (R,), db2 (C,); each empty where ``needs`` says so."""
    from se_kernels.backends.triton.kernels.backward import run_backward
    from se_kernels.backends.triton.kernels.solve import run_gradients

    gradients = empty_gradients(x, w1, w2, needs)
    if x.shape[0] == 0 or x.shape[1] == 0:
        for gradient in gradients[2:]:
            gradient.zero_()
        return gradients
    dx, dr = (g if n else None for g, n in zip(gradients[:2], needs[:2], strict=True))
    layout, x = readable(x)
    at, at_dy = place_of(x, layout), place_of(like_layout(dy, layout), layout)
    places = at, at_dy, place_of(dx, layout), place_of(dr, layout)
    variant = squeeze, act, act_slope, gate
    z, a, s = z.contiguous(), a.contiguous(), s.contiguous()
    de, da = run_backward(layout, *places, mask, row_major(w1), row_major(w2), a, s, *variant)
    wanted = [g if n else None for g, n in zip(gradients[2:], needs[2:], strict=True)]
    run_gradients(a, de, da, z, wanted, None, act, act_slope)
    return gradients


def squeeze(x: Tensor, squeeze: str) -> Tensor:
    """z (N, C) in the dtype of the sums."""
    from se_kernels.backends.triton.kernels.squeeze import run_squeeze

    dtype = compute_dtype(x, x)
    if x.shape[0] == 0 or x.shape[1] == 0:
        return x.new_empty(x.shape[:2], dtype=dtype)
    layout, x = readable(x)
    parts = run_squeeze(layout, place_of(x, layout), None, dtype, squeeze, "identity")
    if squeeze == "avg":
        return _total(parts[0])
    peak = _peak(parts[1])
    return peak.clone() if squeeze == "max" else 0.5 * (_total(parts[0]) + peak)


def scale(
    x: Tensor, s: Tensor, residual: Tensor | None, post: str, keep: bool
) -> tuple[Tensor, Tensor]:
    """y (N, C, H, W), and its mask if it is to be kept."""
    from se_kernels.backends.triton.kernels.scale import run_scale

    y, mask = empty_output(x), empty_mask(x, keep)
    if y.numel() > 0:
        layout, x = readable(x)
        at_residual = place_of(like_layout(residual, layout), layout)
        places = place_of(x, layout), at_residual, place_of(y, layout)
        bits = mask if keep else None
        run_scale(layout, *places, bits, None, s.contiguous(), "identity", post)
    return y, mask


def scale_backward(
    dy: Tensor, x: Tensor, mask: Tensor | None, s: Tensor, needs: Sequence[bool]
) -> ScaleGradients:
    """dx = g s and dr = g (N, C, H, W), ds (N, C); each empty where ``needs`` says so."""
    from se_kernels.backends.triton.kernels.scale import run_scale_backward

    dx, dr, ds = empty_scale_gradients(x, s, needs)
    need_dx, need_dr, need_ds = needs
    if s.numel() > 0:
        layout, x = readable(x)
        places = (
            *(place_of(like_layout(dy, layout), layout), place_of(x, layout)),
            place_of(dx if need_dx else None, layout),
            place_of(dr if need_dr else None, layout),
        )
        small = mask, None, s.contiguous(), int(need_ds), s.dtype
        parts = run_scale_backward(layout, *places, *small, "avg", "identity")
        ds = _total(parts[0]) if need_ds else ds
    return dx, dr, ds


def squeeze_backward(
    g: Tensor | None, x: Tensor, s: Tensor | None, dz: Tensor, squeeze: str
) -> Tensor:
    """dx (N, C, H, W) = g s, where there is a g, + what dz gives."""
    from se_kernels.backends.triton.kernels.squeeze import run_squeeze_backward

    dx = empty_output(x)
    if dx.numel() > 0:
        layout, x = readable(x)
        at_g, at = place_of(like_layout(g, layout), layout), place_of(x, layout)
        dz = 0.5 * dz if squeeze == "avgmax" else dz.contiguous()
        peak, share = (None, None) if squeeze == "avg" else _share_of_peaks(layout, at, dz)
        small = None, None, flat(s), dz / (x.shape[2] * x.shape[3]), None, peak, share
        run_squeeze_backward(layout, at_g, at, place_of(dx, layout), *small, squeeze, "identity")
    return dx


def _share_of_peaks(layout: str, x: Place | None, dz: Tensor) -> tuple[Tensor, Tensor]:
    """The maxima (N, C), and dz shared among the pixels that are one; x: (tensor, image, row)."""
    from se_kernels.backends.triton.kernels.scale import run_scale_backward

    absent = None, None, None, None, None  # dx, dr, mask, norm, s
    _, peaks, ties = run_scale_backward(
        layout, None, x, *absent, 3, dz.dtype, "max", "identity"
    )  # fmt: skip
    peak = _peak(peaks)
    return peak, dz / torch.where(peaks == peak[:, None], ties, 0).sum(1)  # none equals a NaN


def _total(parts: Tensor) -> Tensor:
    """(N, C) of parts of the pixels (N, splits, C)."""
    return parts[:, 0] if parts.shape[1] == 1 else parts.sum(1)


def _peak(parts: Tensor) -> Tensor:
    return parts[:, 0] if parts.shape[1] == 1 else parts.amax(1)
