"""The paper's parameters and multiply-adds, and those of ``se_kernels.models``.

Parameters are the learned ones. Multiply-adds are those of convolutions and FCs, and one for each
element that an SE block scales; the paper does not say what else it counts. Where its figure is not
ours rounded, a :class:`Reading` says which other way of counting gives it, and is checked as well.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from se_kernels import models
from se_kernels.models.se import EagerSqueezeExcite

from .models import image_size


@dataclass(frozen=True)
class Counts:
    """What one network has and does for one image."""

    parameters: int
    multiply_adds: int
    normalised: int  # elements that its norms give


@dataclass(frozen=True)
class Spec:
    """A network: its name in ``se_kernels.models``, ``se`` and SE's options, the image's size."""

    name: str
    se: str | None = "eager"  # which the counter sees into, as it does not into "fused"
    options: tuple[tuple[str, Any], ...] = ()
    image_size: int = 224

    def without_se(self) -> "Spec":
        return dataclasses.replace(self, se=None, options=())


@functools.cache
def count(spec: Spec) -> Counts:
    """Counted on the meta device: nothing is computed."""
    with torch.device("meta"):
        model = models.create(spec.name, se=spec.se, **dict(spec.options)).eval()
    elements = {EagerSqueezeExcite: 0, nn.BatchNorm2d: 0}

    def add(module, inputs, output):
        elements[type(module)] += output.numel()

    for module in model.modules():
        if type(module) in elements:
            module.register_forward_hook(add)
        if isinstance(module, nn.BatchNorm2d):
            module.__dict__["forward"] = lambda x: x  # of the same shape, in a third of the time
    size = spec.image_size
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, model.in_channels, size, size, device="meta"))
    return Counts(
        parameters=sum(p.numel() for p in model.parameters()),
        multiply_adds=counter.get_total_flops() // 2 + elements[EagerSqueezeExcite],
        normalised=elements[nn.BatchNorm2d],
    )


# What a figure is of: from a network's counts and those of the network without SE blocks.
QUANTITIES: dict[str, Callable[[Counts, Counts], float]] = {
    "parameters, M": lambda net, plain: net.parameters / 1e6,
    "added parameters, M": lambda net, plain: (net.parameters - plain.parameters) / 1e6,
    "added parameters, %": lambda net, plain: 100 * (net.parameters / plain.parameters - 1),
    "multiply-adds, M": lambda net, plain: net.multiply_adds / 1e6,
    "multiply-adds, G": lambda net, plain: net.multiply_adds / 1e9,
    "added multiply-adds, %": lambda net, plain: (
        100 * (net.multiply_adds / plain.multiply_adds - 1)
    ),
}


# Counts of a network and of the one without SE blocks, as somebody else would have counted them.
Way = Callable[[Counts, Counts], tuple[Counts, Counts]]


def as_counted(net: Counts, plain: Counts) -> tuple[Counts, Counts]:
    return net, plain


def with_norms(net: Counts, plain: Counts) -> tuple[Counts, Counts]:
    net, plain = (
        dataclasses.replace(c, multiply_adds=c.multiply_adds + c.normalised) for c in (net, plain)
    )
    return net, plain


def of_rounded_work(net: Counts, plain: Counts) -> tuple[Counts, Counts]:
    net, plain = (
        dataclasses.replace(c, multiply_adds=round(c.multiply_adds, -7)) for c in (net, plain)
    )
    return net, plain


def added_to_rounded_size(net: Counts, plain: Counts) -> tuple[Counts, Counts]:
    rounded = round(plain.parameters, -5)
    added = net.parameters - plain.parameters
    return dataclasses.replace(net, parameters=rounded + added), plain


@dataclass(frozen=True)
class Reading:
    """How the paper may have come to a figure: it lies between those of two ways of counting,
    rounded to its digits, or cut off with ``cut``. No ways: nobody knows; the difference stands."""

    name: str
    why: str
    ways: tuple[Way, Way] | None
    cut: bool = False


ROUNDED = Reading("rounded", "ours, rounded", (as_counted, as_counted))
CUT = Reading("cut off", "ours, cut off and not rounded", (as_counted, as_counted), cut=True)
NORMS = Reading(
    "norms",
    "between ours and ours with one for each element that a norm gives",
    (as_counted, with_norms),
)
SUM = Reading(
    "sum",
    "the parameters of the SE blocks added to the plain network's as it is rounded, 25.6 M",
    (added_to_rounded_size, added_to_rounded_size),
)
RATIO = Reading(
    "ratio", "of the figures as they are rounded, 3.87 and 3.86 G", (of_rounded_work,) * 2
)
R8 = Reading("stated", "r = 8: no way of counting gives it, nor does equation 5", None)
INCEPTION_RESNET = Reading(
    "stated",
    "Inception-ResNet-v2: neither the published weights' structure, which is ours, nor that of"
    " [21]'s figures (about 9.3 G) gives it",
    None,
)


@dataclass(frozen=True)
class Figure:
    """One number of the paper, as ``printed`` there; None where it has none."""

    what: str
    quantity: str
    printed: str | None
    network: Spec
    reading: Reading = ROUNDED


@dataclass(frozen=True)
class Finding:
    """A figure, ours, and whether they agree in the figure's reading; None without a figure."""

    figure: Figure
    ours: float
    agrees: bool | None

    @property
    def difference(self) -> float | None:
        printed = self.figure.printed
        return None if printed is None else self.ours - float(printed)


