"""Blocks of matrices and their products, for the FCs of a group of images."""

import triton
import triton.language as tl

from se_kernels.backends.triton.phases.number import widened


@triton.jit
def block_of(t, row, column, rows, columns, stride, ACC: tl.constexpr):
    """t[row, column] (BLOCK_ROWS, BLOCK_COLUMNS) in ACC, 0 outside; its columns are adjacent."""
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    at = t + row[:, None].to(tl.int64) * stride + column[None, :]
    return widened(tl.load(at, inside, other=0), ACC)


@triton.jit
def transposed_block_of(t, row, column, rows, columns, stride, ACC: tl.constexpr):
    """t[column, row] as (BLOCK_ROWS, BLOCK_COLUMNS)."""
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    at = t + column[None, :].to(tl.int64) * stride + row[:, None]
    return widened(tl.load(at, inside, other=0), ACC)


@triton.jit
def product(left, right, PRECISION: tl.constexpr):
    """left (M, K) right (K, N); float64 by plain sums, which any GPU has.

    "tf32x3" splits each number into two of TF32, so that a product is off by 2^-22 of itself. The
    tensor cores cut off where they add, so that Triton adds the products of two blocks outside of
    them: with K of 128 or less the error is that of a float32 product.
    """
    if left.dtype == tl.float64:
        out = tl.sum(left[:, :, None] * right[None, :, :], 1)
    else:
        out = tl.dot(left, right, input_precision=PRECISION)
    return out
