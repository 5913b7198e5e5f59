"""norm_moments, norm_squeeze and norm_squeeze_backward, a launch each."""

import torch
import triton
import triton.language as tl

from se_kernels.backends.triton.launch import (
    alone,
    constants,
    on_device,
    options,
    parts_of,
    plan_after_norm,
    unit_of,
)
from se_kernels.backends.triton.phases.norm_squeeze import (
    norm_moments_tile,
    norm_squeeze_backward_tile,
    norm_squeeze_tile,
)
from se_kernels.backends.triton.phases.tile import aligned, program_tile, tile_of
from se_kernels.backends.triton.plan import (
    NORM_BACKWARD_REGISTERS,
    NORM_BLOCKS,
    NORM_PAIR_BLOCKS,
    NORM_REGISTERS,
)

_SIZES = ["u_image", "u_row", "N", "C", "P", "blocks", "splits", "span"]
_BACKWARD_SIZES = [*_SIZES, "g_image", "g_row", "du_image", "du_row"]


@triton.jit(do_not_specialize=_SIZES)
def norm_moments_kernel(
    u, u_image, u_row, means, squares, N, C, P, blocks, splits, span,
    WIDE: tl.constexpr, NHWC: tl.constexpr, UNIT: tl.constexpr, G: tl.constexpr,
    BLOCK_C: tl.constexpr, ROWS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """means and squares (N, splits, C) in float64, the sums so where WIDE."""
    u_image, u_row = aligned(u_image, UNIT), aligned(u_row, UNIT)
    if NHWC:
        C = aligned(C, UNIT)
    else:
        P = aligned(P, UNIT)
    group, tile = program_tile(blocks, splits, False)
    _block, split, n0, c0, p0, p1 = tile_of(
        group, tile, blocks, span, N, C, P, G, BLOCK_C, BLOCK_P
    )  # fmt: skip
    ACC: tl.constexpr = tl.float64 if WIDE else tl.float32
    norm_moments_tile(
        u, u_image, u_row, means, squares, n0, c0, split, splits, p0, p1, N, C, ACC,
        NHWC, G, BLOCK_C, ROWS, BLOCK_P,
    )  # fmt: skip


@triton.jit(do_not_specialize=_SIZES)
def norm_squeeze_kernel(
    u, u_image, u_row, norm, parts, N, C, P, blocks, splits, span,
    PRE: tl.constexpr, NHWC: tl.constexpr, UNIT: tl.constexpr, G: tl.constexpr,
    BLOCK_C: tl.constexpr, ROWS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """What each part of the pixels adds to z, (N, splits, C)."""
    u_image, u_row = aligned(u_image, UNIT), aligned(u_row, UNIT)
    if NHWC:
        C = aligned(C, UNIT)
    else:
        P = aligned(P, UNIT)
    group, tile = program_tile(blocks, splits, True)  # after norm_moments
    _block, split, n0, c0, p0, p1 = tile_of(
        group, tile, blocks, span, N, C, P, G, BLOCK_C, BLOCK_P
    )  # fmt: skip
    norm_squeeze_tile(
        u, u_image, u_row, norm, parts, n0, c0, split, splits, p0, p1, N, C, P,
        PRE, NHWC, G, BLOCK_C, ROWS, BLOCK_P,
    )  # fmt: skip


@triton.jit(do_not_specialize=_BACKWARD_SIZES)
def norm_squeeze_backward_kernel(
    g, g_image, g_row, u, u_image, u_row, du, du_image, du_row, mask, norm, s, d, slope, offset,
    N, C, P, blocks, splits, span,
    PRE: tl.constexpr, NHWC: tl.constexpr, UNIT: tl.constexpr, G: tl.constexpr,
    BLOCK_C: tl.constexpr, ROWS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    g_image, g_row = aligned(g_image, UNIT), aligned(g_row, UNIT)
    u_image, u_row = aligned(u_image, UNIT), aligned(u_row, UNIT)
    du_image, du_row = aligned(du_image, UNIT), aligned(du_row, UNIT)
    if NHWC:
        C = aligned(C, UNIT)
    else:
        P = aligned(P, UNIT)
    group, tile = program_tile(blocks, splits, True)  # after norm_scale_backward
    _block, _split, n0, c0, p0, p1 = tile_of(
        group, tile, blocks, span, N, C, P, G, BLOCK_C, BLOCK_P
    )  # fmt: skip
    norm_squeeze_backward_tile(
        g, g_image, g_row, u, u_image, u_row, du, du_image, du_row, mask, norm, s, d, slope,
        offset, n0, c0, p0, p1, N, C, P, PRE, NHWC, G, BLOCK_C, ROWS, BLOCK_P,
    )  # fmt: skip


def run_norm_moments(layout, u, sums):
    """means and Σ (u - mean)² of parts of the pixels, (N, splits, C) in float64, by sums in the
    dtype ``sums``; splits, and pixels of a part. u: (tensor, image, row)."""
    plan = plan_after_norm(u[0], layout, NORM_BLOCKS, sums)
    means, squares = (parts_of(plan, u[0], torch.float64) for _ in range(2))
    with on_device(u[0]):
        norm_moments_kernel[(plan.groups * plan.tiles,)](
            *u,
            means,
            squares,
            *alone(plan, u[0]),
            WIDE=sums == torch.float64,
            **options(NORM_REGISTERS[sums.itemsize]),
            **constants(plan, layout, unit_of(layout, [u])),
        )
    return means, squares, plan.split, plan.span * plan.block_pixels


def run_norm_squeeze(layout, u, norm, pre):
    """Parts of z (N, splits, C); norm (3 or more, C); u: (tensor, image, row)."""
    plan = plan_after_norm(u[0], layout, NORM_BLOCKS, norm.dtype)
    parts = parts_of(plan, u[0], norm.dtype)
    with on_device(u[0]):
        norm_squeeze_kernel[(plan.groups * plan.tiles,)](
            *u,
            norm,
            parts,
            *alone(plan, u[0]),
            PRE=pre,
            **options(NORM_REGISTERS[norm.dtype.itemsize]),
            **constants(plan, layout, unit_of(layout, [u])),
        )
    return parts


def run_norm_squeeze_backward(layout, g, u, du, mask, norm, s, d, pre, slope, offset) -> None:
    """Fills du (N, C, H, W); s, d (N, C); slope, offset (C,) or None; images as above."""
    plan = plan_after_norm(u[0], layout, NORM_PAIR_BLOCKS, norm.dtype)
    with on_device(u[0]):
        norm_squeeze_backward_kernel[(plan.groups * plan.tiles,)](
            *g,
            *u,
            *du,
            mask,
            norm,
            s,
            d,
            slope,
            offset,
            *alone(plan, u[0]),
            PRE=pre,
            **options(NORM_BACKWARD_REGISTERS),
            **constants(plan, layout, unit_of(layout, [u, g, du])),
        )
