"""ResNet-50 beside SE-ResNet-50, eager and fused: what SE blocks cost a whole network."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from se_kernels.models import resnet50, se_resnet50

from .environment import Environment, last_level_cache_bytes
from .inputs import DTYPES, MEMORY_FORMATS, how_many
from .network_calls import TIMED, Network
from .network_verify import check_outputs, outputs
from .records import SCHEMA
from .timing import Budget, clock_for, in_turn, paired_ratio, percentiles

CLASSES = 1000
MAX_SETS = 8
VERIFIED_IMAGES = 2  # of each batch at least; judged in float64
MIN_NORMED = 8  # numbers per channel; of two, a norm gives 1 and -1, and its gradient is rounding
LEARNING_RATE = 1e-3  # small: the weights stay ordinary numbers for any number of rounds
MOMENTUM = 0.9
BRANCH_SCALE = 0.3  # of residual branches, so that rounding does not grow from block to block
PAPER = (  # section 4: what, ResNet-50 ms, SE-ResNet-50 ms
    ("training step, 256 images, 8 Titan X", 190.0, 209.0),
    ("inference on a CPU, 1 image", 164.0, 167.0),
)
RATIOS = (  # over, under
    ("se_eager", "resnet50"),
    ("se_fused", "resnet50"),
    ("se_eager", "se_fused"),
    ("se_eager_compiled", "resnet50_compiled"),
    ("se_fused_compiled", "resnet50_compiled"),
    ("se_eager_compiled", "se_fused_compiled"),
)


@dataclass(frozen=True)
class Point:
    """What is measured: dtype, layout and mode by their names on the command line."""

    batch: int
    image_size: int
    dtype: str
    layout: str
    mode: str

    def __str__(self) -> str:
        size, images = self.image_size, "image" if self.batch == 1 else "images"
        return f"{self.batch} {images} {size}x{size} {self.layout} {self.dtype} {self.mode}"


@dataclass(frozen=True)
class Settings:
    """What is the same at all points."""

    device: torch.device
    backend: str  # of the fused blocks
    compiled: bool
    stride_in_1x1: bool = True
    budget: Budget = field(default_factory=Budget)
    seed: int = 0


def points(
    batches: Sequence[int],
    image_sizes: Sequence[int],
    dtypes: Sequence[str],
    layouts: Sequence[str],
    modes: Sequence[str],
) -> list[Point]:
    """All combinations; batches vary fastest."""
    return [
        Point(batch, size, dtype, layout, mode)
        for mode in modes
        for dtype in dtypes
        for layout in layouts
        for size in image_sizes
        for batch in batches
    ]


def normed(batch: int, image_size: int) -> int:
    """How many numbers per channel the norms of the last stage see when training."""
    return batch * math.ceil(image_size / 32) ** 2


def verified_images(image_size: int) -> int:
    """How many images are judged: few, but so many that the norms are ordinary."""
    return max(VERIFIED_IMAGES, math.ceil(MIN_NORMED / normed(1, image_size)))


def make_images(
    batch: int, size: int, layout: str, device: torch.device, generator: torch.Generator
) -> Tensor:
    """(N, 3, H, W), float32, normal: as images are after normalising."""
    noise = torch.randn(batch, 3, size, size, device=device, generator=generator)
    return noise.contiguous(memory_format=MEMORY_FORMATS[layout])


def settle(model: nn.Module, images: Tensor, seed: int) -> None:
    """Give the norms ordinary scales and shifts, and the statistics of ``images``.

    Fresh norms have none: activations would grow from block to block, and no gate would matter.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for name, norm in norms.items():
        scale = BRANCH_SCALE if name.endswith(".bn3") else 1.0
        with torch.no_grad():
            norm.weight.copy_((torch.rand(norm.num_features, generator=generator) + 0.5) * scale)
            norm.bias.copy_(torch.randn(norm.num_features, generator=generator) * 0.1)
        norm.momentum = 1.0
    model.train()
    with torch.no_grad():
        model(images)
    for norm in norms.values():
        norm.momentum = 0.1


def build_models(
    settings: Settings, images: Tensor, layout: str, *, plain: bool = True
) -> dict[str, nn.Module]:
    """ResNet-50 (with ``plain``) and SE-ResNet-50 twice, with one state dict; float32, settled."""
    torch.manual_seed(settings.seed)
    options = dict(num_classes=CLASSES, stride_in_1x1=settings.stride_in_1x1)
    models = {"resnet50": resnet50(**options)} if plain else {}
    models["se_eager"] = se_resnet50(fused=False, **options)
    models["se_fused"] = se_resnet50(fused=True, backend=settings.backend, **options)
    for name, model in models.items():
        model.to(device=settings.device, memory_format=MEMORY_FORMATS[layout])
        if name != "se_fused":
            settle(model, images, settings.seed)
    models["se_fused"].load_state_dict(models["se_eager"].state_dict())
    return models