def find(figure: Figure) -> Finding:
    plain, net = count(figure.network.without_se()), count(figure.network)
    value = QUANTITIES[figure.quantity]
    return Finding(figure, value(net, plain), agrees(figure, net, plain))


def agrees(figure: Figure, net: Counts, plain: Counts) -> bool | None:
    if figure.printed is None:
        return None
    reading, value = figure.reading, QUANTITIES[figure.quantity]
    if reading.ways is None:
        return True
    digits = len(figure.printed.partition(".")[2])
    low, high = (shortened(value(*way(net, plain)), digits, reading.cut) for way in reading.ways)
    return low <= float(figure.printed) <= high


def shortened(value: float, digits: int, cut: bool) -> float:
    if cut:
        return math.floor(value * 10**digits) / 10**digits
    return float(f"{value:.{digits}f}")


def equation_5(r: int) -> int:
    """The parameters that SE blocks add to ResNet-50: 2/r Σ N_s C_s²."""
    return 2 * sum(row.blocks * row.channels[-1] ** 2 for row in models.RESNET50) // r


def figures() -> dict[str, list[Figure]]:
    """The paper's figures by where they stand; those of equation 5 are the equation's values."""
    return {
        "section 4": _section_4(),
        "equation 5": _equation_5(),
        "table 2": _table_2(),
        "table 3": _table_3(),
        "table 8": _table_8(),
        "table 10": _table_10(),
        "table 13": _table_13(),
        "table 15": _table_15(),
        "table 16": _table_16(),
    }


RESNET50 = Spec("resnet50", None)


def se_resnet50(**options) -> Spec:
    return Spec("resnet50", options=tuple(options.items()))


def _section_4() -> list[Figure]:
    size, percent, work = "added parameters, M", "added parameters, %", "added multiply-adds, %"
    return [
        Figure("SE-ResNet-50", size, "2.5", se_resnet50()),
        Figure("SE-ResNet-50", percent, "10", se_resnet50()),
        Figure("SE but in the last stage", percent, "4", se_resnet50(stages=(2, 3, 4))),
        Figure("SE-ResNet-50", work, "0.26", se_resnet50(), RATIO),
    ]


def _equation_5() -> list[Figure]:
    exact = {r: f"{equation_5(r) / 1e6:.6f}" for r in (2, 4, 8, 16, 32)}
    return [
        Figure(f"r = {r}", "added parameters, M", printed, se_resnet50(rd_ratio=1 / r))
        for r, printed in exact.items()
    ]


