"""What a launch executes: blocks of each kind are run, and counted as often as the launch has them.

Blocks differ in what they do, not in how much, so one of each kind stands for all: of two sweeps a
tile of the first (that completes its channels, or not), a part of the excitation, a tile of the
second; of a norm's sweep a tile; of clusters a block.
"""

from dataclasses import dataclass, replace

import numpy as np

from sass.cubin import Function
from sass.launches import Recorded
from sass.machine import Counts, Launch, Machine
from sass.memory import ProcessMemory

EXCITE_SIZE = 64  # Cut::excite_size, by which a cut is found among the parameters
VECTOR_BYTES, LANES = 16, 32
UNIT = VECTOR_BYTES * LANES  # bytes of x that a warp moves at a time


@dataclass
class Cut:
    """How a launch is cut: ``Cut`` of csrc/cuda/plan.h, as it lies among the parameters."""

    images: int
    channels: int
    span: int
    groups: int
    blocks: int
    splits: int
    excites: int
    excite_size: int
    lag: int
    ahead: int
    chunk: int
    first_item: int
    items: int
    reversed: bool = False

    @property
    def tiles(self) -> int:
        return self.blocks * self.splits


def cut_of(launch: Launch) -> Cut:
    """Of a launch with two sweeps, or with a norm."""
    numbers = np.frombuffer(launch.parameters[: len(launch.parameters) // 4 * 4], np.int32)
    for at in range(len(numbers) - 12):
        cut = Cut(*map(int, numbers[at : at + 13]))
        tiles = cut.groups * cut.tiles
        if "two_sweeps" in launch.kernel:
            items = 2 * tiles + cut.groups * cut.excites
            right = cut.excite_size == EXCITE_SIZE and cut.items == launch.blocks == items
        else:
            right = tiles == launch.blocks and cut.images == 1 and cut.groups > 1
        if right and min(cut.images, cut.channels, cut.span, cut.blocks, cut.splits) > 0:
            # NormParameters: Access and Shared, then whether the last tile comes first
            turned = "two_sweeps" not in launch.kernel and launch.parameters[4 * (at + 18)] == 1
            return replace(cut, reversed=turned)
    raise ValueError(f"no cut among the parameters of {launch.kernel}")


@dataclass(frozen=True)
class Kind:
    """Blocks of a launch that do the same: one of them, how many, whether the counters say that it
    is the last of its tile's splits."""

    name: str
    block: int
    count: int
    completes: bool = True


TURNS = 2  # of a cluster that are run, to stand for all


def shortened(launch: Launch) -> tuple[Launch, float]:
    """A launch of clusters with two turns each, and of how many such the launch consists."""
    numbers = np.frombuffer(launch.parameters[: len(launch.parameters) // 4 * 4], np.int32).copy()
    batch = int(numbers[0])  # Sizes::images
    for at in range(len(numbers) - 1, 1, -1):  # Slices: images, ranks, clusters
        images, ranks, clusters = map(int, numbers[at - 2 : at + 1])
        if ranks == launch.cluster and clusters * ranks == launch.blocks and 0 < images <= 16:
            few = min(batch, TURNS * images * clusters)
            numbers[0] = few
            return replace(launch, parameters=numbers.tobytes()), batch / few
    raise ValueError(f"no slices among the parameters of {launch.kernel}")


def kinds_of(launch: Launch) -> list[Kind]:
    if "cluster" in launch.kernel:
        return [Kind("cluster", 0, launch.blocks)]
    cut = cut_of(launch)
    if "two_sweeps" not in launch.kernel:
        tiles, last = cut.groups * cut.blocks, launch.blocks - 1

        def block_of(split):
            at = split * cut.blocks
            return last - at if cut.reversed else at

        return _splits("tile", block_of, tiles, cut.splits)
    return sweep_kinds(cut)


def sweep_kinds(cut: Cut) -> list[Kind]:
    """Of two sweeps: from the start on first tiles of ``lag`` groups, then an excitation; at the
    end second tiles."""
    excite = cut.lag * cut.tiles
    second = cut.items - cut.tiles  # of the last group
    groups = cut.groups
    return [
        *_splits("first", lambda split: split * cut.blocks, groups * cut.blocks, cut.splits),
        Kind("excite", excite, groups * cut.excites),
        *_splits(
            "second",
            lambda split: second + split * cut.blocks,
            groups * cut.blocks,
            cut.splits,
            False,
        ),
    ]


def _splits(name, block_of, count, splits, gathers=True) -> list[Kind]:
    """A tile for each of its splits: the last may be smaller, the last to come gathers."""
    if splits == 1:
        return [Kind(name, block_of(0), count)]
    last = Kind(name, block_of(splits - 1), count, not gathers)
    if not gathers:
        return [Kind(name, block_of(0), count * (splits - 1)), last]
    others = [Kind(name, block_of(0), count * (splits - 2), False)] if splits > 2 else []
    return [*others, Kind(name, block_of(0), count, True), last]


@dataclass
class Measured:
    """Of a launch: warp instructions in all, and per kind of block (kind, counts)."""

    launch: Launch
    kinds: list[tuple[Kind, Counts]]

    @property
    def total(self) -> int:
        return sum(kind.count * counts.total for kind, counts in self.kinds)

    def executed(self) -> np.ndarray:
        return sum(kind.count * counts.executed for kind, counts in self.kinds)

    def per_unit(self, x_bytes: int) -> float:
        """Warp instructions per 512 bytes of x."""
        return self.total / (x_bytes / UNIT)


def measure(function: Function, recorded: Recorded, launch: Launch) -> Measured:
    """Runs one block of each kind. Tensors are zero: nothing that is counted depends on them."""
    kinds, times, whole = [], 1.0, launch
    if "cluster" in launch.kernel:
        launch, times = shortened(launch)
    splits = 1 if "cluster" in launch.kernel else cut_of(launch).splits
    for kind in kinds_of(launch):

        def counter(address, kind=kind):
            if "two_sweeps" in launch.kernel and address == recorded.workspace:
                return kind.block  # the ticket
            return splits - 1 if kind.completes else 0

        memory = ProcessMemory(recorded.tensors, lenient=True, counters=counter)
        block = 0 if "two_sweeps" in launch.kernel else kind.block
        machine = Machine(function.code, launch, memory, block, function.tables)
        kinds.append((kind, machine.run().times(times)))
    return Measured(whole, kinds)
