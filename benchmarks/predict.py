"""Predicted times of the kernels and of eager, from counted instructions and public figures.

Of a launch the largest of three: the time to issue its instructions, to move its bytes, and to wait
(each block for its loads and its fences, as many blocks at a time as fit).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from . import instructions, records
from .gpus import Gpu
from .instructions import MASK, OPERATIONS, STAGES
from .occupancy import resident_blocks

PIECE = 512  # bytes of x: 16 of each lane of a warp
# Microseconds that a block waits: for loads of x, for other loads (out of the L2), for a fence of
# the GPU
MEMORY_WAIT, CACHE_WAIT, FENCE = 0.8, 0.4, 0.6


@dataclass(frozen=True)
class Eager:
    """An operation in eager: tensors of x's size that it reads and writes, and its launches."""

    passes: float
    launches: int


EAGER = {
    "forward": Eager(3, 6),
    "forward tail": Eager(8, 8),
    "backward": Eager(9, 14),
    "backward tail": Eager(12, 16),
    "norm forward": Eager(11, 10),
    "norm backward": Eager(17, 20),
}
# The tail with its norm: its sweeps; its other launches (the solve, a memset, what torch moves and
# counts), and the products of its solve, N C R multiplications each; its least passes
NORM_TAILS = {
    "norm forward": (("norm_moments", "norm_scale"), 5, 2, 4 + MASK),
    "norm backward": (("norm_scale_backward", "norm_squeeze_backward"), 2, 4, 6 + MASK),
}
REDUCTION, PRODUCT_TILE = 16, 64  # C / R; the solve's tile, which R fills in part


@dataclass(frozen=True)
class Prediction:
    """Microseconds, all predicted."""

    operation: str
    stage: str
    layout: str
    floor: float
    issue: float
    memory: float
    latency: float
    eager: float | None
    instructions: float | None  # per 512 bytes of x
    budget: float | None
    # Of several launches: the sweeps' own times, and that of all others, the solve's work in it
    sweeps: float | None = None
    launches: float = 0.0

    @property
    def time(self) -> float:
        largest = max(self.issue, self.memory, self.latency)
        return (largest if self.sweeps is None else self.sweeps) + self.launches

    @property
    def limit(self) -> str:
        """What takes most of it."""
        parts = ("issue", "memory", "latency", "launches")
        return max(parts, key=lambda part: getattr(self, part))

    def as_row(self) -> dict:
        """For a JSON line; predicted: the time in all."""
        return dict(vars(self), predicted=self.time, by=self.limit)


def bytes_of(line: dict, batch: int) -> int:
    """Of x."""
    channels, side = STAGES[line["stage"]]
    return batch * channels * side * side * 2


def latency_of(line: dict, gpu: Gpu, batch: int) -> float:
    """Microseconds that the launch's blocks wait, so many at a time."""
    resident = resident_blocks(
        gpu.capability, line["registers"], line["threads"], line["shared_bytes"]
    )
    at_a_time = max(1, resident) * gpu.multiprocessors
    more, total, longest = batch / line["batch"], 0.0, 0.0
    for kind in line["kinds"]:
        of_x = kind["wide_waits"] if not kind["name"].endswith("_fc") else 0
        others = kind["wide_waits"] + kind["other_waits"] - of_x
        one = of_x * MEMORY_WAIT + others * CACHE_WAIT + kind["fences"] * FENCE
        total += kind["count"] * one
        longest = max(longest, one)
    return max(longest, more * total / at_a_time)


def units_of(line: dict, gpu: Gpu) -> float:
    """Tensors of x's size that cross device memory."""
    units = OPERATIONS[line["operation"]].units
    if not line["operation"].startswith("norm"):
        group = bytes_of(line, line["group_images"])
        tensors = 2 if line["operation"].startswith("backward") else 1
        if (
            2 * tensors * group > gpu.l2_bytes
        ):  # two groups do not stay: the second sweep reads again
            units += tensors
    return units


