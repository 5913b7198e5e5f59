"""The squeeze on its own, and its backward; the pixels are reduced as in the fused kernels."""

import triton
import triton.language as tl

from se_kernels.backends.triton.launch import (
    alone,
    constants,
    counters_of,
    on_device,
    options,
    plan_alone,
    registers_for,
    unit_of,
)
from se_kernels.backends.triton.phases.scale import gather_scale_backward, scale_backward_tile
from se_kernels.backends.triton.phases.schedule import completes
from se_kernels.backends.triton.phases.squeeze import (
    gather_squeeze,
    spread_gradient,
    squeeze_backward_tile,
    squeeze_tile,
)
from se_kernels.backends.triton.phases.tile import aligned, group_channels, tile_of

_SIZES = ["x_image", "x_row", "g_image", "g_row", "dx_image", "dx_row", "N", "C", "P"]
_SIZES += ["blocks", "splits", "span"]


@triton.jit(do_not_specialize=_SIZES)
def squeeze_kernel(
    x, x_image, x_row, z, peak, ties, parts, counters, N, C, P, blocks, splits, span,
    SQUEEZE: tl.constexpr, NHWC: tl.constexpr, UNIT: tl.constexpr, G: tl.constexpr,
    BLOCK_C: tl.constexpr, ROWS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """z (N, C); or, where there is a peak, the largest x and how often it is there."""
    x_image, x_row = aligned(x_image, UNIT), aligned(x_row, UNIT)
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
    if peak is None:
        squeeze_tile(
            x, x_image, x_row, parts, plane, n0, c0, split, splits, p0, p1, N, C,
            SQUEEZE, NHWC, G, BLOCK_C, ROWS, BLOCK_P,
        )  # fmt: skip
    else:
        scale_backward_tile(
            None, 0, 0, None, 0, 0, x, x_image, x_row, None, 0, 0,
            None, 0, 0, peak, parts, plane, n0, c0, split, splits, p0, p1, N, C,
            SQUEEZE, "none", NHWC, G, BLOCK_C, ROWS, BLOCK_P,
        )  # fmt: skip
    if completes(counters + group * blocks + block, splits, BLOCK_S == 1):
        if peak is None:
            gather_squeeze(parts, plane, z, n, c, valid, splits, P, C, SQUEEZE, BLOCK_S)
        else:
            gather_scale_backward(
                parts, plane, peak, ties, n, c, valid, splits, C, SQUEEZE, BLOCK_S
            )  # fmt: skip


@triton.jit(do_not_specialize=_SIZES)
def squeeze_backward_kernel(
    g, g_image, g_row, x, x_image, x_row, dx, dx_image, dx_row, s, dz, mean, peak, ties, share,
    N, C, P, blocks, splits, span,
    SQUEEZE: tl.constexpr, NHWC: tl.constexpr, UNIT: tl.constexpr, G: tl.constexpr,
    BLOCK_C: tl.constexpr, ROWS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    x_image, x_row = aligned(x_image, UNIT), aligned(x_row, UNIT)
    g_image, g_row = aligned(g_image, UNIT), aligned(g_row, UNIT)
    dx_image, dx_row = aligned(dx_image, UNIT), aligned(dx_row, UNIT)
    if NHWC:
        C = aligned(C, UNIT)
    else:
        P = aligned(P, UNIT)
    group, tile = tl.program_id(0) // (blocks * splits), tl.program_id(0) % (blocks * splits)
    _block, _split, n0, c0, p0, p1 = tile_of(
        group, tile, blocks, span, N, C, P, G, BLOCK_C, BLOCK_P
    )  # fmt: skip
    n, c = group_channels(n0, c0, G, BLOCK_C)
    valid = (n < N) & (c < C)
    whole = tl.load(dz + n.to(tl.int64) * C + c, valid, other=0)
    spread_gradient(whole, peak, ties, mean, share, n, c, valid, P, C, SQUEEZE)
    tl.debug_barrier()
    squeeze_backward_tile(
        g, g_image, g_row, None, 0, 0, x, x_image, x_row, dx, dx_image, dx_row,
        s, mean, peak, share, n0, c0, p0, p1, N, C,
        SQUEEZE, "none", NHWC, G, BLOCK_C, ROWS, BLOCK_P,
    )  # fmt: skip


def run_squeeze(layout, x, z, squeeze) -> None:
    """Fills z (N, C); x: (tensor, image, row)."""
    _reduce(layout, x, z, None, None, squeeze)


def _reduce(layout, x, z, peak, ties, squeeze) -> None:
    plan = plan_alone(x[0], layout)
    planes = 3 if z is None else 1 if squeeze == "avg" else 2
    small = peak if z is None else z
    with on_device(x[0]):
        parts = small.new_empty(planes * x[0].shape[0] * plan.split * x[0].shape[1])
        squeeze_kernel[(plan.groups * plan.tiles,)](
            *x,
            z,
            peak,
            ties,
            parts,
            counters_of(plan, small),
            *alone(plan, x[0]),
            SQUEEZE=squeeze,
            **options(registers_for(squeeze, None)),
            **constants(plan, layout, unit_of(layout, [x])),
        )


def run_squeeze_backward(layout, g, x, dx, s, dz, squeeze) -> None:
    """Fills dx (N, C, H, W) = g s + what dz (N, C) gives; images: (tensor, image, row)."""
    plan = plan_alone(x[0], layout)
    with on_device(x[0]):
        mean, peak, ties, share = dz.new_empty(4, *dz.shape)
        if squeeze != "avg":
            _reduce(layout, x, None, peak, ties, squeeze)
        squeeze_backward_kernel[(plan.groups * plan.tiles,)](
            *(g or (None, 0, 0)),
            *x,
            *dx,
            s,
            dz,
            mean,
            peak,
            ties,
            share,
            *alone(plan, x[0]),
            SQUEEZE=squeeze,
            **options(registers_for(squeeze, None)),
            **constants(plan, layout, unit_of(layout, [x, g, dx])),
        )
