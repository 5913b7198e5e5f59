"""The squeeze and its backward, a launch each, with a norm before it or none, and the moments."""

import torch
import triton
import triton.language as tl

from se_kernels.backends.triton.launch import (
    alone,
    on_device,
    options,
    parts_of,
    plan_sweep,
    registers_for,
    sweep_constants,
    triton_type,
    unit_of,
)
from se_kernels.backends.triton.phases.moments import moments_tile
from se_kernels.backends.triton.phases.squeeze import squeeze_backward_tile, squeeze_tile
from se_kernels.backends.triton.phases.tile import aligned, program_tile, tile_of
from se_kernels.backends.triton.plan import (
    ACTIVATION_REGISTERS,
    PAIR_BLOCKS,
    SINGLE_BLOCKS,
    SPREAD_REGISTERS,
    SWEEP_REGISTERS,
)

_SIZES = ["x_image", "x_row", "N", "C", "P", "blocks", "splits", "span", "G"]
_BACKWARD_SIZES = [*_SIZES, "dy_image", "dy_row", "dx_image", "dx_row"]


@triton.jit(do_not_specialize=_SIZES)
def moments_kernel(
    x, x_image, x_row, means, squares, N, C, P, blocks, splits, span, G,
    WIDE: tl.constexpr, NHWC: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_C: tl.constexpr, ROWS: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """means and squares (N, splits, C) in float64, the sums so where WIDE."""
    x_image, x_row = aligned(x_image, UNIT), aligned(x_row, UNIT)
    if NHWC:
        C = aligned(C, UNIT)
    else:
        P = aligned(P, UNIT)
    group, tile = program_tile(blocks, splits, False)
    _block, split, n0, c0, p0, p1 = tile_of(
        group, tile, blocks, span, N, C, P, G, BLOCK_C, BLOCK_P
    )  # fmt: skip
    ACC: tl.constexpr = tl.float64 if WIDE else tl.float32
    moments_tile(
        x, x_image, x_row, means, squares, n0, c0, split, splits, p0, p1, N, C, ACC,
        NHWC, G, BLOCK_C, ROWS, BLOCK_P,
    )  # fmt: skip


@triton.jit(do_not_specialize=_SIZES)
def squeeze_kernel(
    x, x_image, x_row, norm, parts, N, C, P, blocks, splits, span, G,
    SQUEEZE: tl.constexpr, PRE: tl.constexpr, NHWC: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_C: tl.constexpr, ROWS: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """What each part of the pixels adds to the mean, and the parts' maxima, (K, N, splits, C)."""
    x_image, x_row = aligned(x_image, UNIT), aligned(x_row, UNIT)
    if NHWC:
        C = aligned(C, UNIT)
    else:
        P = aligned(P, UNIT)
    group, tile = program_tile(blocks, splits, norm is not None)  # after the moments
    _block, split, n0, c0, p0, p1 = tile_of(
        group, tile, blocks, span, N, C, P, G, BLOCK_C, BLOCK_P
    )  # fmt: skip
    plane = N.to(tl.int64) * splits * C
    squeeze_tile(
        x, x_image, x_row, norm, parts, plane, n0, c0, split, splits, p0, p1, N, C, P,
        SQUEEZE, PRE, NHWC, G, BLOCK_C, ROWS, BLOCK_P,
    )  # fmt: skip


@triton.jit(do_not_specialize=_BACKWARD_SIZES)
def squeeze_backward_kernel(
    dy, dy_image, dy_row, x, x_image, x_row, dx, dx_image, dx_row, mask, norm, s, d, adds,
    peak, share, N, C, P, blocks, splits, span, G,
    SQUEEZE: tl.constexpr, PRE: tl.constexpr, NHWC: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_C: tl.constexpr, ROWS: tl.constexpr, BLOCK_P: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    dy_image, dy_row = aligned(dy_image, UNIT), aligned(dy_row, UNIT)
    x_image, x_row = aligned(x_image, UNIT), aligned(x_row, UNIT)
    dx_image, dx_row = aligned(dx_image, UNIT), aligned(dx_row, UNIT)
    if NHWC:
        C = aligned(C, UNIT)
    else:
        P = aligned(P, UNIT)
    group, tile = program_tile(blocks, splits, True)  # after the backward of the scale
    _block, _split, n0, c0, p0, p1 = tile_of(
        group, tile, blocks, span, N, C, P, G, BLOCK_C, BLOCK_P
    )  # fmt: skip
    squeeze_backward_tile(
        dy, dy_image, dy_row, x, x_image, x_row, dx, dx_image, dx_row, mask, norm, s, d, adds,
        peak, share, n0, c0, p0, p1, N, C, P,
        SQUEEZE, PRE, NHWC, G, BLOCK_C, ROWS, BLOCK_P, ACC,
    )  # fmt: skip


def run_moments(layout, x, sums):
    """means and Σ (x - mean)² of parts of the pixels, (N, splits, C) in float64, by sums in the
    dtype ``sums``; splits, and a part's pixels. x: (tensor, image, row)."""
    plan = plan_sweep(x[0], layout, SINGLE_BLOCKS, sums)
    means, squares = (parts_of(plan, x[0], torch.float64) for _ in range(2))
    with on_device(x[0]):
        moments_kernel[(plan.groups * plan.tiles,)](
            *x,
            means,
            squares,
            *alone(plan, x[0]),
            WIDE=sums == torch.float64,
            **options(SWEEP_REGISTERS),
            **sweep_constants(plan, layout, unit_of(layout, [x])),
        )
    return means, squares, plan.split, plan.span * plan.block_pixels


def run_squeeze(layout, x, norm, dtype, squeeze, pre):
    """Parts (K, N, splits, C) in ``dtype``: of the mean, which they add up to, and unless the
    squeeze is "avg" the maxima. norm (3 or more, C) or None; x: (tensor, image, row)."""
    plan = plan_sweep(x[0], layout, SINGLE_BLOCKS, dtype)
    parts = parts_of(plan, x[0], dtype, 1 if squeeze == "avg" else 2)
    with on_device(x[0]):
        squeeze_kernel[(plan.groups * plan.tiles,)](
            *x,
            norm,
            parts,
            *alone(plan, x[0]),
            SQUEEZE=squeeze,
            PRE=pre,
            **options(registers_for(squeeze, SWEEP_REGISTERS)),
            **sweep_constants(plan, layout, unit_of(layout, [x])),
        )
    return parts


def run_squeeze_backward(
    layout, dy, x, dx, mask, norm, s, d, adds, peak, share, squeeze, pre
) -> None:
    """Fills dx (N, C, H, W) from s, d = dz / P, and the peak and its share of dz where the squeeze
    takes a maximum, (N, C); norm (3 or more, C), adds (2, C) or None. Images as above."""
    plan = plan_sweep(x[0], layout, PAIR_BLOCKS, d.dtype)
    registers = SPREAD_REGISTERS if pre == "identity" else ACTIVATION_REGISTERS
    with on_device(x[0]):
        squeeze_backward_kernel[(plan.groups * plan.tiles,)](
            *(dy or (None, 0, 0)),
            *x,
            *dx,
            mask,
            norm,
            s,
            d,
            adds,
            peak,
            share,
            *alone(plan, x[0]),
            SQUEEZE=squeeze,
            PRE=pre,
            ACC=triton_type(d.dtype),
            **options(registers_for(squeeze, registers)),
            **sweep_constants(plan, layout, unit_of(layout, [x, dy, dx])),
        )
