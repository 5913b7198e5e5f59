"""How a problem is cut into tiles and groups: plain arithmetic on shapes, no search, no probing.

The figures behind the numbers are counted in docs/triton.md.
"""

import functools
import math
from dataclasses import dataclass

WARPS = 4
BACKWARD_REGISTERS = 96  # a thread at most: twice the loads of forward in flight
PRODUCT_REGISTERS = 96  # where the tensor cores take the products of the FCs
TRACKING_REGISTERS = 136  # where maxima and ties are tracked
SWEEP_REGISTERS = 96  # of a sweep over the batch
SPREAD_REGISTERS = 96  # of the one that writes dx
ACTIVATION_REGISTERS = 160  # of the same after an activation, whose slope it computes
SUMS_REGISTERS = {2: 80, 3: 128, 5: 128}  # where so many sums are kept
THREADS = 32 * WARPS
RESIDENT_THREADS = 1024  # on a multiprocessor, at the kernels' 64 registers or fewer
BLOCK_BYTES = 4096  # of x a program holds at a time: two 16-byte loads a thread
ODD_BLOCK_BYTES = 2048  # where an address costs a thread as many registers as numbers do
SINGLE_BLOCKS = 4096, 1024  # bytes of a sweep's block and odd block, where one tensor is read
PAIR_BLOCKS = 2048, 1024  # where two or three are
PRODUCT_ELEMENTS = 2048  # of (G, BLOCK_C, BLOCK_R): 16 registers a thread, and the sums
PRODUCT_IMAGES, PRODUCT_REDUCED = 8, 32  # at least of a group, and at most, on the tensor cores
TILE_BYTES = 28 * 1024  # of x
SWEEP_TILE_BYTES = 64 * 1024  # in a sweep of the whole batch, of which nothing is read again soon
MOST_PARTS = 64  # of the pixels, whose sums whoever needs them adds up
SMALLEST_TILE_BYTES = 2 * 1024
TILES_PER_MULTIPROCESSOR = 2  # at least, where there is so much to do
LARGEST_GROUP = 16
WEIGHTS_SHARE = 1 / 4  # of x, that one FC of a tile may read
ROW_BYTES = 128  # that lie side by side and that a block takes at least, where there are so many
L2_SHARE = 4  # a group comes back before 1 / L2_SHARE of the cache has been read
SPLIT_BLOCK = 16  # parts of the pixels that are summed side by side
SUMMED_BLOCKS, SUMMED_NUMBERS = 16, 64  # of the partial products, at a time


@dataclass(frozen=True)
class Device:
    """What the plan asks of a GPU. The default, an H100, stands in for the interpreter's."""

    multiprocessors: int = 132
    l2_bytes: int = 50 << 20
    tf32: bool = True  # products of TF32 numbers


@dataclass(frozen=True)
class Plan:
    """The constants of a launch.

    A group is ``images`` images. A tile is a group's ``channels`` channels by ``span`` blocks of
    ``block_pixels`` pixels, one of ``split`` parts; it is walked in blocks of ``rows`` (image,
    channel) pairs by ``block_pixels``, in nhwc of ``block_pixels`` by ``channels``. ``reduced``:
    numbers of the bottleneck that an FC takes at a time. ``lag``: groups between the
    sweeps; ``ahead``: between the excitation and the second.
    """

    images: int
    channels: int
    rows: int
    block_pixels: int
    span: int
    reduced: int
    groups: int
    blocks: int  # of channels
    split: int
    split_block: int  # of them summed at a time
    tensor_cores: bool  # whether they take the products of the FCs
    excites: int  # parts of the excitation
    lag: int
    ahead: int

    @property
    def tiles(self) -> int:
        """Tiles of one group."""
        return self.blocks * self.split


