"""Records what the CUDA kernels execute: benchmarks/instructions.jsonl, for ``benchmarks predict``.

``make instructions``, after ``make cuda``: a line for each operation, stage and layout, at N = 256
on an H200, from the code for compute capability 9.0.
"""

import argparse
import itertools
import json
from pathlib import Path

import cuda_listing
import host_gpu
import numpy as np
import torch
from cuda_listing import Kernel, kernel_of
from host_gpu import Gpu

from benchmarks.instructions import OPERATIONS, STAGES, fingerprint
from benchmarks.occupancy import resident_blocks
from sass import launches
from sass.cubin import Function, functions
from sass.loops import contents, dividing_subroutines, find_loops
from sass.measure import UNIT, Measured, measure, plan_of

BATCH, CAPABILITY = 256, 90
H200 = Gpu(132, 50 << 20, 227 << 10, 228 << 10, 256)
HOTTEST = 4  # loops that a line lists


def objects(dtype: torch.dtype = torch.bfloat16) -> list[Path]:
    """What ``make cuda`` has compiled for x of ``dtype``: in the library itself several files have
    one name."""
    name = {torch.float32: "float"}.get(dtype, str(dtype)[6:])
    folders = Path(host_gpu.ROOT / "build").glob(f"cmake-cuda-*/CMakeFiles/se_kernels_{name}.dir")
    newest = max(folders, key=lambda folder: folder.stat().st_mtime, default=None)
    return sorted(newest.glob("*.o")) if newest else []


class Code:
    """The kernels of some object files, for compute capability 9.0, and their registers."""

    def __init__(self, paths: list[Path]):
        self.functions: dict[Kernel | str, Function] = {}
        self.registers: dict[Kernel | str, int] = {}
        for path in paths:
            found = functions(cuda_listing.cuobjdump(), path, f"sm_{CAPABILITY}")
            self.functions |= {kernel_of(name): function for name, function in found.items()}
            usage = cuda_listing.told("--dump-resource-usage", "-arch", f"sm_{CAPABILITY}", path)
            for resources in cuda_listing.read_usage(usage):
                self.registers[resources.kernel] = resources.registers


def kernel_named(name: str, dtype: torch.dtype, layout: str, tail: bool) -> Kernel:
    """The kernel of a recorded launch."""
    direction, phase = name.split("<")[0].split("_", 1)
    return Kernel(direction, phase, str(dtype)[6:], layout, tail)


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
        shared_bytes=launch.shared_bytes,
        group_images=plan_of(launch).images,
        instructions=round(measured.per_unit(x_bytes), 1),
        parts={name: round(value, 1) for name, value in parts.items()},
        **rates,
        kinds=[
            dict(
                name=kind.name,
                count=kind.count,
                wide_waits=counts.wide_waits,
                other_waits=counts.other_waits,
                fences=executed_of(code, counts.executed, "MEMBAR", "GPU"),
                instructions=counts.total,
            )
            for kind, counts in measured.kinds
        ],
        loops=hottest_loops(code, executed, divides, pieces),
    )


def executed_of(code, executed, name: str, modifier: str = "") -> int:
    """How often a block's warps execute an instruction."""
    held = (i.name == name and (not modifier or modifier in i.modifiers) for i in code)
    return int(sum(n for n, wanted in zip(executed, held, strict=True) if wanted))


def hottest_loops(code, executed, divides, pieces) -> list[dict]:
    """The inner loops that most instructions are spent in."""
    rows = []
    for loop in find_loops(code):
        if not loop.is_inner or len(loop.body) < 2 or not executed[loop.header]:
            continue
        numbers = sorted(loop.body)
        spent, iterations = int(executed[numbers].sum()), int(executed[loop.header])
        held = contents(code, [n for n in numbers if executed[n]], divides)
        wide = sum(
            int(executed[n]) for n in numbers if code[n].name in ("LDG", "STG") and code[n].is_wide
        )
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


def record_one(code: Code, host, operation, stage, layout, dtype=torch.bfloat16) -> dict:
    """A line."""
    channels, side = STAGES[stage]
    shape = (BATCH, channels, side, side)
    x_bytes = BATCH * channels * side * side * dtype.itemsize
    recorded = launches.record(host, H200, operation, shape, layout, dtype)
    launch = recorded.launches[-1]
    kernel = kernel_named(launch.kernel, dtype, layout, OPERATIONS[operation].tail)
    function = code.functions[kernel]
    measured = measure(function, recorded, launch)
    return dict(
        operation=operation,
        stage=stage,
        layout=layout,
        dtype=str(dtype)[6:],
        batch=BATCH,
        kernel=str(kernel),
        **line_of(measured, function, code.registers[kernel], x_bytes),
    )


def cases():
    return itertools.product(OPERATIONS, STAGES, ("nchw", "nhwc"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    np.seterr(all="ignore")
    host_gpu.lend_to_the_cuda_backend()
    host = host_gpu.HostGpu(host_gpu.CUDA)
    if not objects():
        parser.error("expected the kernels that `make cuda` compiles")
    code = Code(objects())
    lines = [json.dumps(dict(fingerprint=fingerprint()))]
    for case in cases():
        line = record_one(code, host, *case)
        lines.append(json.dumps(line))
        print(*case, line["instructions"], flush=True)
    arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
