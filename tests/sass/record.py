"""Records what the CUDA kernels execute: benchmarks/instructions.jsonl, for ``benchmarks predict``.

``make instructions``, after ``make cuda``: a line for each operation, stage, layout and way, at
N = 256 on an H200, from the code for compute capability 9.0.
"""

import argparse
import json
from pathlib import Path

import cuda_listing
import host_gpu
import numpy as np
import torch
from cuda_listing import Kernel, kernel_of
from host_gpu import Gpu

from benchmarks.instructions import OPERATIONS, STAGES, fingerprint
from sass import launches
from sass.cubin import Function, functions
from sass.loops import contents, dividing_subroutines, find_loops
from sass.measure import UNIT, Measured, measure
from sass.occupancy import resident_blocks

BATCH, CAPABILITY = 256, 90
H200 = Gpu(CAPABILITY, 132, 50 << 20, 227 << 10, 228 << 10, 256)
WAYS = ("two_sweeps", "cluster")
HOTTEST = 4  # loops that a line lists


class Code:
    """The kernels of a library for one GPU, and their registers."""

    def __init__(self, library: Path):
        found = functions(cuda_listing.cuobjdump(), library, f"sm_{CAPABILITY}")
        self.functions = {kernel_of(name): function for name, function in found.items()}
        usage = cuda_listing.told("--dump-resource-usage", library)
        self.registers = {
            r.kernel: r.registers
            for r in cuda_listing.read_usage(usage)
            if r.capability == CAPABILITY
        }


def kernel_named(name: str, dtype: torch.dtype, layout: str, tail: bool) -> Kernel:
    """The kernel of a recorded launch."""
    direction, way = name.split("<")[0].split("_", 1)
    return Kernel(direction, way, str(dtype)[6:], layout, tail)


def line_of(measured: Measured, function: Function, registers: int, x_bytes: int) -> dict:
    """What is written down about a launch."""
    launch, executed, code = measured.launch, measured.executed(), function.code
    pieces = x_bytes / UNIT
    divides = dividing_subroutines(code)
    parts: dict[str, float] = {}
    for kind, counts in measured.kinds:
        parts[kind.name] = parts.get(kind.name, 0) + kind.count * counts.total / pieces
    rates = {}
    for name in ("divisions", "shuffles", "barriers", "local"):
        each = [getattr(contents(code, [n], divides), name) for n in np.flatnonzero(executed)]
        rates[name] = round(float(executed[np.flatnonzero(executed)] @ each) / pieces, 3)
    return dict(
        registers=registers,
        resident=resident_blocks(CAPABILITY, registers, launch.threads, launch.shared_bytes),
        blocks=launch.blocks,
        threads=launch.threads,
        cluster=launch.cluster,
        shared_bytes=launch.shared_bytes,
        instructions=round(measured.per_unit(x_bytes), 1),
        parts={name: round(value, 1) for name, value in parts.items()},
        **rates,
        kinds=[
            dict(
                name=kind.name,
                count=kind.count,
                wide_waits=counts.wide_waits,
                other_waits=counts.other_waits,
                fences=fences(code, counts.executed),
                instructions=counts.total,
            )
            for kind, counts in measured.kinds
        ],
        loops=hottest_loops(code, executed, divides, pieces),
    )


def fences(code, executed) -> int:
    """Of the whole GPU."""
    return int(sum(n for i, n in zip(code, executed, strict=True) if is_fence(i)))


def is_fence(i) -> bool:
    return i.name == "MEMBAR" and "GPU" in i.modifiers


def hottest_loops(code, executed, divides, pieces) -> list[dict]:
    """The inner loops that most instructions are spent in."""
    rows = []
    for loop in find_loops(code):
        if not loop.is_inner or len(loop.body) < 2 or not executed[loop.header]:
            continue
        numbers = sorted(loop.body)
        spent, iterations = int(executed[numbers].sum()), int(executed[loop.header])
        held = contents(code, [n for n in numbers if executed[n]], divides)
        wide = sum(int(executed[n]) for n in numbers if code[n].name in ("LDG", "STG") and code[n].is_wide)
        rows.append(
            dict(
                at=hex(code[loop.header].address),
                instructions=round(spent / iterations, 1),
                iterations=round(iterations / pieces, 3),
                per_wide=round(spent / wide, 1) if wide else None,
                **{k: v for k, v in vars(held).items() if k != "instructions"},
            )
        )
    rows.sort(key=lambda row: -row["instructions"] * row["iterations"])
    return rows[:HOTTEST]


def record_one(code: Code, host, operation, stage, layout, way, dtype=torch.bfloat16) -> dict | None:
    """A line, None where the operation cannot go that way."""
    channels, side = STAGES[stage]
    shape = (BATCH, channels, side, side)
    x_bytes = BATCH * channels * side * side * dtype.itemsize
    try:
        recorded = launches.record(host, H200, operation, shape, layout, dtype, way)
    except RuntimeError as error:
        if way == "cluster" and "one pass in a cluster" in str(error):
            return None
        raise
    launch = recorded.launches[-1]
    kernel = kernel_named(launch.kernel, dtype, layout, OPERATIONS[operation].tail)
    function = code.functions[kernel]
    measured = measure(function, recorded, launch)
    return dict(
        operation=operation,
        stage=stage,
        layout=layout,
        way="sweep" if operation.startswith("norm") else way,
        dtype=str(dtype)[6:],
        batch=BATCH,
        kernel=str(kernel),
        automatic=way == automatic_way(host, operation, shape, layout, dtype),
        **line_of(measured, function, code.registers[kernel], x_bytes),
    )


def automatic_way(host, operation, shape, layout, dtype) -> str:
    """The way that the plan takes on an H200."""
    recorded = launches.record(host, H200, operation, shape, layout, dtype, "automatic")
    return "cluster" if "cluster" in recorded.launches[-1].kernel else "two_sweeps"


def cases():
    for operation in OPERATIONS:
        for way in WAYS if not operation.startswith("norm") else WAYS[:1]:
            for stage in STAGES:
                for layout in ("nchw", "nhwc"):
                    yield operation, stage, layout, way


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", type=Path, help="the _cuda library that make cuda has built")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    np.seterr(all="ignore")
    host_gpu.lend_to_the_cuda_backend()
    host = host_gpu.HostGpu(host_gpu.CUDA)
    code = Code(arguments.library)
    lines = [json.dumps(dict(fingerprint=fingerprint()))]
    for case in cases():
        line = record_one(code, host, *case)
        if line is not None:
            lines.append(json.dumps(line))
            print(*case, line["instructions"], flush=True)
    arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
