"""Where things lie: a tile is G images by BLOCK_C channels by a part of the pixels.

It is walked in blocks: of nchw ROWS (image, channel) pairs by BLOCK_P pixels, (ROWS, BLOCK_P); of
nhwc one image's BLOCK_P pixels by BLOCK_C channels, (BLOCK_P, BLOCK_C).
"""

import triton
import triton.language as tl


@triton.jit
def aligned(size, UNIT: tl.constexpr):
    """size, a multiple of UNIT, told so to the compiler."""
    return (size // UNIT) * UNIT


@triton.jit
def tile_of(
    group, tile, blocks, span, N, C, P, G, BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    """(block, split, n0, c0, p0, p1) of a group's tile: its first image and channel, its pixels."""
    block, split = tile % blocks, tile // blocks
    p0 = split * span * BLOCK_P
    return block, split, group * G, block * BLOCK_C, p0, tl.minimum(p0 + span * BLOCK_P, P)


@triton.jit
def units_of(
    n0, N, NHWC: tl.constexpr, G, BLOCK_C: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """How many of the images and channels of a tile a walk takes one after the other."""
    images = tl.minimum(G, N - n0)
    return images if NHWC else (images * BLOCK_C + ROWS - 1) // ROWS


@triton.jit
def channels_of(unit, n0, c0, NHWC: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    """n, c of the unit-th block: (ROWS, 1) of nchw, (1, BLOCK_C) of nhwc."""
    if NHWC:
        c = c0 + tl.arange(0, BLOCK_C)[None, :]
        n = unit + n0 + tl.zeros_like(c)
    else:
        row = unit * ROWS + tl.arange(0, ROWS)[:, None]
        n = n0 + row // BLOCK_C
        c = c0 + row % BLOCK_C
    return n, c


@triton.jit
def pixels_of(p0, NHWC: tl.constexpr, BLOCK_P: tl.constexpr):
    """(1, BLOCK_P) of nchw, (BLOCK_P, 1) of nhwc."""
    p = p0 + tl.arange(0, BLOCK_P)
    return p[:, None] if NHWC else p[None, :]


@triton.jit
def place(n, c, p, image, row, NHWC: tl.constexpr):
    """Element offset from the strides of image and row; a row is a channel, of nhwc a pixel."""
    n, image, row = n.to(tl.int64), image.to(tl.int64), row.to(tl.int64)
    return n * image + (p * row + c if NHWC else c * row + p)


@triton.jit
def first_pixel(t, n, c, image, row, NHWC: tl.constexpr, BLOCK_P: tl.constexpr):
    """Where a block at pixel 0 lies in t; one at pixel ``start`` lies start * ``step_of`` on."""
    return t + place(n, c, pixels_of(0, NHWC, BLOCK_P), image, row, NHWC)


@triton.jit
def step_of(row, NHWC: tl.constexpr):
    """Elements from a pixel to the next."""
    return row.to(tl.int64) if NHWC else 1


@triton.jit
def group_channels(n0, c0, G: tl.constexpr, BLOCK_C: tl.constexpr):
    """n (G, 1) and c (1, BLOCK_C) of a tile."""
    return n0 + tl.arange(0, G)[:, None], c0 + tl.arange(0, BLOCK_C)[None, :]


@triton.jit
def program_tile(blocks, splits, REVERSED: tl.constexpr):
    """group, tile of a program that has one tile; REVERSED: the last come first."""
    program = tl.program_id(0)
    if REVERSED:
        program = tl.num_programs(0) - 1 - program
    return program // (blocks * splits), program % (blocks * splits)
