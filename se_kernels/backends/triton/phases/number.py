"""From the numbers that are stored to those that are summed, and back."""

import os

import triton
import triton.language as tl

# Triton's interpreter cuts off where it should round to bfloat16, and spoils its subnormals and
# zeros: there the bits are moved by hand
_BY_HAND = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def widened(v, dtype: tl.constexpr):
    """v, exactly, in a dtype that is at least as wide."""
    if _BY_HAND and v.dtype == tl.bfloat16:
        v = (v.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return v.to(dtype)


@triton.jit
def rounded(v, dtype: tl.constexpr):
    """v in dtype, to the nearest, of two to the even one."""
    if dtype.primitive_bitwidth == 16:
        v = v.to(tl.float32)
    if _BY_HAND and dtype == tl.bfloat16:
        bits = v.to(tl.uint32, bitcast=True)
        kept = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        kept = tl.where(v == v, kept, 0x7FC0)
        v = kept.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return v.to(dtype)
