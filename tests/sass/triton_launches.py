"""What a Triton kernel with two sweeps executes, from its cubin for compute capability 9.0."""

import struct
from dataclasses import dataclass

import torch

from sass.cubin import Function
from sass.machine import Launch, Machine
from sass.measure import Kind, Measured
from sass.memory import NoMemory

FAR_APART = 1 << 36  # bytes between the addresses that tensors pretend to have


@dataclass
class Cut:
    """How a launch is cut into items, of two sweeps."""

    groups: int
    blocks: int
    splits: int
    excites: int
    lag: int

    @property
    def tiles(self) -> int:
        return self.blocks * self.splits

    @property
    def items(self) -> int:
        return self.groups * (2 * self.tiles + self.excites)


def sweep_kinds(cut: Cut) -> list[Kind]:
    """From the start on first tiles of ``lag`` groups, then an excitation; at the end second
    tiles."""
    excite = cut.lag * cut.tiles
    second = cut.items - cut.tiles  # of the last group
    tiles = cut.groups * cut.blocks
    return [
        *_splits("first", lambda split: split * cut.blocks, tiles, cut.splits),
        Kind("excite", excite, cut.groups * cut.excites),
        *_splits("second", lambda split: second + split * cut.blocks, tiles, cut.splits, False),
    ]


def _splits(name, item_of, count, splits, gathers=True) -> list[Kind]:
    """A tile for each of its splits: the last may be smaller, the last to come gathers."""
    if splits == 1:
        return [Kind(name, item_of(0), count)]
    last = Kind(name, item_of(splits - 1), count, not gathers)
    if not gathers:
        return [Kind(name, item_of(0), count * (splits - 1)), last]
    others = [Kind(name, item_of(0), count * (splits - 2), False)] if splits > 2 else []
    return [*others, Kind(name, item_of(0), count, True), last]


def packed(kernel, arguments, constants) -> tuple[bytes, dict[str, int]]:
    """The parameters of a launch as the driver lays them, and each one's value by name."""
    raw, values = b"", {}
    for index, name in enumerate(kernel.arg_names):
        value = arguments[index] if index < len(arguments) else None
        if name in constants or value is None:
            continue
        if isinstance(value, torch.Tensor):
            values[name] = (index + 1) * FAR_APART
            raw += bytes(-len(raw) % 8) + struct.pack("<Q", values[name])
        else:
            values[name] = int(value)
            raw += struct.pack("<i", values[name])
    return raw + bytes(-len(raw) % 8) + bytes(16), values  # and Triton's own scratch


def measure(function: Function, kernel, arguments, constants, shared_bytes: int) -> Measured:
    """Runs one program of each kind."""
    raw, values = packed(kernel, arguments, constants)
    groups, blocks, splits, excites = (values[n] for n in ("groups", "blocks", "splits", "excites"))
    cut = Cut(groups, blocks, splits, excites, values["lag"])
    launch = Launch(kernel.__name__, cut.items, 32 * constants["num_warps"], shared_bytes, raw)
    kinds = []
    for kind in sweep_kinds(cut):

        def counter(address, kind=kind):
            if address == values["counters"]:
                return kind.at
            return splits - 1 if kind.completes else 0

        machine = Machine(function.code, launch, NoMemory(counter), 0, function.tables)
        kinds.append((kind, machine.run()))
    return Measured(launch, kinds)
