"""A table of the kernels that ``make cuda`` has built, and their inner loops as JSON lines.

``python -m sass.table LIBRARY OUT``: registers and resident blocks of 256 threads (shared memory
aside, which a launch chooses) for each compute capability; at 9.0 the loops for bfloat16.
"""

import argparse
import json
from pathlib import Path

import cuda_listing
from cuda_listing import Kernel

from benchmarks.occupancy import MULTIPROCESSORS, resident_blocks
from sass.loops import contents, dividing_subroutines, find_loops
from sass.record import CAPABILITY, Code, objects

THREADS = 256


def usage_of(library: Path) -> dict[Kernel, dict[int, int]]:
    """Registers of each kernel by compute capability."""
    found: dict[Kernel, dict[int, int]] = {}
    for use in cuda_listing.read_usage(cuda_listing.told("--dump-resource-usage", library)):
        if isinstance(use.kernel, Kernel) and use.capability in MULTIPROCESSORS:
            found.setdefault(use.kernel, {})[use.capability] = use.registers
    return found


def loops_of(code) -> list[dict]:
    """What an iteration of each innermost loop holds, and per access of 16 bytes a lane."""
    divides, rows = dividing_subroutines(code), []
    for loop in find_loops(code):
        if loop.is_inner and len(loop.body) > 1:
            held = contents(code, loop.body, divides)
            wide = held.wide_loads + held.wide_stores
            per_wide = round(held.instructions / wide, 1) if wide else None
            at = hex(code[loop.header].address)
            rows.append(dict(at=at, depth=loop.depth, per_wide=per_wide, **vars(held)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    loops = {}
    if objects():
        for kernel, function in Code(objects()).functions.items():
            if isinstance(kernel, Kernel):
                loops[kernel] = loops_of(function.code)
    lines = []
    for kernel, registers in sorted(usage_of(arguments.library).items(), key=str):
        resident = {c: resident_blocks(c, n, THREADS) for c, n in registers.items()}
        lines.append(
            dict(
                kernel=str(kernel),
                registers=registers,
                resident=resident,
                inner_loops=loops.get(kernel, []),
            )
        )
        print(
            f"{lines[-1]['kernel']:48}",
            *(f"{c / 10:4.1f}: {n:3} regs, {resident[c]} blocks" for c, n in registers.items()),
        )
    arguments.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(f"{arguments.out}: {len(lines)} kernels; inner loops at {CAPABILITY / 10} of bfloat16")


if __name__ == "__main__":
    main()
