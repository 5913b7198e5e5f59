"""squeeze: equation 2, v (N, C, P) to z (N, C), and its backward.

v is x, or pre(norm of x) where there is a norm; then dx = scale pre' (g s + dz / P) + slope
(x - mean) + offset, else g s + dz / P.
"""

import triton
import triton.language as tl

from se_kernels.backends.triton.phases.mask import load_mask
from se_kernels.backends.triton.phases.norm import (
    load_norm,
    pre_activate,
    pre_activate_backward,
)
from se_kernels.backends.triton.phases.number import rounded, widened
from se_kernels.backends.triton.phases.tile import (
    channels_of,
    first_pixel,
    pixels_of,
    step_of,
    units_of,
)


@triton.jit
def higher(x, peak):
    """Whether x replaces the peak: a NaN does, and is not replaced but by one."""
    return (x > peak) | (x != x)


@triton.jit
def peak_along(v, AXIS: tl.constexpr, KEEP: tl.constexpr = False):
    """The maximum along an axis, NaN where there is one."""
    missing = tl.max((v != v).to(tl.int32), AXIS, keep_dims=KEEP) > 0
    peak = tl.max(tl.where(v != v, float("-inf"), v), AXIS, keep_dims=KEEP)
    return tl.where(missing, float("nan"), peak)


@triton.jit
def store_parts(parts, n, c, split, splits, found, valid, C):
    """What a tile found in its pixels, one of (N, splits, C)."""
    tl.store(parts + (n.to(tl.int64) * splits + split) * C + c, found, valid)


@triton.jit
def store_sum(parts, n, c, split, splits, terms, valid, C, AXIS: tl.constexpr):
    found = tl.sum(terms, AXIS, keep_dims=True)
    store_parts(parts, n, c, split, splits, found, valid, C)


