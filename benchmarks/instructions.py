"""What the CUDA kernels execute, as ``make instructions`` recorded it from their machine code."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("instructions.jsonl")
SOURCES = Path(__file__).parents[1] / "csrc" / "cuda"

STAGES = {"conv2": (256, 56), "conv3": (512, 28), "conv4": (1024, 14), "conv5": (2048, 7)}  # C, H=W
MASK = 1 / 16  # of x in 16 bits, a bit an element

# Warp instructions for every 512 bytes that cross device memory, which four schedulers issue at
# 0.6 a cycle while an H200 moves them
BUDGET_A_UNIT = 65.6


@dataclass(frozen=True)
class Operation:
    """units: tensors of x's size that have to cross device memory; the budget follows from these.
    tail: of the kernel's name."""

    units: float
    tail: bool = False

    @property
    def budget(self) -> float:
        """Warp instructions for each 512 bytes of x."""
        return BUDGET_A_UNIT * self.units


OPERATIONS = {
    "forward": Operation(2),
    "forward tail": Operation(3 + MASK, tail=True),
    "backward": Operation(3),
    "backward tail": Operation(4 + MASK, tail=True),
    "norm_moments": Operation(1),
    "norm_scale": Operation(3 + MASK),
    "norm_scale_backward": Operation(3 + MASK, tail=True),
    "norm_squeeze_backward": Operation(3, tail=True),
}


def fingerprint() -> str:
    """Of the kernels' sources; empty where they are not at hand."""
    files = sorted(p for p in SOURCES.glob("*") if p.suffix in (".cu", ".cuh", ".h", ".cpp"))
    text = b"".join(p.name.encode() + p.read_bytes() for p in files)
    return hashlib.sha256(text).hexdigest()[:16] if files else ""


def recorded() -> tuple[str, list[dict]]:
    """The fingerprint of the kernels that were recorded, and a line for each launch."""
    if not FILE.exists():
        raise FileNotFoundError(f"{FILE}: expected what `make instructions` writes")
    first, *lines = map(json.loads, FILE.read_text().splitlines())
    return first["fingerprint"], lines
