"""scale: equation 4 and the tail of Fig. 3, y = post(s x + residual), and its backward,
g = dy post'(y), dr = g, ds = Σ g x."""

import triton
import triton.language as tl

from se_kernels.backends.triton.phases.number import rounded, widened
from se_kernels.backends.triton.phases.squeeze import (
    higher,
    load_parts,
    peak_along,
    post_backward,
    store_parts,
)
from se_kernels.backends.triton.phases.tile import channels_of, pixels_of, place, units_of


@triton.jit
def scaled(x, s, residual, POST: tl.constexpr):
    y = x * s
    if residual is not None:
        y += residual
    if POST == "relu":
        y = tl.where(y <= 0, 0, y)  # NaN stays
    return y


@triton.jit
def scale_tile(
    x, x_image, x_row, residual, r_image, r_row, y, y_image, y_row, s, n0, c0, p0, p1, N, C,
    POST: tl.constexpr, NHWC: tl.constexpr, G: tl.constexpr, BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """y of a tile."""
    ACC: tl.constexpr = s.dtype.element_ty
    for unit in range(units_of(n0, N, NHWC, G, BLOCK_C, ROWS)):
        n, c = channels_of(unit, n0, c0, NHWC, ROWS, BLOCK_C)
        valid = (n < N) & (c < C)
        gate = tl.load(s + n.to(tl.int64) * C + c, valid, other=0)
        for start in range(p0, p1, BLOCK_P):
            p = pixels_of(start, NHWC, BLOCK_P)
            inside = valid & (p < p1)
            at_x = x + place(n, c, p, x_image, x_row, NHWC)
            v = widened(tl.load(at_x, inside, other=0, eviction_policy="evict_first"), ACC)
            shortcut = None
            if residual is not None:
                at_r = residual + place(n, c, p, r_image, r_row, NHWC)
                shortcut = widened(
                    tl.load(at_r, inside, other=0, eviction_policy="evict_first"), ACC
                )
            out = rounded(scaled(v, gate, shortcut, POST), y.dtype.element_ty)
            at_y = y + place(n, c, p, y_image, y_row, NHWC)
            tl.store(at_y, out, inside, cache_modifier=".cs")


@triton.jit
def scale_backward_tile(
    dy, dy_image, dy_row, y, y_image, y_row, x, x_image, x_row, dx, dx_image, dx_row,
    dr, dr_image, dr_row, s, parts, plane, n0, c0, split, splits, p0, p1, N, C,
    SQUEEZE: tl.constexpr, POST: tl.constexpr, NHWC: tl.constexpr, G: tl.constexpr,
    BLOCK_C: tl.constexpr, ROWS: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Σ g x of a tile's channels over its pixels p0 to p1, where there are parts; where the squeeze
    takes a maximum, the largest x and how often it is there; dr = g and dx = g s where wanted."""
    AXIS: tl.constexpr = 0 if NHWC else 1
    ACC: tl.constexpr = s.dtype.element_ty
    HEIGHT: tl.constexpr = BLOCK_P if NHWC else ROWS
    WIDTH: tl.constexpr = BLOCK_C if NHWC else BLOCK_P
    # what is read again stays: x for its maxima, dy and y unless dr takes their place
    X_POLICY: tl.constexpr = "evict_first" if SQUEEZE == "avg" else "evict_last"
    G_POLICY: tl.constexpr = "evict_last" if dr is None and dx is None else "evict_first"
    for unit in range(units_of(n0, N, NHWC, G, BLOCK_C, ROWS)):
        n, c = channels_of(unit, n0, c0, NHWC, ROWS, BLOCK_C)
        valid = (n < N) & (c < C)
        total = tl.zeros([HEIGHT, WIDTH], ACC)
        peak = tl.full([HEIGHT, WIDTH], float("-inf"), ACC)
        ties = tl.zeros([HEIGHT, WIDTH], ACC)
        if dx is not None:
            gate = tl.load(s + n.to(tl.int64) * C + c, valid, other=0)
        for start in range(p0, p1, BLOCK_P):
            p = pixels_of(start, NHWC, BLOCK_P)
            inside = valid & (p < p1)
            if dy is not None:
                at_dy = dy + place(n, c, p, dy_image, dy_row, NHWC)
                g = widened(tl.load(at_dy, inside, other=0, eviction_policy=G_POLICY), ACC)
                if POST == "relu":
                    at_y = y + place(n, c, p, y_image, y_row, NHWC)
                    kept = tl.load(at_y, inside, other=0, eviction_policy=G_POLICY)
                    g = post_backward(g, widened(kept, ACC), POST)
                if dr is not None:
                    at_dr = dr + place(n, c, p, dr_image, dr_row, NHWC)
                    out = rounded(g, dr.dtype.element_ty)
                    tl.store(at_dr, out, inside, eviction_policy="evict_last")
                if dx is not None:
                    at_dx = dx + place(n, c, p, dx_image, dx_row, NHWC)
                    out = rounded(g * gate, dx.dtype.element_ty)
                    tl.store(at_dx, out, inside, cache_modifier=".cs")
            if parts is not None:
                at_x = x + place(n, c, p, x_image, x_row, NHWC)
                v = widened(tl.load(at_x, inside, other=0, eviction_policy=X_POLICY), ACC)
                if dy is not None:
                    total += g * v
                if SQUEEZE != "avg":
                    first = inside & higher(v, peak)
                    again = inside & (v == peak)
                    ties = tl.where(first, 1, tl.where(again, ties + 1, ties))
                    peak = tl.where(first, v, peak)
        if parts is not None:
            sums = tl.sum(total, AXIS, keep_dims=True)
            if SQUEEZE == "avg":
                store_parts(parts, plane, n, c, split, splits, sums, sums, sums, valid, C, 1)
            else:
                top = peak_along(peak, AXIS, True)
                count = tl.sum(tl.where(peak == top, ties, 0), AXIS, keep_dims=True)
                store_parts(parts, plane, n, c, split, splits, sums, top, count, valid, C, 3)


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
