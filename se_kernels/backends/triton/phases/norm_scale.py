"""norm_scale, y = post(s v + residual) and the bits of post; and norm_scale_backward, dr = g
and the sums over the pixels from which the other gradients follow."""

import triton
import triton.language as tl

from se_kernels.backends.triton.phases.mask import load_mask, store_mask
from se_kernels.backends.triton.phases.norm import (
    load_norm,
    pre_activate,
    pre_activate_backward,
)
from se_kernels.backends.triton.phases.norm_squeeze import store_sum
from se_kernels.backends.triton.phases.number import rounded, widened
from se_kernels.backends.triton.phases.tile import channels_of, pixels_of, place, units_of


@triton.jit
def norm_scale_tile(
    u, u_image, u_row, residual, r_image, r_row, y, y_image, y_row, mask, norm, s,
    n0, c0, p0, p1, N, C, P,
    PRE: tl.constexpr, POST: tl.constexpr, NHWC: tl.constexpr, G: tl.constexpr,
    BLOCK_C: tl.constexpr, ROWS: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """y of a tile, and its bits where there is a mask."""
    ACC: tl.constexpr = s.dtype.element_ty
    for unit in range(units_of(n0, N, NHWC, G, BLOCK_C, ROWS)):
        n, c = channels_of(unit, n0, c0, NHWC, ROWS, BLOCK_C)
        valid = (n < N) & (c < C)
        mean, scale, bias = load_norm(norm, c, valid, C)
        gate = tl.load(s + n.to(tl.int64) * C + c, valid, other=0)
        for start in range(p0, p1, BLOCK_P):
            p = pixels_of(start, NHWC, BLOCK_P)
            inside = valid & (p < p1)
            at_u = u + place(n, c, p, u_image, u_row, NHWC)
            away = (
                widened(tl.load(at_u, inside, other=0, eviction_policy="evict_first"), ACC) - mean
            )
            out = gate * pre_activate(away * scale + bias, PRE)
            if residual is not None:
                at_r = residual + place(n, c, p, r_image, r_row, NHWC)
                out += widened(tl.load(at_r, inside, other=0, eviction_policy="evict_first"), ACC)
            if mask is not None:
                store_mask(
                    mask, inside & ~(out <= 0), unit, n0, c0, start, p1, N, C, P,
                    NHWC, ROWS, BLOCK_C, BLOCK_P,
                )  # fmt: skip
            if POST == "relu":
                out = tl.where(out <= 0, 0, out)  # NaN stays
            at_y = y + place(n, c, p, y_image, y_row, NHWC)
            tl.store(at_y, rounded(out, y.dtype.element_ty), inside, cache_modifier=".cs")


@triton.jit
def norm_scale_backward_tile(
    dy, dy_image, dy_row, u, u_image, u_row, dr, dr_image, dr_row, mask, norm, parts, plane,
    n0, c0, split, splits, p0, p1, N, C, P,
    PRE: tl.constexpr, NHWC: tl.constexpr, G: tl.constexpr, BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """dr = g where wanted, and of a tile's channels over its pixels p0 to p1, a = u - mean: without
    pre Σ g, Σ g a; else Σ g v, Σ g pre', Σ g pre' a, Σ pre', Σ pre' a."""
    AXIS: tl.constexpr = 0 if NHWC else 1
    ACC: tl.constexpr = norm.dtype.element_ty
    HEIGHT: tl.constexpr = BLOCK_P if NHWC else ROWS
    WIDTH: tl.constexpr = BLOCK_C if NHWC else BLOCK_P
    # dr takes the place of dy and the mask in the second sweep
    POLICY: tl.constexpr = "evict_last" if dr is None else "evict_first"
    for unit in range(units_of(n0, N, NHWC, G, BLOCK_C, ROWS)):
        n, c = channels_of(unit, n0, c0, NHWC, ROWS, BLOCK_C)
        valid = (n < N) & (c < C)
        mean, scale, bias = load_norm(norm, c, valid, C)
        zero, one = tl.zeros([HEIGHT, WIDTH], ACC), tl.full([HEIGHT, WIDTH], 1, ACC)
        # sums of the products that the names tell; the slope of no pre is 1
        g_v, g_slope, g_slope_a, slopes, slope_a = zero, zero, zero, zero, zero
        for start in range(p0, p1, BLOCK_P):
            p = pixels_of(start, NHWC, BLOCK_P)
            inside = valid & (p < p1)
            at_dy = dy + place(n, c, p, dy_image, dy_row, NHWC)
            g = widened(tl.load(at_dy, inside, other=0, eviction_policy=POLICY), ACC)
            if mask is not None:
                kept = load_mask(
                    mask, unit, n0, c0, start, p1, N, C, P, HEIGHT, WIDTH, NHWC, ROWS, BLOCK_C,
                    BLOCK_P,
                )  # fmt: skip
                g = tl.where(kept, g, 0)
            if dr is not None:
                at_dr = dr + place(n, c, p, dr_image, dr_row, NHWC)
                out = rounded(g, dr.dtype.element_ty)
                tl.store(at_dr, out, inside, eviction_policy="evict_last")
            at_u = u + place(n, c, p, u_image, u_row, NHWC)
            v = widened(tl.load(at_u, inside, other=0, eviction_policy="evict_last"), ACC)
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
        if PRE == "identity":
            store_sum(parts, n, c, split, splits, g_slope, valid, C, AXIS)
            store_sum(parts + plane, n, c, split, splits, g_slope_a, valid, C, AXIS)
        else:
            store_sum(parts, n, c, split, splits, g_v, valid, C, AXIS)
            store_sum(parts + plane, n, c, split, splits, g_slope, valid, C, AXIS)
            store_sum(parts + 2 * plane, n, c, split, splits, g_slope_a, valid, C, AXIS)
            store_sum(parts + 3 * plane, n, c, split, splits, slopes, valid, C, AXIS)
            store_sum(parts + 4 * plane, n, c, split, splits, slope_a, valid, C, AXIS)
