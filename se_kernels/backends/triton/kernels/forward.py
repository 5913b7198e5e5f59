"""The forward kernel: squeeze, excite, scale in one launch."""

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
    activate,
    contract_channels,
    contract_reduced,
    open_gate,
    sum_partials,
)
from se_kernels.backends.triton.phases.number import widened
from se_kernels.backends.triton.phases.scale import scale_tile
from se_kernels.backends.triton.phases.schedule import (
    EXCITE,
    FIRST_SWEEP,
    completes,
    item_of,
    publish,
    take_ticket,
    wait_for,
)
from se_kernels.backends.triton.phases.squeeze import gather_squeeze, squeeze_tile
from se_kernels.backends.triton.phases.tile import aligned, group_channels, tile_of
from se_kernels.backends.triton.plan import PRODUCT_REGISTERS

_SIZES = ["x_image", "x_row", "r_image", "r_row", "y_image", "y_row", "N", "C", "R", "P"]
_SIZES += ["groups", "blocks", "splits", "span", "excites", "lag", "ahead"]


@triton.jit(do_not_specialize=_SIZES)
def forward_kernel(
    x, x_image, x_row, residual, r_image, r_row, y, y_image, y_row, mask, w1, w2, b1, b2,
    z, a, h, s, parts, partials, counters,
    N, C, R, P, groups, blocks, splits, span, excites, lag, ahead,
    SQUEEZE: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, GATE: tl.constexpr,
    POST: tl.constexpr, NHWC: tl.constexpr, UNIT: tl.constexpr, UNIT_W: tl.constexpr,
    G: tl.constexpr,
    BLOCK_C: tl.constexpr, ROWS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_I: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = z.dtype.element_ty
    x_image, x_row = aligned(x_image, UNIT), aligned(x_row, UNIT)
    r_image, r_row = aligned(r_image, UNIT), aligned(r_row, UNIT)
    y_image, y_row = aligned(y_image, UNIT), aligned(y_row, UNIT)
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
        squeeze_tile(
            x, x_image, x_row, None, parts, plane, n0, c0, split, splits, p0, p1, N, C, P,
            SQUEEZE, "identity", NHWC, G, BLOCK_C, ROWS, BLOCK_P,
        )  # fmt: skip
        if completes(parted + group * blocks + block, splits, BLOCK_S == 1):
            v = gather_squeeze(parts, plane, z, n, c, valid, splits, C, SQUEEZE, BLOCK_S)
            contract_channels(
                v, w1, products + block * G * R, channel, C, R, True, G, BLOCK_R, PRECISION
            )
            publish(squeezed + group)
    elif kind == EXCITE:
        wait_for(squeezed + group, blocks)
        i = tile * BLOCK_I + tl.arange(0, BLOCK_I)
        inside = (i < G * R) & (n0 + i // R < N)
        total = sum_partials(products, i, G * R, blocks, BLOCK_T, BLOCK_I)
        if b1 is not None:
            total += widened(tl.load(b1 + i % R, inside, other=0), ACC)
        at = n0.to(tl.int64) * R + i
        tl.store(a + at, total, inside)
        tl.store(h + at, activate(total, ACT, SLOPE), inside)
        publish(excited + group)
    else:
        wait_for(excited + group, excites)
        e = contract_reduced(h, w2, n, channel, N, C, R, False, BLOCK_R, PRECISION)
        if b2 is not None:
            e += widened(tl.load(b2 + c, c < C, other=0), ACC)
        tl.store(s + n.to(tl.int64) * C + c, open_gate(e, GATE), valid)
        tl.debug_barrier()
        scale_tile(
            x, x_image, x_row, residual, r_image, r_row, y, y_image, y_row, mask, None, s,
            n0, c0, p0, p1, N, C, P, "identity", POST, NHWC, G, BLOCK_C, ROWS, BLOCK_P,
        )  # fmt: skip


def run_forward(
    layout, x, residual, y, mask, w1, w2, b1, b2, z, a, s, squeeze, act, act_slope, gate, post
) -> None:
    """Fills y (N, C, H, W), the mask unless None, z, s (N, C) and a (N, R); x, residual, y:
    (tensor, image, row)."""
    plan = plan_of(x[0], w1, layout)
    images, channels, height, width = x[0].shape
    pixels, reduced = height * width, w1.shape[0]
    unit = unit_of(layout, [x, residual, y])
    with on_device(x[0]):
        planes = 1 if squeeze == "avg" else 2
        parts = z.new_empty(planes * images * plan.split * channels)
        partials = z.new_empty(plan.groups * plan.blocks * plan.images * reduced)
        forward_kernel[(plan.groups * (2 * plan.tiles + plan.excites),)](
            *x,
            *(residual or (None, 0, 0)),
            *y,
            mask,
            w1,
            w2,
            b1,
            b2,
            z,
            a,
            torch.empty_like(a),
            s,
            parts,
            partials,
            counters_of(plan, z),
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
            POST=post,
            **options(registers_for(squeeze, PRODUCT_REGISTERS if plan.tensor_cores else None)),
            **constants(plan, layout, unit),
            **excitation_constants(plan, w1),
        )
