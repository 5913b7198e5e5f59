"""solve: the numbers per image and channel, and per channel, between the sweeps of a batch norm,
and the gradients of the FCs' weights.

``numbers`` (4 + 2 N, C) are those of ``ops.norm_forward``: the norm's mean, scale, bias and
1 / √(var + eps), then ``squeezed`` and s of each image. What a sweep leaves are parts of the
pixels: (N, splits, C), of ``part`` pixels each but for the last.
"""

import torch
import triton
import triton.language as tl

from se_kernels.backends.triton.launch import (
    excitation_of,
    on_device,
    options,
    precision_of,
    solve_constants,
)
from se_kernels.backends.triton.phases.excite import (
    activate,
    activate_backward,
    close_gate,
    open_gate,
)
from se_kernels.backends.triton.phases.moments import finite_or_zero
from se_kernels.backends.triton.phases.number import rounded, widened
from se_kernels.backends.triton.phases.product import block_of, product, transposed_block_of
from se_kernels.backends.triton.phases.tile import aligned
from se_kernels.backends.triton.plan import ceil_div

# by how products are taken: images, and numbers of the bottleneck, of an FC's block; its channels;
# channels that it sums over at a time; images, numbers of the bottleneck and channels of a gradient
_BLOCKS = {
    "tf32x3": ((16, 64, 128), (32, 32, 32)),
    "ieee": ((16, 64, 32), (16, 16, 32)),  # by each thread's own registers
    "float64": ((16, 16, 16), (16, 16, 16)),
}

_SIZES = ["N", "C", "R", "P", "splits", "part", "momentum", "eps", "norm_blocks", "row_blocks"]


def _sized(*names):
    return triton.jit(do_not_specialize=[name for name in _SIZES if name in names])


@triton.jit
def pixels_in(split, splits, part, P):
    """How many pixels a part has."""
    return tl.where(split == splits - 1, P - split * part, part).to(tl.float64)


@triton.jit
def part_sums(parts, n, c, N, C, splits, ACC: tl.constexpr):
    """Σ of the parts (N, splits, C) of each image, (BLOCK_N, BLOCK_C), in a fixed order."""
    inside = (n[:, None] < N) & (c[None, :] < C)
    at = parts + n[:, None].to(tl.int64) * splits * C + c[None, :]
    total = tl.zeros([n.shape[0], c.shape[0]], ACC)
    for split in range(splits):
        total += tl.load(at + split * C, inside, other=0)
    return total


@triton.jit
def normed_z(numbers, n, c, N, C, AFFINE: tl.constexpr, ACC: tl.constexpr):
    """z (BLOCK_N, BLOCK_C) from ``squeezed``; AFFINE: it is the norm of these."""
    z = block_of(numbers + 4 * C, n, c, N, C, C, ACC)
    if AFFINE:
        scale = tl.load(numbers + C + c, c < C, other=0)
        z = z * scale[None, :] + tl.load(numbers + 2 * C + c, c < C, other=0)[None, :]
        z = tl.where((n < N)[:, None], z, 0)
    return z


