"""The subject of ``layer``: one SE block, its contenders taken in turn."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from se_kernels import reference

from . import verify
from .block import Built, Cost, Definition, Point, Settings
from .contenders import Contender, EagerSE, fused_se
from .inputs import DTYPES, MEMORY_FORMATS, InputSet, make_weights

GRADIENTS = {"dw1": "fc1.weight", "dw2": "fc2.weight"}  # by the parameter's name


class Layer:
    """x (N,C,H,W) → (N,C,H,W); the contenders' weights are of x's dtype."""

    kind = "layer"
    kinds = ("eager", "compile", "fused", "copy", "clone")  # "fused": one contender per backend
    residual = False
    costs: ClassVar[Mapping[str, Cost]] = {
        "inference": Cost(units=2, weights=1),  # x, y; each weight read
        "train": Cost(units=5, weights=3),  # and x, dy, dx; read again, its gradient written
    }
    baselines = ("eager", "compile")

    def build(
        self,
        point: Point,
        settings: Settings,
        sets: Sequence[InputSet],
        generator: torch.Generator,
    ) -> Built:
        shape, dtype = point.shape, DTYPES[point.dtype]
        w1, w2 = make_weights(shape.channels, shape.reduced, settings.device, generator)
        contenders = build(
            settings.kinds, settings.backends, w1, w2, dtype=dtype, layout=point.layout
        )
        (eager,) = build(["eager"], [], w1, w2, dtype=dtype, layout=point.layout)
        definition = Definition(lambda: judge(sets[0], w1.to(dtype), w2.to(dtype)), eager)
        return Built(contenders, {"se": definition})


def build(
    kinds: Sequence[str],
    backends: Sequence[str],
    w1: Tensor,
    w2: Tensor,
    *,
    dtype: torch.dtype,
    layout: str,
) -> list[Contender]:
    """The contenders that compute y, in the order of ``Layer.kinds``. Copies are timed apart."""

    def placed(module: nn.Module) -> nn.Module:
        # torch's stub has no memory_format
        return module.to(device=w1.device, dtype=dtype, memory_format=MEMORY_FORMATS[layout])  # type: ignore[call-overload]

    built = []
    if "eager" in kinds:
        module = placed(EagerSE(w1, w2))
        built.append(Contender("eager", "se", module, module, GRADIENTS))
    if "compile" in kinds:
        module = placed(EagerSE(w1, w2))
        compiled = torch.compile(module, fullgraph=True)
        built.append(Contender("compile", "se", module, compiled, GRADIENTS))
    if "fused" in kinds:
        for backend in backends:
            module = placed(fused_se(w1, w2, backend))
            built.append(Contender(backend, "se", module, module, GRADIENTS))
    return built


def judge(s: InputSet, w1: Tensor, w2: Tensor) -> verify.Judge:
    """y and, where the set has a dy, dx, dw1, dw2 of the definition in float64.

    ``w1`` (R,C,1,1) and ``w2`` (C,R,1,1) as the contenders have them, rounded to their dtype.
    """
    backward = s.dy is not None
    w1, w2 = (w.detach().flatten(1).double().requires_grad_(backward) for w in (w1, w2))
    images = max(1, verify.CHUNK_BYTES // max(1, s.x[0].numel() * 8))
    ys, dxs = [], []
    sizes = verify.WeightSizes(w1, w2)
    for i in range(0, s.x.shape[0], images):
        x = s.x.detach()[i : i + images].double().requires_grad_(backward)
        z = reference.squeeze(x)
        gate = reference.excite(z, w1, w2)
        y = reference.scale(x, gate)
        if backward:
            gate.retain_grad()
            assert s.dy is not None
            y.backward(s.dy[i : i + images].double())
            assert x.grad is not None
            dxs.append(x.grad)
            sizes.add(z, gate)
        ys.append(y.detach())
    results = {"y": torch.cat(ys)}
    _, channels, height, width = s.x.shape
    walk = (height * width + channels) ** 0.5
    walks = {"y": walk / 4, "dx": walk / 4, "dw1": walk, "dw2": walk}
    if not backward:
        return verify.Judge.of(results, walks)
    assert w1.grad is not None
    assert w2.grad is not None
    results.update(dx=torch.cat(dxs), dw1=w1.grad, dw2=w2.grad)
    return verify.Judge.of(results, walks, sizes.norms())