def of_line(line: dict, gpu: Gpu, batch: int) -> Prediction:
    """Of one recorded launch."""
    x_bytes = bytes_of(line, batch)
    operation, eager = OPERATIONS[line["operation"]], EAGER.get(line["operation"])
    return Prediction(
        operation=line["operation"],
        stage=line["stage"],
        layout=line["layout"],
        floor=operation.units * x_bytes / gpu.bytes_per_us,
        issue=line["instructions"] * x_bytes / PIECE / gpu.instructions_per_us,
        memory=units_of(line, gpu) * x_bytes / gpu.bytes_per_us,
        latency=latency_of(line, gpu, batch),
        eager=eager_time(eager, x_bytes, gpu) if eager else None,
        instructions=line["instructions"],
        budget=operation.budget,
    )


def eager_time(eager: Eager, x_bytes: int, gpu: Gpu) -> float:
    return eager.passes * x_bytes / gpu.bytes_per_us + eager.launches * gpu.launch_us


def product_instructions(stage: str, batch: int) -> float:
    """Warp instructions of one product of the solve at least: its multiplications."""
    channels, _ = STAGES[stage]
    hidden = -(-channels // REDUCTION // PRODUCT_TILE) * PRODUCT_TILE
    return batch * channels * hidden / 32


def with_norm(sweeps: Iterable[Prediction], gpu: Gpu, batch: int) -> Iterable[Prediction]:
    """The whole tail with its norm, forward and backward, of its sweeps."""
    found = {(p.operation, p.stage, p.layout): p for p in sweeps}
    for name, (operations, launches, products, units) in NORM_TAILS.items():
        for stage in STAGES:
            for layout in ("nchw", "nhwc"):
                keys = [(operation, stage, layout) for operation in operations]
                if not found.keys() >= {*keys}:
                    continue
                parts = [found[key] for key in keys]
                x_bytes = bytes_of(dict(stage=stage), batch)
                yield Prediction(
                    operation=name,
                    stage=stage,
                    layout=layout,
                    floor=units * x_bytes / gpu.bytes_per_us,
                    issue=sum(p.issue for p in parts),
                    memory=sum(p.memory for p in parts),
                    latency=sum(p.latency for p in parts),
                    eager=eager_time(EAGER[name], x_bytes, gpu),
                    instructions=None,
                    budget=None,
                    sweeps=sum(p.time for p in parts),
                    launches=launches * gpu.launch_us
                    + products * product_instructions(stage, batch) / gpu.instructions_per_us,
                )


def predict(gpu: Gpu, batch: int) -> list[Prediction]:
    """Every recorded kernel and stage, and the tail with its norm."""
    _, lines = instructions.recorded()
    found = [of_line(line, gpu, batch) for line in lines]
    return [*found, *with_norm(found, gpu, batch)]


LAYOUT_OF = {"nchw": "nchw", "nhwc": "channels_last"}  # of ``benchmarks layer``


def measured_times(gpu: Gpu, batch: int, folder: Path = records.RESULTS) -> dict:
    """(stage, layout, mode) -> microseconds of the CUDA backend in this GPU's results, bfloat16."""
    found = {}
    for path in sorted(folder.glob("layer-*.jsonl")):
        for record in records.read(path):
            cuda = record.get("contenders", {}).get("cuda")
            if cuda is None or record["batch"] != batch or record["dtype"] != "bfloat16":
                continue
            if re.search(rf"\b{gpu.name}\b", record["device"]):
                key = record["shape"]["name"], record["layout"], record["mode"]
                found[key] = cuda["p50_us"]
    return found


@dataclass(frozen=True)
class Comparison:
    """A time of the results and its prediction, in microseconds."""

    stage: str
    layout: str
    mode: str
    measured: float
    predicted: float


def compared(found: list[Prediction], measured: dict) -> list[Comparison]:
    """inference against forward, train against forward and backward."""
    times = {(p.operation, p.stage, LAYOUT_OF[p.layout]): p.time for p in found}
    operations = {"inference": ("forward",), "train": ("forward", "backward")}
    return [
        Comparison(
            stage, layout, mode, time, sum(times[o, stage, layout] for o in operations[mode])
        )
        for (stage, layout, mode), time in measured.items()
        if mode in operations and ("forward", stage, layout) in times
    ]
