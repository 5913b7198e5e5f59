"""norm_moments, u (N, C, P) to mean and Σ (u - mean)² (N, C); norm_squeeze, to z (N, C), the mean
of v; and norm_squeeze_backward, the gradient of u."""

import triton
import triton.language as tl

from se_kernels.backends.triton.phases.mask import load_mask
from se_kernels.backends.triton.phases.norm import (
    load_norm,
    pre_activate,
    pre_activate_backward,
)
from se_kernels.backends.triton.phases.number import rounded, widened
from se_kernels.backends.triton.phases.squeeze import store_parts
from se_kernels.backends.triton.phases.tile import channels_of, pixels_of, place, units_of


@triton.jit
def finite_or_zero(v):
    return tl.where(tl.abs(v) < float("inf"), v, 0.0)


@triton.jit
def store_part(parts, n, c, split, splits, part, valid, C):
    """What a tile found in its pixels, one of (N, splits, C)."""
    store_parts(parts, 0, n, c, split, splits, part, part, part, valid, C, 1)


@triton.jit
def store_sum(parts, n, c, split, splits, terms, valid, C, AXIS: tl.constexpr):
    store_part(parts, n, c, split, splits, tl.sum(terms, AXIS, keep_dims=True), valid, C)


@triton.jit
def norm_moments_tile(
    u, u_image, u_row, means, squares, n0, c0, split, splits, p0, p1, N, C,
    ACC: tl.constexpr, NHWC: tl.constexpr, G: tl.constexpr, BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """mean and Σ (u - mean)² of a tile's channels over its pixels p0 to p1, in float64.

    The sums are of u - shift, in ACC, shift the first block's mean: Σ (u - shift)² is then at most
    1 + blocks times Σ (u - mean)², and little of it cancels whatever u is.
    """
    AXIS: tl.constexpr = 0 if NHWC else 1
    for unit in range(units_of(n0, N, NHWC, G, BLOCK_C, ROWS)):
        n, c = channels_of(unit, n0, c0, NHWC, ROWS, BLOCK_C)
        valid = (n < N) & (c < C)
        p = pixels_of(p0, NHWC, BLOCK_P)
        inside = valid & (p < p1)
        at = u + place(n, c, p, u_image, u_row, NHWC)
        v = widened(tl.load(at, inside, other=0, eviction_policy="evict_last"), ACC)
        first = tl.minimum(BLOCK_P, p1 - p0).to(ACC)
        shift = finite_or_zero(tl.sum(v, AXIS, keep_dims=True) / first)
        total = tl.where(inside, v - shift, 0)
        square = total * total
        for start in range(p0 + BLOCK_P, p1, BLOCK_P):
            p = pixels_of(start, NHWC, BLOCK_P)
            inside = valid & (p < p1)
            at = u + place(n, c, p, u_image, u_row, NHWC)
            v = widened(tl.load(at, inside, other=0, eviction_policy="evict_last"), ACC)
            away = tl.where(inside, v - shift, 0)
            total += away
            square += away * away
        pixels = (p1 - p0).to(ACC)
        off = tl.sum(total, AXIS, keep_dims=True) / pixels
        m2 = tl.sum(square, AXIS, keep_dims=True) - off * off * pixels
        m2 = tl.where(m2 < 0, 0, m2)
        mean = shift.to(tl.float64) + off
        store_part(means, n, c, split, splits, mean, valid, C)
        store_part(squares, n, c, split, splits, m2, valid, C)


@triton.jit
def norm_squeeze_tile(
    u, u_image, u_row, norm, parts, n0, c0, split, splits, p0, p1, N, C, P,
    PRE: tl.constexpr, NHWC: tl.constexpr, G: tl.constexpr, BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Σ v / P of a tile's channels over its pixels p0 to p1."""
    AXIS: tl.constexpr = 0 if NHWC else 1
    ACC: tl.constexpr = norm.dtype.element_ty
    HEIGHT: tl.constexpr = BLOCK_P if NHWC else ROWS
    WIDTH: tl.constexpr = BLOCK_C if NHWC else BLOCK_P
    for unit in range(units_of(n0, N, NHWC, G, BLOCK_C, ROWS)):
        n, c = channels_of(unit, n0, c0, NHWC, ROWS, BLOCK_C)
        valid = (n < N) & (c < C)
        mean, scale, bias = load_norm(norm, c, valid, C)
        total = tl.zeros([HEIGHT, WIDTH], ACC)
        for start in range(p0, p1, BLOCK_P):
            p = pixels_of(start, NHWC, BLOCK_P)
            inside = valid & (p < p1)
            at = u + place(n, c, p, u_image, u_row, NHWC)
            away = widened(tl.load(at, inside, other=0, eviction_policy="evict_last"), ACC) - mean
            total += tl.where(inside, pre_activate(away * scale + bias, PRE), 0)
        sums = tl.sum(total, AXIS, keep_dims=True)
        store_part(parts, n, c, split, splits, sums / P.to(ACC), valid, C)


@triton.jit
def norm_squeeze_backward_tile(
    g, g_image, g_row, u, u_image, u_row, du, du_image, du_row, mask, norm, s, d, slope, offset,
    n0, c0, p0, p1, N, C, P,
    PRE: tl.constexpr, NHWC: tl.constexpr, G: tl.constexpr, BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """du of a tile; u is read only for pre and for the slope."""
    ACC: tl.constexpr = norm.dtype.element_ty
    HEIGHT: tl.constexpr = BLOCK_P if NHWC else ROWS
    WIDTH: tl.constexpr = BLOCK_C if NHWC else BLOCK_P
    for unit in range(units_of(n0, N, NHWC, G, BLOCK_C, ROWS)):
        n, c = channels_of(unit, n0, c0, NHWC, ROWS, BLOCK_C)
        valid = (n < N) & (c < C)
        at = n.to(tl.int64) * C + c
        mean, scale, bias = load_norm(norm, c, valid, C)
        gate, spread = tl.load(s + at, valid, other=0), tl.load(d + at, valid, other=0)
        if slope is not None:
            tilt, lift = tl.load(slope + c, valid, other=0), tl.load(offset + c, valid, other=0)
        for start in range(p0, p1, BLOCK_P):
            p = pixels_of(start, NHWC, BLOCK_P)
            inside = valid & (p < p1)
            at_g = g + place(n, c, p, g_image, g_row, NHWC)
            grad = widened(tl.load(at_g, inside, other=0, eviction_policy="evict_first"), ACC)
            if mask is not None:
                kept = load_mask(
                    mask, unit, n0, c0, start, p1, N, C, P, HEIGHT, WIDTH, NHWC, ROWS, BLOCK_C,
                    BLOCK_P,
                )  # fmt: skip
                grad = tl.where(kept, grad, 0)
            grad = grad * gate + spread
            if PRE != "identity" or slope is not None:
                at_u = u + place(n, c, p, u_image, u_row, NHWC)
                v = tl.load(at_u, inside, other=0, eviction_policy="evict_first")
                away = widened(v, ACC) - mean
                grad = scale * pre_activate_backward(grad, away * scale + bias, PRE)
                if slope is not None:
                    grad += tilt * away + lift
            else:
                grad *= scale
            at_du = du + place(n, c, p, du_image, du_row, NHWC)
            tl.store(at_du, rounded(grad, du.dtype.element_ty), inside, cache_modifier=".cs")
