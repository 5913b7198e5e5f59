"""scale: equation 4 and the tail of Fig. 3, y = post(s v + residual), and its backward: g is dy
where the mask lets it through, dr = g, and sums over the pixels give the other gradients.

v is x, or pre(norm of x) where there is a norm.
"""

import triton
import triton.language as tl

from se_kernels.backends.triton.phases.mask import load_mask, store_mask
from se_kernels.backends.triton.phases.norm import (
    load_norm,
    pre_activate,
    pre_activate_backward,
)
from se_kernels.backends.triton.phases.number import rounded, widened
from se_kernels.backends.triton.phases.squeeze import (
    higher,
    load_parts,
    peak_along,
    store_parts,
    store_sum,
)
from se_kernels.backends.triton.phases.tile import (
    channels_of,
    first_pixel,
    pixels_of,
    step_of,
    units_of,
)


@triton.jit
def scale_tile(
    x, x_image, x_row, residual, r_image, r_row, y, y_image, y_row, mask, norm, s,
    n0, c0, p0, p1, N, C, P,
    PRE: tl.constexpr, POST: tl.constexpr, NHWC: tl.constexpr, G,
    BLOCK_C: tl.constexpr, ROWS: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """y of a tile, and its bits where there is a mask."""
    ACC: tl.constexpr = s.dtype.element_ty
    for unit in range(units_of(n0, N, NHWC, G, BLOCK_C, ROWS)):
        n, c = channels_of(unit, n0, c0, NHWC, ROWS, BLOCK_C)
        valid = (n < N) & (c < C)
        gate = tl.load(s + n.to(tl.int64) * C + c, valid, other=0)
        if norm is not None:
            mean, scale, bias = load_norm(norm, c, valid, C)
        from_x = first_pixel(x, n, c, x_image, x_row, NHWC, BLOCK_P)
        from_y = first_pixel(y, n, c, y_image, y_row, NHWC, BLOCK_P)
        if residual is not None:
            from_r = first_pixel(residual, n, c, r_image, r_row, NHWC, BLOCK_P)
        for start in range(p0, p1, BLOCK_P):
            inside = valid & (pixels_of(start, NHWC, BLOCK_P) < p1)
            at_x = from_x + start * step_of(x_row, NHWC)
            v = widened(tl.load(at_x, inside, other=0, eviction_policy="evict_first"), ACC)
            if norm is not None:
                v = pre_activate((v - mean) * scale + bias, PRE)
            out = gate * v
            if residual is not None:
                at_r = from_r + start * step_of(r_row, NHWC)
                out += widened(tl.load(at_r, inside, other=0, eviction_policy="evict_first"), ACC)
            if mask is not None:
                store_mask(
                    mask, inside & ~(out <= 0), unit, n0, c0, start, p1, N, C, P,
                    NHWC, ROWS, BLOCK_C, BLOCK_P,
                )  # fmt: skip
            if POST == "relu":
                out = tl.where(out <= 0, 0, out)  # NaN stays
            at_y = from_y + start * step_of(y_row, NHWC)
            tl.store(at_y, rounded(out, y.dtype.element_ty), inside, cache_modifier=".cs")


@triton.jit
def scale_backward_tile(
    dy, dy_image, dy_row, x, x_image, x_row, dx, dx_image, dx_row, dr, dr_image, dr_row,
    mask, norm, s, parts, plane, n0, c0, split, splits, p0, p1, N, C, P,
    SQUEEZE: tl.constexpr, PRE: tl.constexpr, NHWC: tl.constexpr, G,
    BLOCK_C: tl.constexpr, ROWS: tl.constexpr, BLOCK_P: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dr = g and dx = g s where wanted, and where there are parts the sums of a tile's channels
    over its pixels p0 to p1: Σ g x; where the squeeze takes a maximum also the largest x and how
    often it is there. After a norm, a = x - mean: without pre Σ g, Σ g a; else Σ g v, Σ g pre',
    Σ g pre' a, Σ pre', Σ pre' a. Without dy g is 0."""
    AXIS: tl.constexpr = 0 if NHWC else 1
    HEIGHT: tl.constexpr = BLOCK_P if NHWC else ROWS
    WIDTH: tl.constexpr = BLOCK_C if NHWC else BLOCK_P
    # what is read again stays: x unless only dy is, dy unless dr is
    X_POLICY: tl.constexpr = "evict_first" if norm is None and SQUEEZE == "avg" else "evict_last"
    G_POLICY: tl.constexpr = "evict_last" if dr is None and dx is None else "evict_first"
    for unit in range(units_of(n0, N, NHWC, G, BLOCK_C, ROWS)):
        n, c = channels_of(unit, n0, c0, NHWC, ROWS, BLOCK_C)
        valid = (n < N) & (c < C)
        zero, one = tl.zeros([HEIGHT, WIDTH], ACC), tl.full([HEIGHT, WIDTH], 1, ACC)
        # sums of the products that the names tell; the slope of no pre is 1
        g_v, g_slope, g_slope_a, slopes, slope_a = zero, zero, zero, zero, zero
        peak, ties = tl.full([HEIGHT, WIDTH], float("-inf"), ACC), zero
        if dx is not None:
            gate = tl.load(s + n.to(tl.int64) * C + c, valid, other=0)
            from_dx = first_pixel(dx, n, c, dx_image, dx_row, NHWC, BLOCK_P)
        if norm is not None:
            mean, scale, bias = load_norm(norm, c, valid, C)
        if dy is not None:
            from_dy = first_pixel(dy, n, c, dy_image, dy_row, NHWC, BLOCK_P)
        if dr is not None:
            from_dr = first_pixel(dr, n, c, dr_image, dr_row, NHWC, BLOCK_P)
        if parts is not None:
            from_x = first_pixel(x, n, c, x_image, x_row, NHWC, BLOCK_P)
        for start in range(p0, p1, BLOCK_P):
            inside = valid & (pixels_of(start, NHWC, BLOCK_P) < p1)
            if dy is not None:
                at_dy = from_dy + start * step_of(dy_row, NHWC)
                g = widened(tl.load(at_dy, inside, other=0, eviction_policy=G_POLICY), ACC)
                if mask is not None:
                    kept = load_mask(
                        mask, unit, n0, c0, start, p1, N, C, P, HEIGHT, WIDTH, NHWC, ROWS,
                        BLOCK_C, BLOCK_P,
                    )  # fmt: skip
                    g = tl.where(kept, g, 0)
                if dr is not None:
                    at_dr = from_dr + start * step_of(dr_row, NHWC)
                    out = rounded(g, dr.dtype.element_ty)
                    tl.store(at_dr, out, inside, eviction_policy="evict_last")
                if dx is not None:
                    at_dx = from_dx + start * step_of(dx_row, NHWC)
                    out = rounded(g * gate, dx.dtype.element_ty)
                    tl.store(at_dx, out, inside, cache_modifier=".cs")
            if parts is not None:
                at_x = from_x + start * step_of(x_row, NHWC)
                v = widened(tl.load(at_x, inside, other=0, eviction_policy=X_POLICY), ACC)
                if norm is None:
                    if dy is not None:
                        g_v += g * v
                    if SQUEEZE != "avg":
                        first = inside & higher(v, peak)
                        again = inside & (v == peak)
                        ties = tl.where(first, 1, tl.where(again, ties + 1, ties))
                        peak = tl.where(first, v, peak)
                else:
                    away = tl.where(inside, v - mean, 0)
                    if PRE == "identity":
                        g_slope += g
                        g_slope_a += g * away
                    else:
                        t = away * scale + bias
                        slope = tl.where(inside, pre_activate_backward(one, t, PRE), 0)
                        through = pre_activate_backward(g, t, PRE)
                        g_v += g * tl.where(inside, pre_activate(t, PRE), 0)
                        g_slope += through
                        g_slope_a += through * away
                        slopes += slope
                        slope_a += slope * away
        if parts is not None:
            if norm is None:
                store_sum(parts, n, c, split, splits, g_v, valid, C, AXIS)
                if SQUEEZE != "avg":
                    top = peak_along(peak, AXIS, True)
                    store_parts(parts + plane, n, c, split, splits, top, valid, C)
                    count = tl.where(peak == top, ties, 0)
                    store_sum(parts + 2 * plane, n, c, split, splits, count, valid, C, AXIS)
            elif PRE == "identity":
                store_sum(parts, n, c, split, splits, g_slope, valid, C, AXIS)
                store_sum(parts + plane, n, c, split, splits, g_slope_a, valid, C, AXIS)
            else:
                store_sum(parts, n, c, split, splits, g_v, valid, C, AXIS)
                store_sum(parts + plane, n, c, split, splits, g_slope, valid, C, AXIS)
                store_sum(parts + 2 * plane, n, c, split, splits, g_slope_a, valid, C, AXIS)
                store_sum(parts + 3 * plane, n, c, split, splits, slopes, valid, C, AXIS)
                store_sum(parts + 4 * plane, n, c, split, splits, slope_a, valid, C, AXIS)


@triton.jit
def gather_scale_backward(
    parts, plane, peak, ties, n, c, valid, splits, C, SQUEEZE: tl.constexpr, BLOCK_S: tl.constexpr
):  # fmt: skip
    """ds (G, BLOCK_C) from the parts of all tiles; peak and ties stored where counted."""
    ACC: tl.constexpr = parts.dtype.element_ty
    total = tl.zeros([BLOCK_S, n.shape[0], c.shape[1]], ACC)
    top = tl.full(total.shape, float("-inf"), ACC)
    count = tl.zeros_like(total)
    for start in range(0, splits, BLOCK_S):
        at, inside = load_parts(parts, n, c, start, splits, valid, C, BLOCK_S)
        total += tl.load(at, inside, other=0, cache_modifier=".cg")
        if SQUEEZE != "avg":
            v = tl.load(at + plane, inside, other=float("-inf"), cache_modifier=".cg")
            more = tl.load(at + 2 * plane, inside, other=0, cache_modifier=".cg")
            first = higher(v, top)
            count = tl.where(first, more, tl.where(v == top, count + more, count))
            top = tl.where(first, v, top)
    if SQUEEZE != "avg":
        highest = peak_along(top, 0)
        times = tl.sum(tl.where(top == highest[None], count, 0), 0)
        tl.store(peak + n.to(tl.int64) * C + c, highest, valid)
        tl.store(ties + n.to(tl.int64) * C + c, times, valid)
    return tl.sum(total, 0)
