"""excite: equation 3, z (N, C) to s (N, C), and its backward, ds to de, da, dz; over a group of G
images at once, so that a weight is read once a group."""

import triton
import triton.language as tl

from se_kernels.backends.triton.phases.number import widened
from se_kernels.backends.triton.phases.product import product


@triton.jit
def exponential(v):
    """e^v. The GPU's own of float32 is of 2^(v log2 e), whose rounding grows with v."""
    if v.dtype == tl.float32:
        v = tl.where(v > 89.0, 89.0, v)  # infinity already
        v = tl.where(v < -104.0, -104.0, v)  # 0 already; NaN stays
        n = tl.floor(v * 1.44269504088896341 + 0.5)
        rest = (v - n * 0.693359375) + n * 2.12194440054690583e-4  # v = n ln 2 + rest
        power = tl.exp2(rest * 1.44269504088896341) * tl.exp2(n)
    else:
        power = tl.exp(v)
    return power


@triton.jit
def hyperbolic_tangent(v):
    """tanh: Lambert's continued fraction near 0, where the other form cancels."""
    q = v * v
    # numerators and denominators of v / (1 + v² / (3 + v² / (5 + ...))), eight levels
    n0, n1 = v, 3.0 * v
    d0, d1 = q * 0 + 1.0, q + 3.0
    for k in tl.static_range(5, 16, 2):
        n0, n1 = n1, k * 1.0 * n1 + q * n0
        d0, d1 = d1, k * 1.0 * d1 + q * d0
    u = exponential(-2.0 * tl.abs(v))
    far = (1.0 - u) / (1.0 + u)
    return tl.where(tl.abs(v) < 0.55, n1 / d1, tl.where(v < 0, -far, far))


@triton.jit
def sigmoid(v):
    return 1.0 / (1.0 + exponential(-v))


@triton.jit
def clamp_0_6(v):
    v = tl.where(v < 0, 0.0, v)
    return tl.where(v > 6, 6.0, v)  # NaN stays


@triton.jit
def activate(a, ACT: tl.constexpr, SLOPE: tl.constexpr):
    """δ"""
    h = a
    if ACT == "relu":
        h = tl.where(a <= 0, 0.0, a)
    elif ACT == "silu":
        h = a * sigmoid(a)
    elif ACT == "gelu":
        h = 0.5 * a * (1.0 + tl.erf(a * 0.70710678118654752440))
    elif ACT == "gelu_tanh":
        h = (
            0.5
            * a
            * (1.0 + hyperbolic_tangent(0.79788456080286535588 * (a + 0.044715 * a * a * a)))
        )
    elif ACT == "hardswish":
        h = a * clamp_0_6(a + 3.0) / 6.0
    elif ACT == "leaky_relu":
        h = tl.where(a > 0, a, a * SLOPE)
    return h


@triton.jit
def activate_backward(dh, a, ACT: tl.constexpr, SLOPE: tl.constexpr):
    """da = dh δ'(a); where δ is flat even an infinite gradient stops."""
    da = dh
    if ACT == "relu":
        da = tl.where(a <= 0, 0.0, dh)
    elif ACT == "silu":
        opened = sigmoid(a)
        da = dh * (opened * (1.0 + a * (1.0 - opened)))
    elif ACT == "gelu":
        bell = a * 0.39894228040143267794 * exponential(-0.5 * a * a)
        da = dh * (0.5 * (1.0 + tl.erf(a * 0.70710678118654752440)) + bell)
    elif ACT == "gelu_tanh":
        t = hyperbolic_tangent(0.79788456080286535588 * (a + 0.044715 * a * a * a))
        inner = 0.79788456080286535588 * (1.0 + 3 * 0.044715 * a * a)
        da = dh * (0.5 * (1.0 + t) + 0.5 * a * (1.0 - t * t) * inner)
    elif ACT == "hardswish":
        slope = tl.where(a >= 3.0, 1.0, a / 3.0 + 0.5)
        da = tl.where(a <= -3.0, 0.0, dh * slope)
    elif ACT == "leaky_relu":
        da = tl.where(a > 0, dh, dh * SLOPE)
    return da


