"""The bits that tell where the final ReLU lets through: of nchw (N, C, bytes of pixels), of nhwc
(N, P, bytes of channels); element 8 j + k of a row is bit k of byte j. A block whose row has fewer
than 8 elements has one byte of it."""

import triton
import triton.language as tl

from se_kernels.backends.triton.phases.tile import channels_of, pixels_of, place


@triton.jit
def bytes_of(
    mask, unit, n0, c0, start, p1, N, C, P, NHWC: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Where the bytes of a block lie, (height, width / BITS), and which of them there are."""
    if NHWC:
        c = c0 // 8 + tl.arange(0, BLOCK_C // BITS)[None, :]
        n = unit + n0 + tl.zeros_like(c)
        p = pixels_of(start, NHWC, BLOCK_P)
        row = (C + 7) // 8
        rows = P
        inside = (n < N) & (c < row) & (p < p1)
    else:
        n, c = channels_of(unit, n0, c0, NHWC, ROWS, BLOCK_C)
        p = start // 8 + tl.arange(0, BLOCK_P // BITS)[None, :]
        row = (P + 7) // 8
        rows = C
        inside = (n < N) & (c < C) & (8 * p < p1)
    image = row.to(tl.int64) * rows
    return mask + place(n, c, p, image, row, NHWC), inside


@triton.jit
def store_mask(
    mask, kept, unit, n0, c0, start, p1, N, C, P, NHWC: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """kept: a block of booleans, false outside."""
    BITS: tl.constexpr = min(8, kept.shape[1])
    at, inside = bytes_of(
        mask, unit, n0, c0, start, p1, N, C, P, NHWC, ROWS, BLOCK_C, BLOCK_P, BITS
    )  # fmt: skip
    bits = kept.to(tl.int32).reshape(kept.shape[0], kept.shape[1] // BITS, BITS)
    packed = tl.sum(bits << tl.arange(0, BITS)[None, None, :], 2)
    tl.store(at, packed.to(tl.uint8), inside)


@triton.jit
def load_mask(
    mask, unit, n0, c0, start, p1, N, C, P, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    NHWC: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """A block of booleans."""
    BITS: tl.constexpr = min(8, WIDTH)
    at, inside = bytes_of(
        mask, unit, n0, c0, start, p1, N, C, P, NHWC, ROWS, BLOCK_C, BLOCK_P, BITS
    )  # fmt: skip
    packed = tl.load(at, inside, other=0).to(tl.int32)[:, :, None]
    bits = (packed >> tl.arange(0, BITS)[None, None, :]) & 1
    return bits.reshape(HEIGHT, WIDTH) != 0
