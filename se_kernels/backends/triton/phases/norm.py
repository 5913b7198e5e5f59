"""The batch norm as an affine map of each channel, t = (u - mean) scale + bias, and v = pre(t)."""

import triton
import triton.language as tl


@triton.jit
def load_norm(norm, c, inside, C):
    """mean, scale, bias of the channels c; norm (3, C)."""
    mean = tl.load(norm + c, inside, other=0)
    scale = tl.load(norm + C + c, inside, other=0)
    bias = tl.load(norm + 2 * C + c, inside, other=0)
    return mean, scale, bias


@triton.jit
def opened(t):
    """σ(t). The error of the GPU's own exponential grows with t, less than σ falls."""
    return 1.0 / (1.0 + tl.exp(-t))


@triton.jit
def pre_activate(t, PRE: tl.constexpr):
    """v"""
    v = t
    if PRE == "relu":
        v = tl.where(t <= 0, 0.0, t)  # NaN stays
    elif PRE == "silu":
        v = t * opened(t)
    elif PRE == "hardswish":
        six = tl.where(t > 3.0, 6.0, t + 3.0)
        v = t * tl.where(t < -3.0, 0.0, six) * 0.16666666666666666
    return v


@triton.jit
def pre_activate_backward(dv, t, PRE: tl.constexpr):
    """dt = dv pre'(t); where pre is flat even an infinite gradient stops."""
    dt = dv
    if PRE == "relu":
        dt = tl.where(t <= 0, 0.0, dv)
    elif PRE == "silu":
        gate = opened(t)
        dt = dv * (gate * (1.0 + t * (1.0 - gate)))
    elif PRE == "hardswish":
        slope = tl.where(t >= 3.0, 1.0, t * 0.3333333333333333 + 0.5)
        dt = tl.where(t <= -3.0, 0.0, dv * slope)
    return dt