@functools.lru_cache(maxsize=4096)  # a network calls with the same few dozen shapes
def choose(
    images: int,
    channels: int,
    pixels: int,
    reduced: int,
    itemsize: int,
    weight_itemsize: int,
    nhwc: bool,
    device: Device,
) -> Plan:
    """The plan of x (images, channels, pixels) and a bottleneck of ``reduced``.

    ``images`` and ``channels`` are at least 1; the item sizes are in bytes.
    """
    row_bytes = max(1, pixels) * itemsize
    share = images * channels * row_bytes // (TILES_PER_MULTIPROCESSOR * device.multiprocessors)
    target = min(TILE_BYTES, max(SMALLEST_TILE_BYTES, share))
    group, block_c = _cut_channels(
        images,
        channels,
        reduced,
        weight_itemsize,
        target // row_bytes,
        row_bytes,
        ROW_BYTES // itemsize,
        nhwc,
    )
    odd = (channels if nhwc else pixels) % 2 == 1
    elements = (ODD_BLOCK_BYTES if odd else BLOCK_BYTES) // itemsize
    rows, block_p = _cut_block(
        group * block_c, block_c, pixels, elements, ROW_BYTES // itemsize, nhwc
    )
    parts = max(1, round(block_c * row_bytes / target)) if group == 1 else 1
    span = ceil_div(ceil_div(max(1, pixels), parts), block_p)
    split = ceil_div(max(1, pixels), span * block_p)
    groups, blocks = ceil_div(images, group), ceil_div(channels, block_c)
    tensor_cores = device.tf32 and max(itemsize, weight_itemsize) < 8
    tensor_cores = tensor_cores and group >= PRODUCT_IMAGES and block_c >= 16
    block_r = min(power_of_two(reduced), max(1, PRODUCT_ELEMENTS // (group * block_c)))
    if tensor_cores:
        block_r = min(max(16, power_of_two(reduced)), PRODUCT_REDUCED)
    lag = _lag(groups, blocks * split, group * channels * row_bytes, device)
    return Plan(
        images=group,
        channels=block_c,
        rows=rows,
        block_pixels=block_p,
        span=span,
        reduced=block_r,
        groups=groups,
        blocks=blocks,
        split=split,
        lag=lag,
        ahead=lag // 2,
        excites=ceil_div(group * reduced, SUMMED_NUMBERS),
        split_block=min(power_of_two(split), SPLIT_BLOCK),
        tensor_cores=tensor_cores,
    )


@functools.lru_cache(maxsize=4096)
def choose_sweep(
    images: int,
    channels: int,
    pixels: int,
    itemsize: int,
    nhwc: bool,
    device: Device,
    block_bytes: tuple[int, int],
) -> Plan:
    """The plan of a sweep over the whole batch, whose tiles are programs of their own.

    The shape of a block hardly depends on that of x, so that a network compiles few kernels: a row
    of it is ``ROW_BYTES``, in nchw of as many channels of one image. ``block_bytes``: of a block if
    rows have an even number of elements, and if an odd one.
    """
    row_bytes, row = max(1, pixels) * itemsize, ROW_BYTES // itemsize
    elements = block_bytes[(channels if nhwc else pixels) % 2 == 1] // itemsize
    if nhwc:
        block_c = min(power_of_two(channels), row)
        rows, block_p = 1, min(power_of_two(pixels), max(1, elements // block_c))
    else:
        block_p = min(power_of_two(pixels), row)
        rows = block_c = min(power_of_two(channels), max(1, elements // block_p))
    share = images * channels * row_bytes // (TILES_PER_MULTIPROCESSOR * device.multiprocessors)
    target = min(SWEEP_TILE_BYTES, max(SMALLEST_TILE_BYTES, share))
    group = min(images, max(1, target // (block_c * row_bytes)))
    parts = min(MOST_PARTS, max(1, round(block_c * row_bytes / target)))
    span = ceil_div(ceil_div(max(1, pixels), parts), block_p)
    return Plan(
        images=group,
        channels=block_c,
        rows=rows,
        block_pixels=block_p,
        span=span,
        reduced=1,
        groups=ceil_div(images, group),
        blocks=ceil_div(channels, block_c),
        split=ceil_div(max(1, pixels), span * block_p),
        split_block=1,
        tensor_cores=False,
        excites=0,
        lag=1,
        ahead=0,
    )


def _cut_channels(
    images: int,
    channels: int,
    reduced: int,
    weight_itemsize: int,
    rows: int,
    row_bytes: int,
    side_by_side: int,
    nhwc: bool,
) -> tuple[int, int]:
    """(images, channels) of a tile, some ``rows`` (image, channel) pairs.

    Of the ways to cut, the one with the fewest bytes of weights and of partial products: a tile
    reads its columns of W1 and its rows of W2, and writes what is then read once.
    """
    widest = power_of_two(channels)
    narrowest = min(widest, side_by_side) if nhwc else 1
    rows = max(narrowest, at_most(rows))
    if nhwc and narrowest * reduced * weight_itemsize > WEIGHTS_SHARE * rows * row_bytes:
        rows *= 2  # it cannot be narrower: let more images share the weights
    rows = min(rows, widest * power_of_two(images), PRODUCT_ELEMENTS)
    best, fewest = (0, 0), math.inf
    group = 1
    most = min(LARGEST_GROUP, power_of_two(images), rows // narrowest)
    while group == 1 or group <= most:
        block_c = min(widest, rows // group)
        weights = 2 * block_c * reduced * weight_itemsize
        partials = 2 * 4 * group * reduced
        cost = (weights + partials) / (group * block_c)
        if cost < fewest:
            best, fewest = (group, block_c), cost
        group *= 2
    return best


def _cut_block(
    rows: int, block_c: int, pixels: int, elements: int, side_by_side: int, nhwc: bool
) -> tuple[int, int]:
    """(rows, pixels) of a block of some ``elements``."""
    longest = power_of_two(pixels)
    if nhwc:
        return 1, min(longest, max(1, elements // block_c))
    shortest = min(longest, max(side_by_side, elements // rows))
    # the length with the fewest idle lanes, the longest of equals
    lengths = [1 << k for k in range(32) if shortest <= 1 << k <= min(longest, elements)]
    length = min(reversed(lengths), key=lambda block: ceil_div(pixels, block) * block)
    return min(rows, elements // length), length


def _lag(groups: int, tiles: int, group_bytes: int, device: Device) -> int:
    """Groups that the first sweep is ahead: enough that nobody waits, within the L2."""
    resident = device.multiprocessors * (RESIDENT_THREADS // THREADS)
    enough = ceil_div(resident, 2 * tiles)
    within = max(1, device.l2_bytes // L2_SHARE // group_bytes)
    return min(enough, within, groups)


def power_of_two(size: int) -> int:
    """The smallest power of two that is at least ``size`` and 1."""
    return 1 << max(0, size - 1).bit_length()


def at_most(size: int) -> int:
    """The largest power of two that is at most ``size``; 1 below."""
    return 1 << max(0, size.bit_length() - 1)


def ceil_div(size: int, by: int) -> int:
    return -(-size // by)
