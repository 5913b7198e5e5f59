"""The subject of ``tail``: the end of a residual block with SE (Fig. 3).

y = ReLU(SE(batch norm of u) + residual), beside the same without SE: ReLU(batch norm of u +
residual), the end of a plain ResNet's block. The norm is in training mode, but for inference.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import se_kernels
from se_kernels import reference

from . import verify
from .block import Built, Cost, Definition, Point, Settings
from .contenders import Contender, EagerSE, set_weights
from .inputs import DTYPES, MEMORY_FORMATS, InputSet, make_weights

NORM_GRADIENTS = {"dbn_weight": "bn.weight", "dbn_bias": "bn.bias"}
GRADIENTS = {**NORM_GRADIENTS, "dw1": "se.fc1.weight", "dw2": "se.fc2.weight"}
STATISTICS = {"running_mean": "bn.running_mean", "running_var": "bn.running_var"}


@dataclass(frozen=True)
class Weights:
    """As the contenders have them: the norm's (C) in at least float32, as under autocast, w1
    (R,C,1,1) and w2 (C,R,1,1) in x's dtype."""

    norm: Mapping[str, Tensor]  # by their names in ``nn.BatchNorm2d``
    w1: Tensor
    w2: Tensor


class EagerTail(nn.Module):
    """As timm has it, without ``se`` as ResNets have it: the addition and the ReLU in place."""

    def __init__(self, bn: nn.Module, se: nn.Module | None):
        super().__init__()
        self.bn, self.se = bn, se
        self.act = nn.ReLU(inplace=True)

    def forward(self, u: Tensor, residual: Tensor) -> Tensor:
        v = self.bn(u)
        if self.se is not None:
            v = self.se(v)
        v += residual
        return self.act(v)


class LayerTail(nn.Module):
    """The norm in eager, then SE, the addition and the ReLU as one operation of se_kernels."""

    def __init__(self, bn: nn.Module, se: nn.Module):
        super().__init__()
        self.bn, self.se = bn, se

    def forward(self, u: Tensor, residual: Tensor) -> Tensor:
        return self.se(self.bn(u), residual)


def fused_tail(bn: nn.BatchNorm2d, se: se_kernels.SqueezeExcite) -> nn.Module:
    """All of it as one operation of se_kernels."""
    module = se_kernels.BatchNormSqueezeExcite(bn.num_features)
    module.bn, module.se = bn, se
    return module


class ResidualTail:
    """u, residual (N,C,H,W) → y (N,C,H,W)."""

    kind = "tail"
    kinds = (
        *("eager", "compile", "plain", "plain_compile"),  # plain: without SE
        *("layer", "fused"),  # one contender per backend: layer_cpu and cpu
        *("copy", "clone"),
    )
    residual = True
    costs: ClassVar[Mapping[str, Cost]] = {
        "inference": Cost(units=3, weights=1),  # u, residual, y
        "forward": Cost(units=4, weights=1),  # and u before, for the statistics
        "backward": Cost(units=6, weights=2),  # dy, u, dr; dr, u, du; and a bit an element
        "train": Cost(units=10, weights=3),
    }
    baselines = ("eager", "compile", "plain", "plain_compile")

    def build(
        self,
        point: Point,
        settings: Settings,
        sets: Sequence[InputSet],
        generator: torch.Generator,
    ) -> Built:
        weights = make_tail_weights(point, settings.device, generator)
        s = sets[0]
        with torch.no_grad():
            sums = [define(s, weights, point.trains, se).sum for se in (True, False)]
            assert s.residual is not None  # as ``residual`` asks
            clear_of_the_corner(s.residual, sums)
        contenders = build(settings.kinds, settings.backends, weights, point)
        eager, plain = build(["eager", "plain"], [], weights, point)
        definitions = {
            "se": Definition(lambda: judge(s, weights, point.trains, se=True), eager),
            "plain": Definition(lambda: judge(s, weights, point.trains, se=False), plain),
        }
        return Built(contenders, definitions)


def make_tail_weights(point: Point, device: torch.device, generator: torch.Generator) -> Weights:
    """Those of a trained network: ordinary scales and shifts; running statistics near those of the
    inputs, which are 0 and 2."""
    channels, dtype = point.shape.channels, DTYPES[point.dtype]
    noise: dict[str, Any] = dict(device=device, generator=generator)
    wide = torch.promote_types(dtype, torch.float32)
    norm = {
        "weight": torch.rand(channels, **noise) + 0.5,
        "bias": torch.randn(channels, **noise) * 0.1,
        "running_mean": torch.randn(channels, **noise) * 0.1,
        "running_var": torch.rand(channels, **noise) + 1.5,
    }
    w1, w2 = make_weights(channels, point.shape.reduced, device, generator)
    return Weights({name: t.to(wide) for name, t in norm.items()}, w1.to(dtype), w2.to(dtype))


