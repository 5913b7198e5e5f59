"""norm_scale and norm_scale_backward, a launch each."""

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
from se_kernels.backends.triton.phases.norm_scale import (
    norm_scale_backward_tile,
    norm_scale_tile,
)
from se_kernels.backends.triton.phases.tile import aligned, program_tile, tile_of
from se_kernels.backends.triton.plan import (
    NORM_PAIR_BLOCKS,
    NORM_REGISTERS,
    NORM_SUMS_REGISTERS,
)

_SIZES = ["u_image", "u_row", "N", "C", "P", "blocks", "splits", "span"]
_FORWARD_SIZES = [*_SIZES, "r_image", "r_row", "y_image", "y_row"]
_BACKWARD_SIZES = [*_SIZES, "dy_image", "dy_row", "dr_image", "dr_row"]


@triton.jit(do_not_specialize=_FORWARD_SIZES)
def norm_scale_kernel(
    u, u_image, u_row, residual, r_image, r_row, y, y_image, y_row, mask, norm, s,
    N, C, P, blocks, splits, span,
    PRE: tl.constexpr, POST: tl.constexpr, NHWC: tl.constexpr, UNIT: tl.constexpr,
    G: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    u_image, u_row = aligned(u_image, UNIT), aligned(u_row, UNIT)
    r_image, r_row = aligned(r_image, UNIT), aligned(r_row, UNIT)
    y_image, y_row = aligned(y_image, UNIT), aligned(y_row, UNIT)
    if NHWC:
        C = aligned(C, UNIT)
    else:
        P = aligned(P, UNIT)
    # the opposite of norm_moments, or of norm_squeeze, whichever was the last
    group, tile = program_tile(blocks, splits, PRE == "identity")
    _block, _split, n0, c0, p0, p1 = tile_of(
        group, tile, blocks, span, N, C, P, G, BLOCK_C, BLOCK_P
    )  # fmt: skip
    norm_scale_tile(
        u, u_image, u_row, residual, r_image, r_row, y, y_image, y_row, mask, norm, s,
        n0, c0, p0, p1, N, C, P, PRE, POST, NHWC, G, BLOCK_C, ROWS, BLOCK_P,
    )  # fmt: skip


@triton.jit(do_not_specialize=_BACKWARD_SIZES)
def norm_scale_backward_kernel(
    dy, dy_image, dy_row, u, u_image, u_row, dr, dr_image, dr_row, mask, norm, parts,
    N, C, P, blocks, splits, span,
    PRE: tl.constexpr, NHWC: tl.constexpr, UNIT: tl.constexpr, G: tl.constexpr,
    BLOCK_C: tl.constexpr, ROWS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """dr where wanted, and what each part of the pixels adds to the sums, (K, N, splits, C)."""
    dy_image, dy_row = aligned(dy_image, UNIT), aligned(dy_row, UNIT)
    u_image, u_row = aligned(u_image, UNIT), aligned(u_row, UNIT)
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
    norm_scale_backward_tile(
        dy, dy_image, dy_row, u, u_image, u_row, dr, dr_image, dr_row, mask, norm, parts, plane,
        n0, c0, split, splits, p0, p1, N, C, P, PRE, NHWC, G, BLOCK_C, ROWS, BLOCK_P,
    )  # fmt: skip


def run_norm_scale(layout, u, residual, y, mask, norm, s, pre, post) -> None:
    """Fills y (N, C, H, W), and the mask unless None; images: (tensor, image, row)."""
    plan = plan_after_norm(u[0], layout, NORM_PAIR_BLOCKS, norm.dtype)
    with on_device(u[0]):
        norm_scale_kernel[(plan.groups * plan.tiles,)](
            *u,
            *(residual or (None, 0, 0)),
            *y,
            mask,
            norm,
            s,
            *alone(plan, u[0]),
            PRE=pre,
            POST=post,
            **options(NORM_REGISTERS[norm.dtype.itemsize]),
            **constants(plan, layout, unit_of(layout, [u, residual, y])),
        )


def run_norm_scale_backward(layout, dy, u, dr, mask, norm, pre):
    """Fills dr (N, C, H, W) unless None; parts of the sums (K, N, splits, C). Images as above."""
    plan = plan_after_norm(u[0], layout, NORM_PAIR_BLOCKS, norm.dtype)
    kinds = 2 if pre == "identity" else 5
    parts = parts_of(plan, u[0], norm.dtype, kinds)
    with on_device(u[0]):
        norm_scale_backward_kernel[(plan.groups * plan.tiles,)](
            *dy,
            *u,
            *(dr or (None, 0, 0)),
            mask,
            norm,
            parts,
            *alone(plan, u[0]),
            PRE=pre,
            **options(NORM_SUMS_REGISTERS[kinds]),
            **constants(plan, layout, unit_of(layout, [u, dy, dr])),
        )
    return parts
