"""The block and its phases: one launch forward, one launch backward."""

from collections.abc import Sequence

import torch
from torch import Tensor

from se_kernels.backends.cuda import library
from se_kernels.backends.cuda.launch import (
    device_of,
    launch,
    on_elements,
    phase_workspace,
    workspace_of,
)
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
    if x.shape[0] > 0 and x.shape[1] > 0:
        _run_forward(x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post, y)
    return y


def forward(
    x: Tensor, w1: Tensor, w2: Tensor, b1: Tensor | None, b2: Tensor | None,
    residual: Tensor | None, squeeze: str, act: str, act_slope: float, gate: str, post: str,
) -> Forward:  # fmt: skip
    """y (N, C, H, W), mask, z (N, C), a (N, R), s (N, C)."""
    y, mask, z, a, s = empty_forward(x, w1, post)
    if z.numel() == 0:
        a.zero_()
        return y, mask, z, a if b1 is None else a + b1, s
    variant = squeeze, act, act_slope, gate, post
    _run_forward(x, w1, w2, b1, b2, residual, *variant, y, mask, z, a, s)
    return y, mask, z, a, s


def _run_forward(
    x: Tensor, w1: Tensor, w2: Tensor, b1: Tensor | None, b2: Tensor | None,
    residual: Tensor | None, squeeze: str, act: str, act_slope: float, gate: str, post: str,
    y: Tensor, mask: Tensor | None = None, z: Tensor | None = None, a: Tensor | None = None,
    s: Tensor | None = None,
) -> None:  # fmt: skip
    layout, x = readable(on_elements(x))
    residual, nhwc = like_layout(on_elements(residual), layout), layout == "nhwc"
    w1, w2 = row_major(on_elements(w1)), row_major(on_elements(w2))
    b1, b2 = flat(on_elements(b1)), flat(on_elements(b2))
    size = library.native.workspace_bytes(device_of(x), nhwc, x, w1)
    library.native.forward(
        *launch(x, workspace_of(x, size)),
        *(nhwc, squeeze, act, act_slope, gate, post),
        *(x, residual, y, w1, w2, b1, b2, mask, z, a, s),
    )


def backward(
    dy: Tensor, x: Tensor, w1: Tensor, w2: Tensor, mask: Tensor | None, z: Tensor, a: Tensor,
    s: Tensor, squeeze: str, act: str, act_slope: float, gate: str, needs: Sequence[bool],
) -> Gradients:  # fmt: skip
    """dx, dr (N, C, H, W), dw1, dw2, db1 (R,), db2 (C,); each empty where ``needs`` says so."""
    gradients = empty_gradients(x, w1, w2, needs)
    if x.shape[0] == 0 or x.shape[1] == 0:
        for gradient in gradients[2:]:
            gradient.zero_()
        return gradients
    dx, dr, *weights = gradients  # the kernels see no elements as not wanted
    layout, x = readable(on_elements(x))
    dy, nhwc = like_layout(on_elements(dy), layout), layout == "nhwc"
    w1, w2 = row_major(on_elements(w1)), row_major(on_elements(w2))
    z, a, s = z.contiguous(), a.contiguous(), s.contiguous()
    de, da, h = torch.empty_like(s), torch.empty_like(a), torch.empty_like(a)
    size = library.native.workspace_bytes(device_of(x), nhwc, x, w1)
    library.native.backward(
        *launch(x, workspace_of(x, size)),
        *(nhwc, squeeze, act, act_slope, gate, "none"),
        *(x, dy, flat(mask), dx, dr, w1, w2, a, s, de, da, h),
    )
    if any(needs[2:]):
        library.native.weight_gradients(*launch(x), nhwc, x, w1, de, da, h, z, *weights)
    return gradients


def squeeze(x: Tensor, squeeze: str) -> Tensor:
    """z (N, C) in the dtype of the sums."""
    z = torch.empty(x.shape[:2], dtype=compute_dtype(x, x), device=x.device)
    if z.numel() > 0:
        layout, x = readable(on_elements(x))
        nhwc = layout == "nhwc"
        library.native.squeeze(
            *launch(x, phase_workspace(x, nhwc, z.dtype)), *(nhwc, x, z, squeeze)
        )
    return z


def scale(
    x: Tensor, s: Tensor, residual: Tensor | None, post: str, keep: bool
) -> tuple[Tensor, Tensor]:
    """y (N, C, H, W), and its mask if it is to be kept."""
    y, mask = empty_output(x), empty_mask(x, keep)
    if y.numel() > 0:
        layout, x = readable(on_elements(x))
        residual = like_layout(on_elements(residual), layout)
        s, nhwc = on_elements(s).contiguous(), layout == "nhwc"
        library.native.scale(
            *launch(x, phase_workspace(x, nhwc, s.dtype)), *(nhwc, x, residual, y, s, mask, post)
        )
    return y, mask


def scale_backward(
    dy: Tensor, x: Tensor, mask: Tensor | None, s: Tensor, needs: Sequence[bool]
) -> ScaleGradients:
    """dx = g s and dr = g (N, C, H, W), ds (N, C); each empty where ``needs`` says so."""
    dx, dr, ds = empty_scale_gradients(x, s, needs)
    if s.numel() > 0:
        layout, x = readable(on_elements(x))
        dy, nhwc = like_layout(on_elements(dy), layout), layout == "nhwc"
        s = on_elements(s).contiguous()
        library.native.scale_backward(
            *launch(x, phase_workspace(x, nhwc, s.dtype)),
            *(nhwc, x, dy, flat(mask), dx, dr, s, ds),
        )
    return dx, dr, ds


def squeeze_backward(
    g: Tensor | None, x: Tensor, s: Tensor | None, dz: Tensor, squeeze: str
) -> Tensor:
    """dx (N, C, H, W) = g s, where there is a g, + what dz gives."""
    dx = empty_output(x)
    if dx.numel() > 0:
        layout, x = readable(on_elements(x))
        g = like_layout(on_elements(g), layout)
        s, dz, nhwc = flat(on_elements(s)), on_elements(dz).contiguous(), layout == "nhwc"
        library.native.squeeze_backward(
            *launch(x, phase_workspace(x, nhwc, dz.dtype)), *(nhwc, x, g, dx, s, dz, squeeze)
        )
    return dx


def explain(x: Tensor, w1: Tensor) -> str:
    """How the forward kernel cuts x (N, C, H, W) with w1 (R, C), in words."""
    layout, x = readable(x)
    words: str = library.native.explain(device_of(x), layout == "nhwc", x, w1)
    return words