def _table_2() -> list[Figure]:
    # fmt: off
    rows = (
        # what                   name                   plain             with SE
        ("ResNet-50",           "resnet50",            "3.86", ROUNDED,  "3.87", ROUNDED),
        ("ResNet-101",          "resnet101",           "7.58", NORMS,    "7.60", NORMS),
        ("ResNet-152",          "resnet152",           "11.30", NORMS,   "11.32", NORMS),
        ("ResNeXt-50",          "resnext50_32x4d",     "4.24", NORMS,    "4.25", NORMS),
        ("ResNeXt-101",         "resnext101_32x4d",    "7.99", NORMS,    "8.00", NORMS),
        ("VGG-16",              "vgg16",               "15.47", ROUNDED, "15.48", ROUNDED),
        ("BN-Inception",        "bn_inception",        "2.03", ROUNDED,  "2.04", NORMS),
        ("Inception-ResNet-v2", "inception_resnet_v2", "11.75", INCEPTION_RESNET,
                                                       "11.76", INCEPTION_RESNET),
    )
    # fmt: on
    quantity, found = "multiply-adds, G", []
    for what, name, plain, reading, with_se, se_reading in rows:
        spec = Spec(name, image_size=image_size(name))
        found += [
            Figure(what, quantity, plain, spec.without_se(), reading),
            Figure(f"SE-{what}", quantity, with_se, spec, se_reading),
        ]
    return found


def _table_3() -> list[Figure]:
    mobilenet, shufflenet = Spec("mobilenet"), Spec("shufflenet")
    work, size = "multiply-adds, M", "parameters, M"
    return [
        Figure("MobileNet", work, "569", mobilenet.without_se()),
        Figure("MobileNet", size, "4.2", mobilenet.without_se()),
        Figure("SE-MobileNet", work, "572", mobilenet),
        Figure("SE-MobileNet", size, "4.7", mobilenet),
        Figure("ShuffleNet", work, "140", shufflenet.without_se(), NORMS),
        Figure("ShuffleNet", size, "1.8", shufflenet.without_se(), CUT),
        Figure("SE-ShuffleNet", work, "142", shufflenet, NORMS),
        Figure("SE-ShuffleNet", size, "2.4", shufflenet, CUT),
    ]


def _table_8() -> list[Figure]:
    """The table has errors at these sizes of images, and not how large the network is."""
    size, work = "parameters, M", "multiply-adds, G"
    return [
        Figure("SENet-154", size, None, Spec("senet154")),
        Figure("SENet-154, 224×224", work, None, Spec("senet154")),
        Figure("SENet-154, 320×320", work, None, Spec("senet154", image_size=320)),
    ]


def _table_10() -> list[Figure]:
    size = "parameters, M"
    rows = (
        (2, "45.7", ROUNDED),
        (4, "35.7", SUM),
        (8, "30.7", R8),
        (16, "28.1", ROUNDED),
        (32, "26.9", SUM),
    )
    return [
        *(
            Figure(f"r = {r}", size, printed, se_resnet50(rd_ratio=1 / r), reading)
            for r, printed, reading in rows
        ),
        Figure("ResNet-50", size, "25.6", RESNET50),
    ]


def _table_13() -> list[Figure]:
    return [
        *_work_and_size("ResNet-50", "3.86", "25.6", RESNET50),
        *_work_and_size("SE in stage 2", "3.86", "25.6", se_resnet50(stages=(2,))),
        *_work_and_size("SE in stage 3", "3.86", "25.7", se_resnet50(stages=(3,))),
        *_work_and_size("SE in stage 4", "3.86", "26.4", se_resnet50(stages=(4,)), SUM),
        *_work_and_size("SE in all", "3.87", "28.1", se_resnet50()),
    ]


def _table_15() -> list[Figure]:
    return [
        *_work_and_size("SE", "3.87", "28.1", se_resnet50()),
        *_work_and_size("SE 3×3", "3.86", "25.8", se_resnet50(integration="3x3"), SUM),
    ]


def _table_16() -> list[Figure]:
    return [
        *_work_and_size("ResNet-50", "3.86", "25.6", RESNET50),
        *_work_and_size("NoSqueeze", "4.27", "28.1", se_resnet50(squeeze=None)),
        *_work_and_size("SE", "3.87", "28.1", se_resnet50()),
    ]


def _work_and_size(
    what: str, work: str, size: str, network: Spec, reading: Reading = ROUNDED
) -> list[Figure]:
    """``reading``: of the size."""
    return [
        Figure(what, "multiply-adds, G", work, network),
        Figure(what, "parameters, M", size, network, reading),
    ]
