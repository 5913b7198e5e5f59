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


@dataclass(frozen=True)
class Kernel:
    direction: str  # "forward", "backward", "norm"
    phase: str  # "local": both sweeps; of "norm" the sweep
    number: str  # "float32", "bfloat16", "float16", "any"
    layout: str
    tail: bool  # with residual, ReLU; of the norm's backward sweeps without an activation

    def __str__(self) -> str:
        tail = ", tail" if self.tail else ""
        return f"{self.direction}_{self.phase}<{self.number}, {self.layout}{tail}>"


VECTOR_NUMBERS = ("float32", "bfloat16", "float16")
DIRECTIONS, LAYOUTS = ("forward", "backward"), ("nchw", "nhwc")
NORM_PHASES = ("moments", "squeeze", "scale", "scale_backward", "squeeze_backward")
KERNELS = {
    *(
        Kernel(direction, "local", number, layout, tail)
        for direction, number, layout, tail in product(
            DIRECTIONS, VECTOR_NUMBERS, LAYOUTS, (False, True)
        )
    ),
    *(
        Kernel(direction, "local", "any", layout, True)
        for direction, layout in product(DIRECTIONS, LAYOUTS)
    ),
    *(
        Kernel("norm", phase, number, layout, tail)
        for phase, number, layout, tail in product(
            NORM_PHASES, (*VECTOR_NUMBERS, "any"), LAYOUTS, (False, True)
        )
        if not tail or phase.endswith("backward")
    ),
}

MANGLED = re.compile(
    r"(forward|backward|norm)_(local|moments|(?:squeeze|scale)(?:_backward)?)I"
    r"(?:NS\d*_\d+)?(bfloat16|float16|WideFallback|f)E?LNS_6LayoutE([01])E(?:Lb([01])|LNS0_5TermsE([23]))?"
)


def kernel_of(name: str) -> Kernel | str:
    """The kernel of a mangled name; for another function its name."""
    found = MANGLED.search(name)
    if found is None:
        return name
    direction, phase, number, layout, tail, terms = found.groups()
    number = {"f": "float32", "WideFallback": "any"}.get(number, number)
    return Kernel(direction, phase, number, LAYOUTS[int(layout)], tail == "1" or terms == "2")


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
LOCAL = r"LDL|STL"  # spilled, or an array that is not in registers
# To be mended: some words of an FC's part, and of eight channels' constants of a norm with an
# activation (nhwc), find no register
MOST_SPILLED, MOST_LOCAL = 32, 28  # bytes, accesses


def spills(kernel: Kernel | str) -> bool:
    """Whether it is one of the kernels that may spill a few words."""
    if isinstance(kernel, str) or kernel.number == "any":
        return False
    return kernel.phase == "scale_backward" and kernel.layout == "nhwc" and not kernel.tail


def least(kernel: Kernel | str, capability: int) -> dict[str, int]:
    """How often a kernel must at least hold an instruction: as many of each tensor's accesses as
    a walk has under way at a time, in each sweep; in nchw once more for rows that start anywhere,
    which go through shared memory to be summed.
    """
    if isinstance(kernel, str) or kernel.number == "any":
        return {}
    word = 2 if kernel.number == "float32" else 1  # accesses of 16 bytes to eight numbers
    few, some, many = (max(1, n // word) * word for n in (2, 4, 8))  # 32, 64, 128 bytes
    tail, hints = kernel.tail, capability >= HINTS_FROM
    loads, stores, staged = {
        ("forward", "local"): (many + (2 * some if tail else many), some if tail else many, many),
        # dy, to be kept or not, x; g; dr, dx; dx
        ("backward", "local"): (
            (some * (3 if tail and hints else 2) + many, 2 * some + many, 2 * some)
            if tail
            else (2 * some + many, many, 2 * some)
        ),
        ("norm", "moments"): (some, 0, some),
        ("norm", "squeeze"): (some, 0, some),
        ("norm", "scale"): (2 * some, some, 0),
        ("norm", "scale_backward"): (
            (3 if hints else 2) * (some if tail else word),
            some if tail else word,
            2 * (some if tail else word),
        ),
        ("norm", "squeeze_backward"): (2 * few, few, 0) if tail else (2 * word, word, 0),
    }[kernel.direction, kernel.phase]
    if kernel.layout == "nhwc":
        return {WIDE_LOAD: loads, WIDE_STORE: stores}
    return {WIDE_LOAD: 2 * loads, WIDE_STORE: 2 * stores, WIDE_SHARED_STORE: staged}


def amiss(code: dict[Kernel | str, Counter], capability: int) -> list[str]:
    """What is wrong with the machine code for a GPU, in words."""
    findings = [f"{kernel}: missing" for kernel in missing(code)]
    for kernel, instructions in sorted(code.items(), key=str):

        def count(pattern: str, instructions=instructions) -> int:
            return sum(n for name, n in instructions.items() if re.match(pattern, name))

        if count(LOCAL) > (MOST_LOCAL if spills(kernel) else 0):
            findings.append(f"{kernel}: {count(LOCAL)} accesses to local memory")
        for pattern, number in least(kernel, capability).items():
            if count(pattern) < number:
                findings.append(f"{kernel}: expected {number} {pattern}, found {count(pattern)}")
    return findings


def missing(kernels: Iterable[Kernel | str]) -> list[Kernel]:
    return sorted(KERNELS.difference(kernels), key=str)
