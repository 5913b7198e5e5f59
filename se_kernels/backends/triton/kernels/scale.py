"""The scale on its own, and its backward."""

import triton
import triton.language as tl

from se_kernels.backends.triton.launch import (
    alone,
    constants,
    counters_of,
    on_device,
    options,
    plan_alone,
    unit_of,
)
from se_kernels.backends.triton.phases.scale import (
    gather_scale_backward,
    scale_backward_tile,
    scale_tile,
)
from se_kernels.backends.triton.phases.schedule import completes
from se_kernels.backends.triton.phases.tile import aligned, group_channels, tile_of

_SIZES = ["x_image", "x_row", "r_image", "r_row", "y_image", "y_row", "dy_image", "dy_row"]
_SIZES += ["dx_image", "dx_row", "dr_image", "dr_row", "N", "C", "P", "blocks", "splits", "span"]


@triton.jit(do_not_specialize=[name for name in _SIZES if name[0] != "d"])
def scale_kernel(
    x, x_image, x_row, residual, r_image, r_row, y, y_image, y_row, s,
    N, C, P, blocks, splits, span,
    POST: tl.constexpr, NHWC: tl.constexpr, UNIT: tl.constexpr, G: tl.constexpr,
    BLOCK_C: tl.constexpr, ROWS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    x_image, x_row = aligned(x_image, UNIT), aligned(x_row, UNIT)
    r_image, r_row = aligned(r_image, UNIT), aligned(r_row, UNIT)
    y_image, y_row = aligned(y_image, UNIT), aligned(y_row, UNIT)
    if NHWC:
        C = aligned(C, UNIT)
    else:
        P = aligned(P, UNIT)
    group, tile = tl.program_id(0) // (blocks * splits), tl.program_id(0) % (blocks * splits)
    _block, _split, n0, c0, p0, p1 = tile_of(
        group, tile, blocks, span, N, C, P, G, BLOCK_C, BLOCK_P
    )  # fmt: skip
    scale_tile(
        x, x_image, x_row, residual, r_image, r_row, y, y_image, y_row, s,
        n0, c0, p0, p1, N, C, POST, NHWC, G, BLOCK_C, ROWS, BLOCK_P,
    )  # fmt: skip


@triton.jit(do_not_specialize=[name for name in _SIZES if name[0] != "r"])
def scale_backward_kernel(
    dy, dy_image, dy_row, x, x_image, x_row, y, y_image, y_row, dx, dx_image, dx_row,
    dr, dr_image, dr_row, s, ds, parts, counters, N, C, P, blocks, splits, span,
    POST: tl.constexpr, NHWC: tl.constexpr, UNIT: tl.constexpr, G: tl.constexpr,
    BLOCK_C: tl.constexpr, ROWS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    x_image, x_row = aligned(x_image, UNIT), aligned(x_row, UNIT)
    dy_image, dy_row = aligned(dy_image, UNIT), aligned(dy_row, UNIT)
    y_image, y_row = aligned(y_image, UNIT), aligned(y_row, UNIT)
    dx_image, dx_row = aligned(dx_image, UNIT), aligned(dx_row, UNIT)
    dr_image, dr_row = aligned(dr_image, UNIT), aligned(dr_row, UNIT)
    if NHWC:
        C = aligned(C, UNIT)
    else:
        P = aligned(P, UNIT)
    group, tile = tl.program_id(0) // (blocks * splits), tl.program_id(0) % (blocks * splits)
    block, split, n0, c0, p0, p1 = tile_of(
        group, tile, blocks, span, N, C, P, G, BLOCK_C, BLOCK_P
    )  # fmt: skip
    n, c = group_channels(n0, c0, G, BLOCK_C)
    valid = (n < N) & (c < C)
    plane = N.to(tl.int64) * splits * C
    scale_backward_tile(
        dy, dy_image, dy_row, y, y_image, y_row, x, x_image, x_row, dx, dx_image, dx_row,
        dr, dr_image, dr_row, s, parts, plane, n0, c0, split, splits, p0, p1, N, C,
        "avg", POST, NHWC, G, BLOCK_C, ROWS, BLOCK_P,
    )  # fmt: skip
    if ds is not None:  # noqa: SIM102 - Triton compiles no `and` with a program in it
        if completes(counters + group * blocks + block, splits, BLOCK_S == 1):
            total = gather_scale_backward(
                parts, plane, ds, ds, n, c, valid, splits, C, "avg", BLOCK_S
            )  # fmt: skip
            tl.store(ds + n.to(tl.int64) * C + c, total, valid)


def run_scale(layout, x, residual, y, s, post) -> None:
    """Fills y (N, C, H, W); images: (tensor, image, row)."""
    plan = plan_alone(x[0], layout)
    with on_device(x[0]):
        scale_kernel[(plan.groups * plan.tiles,)](
            *x,
            *(residual or (None, 0, 0)),
            *y,
            s,
            *alone(plan, x[0]),
            POST=post,
            **options(),
            **constants(plan, layout, unit_of(layout, [x, residual, y])),
        )


def run_scale_backward(layout, dy, x, y, dx, dr, s, ds, post) -> None:
    """Fills dx, dr (N, C, H, W) and ds (N, C), those that are given; images as above."""
    plan = plan_alone(x[0], layout)
    absent = (None, 0, 0)
    with on_device(x[0]):
        parts = None if ds is None else s.new_empty(s.numel() * plan.split)
        scale_backward_kernel[(plan.groups * plan.tiles,)](
            *dy,
            *x,
            *(y or absent),
            *(dx or absent),
            *(dr or absent),
            s,
            ds,
            parts,
            counters_of(plan, s),
            *alone(plan, x[0]),
            POST=post,
            **options(),
            **constants(plan, layout, unit_of(layout, [x, dy, y, dx, dr])),
        )
