"""What is run, in the order of what is most to be known, and for how long at most."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

MODELS = ("seresnet50", "efficientnet_b0", "mobilenetv3_large_100", "regnety_032")
TESTS = (
    *("gpu/test_gpu", "gpu/test_cuda", "gpu/test_norm_gpu", "ops/test_squeeze_excite"),
    *("ops/test_odd_tensors", "ops/test_phases", "ops/test_conversions", "ops/test_properties"),
    *("ops/test_norm_phases", "ops/test_norm_squeeze_excite"),
    "autograd/test_gradients",
)
LAYOUTS = ("channels_last", "nchw")
DTYPE = "bfloat16"
FUSED = ("cuda", "triton")


@dataclass(frozen=True)
class Sizes:
    """Of the points that are measured: on a GPU, or tiny for a run on the host."""

    device: str
    batch: int
    shapes: Sequence[str]  # of the blocks
    image: Sequence[str]  # options of the networks' images
    rounds: Sequence[str] = ()  # options, in place of seconds
    network_modes: Sequence[str] = ("train", "inference")
    patience: float = 1  # times the limits


GPU = Sizes("cuda", 256, ("conv2", "conv3", "conv4", "conv5"), ())
HOST = Sizes("cpu", 1, ("16x4x4:2",), ("--image-size", "32"), ("--rounds", "1"), ("inference",), 8)


@dataclass(frozen=True)
class Step:
    """``python *arguments``, and ``--backend NAME`` for each of ``backends`` that is fit: that is
    usable, and none of whose kernels for ``calls``, dtype and ``layouts`` is broken.

    ``kind``: of the results that it writes. ``one``: takes the first fit backend only.
    """

    name: str
    seconds: float  # that it may take
    arguments: Sequence[str]
    backends: Sequence[str] = ()
    calls: Sequence[str] = ()  # of the kernels' trials: "block", "norm"
    layouts: Sequence[str] = LAYOUTS
    kind: str | None = None
    one: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    tool: str | None = None  # of compute-sanitizer
    checks: str | None = None  # the backend whose kernels it is a check of
    quiet: float | None = None  # seconds without a line after which it hangs


def stages(sizes: Sizes, capability: str) -> dict[str, list[Step]]:
    """The steps of each stage, for a GPU such as "9.0"; ``make gpu`` runs them in this order."""
    planned = _stages(sizes, capability)
    if sizes.patience == 1:
        return planned
    return {
        name: [
            replace(
                step,
                seconds=step.seconds * sizes.patience,
                quiet=step.quiet and step.quiet * sizes.patience,
            )
            for step in steps
        ]
        for name, steps in planned.items()
    }


def _stages(sizes: Sizes, capability: str) -> dict[str, list[Step]]:
    return {
        "build": [
            Step("build", 60, ("-m", "tools.gpu.build", "host" if sizes is HOST else capability))
        ],
        "smoke": [_smoke(sizes, "cuda", 40, quiet=15), _smoke(sizes, "triton", 50, quiet=25)],
        "network": [*_network(sizes)],
        "tail": [_tail(sizes, layout) for layout in LAYOUTS],
        "sweeps": [*_sweeps(sizes)],
        "layer": [_layer(sizes, layout) for layout in LAYOUTS],
        "latency": [_latency(sizes)],
        "drop_in": [_drop_in(sizes)],
        "tests": [_tests(sizes)],
        "sanitize": [_sanitize(sizes, tool) for tool in ("memcheck", "racecheck")],
    }


def _smoke(sizes: Sizes, backend: str, seconds: float, quiet: float) -> Step:
    arguments = ("-m", "se_kernels", "check", "--every-kernel", "--device", sizes.device)
    return Step(
        backend, seconds, arguments, (backend,), kind="kernels", checks=backend, quiet=quiet
    )


def _benchmark(sizes: Sizes, *arguments: str, seconds: float) -> tuple[str, ...]:
    budget = sizes.rounds or ("--seconds", str(seconds))
    return ("-m", "benchmarks", *arguments, "--device", sizes.device, *budget)


def _options(name: str, values: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for value in values for word in (name, value))


def _network(sizes: Sizes) -> Iterator[Step]:
    """SE-ResNet-50's training step (autocast), that compiled, and inference."""
    point = ("network", "--dtype", DTYPE, "--layout", "channels_last", "--batch", str(sizes.batch))
    given: dict[str, Any] = dict(backends=FUSED, calls=("block", "norm"))
    given |= dict(layouts=("channels_last",), kind="network", one=True)
    train, inference = sizes.network_modes[0], sizes.network_modes[-1]

    def step(name: str, limit: float, *more: str) -> Step:
        return Step(name, limit, _benchmark(sizes, *point, *sizes.image, *more, seconds=5), **given)

    yield step("train", 45, "--mode", train)
    pair = _options("--contender", ("resnet50", "se_block"))
    yield step("compiled", 90, "--mode", train, "--compile", *pair)
    yield step("inference", 25, "--mode", inference)


