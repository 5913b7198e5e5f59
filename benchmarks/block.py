"""One block of a network: what is measured of it at one point, and how.

Which block that is, is a subject's to say: ``layer.py`` and ``tail.py``.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from . import verify
from .contenders import COPIES, Call, Contender, Graphed
from .environment import Environment, last_level_cache_bytes
from .inputs import DTYPES, MEMORY_FORMATS, InputSet, how_many, make_sets
from .records import SCHEMA
from .timing import Budget, Timed, clock_for, in_turn, paired_ratio, percentiles

STAGES = {  # of SE-ResNet-50 (Table 1): C×H×W:R
    "conv2": "256x56x56:16",
    "conv3": "512x28x28:32",
    "conv4": "1024x14x14:64",
    "conv5": "2048x7x7:128",
}


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
    def trains(self) -> bool:
        return self.mode != "inference"

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.shape.channels, self.shape.height, self.shape.width)

    @property
    def x_bytes(self) -> int:
        return int(np.prod(self.x_shape)) * DTYPES[self.dtype].itemsize

    def __str__(self) -> str:
        return f"{self.shape} N={self.batch} {self.layout} {self.dtype} {self.mode}"


@dataclass(frozen=True)
class Settings:
    """What is the same at all points. ``kinds`` are of the subject's."""

    device: torch.device
    kinds: Sequence[str]
    backends: Sequence[str]
    budget: Budget = field(default_factory=Budget)
    seed: int = 0
    graph: bool = False  # replay each contender's forward from a captured CUDA graph


@dataclass(frozen=True)
class Cost:
    """The traffic that cannot be avoided: ``units``, reads and writes of a tensor of x's size, and
    ``weights``, those of w1 and w2."""

    units: int
    weights: int

    @property
    def copies(self) -> float:
        return self.units / 2

    def bytes(self, point: Point) -> int:
        weights = 2 * point.shape.channels * point.shape.reduced * DTYPES[point.dtype].itemsize
        return self.units * point.x_bytes + self.weights * weights


@dataclass(frozen=True)
class Definition:
    """What some of the contenders compute: the judge, and the eager contender whose own error sets
    the measure."""

    judge: Callable[[], verify.Judge]
    eager: Contender


@dataclass(frozen=True)
class Built:
    """The contenders of one point in the order of their turns, and what they are held to.

    The first of the input sets is verified.
    """

    contenders: Sequence[Contender]
    definitions: Mapping[str, Definition]


class Subject(Protocol):
    """Which block, and against what."""

    @property
    def kind(self) -> str:
        """Of the record."""

    @property
    def kinds(self) -> Sequence[str]:
        """Of contenders: each builds some, or is one of ``COPIES``."""

    @property
    def residual(self) -> bool:
        """Whether the block adds one."""

    @property
    def costs(self) -> Mapping[str, Cost]:
        """By mode."""

    @property
    def baselines(self) -> Sequence[str]:
        """Names of contenders that the others' times are put beside."""

    def build(
        self,
        point: Point,
        settings: Settings,
        sets: Sequence[InputSet],
        generator: torch.Generator,
    ) -> Built: ...


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
    subject: Subject,
    point: Point,
    settings: Settings,
    environment: Environment,
    on_step: Callable[[str], None] = lambda what: None,
) -> dict:
    """Verify the contenders of one point, then time those that are right; returns the record of
    one JSON line, with the others under ``refused``."""
    torch._dynamo.reset()
    generator = torch.Generator(settings.device).manual_seed(settings.seed)
    cache = last_level_cache_bytes(settings.device)
    sets = make_sets(
        point.x_shape,
        how_many(point.x_bytes, cache),
        dtype=DTYPES[point.dtype],
        layout=point.layout,
        backward=point.trains,
        residual=subject.residual,
        device=settings.device,
        generator=generator,
    )
    built = subject.build(point, settings, sets, generator)
    with torch.set_grad_enabled(point.trains):
        checks, first_call, refused = verify_point(point, built, sets[0], on_step)
        right = [c for c in built.contenders if c.name not in refused]
        timed: dict[str, Timed] = {}
        for c in right:
            timed[c.name] = Graphed(c, sets) if settings.graph else Call(c, sets, point.mode, cache)
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
        "kind": subject.kind,
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
        **statistics(subject, point, seconds),
        "first_call_s": first_call,
        **({"refused": refused} if refused else {}),
        "verification": [check.as_dict() for check in checks],
    }


def verify_point(
    point: Point, built: Built, s: InputSet, on_step: Callable[[str], None]
) -> tuple[list[verify.Check], dict[str, float], dict[str, str]]:
    """All checks of all contenders, the seconds of each one's first call (with compiling), and why
    some are refused, by name."""
    dtype, layout = DTYPES[point.dtype], MEMORY_FORMATS[point.layout]
    checks, first_call, refused = [], {}, {}
    for key, definition in built.definitions.items():
        held = [c for c in built.contenders if c.definition == key]
        if not held:
            continue
        on_step("judge in float64")
        judge = definition.judge()
        eager = verify.errors(verify.run(definition.eager, s), judge)
        for contender in held:
            on_step(f"verify {contender.name}")
            start = time.perf_counter()
            try:
                with verify.able_to_run(contender.name):
                    results = verify.run(contender, s)
                first_call[contender.name] = time.perf_counter() - start
                verify.like_input(contender.name, results["y"], s.x, layout)
                found = verify.errors(results, judge)
                checks += verify.compare(contender.name, found, eager, judge, dtype)
            except verify.VerificationError as error:
                refused[contender.name] = str(error)
    return checks, first_call, refused


def statistics(subject: Subject, point: Point, seconds: dict[str, np.ndarray]) -> dict:
    """The fields of a record that come from the times."""
    cost = subject.costs[point.mode]
    counted = cost.bytes(point)
    rows = {}
    for name, values in seconds.items():
        row = percentiles(values)
        moved = 2 * point.x_bytes if name in COPIES else counted
        row["gb_per_s"] = moved / row["p50_us"] * 1e-3
        if "copy" in seconds:
            row["copies"] = paired_ratio(values, seconds["copy"])
        rows[name] = row
    ratios = {
        base: {
            name: paired_ratio(seconds[base], values)
            for name, values in seconds.items()
            if name != base and name not in COPIES
        }
        for base in subject.baselines
        if base in seconds
    }
    floor = {"copies": cost.copies, "counted_bytes": counted}
    if "copy" in rows:
        floor["us"] = cost.copies * rows["copy"]["p50_us"]
    return {
        "rounds": len(next(iter(seconds.values()), ())),
        "x_bytes": point.x_bytes,
        "contenders": rows,
        "ratios": ratios,  # ratios["eager"]["cpu"]: eager's time over cpu's
        "floor": floor,
    }
