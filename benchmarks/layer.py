"""The microbenchmark: one SE block, its contenders taken in turn."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from . import verify
from .contenders import COPIES, Contender, EagerSE, Graphed, Layer, build
from .environment import Environment, last_level_cache_bytes
from .inputs import DTYPES, MEMORY_FORMATS, how_many, make_sets, make_weights
from .records import SCHEMA
from .timing import Budget, clock_for, in_turn, paired_ratio, percentiles

STAGES = {  # of SE-ResNet-50 (Table 1): C×H×W:R
    "conv2": "256x56x56:16",
    "conv3": "512x28x28:32",
    "conv4": "1024x14x14:64",
    "conv5": "2048x7x7:128",
}
MODES = ("inference", "train")
FLOOR_COPIES = {"inference": 1.0, "train": 2.5}  # a copy is two passes: 2 of 2, and 5 of 2
X_PASSES = {"inference": 2, "train": 5}  # x, y; and x, dy, dx
WEIGHT_PASSES = {"inference": 1, "train": 3}  # read; and read again, gradient written
BASELINES = ("eager", "compile")


@dataclass(frozen=True)
class Shape:
    """Channels, height, width and the bottleneck's channels of one SE block."""

    name: str
    channels: int
    height: int
    width: int
    reduced: int

    @classmethod
    def parse(cls, text: str) -> "Shape":
        """From a stage's name (``conv2``) or ``CxHxW[:R]``; R is C/16, at least 1, where not given.

        Raises:
            ValueError: neither of the two, or a number below 1.
        """
        match = re.fullmatch(r"(\d+)x(\d+)x(\d+)(?::(\d+))?", STAGES.get(text, text))
        numbers = [int(n) for n in match.groups(default="-1")] if match else [0]
        if 0 in numbers:
            raise ValueError(
                f"shape: expected CxHxW or CxHxW:R of numbers >= 1, or one of {', '.join(STAGES)},"
                f" got {text!r}"
            )
        c, h, w, r = numbers
        r = max(1, c // 16) if r < 0 else r
        names = {spec: name for name, spec in STAGES.items()}
        return cls(names.get(f"{c}x{h}x{w}:{r}", f"{c}x{h}x{w}"), c, h, w, r)

    def __str__(self) -> str:
        size = f"{self.channels}x{self.height}x{self.width}"
        return f"{size} R{self.reduced}" if self.name == size else f"{self.name} {size}"


@dataclass(frozen=True)
class Point:
    """What is measured: dtype, layout and mode by their names on the command line."""

    shape: Shape
    batch: int
    dtype: str
    layout: str
    mode: str

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.shape.channels, self.shape.height, self.shape.width)

    @property
    def x_bytes(self) -> int:
        return int(np.prod(self.x_shape)) * DTYPES[self.dtype].itemsize

    @property
    def counted_bytes(self) -> int:
        """The traffic that cannot be avoided, of x, y, their gradients and the weights."""
        weights = 2 * self.shape.channels * self.shape.reduced * DTYPES[self.dtype].itemsize
        return X_PASSES[self.mode] * self.x_bytes + WEIGHT_PASSES[self.mode] * weights

    def __str__(self) -> str:
        return f"{self.shape} N={self.batch} {self.layout} {self.dtype} {self.mode}"


@dataclass(frozen=True)
class Settings:
    """What is the same at all points. ``kinds`` are of ``contenders.KINDS``."""

    device: torch.device
    kinds: Sequence[str]
    backends: Sequence[str]
    budget: Budget = field(default_factory=Budget)
    seed: int = 0
    graph: bool = False  # replay each contender's forward from a captured CUDA graph


def points(
    shapes: Sequence[Shape],
    batches: Sequence[int],
    dtypes: Sequence[str],
    layouts: Sequence[str],
    modes: Sequence[str],
) -> list[Point]:
    """All combinations; shapes and batches vary fastest, as the table shows them."""
    return [
        Point(shape, batch, dtype, layout, mode)
        for mode in modes
        for dtype in dtypes
        for layout in layouts
        for shape in shapes
        for batch in batches
    ]


