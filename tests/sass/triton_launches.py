"""What a Triton kernel with two sweeps executes, from its cubin for compute capability 9.0."""

import struct

import torch

from sass.cubin import Function
from sass.machine import Launch, Machine
from sass.measure import Cut, Measured, sweep_kinds
from sass.memory import NoMemory

FAR_APART = 1 << 36  # bytes between the addresses that tensors pretend to have


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
    items = groups * (2 * blocks * splits + excites)
    cut = Cut(
        *(constants["G"], constants["BLOCK_C"], values["span"], groups, blocks, splits, excites, 0),
        *(values["lag"], values["ahead"], 0, 0, items),
    )
    launch = Launch(kernel.__name__, items, 32 * constants["num_warps"], 1, shared_bytes, raw)
    kinds = []
    for kind in sweep_kinds(cut):

        def counter(address, kind=kind):
            if address == values["counters"]:
                return kind.block
            return splits - 1 if kind.completes else 0

        machine = Machine(function.code, launch, NoMemory(counter), 0, function.tables)
        kinds.append((kind, machine.run()))
    return Measured(launch, kinds)
