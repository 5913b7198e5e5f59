"""moments: x (N, C, P) to the mean and Σ (x - mean)² of parts of each channel."""

import triton
import triton.language as tl

from se_kernels.backends.triton.phases.number import widened
from se_kernels.backends.triton.phases.squeeze import store_parts
from se_kernels.backends.triton.phases.tile import (
    channels_of,
    first_pixel,
    pixels_of,
    step_of,
    units_of,
)


@triton.jit
def finite_or_zero(v):
    return tl.where(tl.abs(v) < float("inf"), v, 0.0)


@triton.jit
def moments_tile(
    x, x_image, x_row, means, squares, n0, c0, split, splits, p0, p1, N, C,
    ACC: tl.constexpr, NHWC: tl.constexpr, G, BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """mean and Σ (x - mean)² of a tile's channels over its pixels p0 to p1, in float64.

    The sums are of x - shift, in ACC, shift the first block's mean: Σ (x - shift)² is then at most
    1 + blocks times Σ (x - mean)², and little of it cancels whatever x is.
    """
    AXIS: tl.constexpr = 0 if NHWC else 1
    for unit in range(units_of(n0, N, NHWC, G, BLOCK_C, ROWS)):
        n, c = channels_of(unit, n0, c0, NHWC, ROWS, BLOCK_C)
        valid = (n < N) & (c < C)
        from_x = first_pixel(x, n, c, x_image, x_row, NHWC, BLOCK_P)
        inside = valid & (pixels_of(p0, NHWC, BLOCK_P) < p1)
        at_x = from_x + p0 * step_of(x_row, NHWC)
        v = widened(tl.load(at_x, inside, other=0, eviction_policy="evict_last"), ACC)
        first = tl.minimum(BLOCK_P, p1 - p0).to(ACC)
        shift = finite_or_zero(tl.sum(v, AXIS, keep_dims=True) / first)
        total = tl.where(inside, v - shift, 0)
        square = total * total
        for start in range(p0 + BLOCK_P, p1, BLOCK_P):
            inside = valid & (pixels_of(start, NHWC, BLOCK_P) < p1)
            at_x = from_x + start * step_of(x_row, NHWC)
            v = widened(tl.load(at_x, inside, other=0, eviction_policy="evict_last"), ACC)
            away = tl.where(inside, v - shift, 0)
            total += away
            square += away * away
        pixels = (p1 - p0).to(ACC)
        off = tl.sum(total, AXIS, keep_dims=True) / pixels
        m2 = tl.sum(square, AXIS, keep_dims=True) - off * off * pixels
        m2 = tl.where(m2 < 0, 0, m2)
        store_parts(means, n, c, split, splits, shift.to(tl.float64) + off, valid, C)
        store_parts(squares, n, c, split, splits, m2, valid, C)