@triton.jit
def squeeze_tile(
    x, x_image, x_row, norm, parts, plane, n0, c0, split, splits, p0, p1, N, C, P,
    SQUEEZE: tl.constexpr, PRE: tl.constexpr, NHWC: tl.constexpr, G,
    BLOCK_C: tl.constexpr, ROWS: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Σ v / P, and the largest v, of a tile's channels over its pixels p0 to p1."""
    AXIS: tl.constexpr = 0 if NHWC else 1
    ACC: tl.constexpr = parts.dtype.element_ty
    HEIGHT: tl.constexpr = BLOCK_P if NHWC else ROWS
    WIDTH: tl.constexpr = BLOCK_C if NHWC else BLOCK_P
    for unit in range(units_of(n0, N, NHWC, G, BLOCK_C, ROWS)):
        n, c = channels_of(unit, n0, c0, NHWC, ROWS, BLOCK_C)
        valid = (n < N) & (c < C)
        total = tl.zeros([HEIGHT, WIDTH], ACC)
        peak = tl.full([HEIGHT, WIDTH], float("-inf"), ACC)
        if norm is not None:
            mean, scale, bias = load_norm(norm, c, valid, C)
        from_x = first_pixel(x, n, c, x_image, x_row, NHWC, BLOCK_P)
        for start in range(p0, p1, BLOCK_P):
            inside = valid & (pixels_of(start, NHWC, BLOCK_P) < p1)
            at_x = from_x + start * step_of(x_row, NHWC)
            v = widened(tl.load(at_x, inside, other=0, eviction_policy="evict_last"), ACC)
            if norm is not None:
                v = tl.where(inside, pre_activate((v - mean) * scale + bias, PRE), 0)
            if SQUEEZE != "max":
                total += v
            if SQUEEZE != "avg":
                peak = tl.where(inside & higher(v, peak), v, peak)
        sums = tl.sum(total, AXIS, keep_dims=True) / P.to(ACC)
        store_parts(parts, n, c, split, splits, sums, valid, C)
        if SQUEEZE != "avg":
            top = peak_along(peak, AXIS, True)
            store_parts(parts + plane, n, c, split, splits, top, valid, C)


@triton.jit
def load_parts(parts, n, c, start, splits, valid, C, BLOCK_S: tl.constexpr):
    """Where the parts from start lie, (BLOCK_S, G, BLOCK_C), and which of them there are."""
    split = start + tl.arange(0, BLOCK_S)[:, None, None]
    at = parts + (n[None].to(tl.int64) * splits + split) * C + c[None]
    return at, valid[None] & (split < splits)


@triton.jit
def gather_squeeze(
    parts, plane, z, n, c, valid, splits, C, SQUEEZE: tl.constexpr, BLOCK_S: tl.constexpr
):  # fmt: skip
    """z (G, BLOCK_C) from the parts of all tiles; stored too."""
    ACC: tl.constexpr = parts.dtype.element_ty
    total = tl.zeros([BLOCK_S, n.shape[0], c.shape[1]], ACC)
    peak = tl.full(total.shape, float("-inf"), ACC)
    for start in range(0, splits, BLOCK_S):
        at, inside = load_parts(parts, n, c, start, splits, valid, C, BLOCK_S)
        total += tl.load(at, inside, other=0, cache_modifier=".cg")
        if SQUEEZE != "avg":
            v = tl.load(at + plane, inside, other=float("-inf"), cache_modifier=".cg")
            peak = tl.where(higher(v, peak), v, peak)
    squeezed = tl.sum(total, 0)
    if SQUEEZE == "max":
        squeezed = peak_along(peak, 0)
    if SQUEEZE == "avgmax":
        squeezed = 0.5 * (squeezed + peak_along(peak, 0))
    tl.store(z + n.to(tl.int64) * C + c, squeezed, valid)
    return tl.where(valid, squeezed, 0)


@triton.jit
def spread_gradient(
    dz, peak, ties, mean, share, n, c, valid, P, C, SQUEEZE: tl.constexpr
):  # fmt: skip
    """What dz (G, BLOCK_C) adds to dx: mean to each pixel, share to each that is the peak."""
    at = n.to(tl.int64) * C + c
    whole = dz * 0.5 if SQUEEZE == "avgmax" else dz
    if SQUEEZE != "max":
        tl.store(mean + at, whole / P.to(dz.dtype), valid)
    if SQUEEZE != "avg":
        top = tl.load(peak + at, valid, other=0, cache_modifier=".cg")
        count = tl.load(ties + at, valid, other=1, cache_modifier=".cg")
        count = tl.where(top == top, count, 0)  # nothing equals a NaN
        tl.store(share + at, whole / count, valid)


@triton.jit
def squeeze_backward_tile(
    dy, dy_image, dy_row, x, x_image, x_row, dx, dx_image, dx_row, mask, norm, s, d, adds,
    peak, share, n0, c0, p0, p1, N, C, P,
    SQUEEZE: tl.constexpr, PRE: tl.constexpr, NHWC: tl.constexpr, G,
    BLOCK_C: tl.constexpr, ROWS: tl.constexpr, BLOCK_P: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dx of a tile; without dy, what the squeeze alone gives. d (N, C) = dz / P, adds (2, C): slope
    and offset, or None. x is read only for its maxima, for pre and for the slope."""
    HEIGHT: tl.constexpr = BLOCK_P if NHWC else ROWS
    WIDTH: tl.constexpr = BLOCK_C if NHWC else BLOCK_P
    READS_X: tl.constexpr = SQUEEZE != "avg" or PRE != "identity" or adds is not None
    for unit in range(units_of(n0, N, NHWC, G, BLOCK_C, ROWS)):
        n, c = channels_of(unit, n0, c0, NHWC, ROWS, BLOCK_C)
        valid = (n < N) & (c < C)
        at = n.to(tl.int64) * C + c
        if norm is not None:
            mean, scale, bias = load_norm(norm, c, valid, C)
        if dy is not None:
            gate = tl.load(s + at, valid, other=0)
            from_dy = first_pixel(dy, n, c, dy_image, dy_row, NHWC, BLOCK_P)
        if SQUEEZE != "max":
            all_pixels = tl.load(d + at, valid, other=0)
        if SQUEEZE != "avg":
            top = tl.load(peak + at, valid, other=0, cache_modifier=".cg")
            per_tie = tl.load(share + at, valid, other=0)
        if adds is not None:
            slope = tl.load(adds + c, valid, other=0)
            offset = tl.load(adds + C + c, valid, other=0)
        if READS_X:
            from_x = first_pixel(x, n, c, x_image, x_row, NHWC, BLOCK_P)
        from_dx = first_pixel(dx, n, c, dx_image, dx_row, NHWC, BLOCK_P)
        for start in range(p0, p1, BLOCK_P):
            inside = valid & (pixels_of(start, NHWC, BLOCK_P) < p1)
            grad = tl.zeros([HEIGHT, WIDTH], ACC)
            if dy is not None:
                at_dy = from_dy + start * step_of(dy_row, NHWC)
                g = widened(tl.load(at_dy, inside, other=0, eviction_policy="evict_first"), ACC)
                if mask is not None:
                    kept = load_mask(
                        mask, unit, n0, c0, start, p1, N, C, P, HEIGHT, WIDTH, NHWC, ROWS,
                        BLOCK_C, BLOCK_P,
                    )  # fmt: skip
                    g = tl.where(kept, g, 0)
                grad = g * gate
            if SQUEEZE != "max":
                grad += all_pixels
            if READS_X:
                at_x = from_x + start * step_of(x_row, NHWC)
                v = widened(tl.load(at_x, inside, other=0, eviction_policy="evict_first"), ACC)
            if SQUEEZE != "avg":
                # a product, as in eager: an infinite share makes NaN of the others
                grad += tl.where(v == top, 1.0, 0.0).to(ACC) * per_tie
            if norm is not None:
                if PRE != "identity":
                    grad = pre_activate_backward(grad, (v - mean) * scale + bias, PRE)
                grad *= scale
                if adds is not None:
                    grad += slope * (v - mean) + offset
            at_dx = from_dx + start * step_of(dx_row, NHWC)
            tl.store(at_dx, rounded(grad, dx.dtype.element_ty), inside, cache_modifier=".cs")