def build(
    kinds: Sequence[str], backends: Sequence[str], weights: Weights, point: Point
) -> list[Contender]:
    """The contenders that compute y, in the order of ``ResidualTail.kinds``.

    Copies are timed apart.
    """
    channels, dtype = point.shape.channels, weights.w1.dtype
    layout, device = MEMORY_FORMATS[point.layout], weights.w1.device

    def norm() -> nn.BatchNorm2d:
        bn = nn.BatchNorm2d(channels, device=device, dtype=weights.norm["weight"].dtype)
        bn.load_state_dict(weights.norm, strict=False)  # none of num_batches_tracked
        return bn

    def se(make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        module = make(*args, **kwargs).to(device=device, dtype=dtype, memory_format=layout)
        set_weights(module, weights.w1, weights.w2)
        return module

    def fused_se(backend: str) -> se_kernels.SqueezeExcite:
        options = dict(rd_channels=point.shape.reduced, post="relu", backend=backend)
        return se(se_kernels.SqueezeExcite, channels, **options)

    def contender(name: str, module: nn.Module, plain: bool = False, compiled: bool = False):
        module.train(point.trains)
        run = torch.compile(module, fullgraph=True) if compiled else module
        definition, gradients = ("plain", NORM_GRADIENTS) if plain else ("se", GRADIENTS)
        return Contender(name, definition, module, run, gradients, STATISTICS)

    def of_kind(kind: str) -> list[Contender]:
        match kind:
            case "eager" | "compile":
                tail = EagerTail(norm(), se(EagerSE, weights.w1, weights.w2))
                return [contender(kind, tail, compiled=kind == "compile")]
            case "plain" | "plain_compile":
                tail = EagerTail(norm(), None)
                return [contender(kind, tail, plain=True, compiled=kind == "plain_compile")]
            case "layer":
                return [contender(f"layer_{b}", LayerTail(norm(), fused_se(b))) for b in backends]
            case "fused":
                return [contender(b, fused_tail(norm(), fused_se(b))) for b in backends]
        return []

    return [c for kind in ResidualTail.kinds if kind in kinds for c in of_kind(kind)]


@dataclass(frozen=True)
class Defined:
    """The definition of y in float64, and what it came from."""

    y: Tensor  # (N,C,H,W)
    sum: Tensor  # (N,C,H,W), before the ReLU
    normed: Tensor  # (N,C,H,W)
    leaves: dict[str, Tensor]  # by the names of their gradients
    se: tuple[Tensor, Tensor] | None = None  # z, gate (N,C)


def define(s: InputSet, weights: Weights, training: bool, se: bool) -> Defined:
    """y in float64, with its graph in training mode unless autograd is off."""
    assert s.residual is not None
    given = {
        "dx": s.x,
        "dr": s.residual,
        "dbn_weight": weights.norm["weight"],
        "dbn_bias": weights.norm["bias"],
        "dw1": weights.w1.flatten(1),
        "dw2": weights.w2.flatten(1),
    }
    leaves = {q: t.detach().double().requires_grad_(training) for q, t in given.items()}
    u, residual, weight, bias, w1, w2 = leaves.values()
    running = ("running_mean", "running_var")
    mean, var = (None if training else weights.norm[name] for name in running)
    eps = nn.BatchNorm2d(1).eps
    t = reference.normed(u, weight, bias, mean, var, torch.float64, eps=eps, pre="identity")
    if not se:
        total = t + residual
        return Defined(F.relu(total), total, t, leaves)
    z = reference.squeeze(t)
    gate = reference.excite(z, w1, w2)
    total = reference.scale(t, gate, residual)
    return Defined(F.relu(total), total, t, leaves, (z, gate))


def judge(s: InputSet, weights: Weights, training: bool, se: bool) -> verify.Judge:
    """y and, in training mode, the gradients of u ("dx"), of the residual and of the parameters,
    and the running statistics after the call."""
    found = define(s, weights, training, se)
    images, channels, height, width = s.x.shape
    if not training:
        walks = {"y": math.sqrt(height * width + channels) / 4}
        return verify.Judge.of({"y": found.y}, walks)
    found.normed.retain_grad()
    if found.se is not None:
        found.se[1].retain_grad()
    assert s.dy is not None
    found.y.backward(s.dy.double())
    with torch.no_grad():
        results = {"y": found.y.detach(), **moved_statistics(s.x, weights)}
        results |= {q: leaf.grad for q, leaf in found.leaves.items() if leaf.grad is not None}
        dt, leaves = found.normed.grad, found.leaves
        assert dt is not None
        weight, bias = (leaves[q][:, None, None] for q in NORM_GRADIENTS)
        terms = {"dbn_weight": dt * (found.normed - bias) / weight, "dbn_bias": dt}
        sizes = {
            q: verify.norms(torch.maximum(t.square().sum((0, 2, 3)).sqrt(), results[q].abs()))
            for q, t in terms.items()
        }
        if found.se is not None:
            weight_sizes = verify.WeightSizes(leaves["dw1"], leaves["dw2"])
            weight_sizes.add(*found.se)
            sizes |= weight_sizes.norms()
    walk = math.sqrt(height * width + images + channels)
    walks = dict.fromkeys(results, walk) | {"dr": 0.0}
    walks |= dict.fromkeys(NORM_GRADIENTS, 4 * math.sqrt(images * height * width))
    return verify.Judge.of(results, walks, sizes)


def moved_statistics(u: Tensor, weights: Weights) -> dict[str, Tensor]:
    """The running statistics after one call in training mode, (C) in float64."""
    u, momentum = u.detach().double(), nn.BatchNorm2d(1).momentum
    assert momentum is not None
    of_batch = {
        "running_mean": u.mean((0, 2, 3)),
        "running_var": u.var((0, 2, 3), correction=1),
    }
    return {q: weights.norm[q].double().lerp(t, momentum) for q, t in of_batch.items()}


def clear_of_the_corner(residual: Tensor, sums: Sequence[Tensor]) -> None:
    """Move what is near zero before the ReLU away from it, in place: rounding there decides between
    dy and 0, in eager too, and no tolerance could tell it from an error.

    Of three residuals three margins apart, each of the two sums is near zero for one at most.
    """
    margin = max(16 * torch.finfo(residual.dtype).eps, 1e-3)  # eager's y is off by less

    def clear(by: float) -> Tensor:
        return torch.stack([(total + by).abs() > 1.25 * margin for total in sums]).all(0)

    up = torch.where(clear(3 * margin), 3 * margin, -3 * margin)
    residual.add_(torch.where(clear(0.0), 0.0, up).to(residual.dtype))
