"""What a launch executes: blocks of each kind are run, and counted as often as the launch has them.

Blocks differ in what they do, not in how much, so one of each kind stands for all: of both sweeps a
tile of the first (that completes its channels, or not), a part of either FC, a tile of the second;
of a norm's sweep a tile.
"""

from dataclasses import dataclass

import numpy as np

from sass.cubin import Function
from sass.launches import Recorded
from sass.machine import Counts, Launch, Machine
from sass.memory import ProcessMemory

VECTOR_BYTES, LANES = 16, 32
UNIT = VECTOR_BYTES * LANES  # bytes of x that a warp moves at a time


@dataclass
class TilePlan:
    """How a launch is cut: ``TilePlan`` of csrc/cuda/plan.h, as it lies among the parameters."""

    images: int
    groups: int
    channels: int
    blocks: int
    span: int
    splits: int
    first_fc_items: int
    first_fc_rows: int
    second_fc_items: int
    second_fc_rows: int
    first_fc_lag: int
    second_fc_lag: int
    lag: int
    batch: int
    reversed: bool

    def images_of(self, group: int) -> int:
        return min(self.images, self.batch - group * self.images)

    def ticket(self, step: int) -> int:
        """The first one of a step of the schedule."""

        def groups(lag):
            return range(max(0, min(step - lag, self.groups)))

        tiles = self.blocks * self.splits
        return (
            sum(tiles * self.images_of(g) for lag in (0, self.lag) for g in groups(lag))
            + self.first_fc_items * len(groups(self.first_fc_lag))
            + self.second_fc_items * len(groups(self.second_fc_lag))
        )


PLAN_AT, REVERSED_AT = 7, 34  # in words: SweepParameters come first, in them Sizes


def plan_of(launch: Launch) -> TilePlan:
    words = np.frombuffer(launch.parameters[: 4 * REVERSED_AT], np.int32)
    reversed_ = launch.parameters[4 * REVERSED_AT] == 1
    numbers = map(int, words[PLAN_AT : PLAN_AT + 13])
    plan = TilePlan(*numbers, batch=int(words[0]), reversed=reversed_)
    if not 0 < plan.images * plan.groups < plan.batch + plan.images:
        raise ValueError(f"no plan among the parameters of {launch.kernel}")
    return plan


@dataclass(frozen=True)
class Kind:
    """Blocks of a launch that do the same: the ticket or index of one of them, how many, whether
    the counters say that it is the last of its tile's splits."""

    name: str
    at: int
    count: int
    completes: bool = True


def kinds_of(launch: Launch) -> list[Kind]:
    plan = plan_of(launch)
    tiles = plan.batch * plan.blocks
    if launch.kernel.startswith("norm"):
        last = tiles * plan.splits - 1

        def block_of(split):
            at = split * plan.blocks
            return last - at if plan.reversed else at

        return _splits("tile", block_of, tiles, plan.splits)
    first_fc, second_fc, second = map(
        plan.ticket, (plan.first_fc_lag, plan.second_fc_lag, plan.lag + plan.groups - 1)
    )
    if plan.second_fc_lag < plan.first_fc_lag + plan.groups:  # a later group's first FC is before
        second_fc += plan.first_fc_items
    for lag, items in (
        (plan.first_fc_lag, plan.first_fc_items),
        (plan.second_fc_lag, plan.second_fc_items),
    ):
        second += items if lag == plan.lag else 0
    return [
        *_splits("first", lambda split: split * plan.blocks, tiles, plan.splits),
        Kind("first_fc", first_fc, plan.groups * plan.first_fc_items),
        Kind("second_fc", second_fc, plan.groups * plan.second_fc_items),
        *_splits("second", lambda split: second + split * plan.blocks, tiles, plan.splits, False),
    ]


def _splits(name, at, count, splits, gathers=True) -> list[Kind]:
    """A tile for each of its splits: the last may be smaller, the last to come gathers."""
    if splits == 1:
        return [Kind(name, at(0), count)]
    last = Kind(name, at(splits - 1), count, not gathers)
    if not gathers:
        return [Kind(name, at(0), count * (splits - 1)), last]
    others = [Kind(name, at(0), count * (splits - 2), False)] if splits > 2 else []
    return [*others, Kind(name, at(0), count, True), last]


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
    plan, kinds, is_norm = plan_of(launch), [], launch.kernel.startswith("norm")
    for kind in kinds_of(launch):

        def counter(address, kind=kind):
            if not is_norm and address == recorded.workspace:
                return kind.at  # the ticket
            return plan.splits - 1 if kind.completes else 0

        memory = ProcessMemory(recorded.tensors, lenient=True, counters=counter)
        block = kind.at if is_norm else 0
        kinds.append((kind, Machine(function.code, launch, memory, block, function.tables).run()))
    return Measured(launch, kinds)
