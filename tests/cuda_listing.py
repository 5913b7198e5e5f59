"""The CUDA library's machine code as cuobjdump lists it: what each kernel holds, what is amiss.

A kernel is compiled for every GPU, so `make cuda` can tell without one whether a path that should
move 16 bytes at a time still does, and whether registers were enough.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

HINTS_FROM = 80  # compute capability from which a load tells the L2 how long to keep
CLUSTERS_FROM = 90  # compute capability of the first GPU with clusters and bulk copies


@dataclass(frozen=True)
class Kernel:
    direction: str  # "forward", "backward", "norm"
    way: str  # "two_sweeps", "cluster"; of "norm" the phase
    number: str  # "float32", "bfloat16", "float16", "any"
    layout: str
    tail: bool  # with residual, ReLU; of the norm's scale_backward without an activation

    def __str__(self) -> str:
        tail = ", tail" if self.tail else ""
        return f"{self.direction}_{self.way}<{self.number}, {self.layout}{tail}>"


VECTOR_NUMBERS = ("float32", "bfloat16", "float16")
DIRECTIONS, LAYOUTS = ("forward", "backward"), ("nchw", "nhwc")
NORM_PHASES = ("moments", "squeeze", "scale", "scale_backward", "squeeze_backward")
KERNELS = {
    *(
        Kernel(direction, way, number, layout, tail)
        for direction, way, number, layout, tail in product(
            DIRECTIONS, ("two_sweeps", "cluster"), VECTOR_NUMBERS, LAYOUTS, (False, True)
        )
    ),
    *(
        Kernel(direction, "two_sweeps", "any", layout, True)
        for direction, layout in product(DIRECTIONS, LAYOUTS)
    ),
    *(
        Kernel("norm", phase, number, layout, False)
        for phase, number, layout in product(NORM_PHASES, (*VECTOR_NUMBERS, "any"), LAYOUTS)
    ),
    *(
        Kernel("norm", "scale_backward", number, layout, True)
        for number, layout in product((*VECTOR_NUMBERS, "any"), LAYOUTS)
    ),
}

MANGLED = re.compile(
    r"(forward|backward|norm)_(two_sweeps|cluster|moments|(?:squeeze|scale)(?:_backward)?)I"
    r"(?:NS\d*_\d+)?(bfloat16|float16|Any|f)E?LNS_6LayoutE([01])E(?:.*?(Tail|Plain|Lb0E|Lb1E))?"
)


def kernel_of(name: str) -> Kernel | str:
    """The kernel of a mangled name; for another function its name."""
    found = MANGLED.search(name)
    if found is None:
        return name
    direction, way, number, layout, tail = found.groups()
    number = {"f": "float32", "Any": "any"}.get(number, number)
    return Kernel(direction, way, number, LAYOUTS[int(layout)], tail in ("Tail", "Lb1E"))


# --- what cuobjdump tells -----------------------------------------------------------------------


def cuobjdump() -> str | None:
    """Of CUDA, or the copy that Triton brings."""
    found = shutil.which("cuobjdump")
    triton = importlib.util.find_spec("triton")
    candidates = [Path("/usr/local/cuda/bin/cuobjdump")]
    if triton is not None:
        candidates.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
    return found or next((str(path) for path in candidates if os.access(path, os.X_OK)), None)


def told(*arguments: str) -> str:
    command = [cuobjdump(), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@dataclass(frozen=True)
class Resources:
    capability: int
    kernel: Kernel | str
    registers: int
    stack: int  # bytes: what is spilled lies there
    local: int  # bytes


USAGE = re.compile(r"^arch = sm_(\d+)|Function (\S+):|REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", re.M)


def read_usage(listing: str) -> Iterator[Resources]:
    """Of each kernel in ``cuobjdump --dump-resource-usage``."""
    capability = kernel = None
    for match in USAGE.finditer(listing):
        arch, function, *numbers = match.groups()
        if arch:
            capability = int(arch)
        elif function:
            kernel = kernel_of(function)
        else:
            yield Resources(capability, kernel, *map(int, numbers))


CODE = re.compile(r"Function : (\S+)|/\*[0-9a-f]{4,}\*/ +(?:@!?\w+ )?([A-Z][\w.]*)")


def read_code(listing: str) -> dict[Kernel | str, Counter]:
    """How often each instruction occurs in each function of ``cuobjdump --dump-sass``."""
    functions, instructions = {}, Counter()
    for match in CODE.finditer(listing):
        function, instruction = match.groups()
        if function:
            instructions = functions.setdefault(kernel_of(function), Counter())
        else:
            instructions[instruction] += 1
    return functions


# --- what a kernel should hold ------------------------------------------------------------------

# An access's modifiers stand between its name and its width
WIDE_LOAD, WIDE_STORE = r"LDG\S*\.128", r"STG\S*\.128"  # of global memory
WIDE_SHARED_LOAD, WIDE_SHARED_STORE = r"LDS\S*\.128", r"STS\S*\.128"
BULK_COPY, CLUSTER_ARRIVE, CLUSTER_WAIT = r"UBLKCP", r"UCGABAR_ARV", r"UCGABAR_WAIT"
OF_CLUSTERS = (BULK_COPY, CLUSTER_ARRIVE, CLUSTER_WAIT)
LOCAL = r"LDL|STL"  # spilled, or an array that is not in registers


def least(kernel: Kernel | str, capability: int) -> dict[str, int]:
    """How often a kernel must at least hold an instruction: as many of each tensor's accesses as
    a walk has under way at a time, in each sweep; in nchw once more for rows that start anywhere.
    """
    if isinstance(kernel, str) or kernel.number == "any":
        return {}
    tail, paths = int(kernel.tail), 2 if kernel.layout == "nchw" else 1
    if kernel.direction == "norm":
        return least_of_norm(kernel, paths, capability)
    if kernel.way == "two_sweeps" and kernel.direction == "forward":
        needed = {WIDE_LOAD: paths * (4 + 4 * (1 + tail)), WIDE_STORE: paths * 4}  # x; x, residual
        staged = {WIDE_SHARED_STORE: 4, WIDE_SHARED_LOAD: 2}
        return {**needed, **staged} if kernel.layout == "nchw" else needed
    if kernel.way == "two_sweeps":
        needed = {
            WIDE_LOAD: paths * (2 * (2 + tail) + 2 * 3),  # dy, x, y; g, y, x
            WIDE_STORE: paths * (2 * (1 + tail) + 2),  # dx, dr; dx
        }
        return {**needed, WIDE_SHARED_STORE: 4} if kernel.layout == "nchw" else needed  # g, v
    if capability < CLUSTERS_FROM:
        return {}
    clusters = {BULK_COPY: 2, CLUSTER_ARRIVE: 1, CLUSTER_WAIT: 1}  # copies: the first, the next
    if kernel.direction == "forward":  # x squeezed; scaled, with a residual
        return {**clusters, WIDE_SHARED_LOAD: 2 + 4, WIDE_LOAD: 4 * tail, WIDE_STORE: 4}
    return {
        **clusters,
        WIDE_SHARED_LOAD: 4 + 4,  # dy twice
        WIDE_LOAD: 4 * (1 + tail),  # x, y
        WIDE_SHARED_STORE: 4 * tail,  # g
        WIDE_STORE: 4 * (1 + tail),  # dx, dr
    }


def least_of_norm(kernel: Kernel, paths: int, capability: int) -> dict[str, int]:
    """The same of a sweep with a batch norm. In nhwc there are loads of the channels' numbers too,
    of eight channels in float32: two each, once a column, or for each eight numbers."""
    word = 2 if kernel.number == "float32" else 1  # of eight numbers
    twice = 2 // word  # eights in 32 bytes
    inputs = 3 if capability >= HINTS_FROM else 2  # dy, to be kept or not, and x
    loads, stores, staged, constants = {
        "moments": (4, 0, 4, 0),
        "squeeze": (4, 0, 4, 3),  # mean, scale, bias
        "scale": (2 * 2, 2, 0, 4),  # x, residual; y; s too
        "scale_backward": (inputs * 2, 2, 2 * 2, 1)  # dy, x; dr
        if kernel.tail
        else (inputs * word, word, 2 * word, 3),
        "squeeze_backward": (
            2 * 2,
            2,
            0,
            6 + twice,
        ),  # g, x; dx; mean, scale, s, d, slope, offset; bias
    }[kernel.way]
    if kernel.layout == "nhwc":
        return {WIDE_LOAD: loads + 2 * constants, WIDE_STORE: stores}
    return {WIDE_LOAD: paths * loads, WIDE_STORE: paths * stores, WIDE_SHARED_STORE: staged}


def amiss(code: dict[Kernel | str, Counter], capability: int) -> list[str]:
    """What is wrong with the machine code for a GPU, in words."""
    findings = [f"{kernel}: missing" for kernel in missing(code)]
    for kernel, instructions in sorted(code.items(), key=str):

        def count(pattern: str, instructions=instructions) -> int:
            return sum(n for name, n in instructions.items() if re.match(pattern, name))

        if count(LOCAL):
            findings.append(f"{kernel}: {count(LOCAL)} accesses to local memory")
        for pattern, number in least(kernel, capability).items():
            if count(pattern) < number:
                findings.append(f"{kernel}: expected {number} {pattern}, found {count(pattern)}")
        if capability < CLUSTERS_FROM and any(map(count, OF_CLUSTERS)):
            findings.append(f"{kernel}: instructions of clusters before 9.0")
    return findings


def missing(kernels: Iterable[Kernel | str]) -> list[Kernel]:
    return sorted(KERNELS.difference(kernels), key=str)
