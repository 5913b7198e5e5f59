"""The block and its phases in csrc/cpu, which reads the tensors itself."""

from collections.abc import Sequence

import torch
from torch import Tensor

from se_kernels.backends.cpu.extension import _C
from se_kernels.backends.protocol import Forward
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
    y = empty_output(x)
    _run_forward(x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post, y)
    return y


def forward(
    x: Tensor, w1: Tensor, w2: Tensor, b1: Tensor | None, b2: Tensor | None,
    residual: Tensor | None, squeeze: str, act: str, act_slope: float, gate: str, post: str,
) -> Forward:  # fmt: skip
    """y (N, C, H, W), mask, z (N, C), a (N, R), s (N, C)."""
    y, mask, z, a, s = empty_forward(x, w1, post)
    variant = squeeze, act, act_slope, gate, post
    _run_forward(x, w1, w2, b1, b2, residual, *variant, y, mask, z, a, s)
    return y, mask, z, a, s


def _run_forward(
    x: Tensor, w1: Tensor, w2: Tensor, b1: Tensor | None, b2: Tensor | None,
    residual: Tensor | None, squeeze: str, act: str, act_slope: float, gate: str, post: str,
    y: Tensor, mask: Tensor | None = None, z: Tensor | None = None, a: Tensor | None = None,
    s: Tensor | None = None,
) -> None:  # fmt: skip
    layout, x = readable(x)
    residual = like_layout(residual, layout)
    w1, w2, b1, b2 = row_major(w1), row_major(w2), flat(b1), flat(b2)
    variant = squeeze, act, act_slope, gate, post
    _C.forward(layout == "nhwc", *variant, x, residual, y, w1, w2, b1, b2, mask, z, a, s)


def backward(
    dy: Tensor, x: Tensor, w1: Tensor, w2: Tensor, mask: Tensor | None, z: Tensor, a: Tensor,
    s: Tensor, squeeze: str, act: str, act_slope: float, gate: str, needs: Sequence[bool],
) -> Gradients:  # fmt: skip
    """dx, dr (N, C, H, W), dw1, dw2, db1 (R,), db2 (C,); each empty where ``needs`` says so."""
    gradients = empty_gradients(x, w1, w2, needs)
    dx, dr, *weight_gradients = gradients  # the native core sees no elements as not wanted
    layout, x = readable(x)
    dy = like_layout(dy, layout)
    w1, w2 = row_major(w1), row_major(w2)
    z, a, s = z.contiguous(), a.contiguous(), s.contiguous()
    variant = layout == "nhwc", squeeze, act, act_slope, gate, "none"
    _C.backward(*variant, x, dy, mask, dx, dr, w1, w2, z, a, s, *weight_gradients)
    return gradients


def squeeze(x: Tensor, squeeze: str) -> Tensor:
    """z (N, C) in the dtype of the sums."""
    z = torch.empty(x.shape[:2], dtype=compute_dtype(x, x))
    layout, x = readable(x)
    _C.squeeze(layout == "nhwc", x, z, squeeze)
    return z


def scale(
    x: Tensor, s: Tensor, residual: Tensor | None, post: str, keep: bool
) -> tuple[Tensor, Tensor]:
    """y (N, C, H, W), and its mask if it is to be kept."""
    y, mask = empty_output(x), empty_mask(x, keep)
    layout, x = readable(x)
    residual = like_layout(residual, layout)
    _C.scale(layout == "nhwc", x, residual, y, s.contiguous(), mask, post)
    return y, mask


def scale_backward(
    dy: Tensor, x: Tensor, mask: Tensor | None, s: Tensor, needs: Sequence[bool]
) -> ScaleGradients:
    """dx = g s and dr = g (N, C, H, W), ds (N, C); each empty where ``needs`` says so."""
    dx, dr, ds = empty_scale_gradients(x, s, needs)
    layout, x = readable(x)
    dy = like_layout(dy, layout)
    _C.scale_backward(layout == "nhwc", x, dy, mask, dx, dr, s.contiguous(), ds)
    return dx, dr, ds


def squeeze_backward(
    g: Tensor | None, x: Tensor, s: Tensor | None, dz: Tensor, squeeze: str
) -> Tensor:
    """dx (N, C, H, W) = g s, where there is a g, + what dz gives."""
    dx = empty_output(x)
    layout, x = readable(x)
    g = like_layout(g, layout)
    _C.squeeze_backward(layout == "nhwc", x, g, dx, flat(s), dz.contiguous(), squeeze)
    return dx
