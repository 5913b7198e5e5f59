"""The backward kernel: scale, excite, squeeze, backwards, in one launch."""

from dataclasses import replace

import torch
import triton
import triton.language as tl

from se_kernels.backends.triton.launch import (
    constants,
    counters_of,
    excitation_constants,
    excitation_of,
    on_device,
    options,
    plan_of,
    registers_for,
    unit_of,
)
from se_kernels.backends.triton.phases.excite import (
    activate_backward,
    close_gate,
    contract_channels,
    contract_reduced,
    sum_partials,
)
from se_kernels.backends.triton.phases.scale import gather_scale_backward, scale_backward_tile
from se_kernels.backends.triton.phases.schedule import (
    EXCITE,
    FIRST_SWEEP,
    completes,
    item_of,
    publish,
    take_ticket,
    wait_for,
)
from se_kernels.backends.triton.phases.squeeze import spread_gradient, squeeze_backward_tile
from se_kernels.backends.triton.phases.tile import aligned, group_channels, tile_of
from se_kernels.backends.triton.plan import BACKWARD_REGISTERS

_SIZES = ["x_image", "x_row", "dy_image", "dy_row", "dx_image", "dx_row"]
_SIZES += [
    "dr_image",
    "dr_row",
    "N",
    "C",
    "R",
    "P",
    "groups",
    "blocks",
    "splits",
    "span",
    "excites",
    "lag",
    "ahead",
]


