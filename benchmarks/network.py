"""Whole networks: what is measured of them at one point, and how.

A subject says which networks those are: ``resnet_vs_se.py``, ``paper_models.py``, ``drop_in.py``.
"""

import copy
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from .environment import Environment, last_level_cache_bytes
from .inputs import DTYPES, MEMORY_FORMATS, how_many
from .models import normed
from .network_calls import TIMED, Network, input_bytes, training_memory
from .network_verify import TRIES, GradientError, Least, check_outputs, outputs
from .records import SCHEMA
from .timing import Budget, clock_for, in_turn, percentiles
from .verify import VerificationError, able_to_run

CLASSES = 1000
MODES = ("inference", "train")
MAX_SETS = 8
VERIFIED_IMAGES = 2  # of each batch at least; judged in float64
MIN_NORMED = 8  # numbers per channel; of two, a norm gives 1 and -1, and its gradient is rounding
LEARNING_RATE = 1e-3  # small: the weights stay ordinary numbers for any number of rounds
MOMENTUM = 0.9
COMPILED = "_compiled"  # ends the name of a compiled form


@dataclass(frozen=True)
class Point:
    """What is measured: dtype, layout and mode by their names on the command line."""

    batch: int
    image_size: int
    dtype: str
    layout: str
    mode: str
    model: str = ""  # as ``--model`` names it; empty for the paper's pair

    def __str__(self) -> str:
        size, images = self.image_size, "image" if self.batch == 1 else "images"
        where = f"{self.layout} {self.dtype} {self.mode}"
        return f"{self.model} {self.batch} {images} {size}x{size} {where}".lstrip()


@dataclass(frozen=True)
class Settings:
    """What is the same at all points."""

    device: torch.device
    backend: str  # of the fused blocks
    compiled: bool
    kinds: Sequence[str] = ()  # the networks that are timed, all where none is named
    budget: Budget = field(default_factory=Budget)
    seed: int = 0


@dataclass(frozen=True)
class Built:
    """The networks of one point, in float32, in the order of their turns."""

    models: dict[str, nn.Module]
    judges: Mapping[str, str]  # network → the eager network that it is held against
    se: tuple[str, Sequence[str]]  # an eager network with SE blocks, and their names
    about: Mapping[str, object]  # fields of the record


class Subject(Protocol):
    """What the networks are and what their times say."""

    kind: str  # of the record

    def build(self, point: Point, settings: Settings, images: Tensor) -> Built:
        """The networks, with norms that know the statistics of ``images`` (N, 3, H, W)."""

    def findings(self, seconds: Mapping[str, np.ndarray]) -> dict:
        """Fields of the record, from the seconds of each network in each round."""


def points(
    batches: Sequence[int],
    image_sizes: Sequence[int],
    dtypes: Sequence[str],
    layouts: Sequence[str],
    modes: Sequence[str],
    model: str = "",
) -> list[Point]:
    """All combinations; batches vary fastest."""
    return [
        Point(batch, size, dtype, layout, mode, model)
        for mode in modes
        for dtype in dtypes
        for layout in layouts
        for size in image_sizes
        for batch in batches
    ]


def verified_images(point: Point) -> int:
    """How many images are judged: few, but so many that the norms are ordinary."""
    return max(VERIFIED_IMAGES, math.ceil(MIN_NORMED / normed(point.model, point.image_size)))


def make_images(
    batch: int, size: int, layout: str, device: torch.device, generator: torch.Generator
) -> Tensor:
    """(N, 3, H, W), float32, normal: as images are after normalising."""
    noise = torch.randn(batch, 3, size, size, device=device, generator=generator)
    return noise.contiguous(memory_format=MEMORY_FORMATS[layout])


def contenders(
    models: dict[str, nn.Module], point: Point, compiled: Collection[str]
) -> dict[str, Network]:
    """Each model, and the compiled form of each in ``compiled`` on the same parameters."""
    dtype, train = DTYPES[point.dtype], point.mode == "train"
    autocast = dtype if train and dtype.itemsize < 4 else None
    networks = {}
    for name, model in models.items():
        if autocast is None:
            model.to(dtype)
        model.train(train)
        optimizer = (
            torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
            if train
            else None
        )
        networks[name] = Network(name, model, model, autocast, optimizer)
        if name in compiled:
            run, name = torch.compile(model), name + COMPILED
            networks[name] = Network(name, model, run, autocast, optimizer)
    return networks