@triton.jit
def open_gate(e, GATE: tl.constexpr):
    """σ"""
    if GATE == "sigmoid":
        s = sigmoid(e)
    elif GATE == "hardsigmoid":
        s = clamp_0_6(e + 3.0) / 6.0
    elif GATE == "tanh":
        s = hyperbolic_tangent(e)
    else:
        s = tl.where(e <= 0, 0.0, e)
    return s


@triton.jit
def close_gate(ds, s, GATE: tl.constexpr):
    """de = ds σ'(e), where σ' follows from s."""
    if GATE == "sigmoid":
        de = ds * (s * (1.0 - s))
    elif GATE == "hardsigmoid":
        de = tl.where((s > 0) & (s < 1), ds / 6.0, 0.0)  # 0 for NaN, as in eager
    elif GATE == "tanh":
        de = ds * (1.0 - s * s)
    else:
        de = tl.where(s <= 0, 0.0, ds)
    return de


@triton.jit
def weight_block(w, c, r, C, R, CHANNELS_INNER: tl.constexpr, ACC: tl.constexpr):
    """Of W1 (R, C), whose channels lie side by side, or of W2 (C, R); of the shape of c and r."""
    at = r.to(tl.int64) * C + c if CHANNELS_INNER else c.to(tl.int64) * R + r
    return widened(tl.load(w + at, (c < C) & (r < R), other=0), ACC)


@triton.jit
def contract_channels(
    v, w, out, c, C, R, CHANNELS_INNER: tl.constexpr, G: tl.constexpr, BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """out (G, R) = Σ_c v (G, BLOCK_C) w (BLOCK_C, R): this tile's part of an FC."""
    g = tl.arange(0, G)[:, None]
    for start in tl.range(0, R, BLOCK_R, num_stages=3):
        r = start + tl.arange(0, BLOCK_R)
        if PRECISION == "":
            weights = weight_block(
                w, c[None, :, None], r[None, None, :], C, R, CHANNELS_INNER, v.dtype
            )  # fmt: skip
            part = tl.sum(v[:, :, None] * weights, 1)
        else:
            weights = weight_block(w, c[:, None], r[None, :], C, R, CHANNELS_INNER, v.dtype)
            part = product(v, weights, PRECISION)
        tl.store(out + g * R + r[None, :], part, r[None, :] < R)


@triton.jit
def contract_reduced(
    h, w, n, c, N, C, R, CHANNELS_INNER: tl.constexpr, BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """(G, BLOCK_C) = Σ_r h (G, R) w (BLOCK_C, R): a whole FC for this tile's channels."""
    ACC: tl.constexpr = h.dtype.element_ty
    if PRECISION == "":
        total = tl.zeros([n.shape[0], c.shape[0], BLOCK_R], ACC)
    else:
        total = tl.zeros([n.shape[0], c.shape[0]], ACC)
    for start in tl.range(0, R, BLOCK_R, num_stages=3):
        r = start + tl.arange(0, BLOCK_R)
        inside = (n < N) & (r[None, :] < R)
        row = tl.load(h + n.to(tl.int64) * R + r[None, :], inside, other=0, cache_modifier=".cg")
        if PRECISION == "":
            weights = weight_block(
                w, c[None, :, None], r[None, None, :], C, R, CHANNELS_INNER, ACC
            )  # fmt: skip
            total += row[:, None, :] * weights
        else:
            weights = weight_block(w, c[None, :], r[:, None], C, R, CHANNELS_INNER, ACC)
            total += product(row, weights, PRECISION)
    if PRECISION == "":
        total = tl.sum(total, 2)
    return total


@triton.jit
def sum_partials(
    partials, i, size, blocks, BLOCK_T: tl.constexpr, BLOCK_I: tl.constexpr
):  # fmt: skip
    """(BLOCK_I,) at i of Σ over the blocks of channels, (blocks, size), in a fixed order."""
    t = tl.arange(0, BLOCK_T)[:, None]
    total = tl.zeros([BLOCK_T, BLOCK_I], partials.dtype.element_ty)
    for start in tl.range(0, blocks, BLOCK_T, loop_unroll_factor=4):
        at = partials + (start + t).to(tl.int64) * size + i[None, :]
        inside = (start + t < blocks) & (i[None, :] < size)
        total += tl.load(at, inside, other=0, cache_modifier=".cg")
    return tl.sum(total, 0)