@triton.jit(do_not_specialize=_SIZES)
def backward_kernel(
    x, x_image, x_row, dy, dy_image, dy_row, dx, dx_image, dx_row, dr, dr_image, dr_row,
    mask, w1, w2,
    a, s, de, da, mean, peak, ties, share, parts, partials, counters,
    N, C, R, P, groups, blocks, splits, span, excites, lag, ahead,
    SQUEEZE: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, GATE: tl.constexpr,
    NHWC: tl.constexpr, UNIT: tl.constexpr, UNIT_W: tl.constexpr,
    G: tl.constexpr,
    BLOCK_C: tl.constexpr, ROWS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_I: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = s.dtype.element_ty
    x_image, x_row = aligned(x_image, UNIT), aligned(x_row, UNIT)
    dy_image, dy_row = aligned(dy_image, UNIT), aligned(dy_row, UNIT)
    dx_image, dx_row = aligned(dx_image, UNIT), aligned(dx_row, UNIT)
    dr_image, dr_row = aligned(dr_image, UNIT), aligned(dr_row, UNIT)
    C, R = aligned(C, UNIT_W), aligned(R, UNIT_W)
    if NHWC:
        C = aligned(C, UNIT)
    else:
        P = aligned(P, UNIT)
    squeezed, excited, parted = counters + 1, counters + 1 + groups, counters + 1 + 2 * groups

    ticket = take_ticket(counters)
    kind, group, tile = item_of(ticket, groups, blocks * splits, excites, lag, ahead)
    block, split, n0, c0, p0, p1 = tile_of(
        group, tile, blocks, span, N, C, P, G, BLOCK_C, BLOCK_P
    )  # fmt: skip
    n, c = group_channels(n0, c0, G, BLOCK_C)
    channel = c0 + tl.arange(0, BLOCK_C)
    valid = (n < N) & (c < C)
    plane = N.to(tl.int64) * splits * C
    products = partials + group.to(tl.int64) * blocks * G * R

    if kind == FIRST_SWEEP:
        scale_backward_tile(
            dy, dy_image, dy_row, x, x_image, x_row, None, 0, 0, dr, dr_image, dr_row,
            mask, None, s, parts, plane, n0, c0, split, splits, p0, p1, N, C, P,
            SQUEEZE, "identity", NHWC, G, BLOCK_C, ROWS, BLOCK_P, ACC,
        )  # fmt: skip
        if completes(parted + group * blocks + block, splits, BLOCK_S == 1):
            ds = gather_scale_backward(
                parts, plane, peak, ties, n, c, valid, splits, C, SQUEEZE, BLOCK_S
            )
            at = n.to(tl.int64) * C + c
            v = close_gate(ds, tl.load(s + at, valid, other=0), GATE)
            tl.store(de + at, v, valid)
            contract_channels(
                v, w2, products + block * G * R, channel, C, R, False, G, BLOCK_R, PRECISION
            )
            publish(squeezed + group)
    elif kind == EXCITE:
        wait_for(squeezed + group, blocks)
        i = tile * BLOCK_I + tl.arange(0, BLOCK_I)
        inside = (i < G * R) & (n0 + i // R < N)
        dh = sum_partials(products, i, G * R, blocks, BLOCK_T, BLOCK_I)
        at = n0.to(tl.int64) * R + i
        before = tl.load(a + at, inside, other=0)
        tl.store(da + at, activate_backward(dh, before, ACT, SLOPE), inside)
        publish(excited + group)
    elif dx is not None:
        wait_for(excited + group, excites)
        dz = contract_reduced(da, w1, n, channel, N, C, R, True, BLOCK_R, PRECISION)
        spread_gradient(dz, peak, ties, mean, share, n, c, valid, P, C, SQUEEZE)
        tl.debug_barrier()
        if dr is None:
            squeeze_backward_tile(
                dy, dy_image, dy_row, x, x_image, x_row, dx, dx_image, dx_row, mask, None, s, mean,
                None, peak, share, n0, c0, p0, p1, N, C, P,
                SQUEEZE, "identity", NHWC, G, BLOCK_C, ROWS, BLOCK_P, ACC,
            )  # fmt: skip
        else:  # dr is g
            squeeze_backward_tile(
                dr, dr_image, dr_row, x, x_image, x_row, dx, dx_image, dx_row, None, None, s, mean,
                None, peak, share, n0, c0, p0, p1, N, C, P,
                SQUEEZE, "identity", NHWC, G, BLOCK_C, ROWS, BLOCK_P, ACC,
            )  # fmt: skip


def run_backward(
    layout, x, dy, dx, dr, mask, w1, w2, a, s, squeeze, act, act_slope, gate
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fills dx and dr where given; gives de (N, C), da (N, R). Images: (tensor, image, row)."""
    plan = plan_of(x[0], w1, layout)
    images, channels, height, width = x[0].shape
    pixels, reduced = height * width, w1.shape[0]
    unit = unit_of(layout, [x, dy, dx, dr])
    absent = (None, 0, 0)
    with on_device(x[0]):
        de, da = torch.empty_like(s), torch.empty_like(a)
        # mean, peak, ties, share (N, C)
        by_channel = s.new_empty(4, images, channels)
        planes = 1 if squeeze == "avg" else 3
        parts = s.new_empty(planes * images * plan.split * channels)
        partials = s.new_empty(plan.groups * plan.blocks * plan.images * reduced)
        if dx is None:  # the first sweep, then the excitation, and no more
            plan = replace(plan, lag=plan.groups, ahead=plan.groups)
        sweeps = 1 if dx is None else 2
        backward_kernel[(plan.groups * (sweeps * plan.tiles + plan.excites),)](
            *x,
            *dy,
            *(dx or absent),
            *(dr or absent),
            mask,
            w1,
            w2,
            a,
            s,
            de,
            da,
            *by_channel,
            parts,
            partials,
            counters_of(plan, s),
            images,
            channels,
            reduced,
            pixels,
            plan.groups,
            plan.blocks,
            plan.split,
            plan.span,
            plan.excites,
            plan.lag,
            plan.ahead,
            SQUEEZE=squeeze,
            **excitation_of(act, act_slope),
            GATE=gate,
            **options(registers_for(squeeze, BACKWARD_REGISTERS)),
            **constants(plan, layout, unit),
            **excitation_constants(plan, w1),
        )
    return de, da
