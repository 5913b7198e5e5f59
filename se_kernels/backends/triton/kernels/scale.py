"""The scale and its backward, a launch each, with a norm before it or none."""

import triton
import triton.language as tl

from se_kernels.backends.triton.launch import (
    alone,
    on_device,
    options,
    parts_of,
    plan_sweep,
    sweep_constants,
    triton_type,
    unit_of,
)
from se_kernels.backends.triton.phases.scale import scale_backward_tile, scale_tile
from se_kernels.backends.triton.phases.tile import aligned, program_tile, tile_of
from se_kernels.backends.triton.plan import PAIR_BLOCKS, SUMS_REGISTERS, SWEEP_REGISTERS

_SIZES = ["x_image", "x_row", "N", "C", "P", "blocks", "splits", "span", "G"]
_FORWARD_SIZES = [*_SIZES, "r_image", "r_row", "y_image", "y_row"]
_BACKWARD_SIZES = [*_SIZES, "dy_image", "dy_row", "dx_image", "dx_row", "dr_image", "dr_row"]


@triton.jit(do_not_specialize=_FORWARD_SIZES)
def scale_kernel(
    x, x_image, x_row, residual, r_image, r_row, y, y_image, y_row, mask, norm, s,
    N, C, P, blocks, splits, span, G,
    PRE: tl.constexpr, POST: tl.constexpr, NHWC: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_C: tl.constexpr, ROWS: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    x_image, x_row = aligned(x_image, UNIT), aligned(x_row, UNIT)
    r_image, r_row = aligned(r_image, UNIT), aligned(r_row, UNIT)
    y_image, y_row = aligned(y_image, UNIT), aligned(y_row, UNIT)
    if NHWC:
        C = aligned(C, UNIT)
    else:
        P = aligned(P, UNIT)
    # the opposite of the sweep before it: the moments, or the squeeze with a pre
    group, tile = program_tile(blocks, splits, PRE == "identity")
    _block, _split, n0, c0, p0, p1 = tile_of(
        group, tile, blocks, span, N, C, P, G, BLOCK_C, BLOCK_P
    )  # fmt: skip
    scale_tile(
        x, x_image, x_row, residual, r_image, r_row, y, y_image, y_row, mask, norm, s,
        n0, c0, p0, p1, N, C, P, PRE, POST, NHWC, G, BLOCK_C, ROWS, BLOCK_P,
    )  # fmt: skip


@triton.jit(do_not_specialize=_BACKWARD_SIZES)
def scale_backward_kernel(
    dy, dy_image, dy_row, x, x_image, x_row, dx, dx_image, dx_row, dr, dr_image, dr_row,
    mask, norm, s, parts, N, C, P, blocks, splits, span, G,
    SQUEEZE: tl.constexpr, PRE: tl.constexpr, NHWC: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_C: tl.constexpr, ROWS: tl.constexpr, BLOCK_P: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dx and dr where wanted, and what each part of the pixels adds to the sums, (K, N, splits, C).
    Without dy the peak and its ties."""
    dy_image, dy_row = aligned(dy_image, UNIT), aligned(dy_row, UNIT)
    x_image, x_row = aligned(x_image, UNIT), aligned(x_row, UNIT)
    dx_image, dx_row = aligned(dx_image, UNIT), aligned(dx_row, UNIT)
    dr_image, dr_row = aligned(dr_image, UNIT), aligned(dr_row, UNIT)
    if NHWC:
        C = aligned(C, UNIT)
    else:
        P = aligned(P, UNIT)
    group, tile = program_tile(blocks, splits, False)
    _block, split, n0, c0, p0, p1 = tile_of(
        group, tile, blocks, span, N, C, P, G, BLOCK_C, BLOCK_P
    )  # fmt: skip
    plane = N.to(tl.int64) * splits * C
    scale_backward_tile(
        dy, dy_image, dy_row, x, x_image, x_row, dx, dx_image, dx_row, dr, dr_image, dr_row,
        mask, norm, s, parts, plane, n0, c0, split, splits, p0, p1, N, C, P,
        SQUEEZE, PRE, NHWC, G, BLOCK_C, ROWS, BLOCK_P, ACC,
    )  # fmt: skip


def run_scale(layout, x, residual, y, mask, norm, s, pre, post) -> None:
    """Fills y (N, C, H, W), and the mask unless None; norm (3 or more, C) or None; images:
    (tensor, image, row)."""
    plan = plan_sweep(x[0], layout, PAIR_BLOCKS, s.dtype)
    with on_device(x[0]):
        scale_kernel[(plan.groups * plan.tiles,)](
            *x,
            *(residual or (None, 0, 0)),
            *y,
            mask,
            norm,
            s,
            *alone(plan, x[0]),
            PRE=pre,
            POST=post,
            **options(SWEEP_REGISTERS),
            **sweep_constants(plan, layout, unit_of(layout, [x, residual, y])),
        )


def run_scale_backward(layout, dy, x, dx, dr, mask, norm, s, kinds, dtype, squeeze, pre):
    """Fills dx and dr (N, C, H, W) unless None; gives parts of ``kinds`` sums (K, N, splits, C) in
    that dtype, None for 0. Images as above."""
    plan = plan_sweep(x[0], layout, PAIR_BLOCKS, dtype)
    absent = (None, 0, 0)
    parts = parts_of(plan, x[0], dtype, kinds) if kinds else None
    with on_device(x[0]):
        scale_backward_kernel[(plan.groups * plan.tiles,)](
            *(dy or absent),
            *x,
            *(dx or absent),
            *(dr or absent),
            mask,
            norm,
            s,
            parts,
            *alone(plan, x[0]),
            SQUEEZE=squeeze,
            PRE=pre,
            ACC=triton_type(dtype),
            **options(SUMS_REGISTERS[max(kinds, 2)]),
            **sweep_constants(plan, layout, unit_of(layout, [x, dy, dx, dr])),
        )
    return parts
