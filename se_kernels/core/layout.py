"""How a tensor of images lies in memory, and how an output beside it will lie.

A kernel reads two layouts where they lie: "nchw" (each channel's H·W pixels adjacent, any strides
of N and C) and "nhwc" (each pixel's channels adjacent, any strides of N and of the pixel).
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from se_kernels.core.precision import compute_dtype, norm_compute_dtype

OptionalTensor = TypeVar("OptionalTensor", Tensor, Tensor | None)

# dx, dr, dw1, dw2, db1, db2; of a norm's weight and bias, du, dr, d, dw1, dw2, db1, db2; dx, dr, ds
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
NormGradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
ScaleGradients = tuple[Tensor, Tensor, Tensor]


def walk(t: Tensor) -> tuple[int, int, int] | None:
    """Strides, in elements, from image to image, channel to channel and pixel to pixel of t.

    None where no single stride walks the H·W pixels in order; 1 where there is at most one pixel.
    """
    _, channels, height, width = t.shape
    if t.is_contiguous():
        pixels = height * width
        return channels * pixels, pixels, 1
    image, channel, row, column = t.stride()
    if width > 1:
        if height > 1 and row != width * column:
            return None
        return image, channel, column
    return image, channel, row if height > 1 else 1


def layout_of(t: Tensor) -> str | None:
    """ "nchw" or "nhwc" where t (N, C, H, W) can be read as it lies, None where it needs a copy."""
    strides = walk(t)
    if strides is None:
        return None
    _, channels, height, width = t.shape
    _, channel, pixel = strides
    adjacent_channels = channels <= 1 or channel == 1
    if pixel == 1 and (height * width > 1 or not adjacent_channels):
        return "nchw"
    return "nhwc" if adjacent_channels else None


def memory_format_of(layout: str | None) -> torch.memory_format:
    """The dense memory format of a layout; contiguous for None."""
    return torch.channels_last if layout == "nhwc" else torch.contiguous_format


def readable(x: Tensor) -> tuple[str, Tensor]:
    """The layout of x, and x where it lies or, where it must be, a contiguous copy."""
    layout = layout_of(x)
    return (layout, x) if layout is not None else ("nchw", x.contiguous())


def like_layout(t: OptionalTensor, layout: str) -> OptionalTensor:
    """t where it lies if it can be walked as ``layout``, else a copy."""
    if t is None:
        return None
    strides = walk(t)
    if strides is not None:
        _, channel, pixel = strides
        if pixel == 1 if layout == "nchw" else (channel == 1 or t.shape[1] <= 1):
            return t
    return t.contiguous(memory_format=memory_format_of(layout))


def row_major(w: Tensor) -> Tensor:
    """w (rows, columns[, 1, 1]) with its columns side by side."""
    return w if w.is_contiguous() else w.flatten(1).contiguous()


def flat(b: OptionalTensor) -> OptionalTensor:
    """b, if there is one, with its elements side by side."""
    return None if b is None else b.contiguous()


def empty_output(x: Tensor) -> Tensor:
    """An uninitialised tensor of x's shape and dtype.

    channels_last where x lies so, else contiguous; a dense x keeps its very strides, as in eager.
    """
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return torch.empty_like(x)
    return torch.empty_like(x, memory_format=memory_format_of(layout_of(x)))


def empty_mask(x: Tensor, wanted: bool = True) -> Tensor:
    """An uninitialised mask of x, one bit per element: bit k of byte j of a row is its element
    8 j + k. Rows are channels (N, C, bytes) if x is read as nchw, pixels (N, P, bytes) as nhwc.
    Without elements if it is not wanted.
    """
    if not wanted:
        return x.new_empty(0, dtype=torch.uint8)
    images, channels, height, width = x.shape
    pixels = height * width
    rows, length = (pixels, channels) if layout_of(x) == "nhwc" else (channels, pixels)
    return torch.empty(images, rows, (length + 7) // 8, dtype=torch.uint8, device=x.device)


def unpacked(mask: Tensor, x: Tensor, layout: str | None = None) -> Tensor:
    """The mask of x as booleans (N, C, H, W); ``layout``: that of x when the mask was made."""
    _, channels, height, width = x.shape
    nhwc = (layout or layout_of(x)) == "nhwc"
    bits = mask[..., None] >> torch.arange(8, dtype=torch.uint8, device=mask.device) & 1
    bits = bits.flatten(2)[..., : channels if nhwc else height * width].bool()
    return (bits.transpose(1, 2) if nhwc else bits).reshape(x.shape)


def masked(dy: Tensor, mask: Tensor, x: Tensor, layout: str) -> Tensor:
    """g (N, C, H, W): dy where its bit is set, else 0; ``layout`` as in ``unpacked``."""
    return torch.where(unpacked(mask, x, layout), dy, 0)


def empty_forward(
    x: Tensor, w1: Tensor, post: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Uninitialised y (N, C, H, W), its mask, z (N, C), a (N, R), s (N, C)."""
    dtype, (images, channels) = compute_dtype(x, w1), x.shape[:2]
    z = torch.empty(images, channels, dtype=dtype, device=x.device)
    a = torch.empty(images, w1.shape[0], dtype=dtype, device=x.device)
    return empty_output(x), empty_mask(x, post == "relu"), z, a, torch.empty_like(z)