def measure(
    point: Point,
    settings: Settings,
    environment: Environment,
    on_step: Callable[[str], None] = lambda what: None,
) -> dict:
    """Verify, then time, the contenders of one point; returns the record of one JSON line.

    Raises:
        VerificationError: a contender is wrong; nothing was timed.
    """
    torch._dynamo.reset()
    generator = torch.Generator(settings.device).manual_seed(settings.seed)
    cache = last_level_cache_bytes(settings.device)
    w1, w2 = make_weights(point.shape.channels, point.shape.reduced, settings.device, generator)
    dtype = DTYPES[point.dtype]
    sets = make_sets(
        point.x_shape,
        how_many(point.x_bytes, cache),
        dtype=dtype,
        layout=point.layout,
        backward=point.mode == "train",
        device=settings.device,
        generator=generator,
    )
    contenders = build(settings.kinds, settings.backends, w1, w2, dtype=dtype, layout=point.layout)
    with torch.set_grad_enabled(point.mode == "train"):
        checks, first_call = verify_point(point, contenders, sets[0], w1, w2, on_step)
        timed_as = Graphed if settings.graph else Layer
        timed = {c.name: timed_as(c, sets) for c in contenders}
        timed.update({kind: COPIES[kind](sets) for kind in COPIES if kind in settings.kinds})
        clock = clock_for(settings.device, cache)
        seconds = in_turn(
            timed,
            clock,
            settings.budget,
            len(sets),
            lambda done: on_step(f"round {done}"),
        )
    return {
        "schema": SCHEMA,
        "kind": "layer",
        **environment.as_dict(),
        "shape": {
            "name": point.shape.name,
            "channels": point.shape.channels,
            "height": point.shape.height,
            "width": point.shape.width,
            "reduced": point.shape.reduced,
        },
        "batch": point.batch,
        "dtype": point.dtype,
        "layout": point.layout,
        "mode": point.mode,
        "seed": settings.seed,
        "graph": settings.graph,
        "input_sets": len(sets),
        "cache_bytes": cache,
        "flushed_bytes": clock.flush_bytes,
        **statistics(point, seconds),
        "first_call_s": first_call,
        "verification": [check.as_dict() for check in checks],
    }


def verify_point(
    point: Point,
    contenders: Sequence[Contender],
    s,
    w1: torch.Tensor,
    w2: torch.Tensor,
    on_step: Callable[[str], None],
) -> tuple[list[verify.Check], dict[str, float]]:
    """All checks of all contenders, and the seconds of each one's first call (with compiling)."""
    dtype, layout = DTYPES[point.dtype], MEMORY_FORMATS[point.layout]
    on_step("judge in float64")
    with torch.set_grad_enabled(point.mode == "train"):
        judge = verify.judge_layer(s, w1.to(dtype), w2.to(dtype))
        plain = EagerSE(w1, w2).to(device=w1.device, dtype=dtype, memory_format=layout)
        eager = verify.errors(verify.run_layer(Contender("eager", "eager", plain, plain), s), judge)
        checks, first_call = [], {}
        for contender in contenders:
            on_step(f"verify {contender.name}")
            start = time.perf_counter()
            try:
                results = verify.run_layer(contender, s)
            except (verify.VerificationError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
                raise verify.VerificationError(f"{contender.name} cannot run: {reason}") from error
            first_call[contender.name] = time.perf_counter() - start
            verify.like_input(contender.name, results["y"], s.x, layout)
            found = verify.errors(results, judge)
            checks += verify.compare(contender.name, found, eager, judge, dtype)
    return checks, first_call


def statistics(point: Point, seconds: dict[str, np.ndarray]) -> dict:
    """The fields of a record that come from the times."""
    rows = {}
    for name, values in seconds.items():
        row = percentiles(values)
        if name not in COPIES:
            row["gb_per_s"] = point.counted_bytes / row["p50_us"] * 1e-3
        else:
            row["gb_per_s"] = 2 * point.x_bytes / row["p50_us"] * 1e-3
        if "copy" in seconds:
            row["copies"] = paired_ratio(values, seconds["copy"])
        rows[name] = row
    ratios = {
        base: {
            name: paired_ratio(seconds[base], values)
            for name, values in seconds.items()
            if name != base and name not in COPIES
        }
        for base in BASELINES
        if base in seconds
    }
    floor = {"copies": FLOOR_COPIES[point.mode], "counted_bytes": point.counted_bytes}
    if "copy" in rows:
        floor["us"] = FLOOR_COPIES[point.mode] * rows["copy"]["p50_us"]
    return {
        "rounds": len(next(iter(seconds.values()), ())),
        "x_bytes": point.x_bytes,
        "contenders": rows,
        "ratios": ratios,  # ratios["eager"]["cpu"]: eager's time over cpu's
        "floor": floor,
    }