def measure(
    subject: Subject,
    point: Point,
    settings: Settings,
    environment: Environment,
    on_step: Callable[[str], None] = lambda what: None,
) -> dict:
    """Verify the networks at one point, then time those that are right; returns the record of one
    JSON line, with the others under ``refused``.

    Raises:
        VerificationError: none of them is right.
    """
    torch._dynamo.reset()
    generator = torch.Generator(settings.device).manual_seed(settings.seed)
    cache = last_level_cache_bytes(settings.device)
    dtype, train = DTYPES[point.dtype], point.mode == "train"
    image_bytes = point.batch * 3 * point.image_size**2 * 4
    images = [
        make_images(point.batch, point.image_size, point.layout, settings.device, generator)
        for _ in range(how_many(image_bytes, cache, MAX_SETS))
    ]
    on_step("build the networks")
    few = verified_images(point)
    built = subject.build(point, settings, torch.cat([i[:few] for i in images])[:few])
    kinds = settings.kinds or [*built.models]
    networks = contenders(built.models, point, kinds if settings.compiled else ())
    if not train:
        images = [i.to(dtype) for i in images]
    elif dtype == torch.float64:
        images = [i.double() for i in images]
    labels = torch.randint(CLASSES, (point.batch,), device=settings.device, generator=generator)
    batches = [(i, labels) for i in images]
    with torch.set_grad_enabled(train):
        checks, first_call, refused = verify_networks(
            networks, built.judges, batches, few, dtype, train, on_step
        )
        timed = {
            name: network
            for name, network in networks.items()
            if name.removesuffix(COMPILED) in kinds and name not in refused
        }
        if not timed:
            raise VerificationError("; ".join(refused.values()))
        clock = clock_for(settings.device, cache)
        seconds = in_turn(
            {name: TIMED[point.mode](network, batches) for name, network in timed.items()},
            clock,
            settings.budget,
            len(batches),
            lambda done: on_step(f"round {done}"),
        )
    rows = {name: percentiles(values) for name, values in seconds.items()}
    memory = {}
    if train:
        for name, network in timed.items():
            on_step(f"memory of {name}")
            rows[name] |= training_memory(network, batches[0])
        with_se, names = built.se
        memory["se_x_bytes"] = input_bytes(networks[with_se], names, batches[0])
    return {
        "schema": SCHEMA,
        "kind": subject.kind,
        **environment.as_dict(),
        "batch": point.batch,
        "image_size": point.image_size,
        "dtype": point.dtype,
        "layout": point.layout,
        "mode": point.mode,
        "seed": settings.seed,
        "backend": settings.backend,
        **built.about,
        "input_sets": len(batches),
        "cache_bytes": cache,
        "flushed_bytes": clock.flush_bytes,
        "rounds": len(next(iter(seconds.values()))),
        "contenders": rows,
        **memory,
        **subject.findings(seconds),
        "first_call_s": first_call,
        **({"refused": refused} if refused else {}),
        "verification": [check.as_dict() for check in checks],
    }


def verify_networks(
    networks: dict[str, Network],
    judges: Mapping[str, str],
    batches: Sequence[tuple[Tensor, Tensor]],
    few: int,
    dtype: torch.dtype,
    train: bool,
    on_step: Callable[[str], None],
) -> tuple[list, dict[str, float], dict[str, str]]:
    """Every network against the float64 eager network of the same weights.

    Eager networks set the measure (their own error), fused and compiled ones are held to it. Uses
    the whole first batch where compiled forms are made for its shape, else its first ``few``
    images; those of the next batches as well where gradients are refused. Beside the checks and
    the seconds of first calls: why some are refused, by name.
    """
    checks: list = []
    first_call: dict[str, float] = {}
    refused: dict[str, str] = {}
    batches = batches[:TRIES]
    if not any(name.endswith(COMPILED) for name in networks):
        batches = [(images[:few], labels[:few]) for images, labels in batches]
    for eager in dict.fromkeys(judges.values()):
        held = [n for n in networks if judges[n.removesuffix(COMPILED)] == eager and n != eager]
        if not held:
            continue
        least = Least()
        for images, labels in batches:
            on_step(f"judge {eager} in float64")
            judge = outputs(judged(networks[eager]), images.double(), labels, train)
            measure = outputs(networks[eager], images, labels, train)
            again = {}
            for name in held:
                on_step(f"verify {name}")
                start = time.perf_counter()
                try:
                    with able_to_run(name):
                        got = outputs(networks[name], images, labels, train)
                    first_call.setdefault(name, time.perf_counter() - start)
                    checks += check_outputs(name, got, measure, judge, dtype, least)
                except GradientError as error:
                    again[name] = str(error)
                except VerificationError as error:
                    refused[name] = str(error)
            held = list(again)
            if not held:
                break
        else:
            refused |= again  # on all batches
    return checks, first_call, refused


def judged(network: Network) -> Network:
    """A copy of an eager network in float64, without autocast."""
    model = copy.deepcopy(network.model).double()
    return Network("judge", model, model, None, None)