def empty_norm_numbers(
    u: Tensor, bn_weight: Tensor | None, w1: Tensor, moves: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Uninitialised numbers (4 + 2 N, C), a (N, R), and moved (2, C), empty unless the running
    statistics move."""
    dtype, (images, channels) = norm_compute_dtype(u, bn_weight, w1), u.shape[:2]
    numbers = torch.empty(4 + 2 * images, channels, dtype=dtype, device=u.device)
    a = torch.empty(images, w1.shape[0], dtype=dtype, device=u.device)
    # torch.empty, not new_empty: one operation in place of two
    moved = torch.empty((2, channels) if moves else 0, dtype=torch.float64, device=u.device)
    return numbers, a, moved


def empty_gradients(x: Tensor, w1: Tensor, w2: Tensor, needs: Sequence[bool]) -> Gradients:
    """Uninitialised dx, dr (N, C, H, W), and the weights' as below; empty where not wanted."""
    need_dx, need_dr, *weights = needs
    return (
        empty_output(x) if need_dx else x.new_empty(0),
        empty_output(x) if need_dr else x.new_empty(0),
        *empty_weight_gradients(w1, w2, weights),
    )


def empty_weight_gradients(
    w1: Tensor, w2: Tensor, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Uninitialised dw1 and dw2 (row-major), db1 (R,), db2 (C,).

    One that ``needs`` does not want has no elements.
    """
    need_dw1, need_dw2, need_db1, need_db2 = needs
    return (
        _empty_row_major(w1) if need_dw1 else w1.new_empty(0),
        _empty_row_major(w2) if need_dw2 else w1.new_empty(0),
        w1.new_empty(w1.shape[0]) if need_db1 else w1.new_empty(0),
        w1.new_empty(w2.shape[0]) if need_db2 else w1.new_empty(0),
    )


def empty_norm_gradients(
    u: Tensor, numbers: Tensor, w1: Tensor, w2: Tensor, needs: Sequence[bool]
) -> NormGradients:
    """Uninitialised: the gradients of a norm's weight and bias (C), du, dr (N, C, H, W), d (N, C),
    dw1, dw2, db1 (R,), db2 (C,).

    One of the last seven that ``needs`` does not want has no elements.
    """
    (images, channels), reduced = u.shape[:2], w1.shape[0]

    def empty(like: Tensor, *shape: int, need: bool = True) -> Tensor:
        return torch.empty(shape if need else 0, dtype=like.dtype, device=like.device)

    def empty_weight(
        w: Tensor, need: bool
    ) -> Tensor:  # with its own strides, which may be those of channels_last
        if need and w.is_contiguous():
            return torch.empty_strided(w.shape, w.stride(), dtype=w.dtype, device=w.device)
        return empty(w, *w.shape, need=need)

    need_du, need_dr, need_d, need_dw1, need_dw2, need_db1, need_db2 = needs
    return (
        empty(numbers, channels),
        empty(numbers, channels),
        empty_output(u) if need_du else empty(u, need=False),
        empty_output(u) if need_dr else empty(u, need=False),
        empty(numbers, images, channels, need=need_d),
        empty_weight(w1, need_dw1),
        empty_weight(w2, need_dw2),
        empty(w1, reduced, need=need_db1),
        empty(w1, channels, need=need_db2),
    )


def empty_scale_gradients(x: Tensor, s: Tensor, needs: Sequence[bool]) -> ScaleGradients:
    """Uninitialised dx, dr (N, C, H, W) and ds (N, C); empty where ``needs`` does not want one."""
    need_dx, need_dr, need_ds = needs
    return (
        empty_output(x) if need_dx else x.new_empty(0),
        empty_output(x) if need_dr else x.new_empty(0),
        s.new_empty(s.shape) if need_ds else s.new_empty(0),
    )


def _empty_row_major(w: Tensor) -> Tensor:
    return torch.empty_like(w) if w.is_contiguous() else w.new_empty(w.shape)