def contenders(models: dict[str, nn.Module], point: Point, compiled: bool) -> dict[str, Network]:
    """Each model, and with ``compiled`` each one's compiled form on the same parameters."""
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
        if compiled:
            run, name = torch.compile(model), f"{name}_compiled"
            networks[name] = Network(name, model, run, autocast, optimizer)
    return networks


def measure(
    point: Point,
    settings: Settings,
    environment: Environment,
    on_step: Callable[[str], None] = lambda what: None,
) -> dict:
    """Verify, then time, the networks at one point; returns the record of one JSON line.

    Raises:
        VerificationError: logits or gradients are wrong; nothing was timed.
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
    few = verified_images(point.image_size)
    calibration = torch.cat([i[:few] for i in images])[:few]
    models = build_models(settings, calibration, point.layout)
    networks = contenders(models, point, settings.compiled)
    if not train:
        images = [i.to(dtype) for i in images]
    elif dtype == torch.float64:
        images = [i.double() for i in images]
    labels = torch.randint(CLASSES, (point.batch,), device=settings.device, generator=generator)
    batches = [(i, labels) for i in images]
    with torch.set_grad_enabled(train):
        checks, first_call = verify_networks(networks, batches[0], few, dtype, train, on_step)
        clock = clock_for(settings.device, cache)
        seconds = in_turn(
            {name: TIMED[point.mode](network, batches) for name, network in networks.items()},
            clock,
            settings.budget,
            len(batches),
            lambda done: on_step(f"round {done}"),
        )
    return {
        "schema": SCHEMA,
        "kind": "network",
        **environment.as_dict(),
        "batch": point.batch,
        "image_size": point.image_size,
        "dtype": point.dtype,
        "layout": point.layout,
        "mode": point.mode,
        "seed": settings.seed,
        "backend": settings.backend,
        "stride_in_1x1": settings.stride_in_1x1,
        "input_sets": len(batches),
        "cache_bytes": cache,
        "flushed_bytes": clock.flush_bytes,
        **statistics(seconds),
        "first_call_s": first_call,
        "verification": [check.as_dict() for check in checks],
        "paper": [
            {"what": what, "resnet50_ms": plain, "se_resnet50_ms": se, "ratio": se / plain}
            for what, plain, se in PAPER
        ],
    }


def verify_networks(
    networks: dict[str, Network],
    batch: tuple[Tensor, Tensor],
    few: int,
    dtype: torch.dtype,
    train: bool,
    on_step: Callable[[str], None],
) -> tuple[list, dict[str, float]]:
    """Every network against the float64 eager network of the same weights.

    Eager networks set the measure (their own error), fused and compiled ones are held to it. Uses
    the whole batch where compiled forms are made for its shape, else its first ``few`` images.
    """
    checks, first_call, measured = [], {}, {}
    compiled = any(name.endswith("_compiled") for name in networks)
    images, labels = batch
    if not compiled:
        images, labels = images[:few], labels[:few]
    for judge_name in ("resnet50", "se_eager"):
        family = [n for n in networks if (judge_name == "resnet50") == n.startswith("resnet50")]
        if family == [judge_name]:
            continue  # nothing to hold against it
        on_step(f"judge {judge_name} in float64")
        judge = outputs(judged(networks[judge_name]), images.double(), labels, train)
        measured[judge_name] = outputs(networks[judge_name], images, labels, train)
        for name in family:
            if name == judge_name:
                continue
            on_step(f"verify {name}")
            start = time.perf_counter()
            got = outputs(networks[name], images, labels, train)
            first_call[name] = time.perf_counter() - start
            checks += check_outputs(name, got, measured[judge_name], judge, dtype)
    return checks, first_call


def judged(network: Network) -> Network:
    """A copy of an eager network in float64, without autocast."""
    model = copy.deepcopy(network.model).double()
    return Network("judge", model, model, None, None)


def statistics(seconds: dict[str, np.ndarray]) -> dict:
    """The fields of a record that come from the times."""
    return {
        "rounds": len(seconds["resnet50"]),
        "contenders": {name: percentiles(values) for name, values in seconds.items()},
        "ratios": {  # ratios["se_fused/resnet50"]: the time of the first over the second's
            f"{over}/{under}": paired_ratio(seconds[over], seconds[under])
            for over, under in RATIOS
            if over in seconds
        },
    }