def _block(sizes: Sizes, kind: str, layouts: Sequence[str], batch: int) -> tuple[str, ...]:
    shapes = _options("--shape", sizes.shapes)
    return (
        *(kind, "--dtype", DTYPE, "--batch", str(batch)),
        *(*shapes, *_options("--layout", layouts)),
    )


def _tail(sizes: Sizes, layout: str) -> Step:
    kinds = _options("--contender", ("eager", "plain", "layer", "fused", "copy"))
    modes = _options("--mode", ("forward", "backward"))
    point = _block(sizes, "tail", (layout,), sizes.batch)
    arguments = _benchmark(sizes, *point, *kinds, *modes, seconds=0.5)
    calls = ("block", "norm")
    return Step(layout, 25, arguments, FUSED, calls, (layout,), kind="tail", quiet=20)


def _sweeps(sizes: Sizes) -> Iterator[Step]:
    kinds = _options("--contender", ("fused", "copy"))
    point = _block(sizes, "layer", LAYOUTS, sizes.batch)
    arguments = _benchmark(sizes, *point, *kinds, seconds=0.3)
    for backend in ("cuda", "triton"):
        yield Step(backend, 18, arguments, (backend,), ("block",), kind="layer")


def _layer(sizes: Sizes, layout: str) -> Step:
    kinds = ("eager", "copy", "fused") if sizes is HOST else ("eager", "compile", "fused", "copy")
    point = _block(sizes, "layer", (layout,), sizes.batch)
    arguments = _benchmark(sizes, *point, *_options("--contender", kinds), seconds=0.5)
    return Step(layout, 35, arguments, FUSED, ("block",), (layout,), kind="layer")


def _latency(sizes: Sizes) -> Step:
    """One image, without the launches' cost on the host: replayed from CUDA graphs."""
    kinds = _options("--contender", ("eager", "fused", "copy"))
    graph = () if sizes is HOST else ("--graph",)
    point = _block(sizes, "layer", LAYOUTS, 1)
    arguments = _benchmark(sizes, *point, *kinds, "--mode", "inference", *graph, seconds=0.5)
    return Step("latency", 25, arguments, FUSED, ("block",), kind="layer")


def _drop_in(sizes: Sizes) -> Step:
    models = _options("--model", [f"timm/{name}" for name in MODELS])
    point = ("network", *models, "--fuse", "--dtype", DTYPE)
    size = ("--layout", "channels_last", "--batch", str(sizes.batch), *sizes.image)
    mode = ("--mode", sizes.network_modes[0])
    arguments = _benchmark(sizes, *point, *size, *mode, seconds=2)
    given: dict[str, Any] = dict(layouts=("channels_last",), kind="model", one=True)
    return Step("timm", 40, arguments, FUSED, ("block", "norm"), **given)


def _tests(sizes: Sizes) -> Step:
    files: tuple[str, ...]
    if sizes is HOST:  # `make test` runs them there
        files, which = ("gpu/test_cuda",), "one_launch_forward"
        workers = "0"
    else:
        files, which = TESTS, "triton or cuda or gpu"
        workers = str(min(12, os.cpu_count() or 1))
    names = (f"tests/{name}.py" for name in files)
    options = ("-q", "-n", workers, "-k", which)
    return Step("operators", 55, ("-m", "pytest", *options, *names))


def _sanitize(sizes: Sizes, tool: str) -> Step:
    """The kernels of the check; each tensor an allocation of its own, so that none is missed."""
    arguments = ("-m", "se_kernels", "check", "--every-kernel", "--device", sizes.device)
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return Step(tool, 25, arguments, ("cuda",), environment=environment, tool=tool)