@_sized("momentum", "eps", "N", "C", "P", "splits", "part")
def solve_norm_kernel(
    means, squares, mean, var, weight, bias, moved, numbers, momentum: tl.float64,
    eps: tl.float64, N, C, P, splits, part,
    TRAINING: tl.constexpr, AFFINE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The norm, from mean and var (C) or in training from the parts' means and Σ (u - mean)²; where
    AFFINE ``squeezed``, the images' means less the norm's; moved (2, C), the running statistics."""
    ACC: tl.constexpr = numbers.dtype.element_ty
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    there = channel < C
    c = channel[None, :]
    if TRAINING:
        rows, count = N * splits, N.to(tl.float64) * P
        # about the first part's mean, so that a constant channel has exactly its constant
        near = tl.load(means + channel, channel < C * tl.minimum(N, 1), other=0)
        near = finite_or_zero(near)
        total = tl.zeros([BLOCK_N, BLOCK_C], tl.float64)
        for start in range(0, rows, BLOCK_N):
            row = start + tl.arange(0, BLOCK_N)[:, None]
            inside = (row < rows) & (c < C)
            v = tl.load(means + row.to(tl.int64) * C + c, inside, other=0)
            v = tl.where(inside, v - near[None, :], 0)
            total += v * pixels_in(row % splits, splits, part, P)
        of_all = near + tl.sum(total, 0) / count
        total = tl.zeros([BLOCK_N, BLOCK_C], tl.float64)
        for start in range(0, rows, BLOCK_N):  # as Chan, Golub and LeVeque merge them
            row = start + tl.arange(0, BLOCK_N)[:, None]
            inside, at = (row < rows) & (c < C), row.to(tl.int64) * C + c
            away = tl.load(means + at, inside, other=0) - of_all[None, :]
            away = tl.where(inside, away, 0)
            total += away * away * pixels_in(row % splits, splits, part, P)
            total += tl.load(squares + at, inside, other=0)
        m2 = tl.sum(total, 0)
        variance = m2 / count
        if moved is not None:
            before = widened(tl.load(mean + channel, there, other=0), tl.float64)
            after = momentum * of_all + (1 - momentum) * before
            tl.store(moved + channel, after, there)
            before = widened(tl.load(var + channel, there, other=0), tl.float64)
            after = momentum * (m2 / (count - 1)) + (1 - momentum) * before
            tl.store(moved + C + channel, after, there)
    else:
        of_all = widened(tl.load(mean + channel, there, other=0), tl.float64)
        variance = widened(tl.load(var + channel, there, other=1), tl.float64)
    rstd = 1 / tl.sqrt(variance + eps)
    scale = rstd
    if weight is not None:
        scale = rstd * widened(tl.load(weight + channel, there, other=0), tl.float64)
    shift = tl.zeros([BLOCK_C], ACC)
    if bias is not None:
        shift = widened(tl.load(bias + channel, there, other=0), ACC)
    middle = of_all.to(ACC)
    tl.store(numbers + channel, middle, there)
    tl.store(numbers + C + channel, scale.to(ACC), there)
    tl.store(numbers + 2 * C + channel, shift, there)
    tl.store(numbers + 3 * C + channel, rstd.to(ACC), there)
    if AFFINE:
        for start in range(0, N, BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)[:, None]
            inside = (n < N) & (c < C)
            at = means + n.to(tl.int64) * splits * C + c
            total = tl.zeros([BLOCK_N, BLOCK_C], tl.float64)
            for split in range(splits):
                v = tl.load(at + split * C, inside, other=0) - middle[None, :].to(tl.float64)
                total += v * pixels_in(split, splits, part, P)
            centred = (total / P.to(tl.float64)).to(ACC)
            tl.store(numbers + (4 + n.to(tl.int64)) * C + c, centred, inside)


@_sized("N", "C", "R", "splits")
def solve_a_kernel(
    numbers, parts, w1, b1, a, N, C, R, splits,
    UNIT_C: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """a (N, R) = W1 z + b1, z from ``squeezed`` or, where there are parts, their sums: stored."""
    ACC: tl.constexpr = numbers.dtype.element_ty
    C = aligned(C, UNIT_C)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    total = tl.zeros([BLOCK_N, BLOCK_R], ACC)
    for start in range(0, C, BLOCK_K):
        c = start + tl.arange(0, BLOCK_K)
        if parts is None:
            z = normed_z(numbers, n, c, N, C, True, ACC)
        else:
            z = part_sums(parts, n, c, N, C, splits, ACC)
            if tl.program_id(1) == 0:
                inside = (n[:, None] < N) & (c[None, :] < C)
                tl.store(numbers + (4 + n[:, None].to(tl.int64)) * C + c[None, :], z, inside)
        total += product(z, transposed_block_of(w1, c, r, C, R, C, ACC), PRECISION)
    if b1 is not None:
        total += widened(tl.load(b1 + r, r < R, other=0), ACC)[None, :]
    inside = (n[:, None] < N) & (r[None, :] < R)
    tl.store(a + n[:, None].to(tl.int64) * R + r[None, :], total, inside)


@_sized("N", "C", "R")
def solve_s_kernel(
    a, w2, b2, numbers, N, C, R,
    ACT: tl.constexpr, SLOPE: tl.constexpr, GATE: tl.constexpr,
    UNIT_C: tl.constexpr, UNIT_R: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """s (N, C) = σ(W2 δ(a) + b2)."""
    ACC: tl.constexpr = a.dtype.element_ty
    C, R = aligned(C, UNIT_C), aligned(R, UNIT_R)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    e = tl.zeros([BLOCK_N, BLOCK_C], ACC)
    for start in range(0, R, BLOCK_K):
        r = start + tl.arange(0, BLOCK_K)
        h = activate(block_of(a, n, r, N, R, R, ACC), ACT, SLOPE)
        e += product(h, transposed_block_of(w2, r, c, R, C, R, ACC), PRECISION)
    if b2 is not None:
        e += widened(tl.load(b2 + c, c < C, other=0), ACC)[None, :]
    inside = (n[:, None] < N) & (c[None, :] < C)
    at = (4 + N + n[:, None].to(tl.int64)) * C + c[None, :]
    tl.store(numbers + at, open_gate(e, GATE), inside)


@_sized("N", "C", "R", "splits")
def solve_da_kernel(
    numbers, sums, a, w2, de, da, N, C, R, splits,
    AFFINE: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, GATE: tl.constexpr,
    UNIT_C: tl.constexpr, UNIT_R: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """de (N, C) = ds σ'(e) and da (N, R) = δ'(a) W2ᵀ de, from the parts of the sums of backward."""
    ACC: tl.constexpr = numbers.dtype.element_ty
    C, R = aligned(C, UNIT_C), aligned(R, UNIT_R)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    plane = N.to(tl.int64) * splits * C
    dh = tl.zeros([BLOCK_N, BLOCK_R], ACC)
    for start in range(0, C, BLOCK_K):
        c = start + tl.arange(0, BLOCK_K)
        ds = part_sums(sums, n, c, N, C, splits, ACC)
        if AFFINE:  # these are of g, and of g (u - mean)
            scale = tl.load(numbers + C + c, c < C, other=0)[None, :]
            bias = tl.load(numbers + 2 * C + c, c < C, other=0)[None, :]
            ds = bias * ds + scale * part_sums(sums + plane, n, c, N, C, splits, ACC)
        s = block_of(numbers + (4 + N.to(tl.int64)) * C, n, c, N, C, C, ACC)
        inside = (n[:, None] < N) & (c[None, :] < C)
        v = tl.where(inside, close_gate(ds, s, GATE), 0)
        if tl.program_id(1) == 0:
            tl.store(de + n[:, None].to(tl.int64) * C + c[None, :], v, inside)
        dh += product(v, block_of(w2, c, r, C, R, R, ACC), PRECISION)
    before = block_of(a, n, r, N, R, R, ACC)
    inside = (n[:, None] < N) & (r[None, :] < R)
    at = n[:, None].to(tl.int64) * R + r[None, :]
    tl.store(da + at, activate_backward(dh, before, ACT, SLOPE), inside)


@triton.jit
def norm_gradients(
    numbers, sums, da, w1, d, d_weight, d_bias, adds, c, N, C, R, P, splits,
    AFFINE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """d (N, C) = W1ᵀ da / P of the channels c, the gradients of the norm's weight and bias, and
    slope and offset, adds (2, C): what those of the batch's statistics add to du."""
    ACC: tl.constexpr = numbers.dtype.element_ty
    BLOCK_C: tl.constexpr = c.shape[0]
    there, plane = c < C, N.to(tl.int64) * splits * C
    pixels = P.to(ACC)
    of_bias, of_scale = tl.zeros([BLOCK_N, BLOCK_C], ACC), tl.zeros([BLOCK_N, BLOCK_C], ACC)
    FIRST: tl.constexpr = 0 if AFFINE else 1
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        dz = tl.zeros([BLOCK_N, BLOCK_C], ACC)
        for first in range(0, R, BLOCK_K):
            r = first + tl.arange(0, BLOCK_K)
            weights = block_of(w1, r, c, R, C, C, ACC)
            dz += product(block_of(da, n, r, N, R, R, ACC), weights, PRECISION)
        inside = (n[:, None] < N) & there[None, :]
        each = tl.where(inside, dz / pixels, 0)
        tl.store(d + n[:, None].to(tl.int64) * C + c[None, :], each, inside)
        if AFFINE:
            squeezed = block_of(numbers + 4 * C, n, c, N, C, C, ACC)
            slopes, slope_a = pixels, pixels * squeezed
        else:
            slopes = part_sums(sums + 3 * plane, n, c, N, C, splits, ACC)
            slope_a = part_sums(sums + 4 * plane, n, c, N, C, splits, ACC)
        s = block_of(numbers + (4 + N.to(tl.int64)) * C, n, c, N, C, C, ACC)
        total = part_sums(sums + FIRST * plane, n, c, N, C, splits, ACC)
        moment = part_sums(sums + (FIRST + 1) * plane, n, c, N, C, splits, ACC)
        of_bias += each * slopes + s * total
        of_scale += each * slope_a + s * moment
    scale = tl.load(numbers + C + c, there, other=0)
    rstd = tl.load(numbers + 3 * C + c, there, other=0)
    into_bias, into_weight = tl.sum(of_bias, 0), tl.sum(of_scale, 0) * rstd
    share = -scale / (N.to(ACC) * pixels)
    tl.store(d_weight + c, into_weight, there)
    tl.store(d_bias + c, into_bias, there)
    tl.store(adds + c, share * rstd * into_weight, there)  # rstd³ may be no float
    tl.store(adds + C + c, share * into_bias, there)


@triton.jit
def weight_gradients(
    numbers, z, a, de, da, dw1, dw2, db1, db2, row, column, N, C, R,
    AFFINE: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A tile of dW1 = Σ_n da zᵀ and dW2 = Σ_n de hᵀ; the tiles of the first column also write
    db1 = Σ_n da, those of the first row db2 = Σ_n de. Each is rounded once; None is not written."""
    ACC: tl.constexpr = a.dtype.element_ty
    r = row * BLOCK_R + tl.arange(0, BLOCK_R)
    c = column * BLOCK_C + tl.arange(0, BLOCK_C)
    into_w1, into_w2 = tl.zeros([BLOCK_R, BLOCK_C], ACC), tl.zeros([BLOCK_C, BLOCK_R], ACC)
    into_b1, into_b2 = tl.zeros([BLOCK_R], ACC), tl.zeros([BLOCK_C], ACC)
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        if dw1 is not None or db1 is not None:
            left = block_of(da, n, r, N, R, R, ACC)
            into_b1 += tl.sum(left, 0)
        if dw1 is not None:
            if z is None:
                right = normed_z(numbers, n, c, N, C, AFFINE, ACC)
            else:
                right = block_of(z, n, c, N, C, C, ACC)
            into_w1 += product(tl.trans(left), right, PRECISION)
        if dw2 is not None or db2 is not None:
            left = block_of(de, n, c, N, C, C, ACC)
            into_b2 += tl.sum(left, 0)
        if dw2 is not None:
            h = activate(block_of(a, n, r, N, R, R, ACC), ACT, SLOPE)
            into_w2 += product(tl.trans(left), h, PRECISION)
    if dw1 is not None:
        at = dw1 + r[:, None].to(tl.int64) * C + c[None, :]
        tl.store(at, rounded(into_w1, dw1.dtype.element_ty), (r[:, None] < R) & (c[None, :] < C))
    if dw2 is not None:
        at = dw2 + c[:, None].to(tl.int64) * R + r[None, :]
        tl.store(at, rounded(into_w2, dw2.dtype.element_ty), (c[:, None] < C) & (r[None, :] < R))
    if db1 is not None:
        end = tl.where(column == 0, R, 0)
        tl.store(db1 + r, rounded(into_b1, db1.dtype.element_ty), r < end)
    if db2 is not None:
        end = tl.where(row == 0, C, 0)
        tl.store(db2 + c, rounded(into_b2, db2.dtype.element_ty), c < end)


@_sized("N", "C", "R", "P", "splits", "norm_blocks", "row_blocks")
def solve_gradients_kernel(
    numbers, sums, z, a, de, da, w1, d, d_weight, d_bias, adds, dw1, dw2, db1, db2,
    N, C, R, P, splits, norm_blocks, row_blocks,
    AFFINE: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr,
    UNIT_C: tl.constexpr, UNIT_R: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """What follows from de and da: with a norm its gradients, by the first ``norm_blocks``
    programs; those of the weights by the others, a tile each."""
    C, R = aligned(C, UNIT_C), aligned(R, UNIT_R)
    tile = tl.program_id(0) - norm_blocks
    if tile >= 0:
        weight_gradients(
            numbers, z, a, de, da, dw1, dw2, db1, db2, tile % row_blocks, tile // row_blocks,
            N, C, R, AFFINE, ACT, SLOPE, PRECISION, BLOCK_N, BLOCK_R, BLOCK_C,
        )  # fmt: skip
    elif sums is not None:
        c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
        norm_gradients(
            numbers, sums, da, w1, d, d_weight, d_bias, adds, c, N, C, R, P, splits,
            AFFINE, PRECISION, BLOCK_N, BLOCK_R,
        )  # fmt: skip


def _blocks_of(a):
    return _BLOCKS["float64" if a.dtype == torch.float64 else precision_of(a)]


def run_solve_norm(
    numbers, parts, mean, var, weight, bias, moved, momentum, eps, pixels, training, affine
) -> None:
    """Fills the norm and, where affine, ``squeezed`` of numbers (4 + 2 N, C), and moved (2, C)
    unless None; parts: (means, squares, splits, part), the first two may be None."""
    means, squares, splits, part = parts
    rows, channels = numbers.shape
    block = dict(BLOCK_N=64, BLOCK_C=8)
    with on_device(numbers):
        solve_norm_kernel[(ceil_div(channels, block["BLOCK_C"]),)](
            means,
            squares,
            mean,
            var,
            weight,
            bias,
            moved,
            numbers,
            float(momentum),
            float(eps),
            (rows - 4) // 2,
            channels,
            pixels,
            splits,
            part,
            TRAINING=training,
            AFFINE=affine,
            **block,
            **options(),
        )


def run_excite(numbers, z_parts, splits, w1, w2, b1, b2, a, act, act_slope, gate) -> None:
    """Fills a (N, R) and s of numbers; where there are z_parts (N, splits, C), ``squeezed``."""
    (images, reduced), channels = a.shape, numbers.shape[1]
    few, many, inner = _blocks_of(a)[0]
    groups, sizes = ceil_div(images, few), (images, channels, reduced)
    with on_device(a):
        solve_a_kernel[groups, ceil_div(reduced, few)](
            numbers,
            z_parts,
            w1,
            b1,
            a,
            *sizes,
            splits,
            **solve_constants(a, UNIT_C=channels),
            BLOCK_N=few,
            BLOCK_R=few,
            BLOCK_K=inner,
            **options(),
        )
        solve_s_kernel[groups, ceil_div(channels, many)](
            a,
            w2,
            b2,
            numbers,
            *sizes,
            **excitation_of(act, act_slope),
            GATE=gate,
            **solve_constants(a, UNIT_C=channels, UNIT_R=reduced),
            BLOCK_N=few,
            BLOCK_C=many,
            BLOCK_K=few,
            **options(),
        )


def run_excite_backward(numbers, sums, splits, w2, a, de, da, affine, act, act_slope, gate):
    """Fills de (N, C) and da (N, R) from the parts sums (K, N, splits, C)."""
    (images, reduced), channels = a.shape, numbers.shape[1]
    few, _, inner = _blocks_of(a)[0]
    with on_device(a):
        solve_da_kernel[ceil_div(images, few), ceil_div(reduced, few)](
            numbers,
            sums,
            a,
            w2,
            de,
            da,
            images,
            channels,
            reduced,
            splits,
            AFFINE=affine,
            **excitation_of(act, act_slope),
            GATE=gate,
            **solve_constants(a, UNIT_C=channels, UNIT_R=reduced),
            BLOCK_N=few,
            BLOCK_R=few,
            BLOCK_K=inner,
            **options(),
        )


def run_gradients(a, de, da, z, gradients, norm, act, act_slope) -> None:
    """Fills dw1 (R, C), dw2 (C, R), db1 (R,), db2 (C,), those that are not None, from a, da (N, R)
    and de, z (N, C).

    ``norm``: None, or (numbers, sums, splits, pixels, affine, w1, d, d_weight, d_bias, adds): then
    z is None, and the last four are filled from the parts sums (K, N, splits, C).
    """
    (images, reduced), channels = a.shape, de.shape[1]
    absent = None, None, 1, 1, True, *[None] * 5
    numbers, sums, splits, pixels, affine, *of_norm = norm or absent
    block_n, block_r, block_c = _blocks_of(a)[1]
    norm_blocks = ceil_div(channels, block_c) if norm else 0
    row_blocks = max(1, ceil_div(reduced, block_r))  # one for db2 if R = 0
    wanted = any(gradient is not None for gradient in gradients)
    tiles = row_blocks * ceil_div(channels, block_c) if wanted else 0
    if norm_blocks + tiles == 0:
        return
    with on_device(a):
        solve_gradients_kernel[(norm_blocks + tiles,)](
            numbers,
            sums,
            z,
            a,
            de,
            da,
            *of_norm,
            *gradients,
            images,
            channels,
            reduced,
            pixels,
            splits,
            norm_blocks,
            row_blocks,
            AFFINE=affine,
            **excitation_of(act, act_slope),
            **solve_constants(a, UNIT_C=channels, UNIT_R=reduced),
            BLOCK_N=block_n,
            BLOCK_R=block_r,
            BLOCK_C=block_c,
            **options(),
        )
