"""What the layer benchmark compares: eager PyTorch, its compiled form, each backend, copies."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import se_kernels
from se_kernels import dispatch

from .inputs import MEMORY_FORMATS, InputSet

KINDS = ("eager", "compile", "fused", "copy", "clone")  # "fused": one contender per backend


def usable_backends(device: torch.device) -> list[str]:
    """The backends made for ``device`` that serve its tensors here."""
    return [
        name
        for name, module in dispatch.BACKENDS.items()
        if device.type == module.DEVICE and why_not(name, device) is None
    ]


def why_not(backend: str, device: torch.device) -> str | None:
    """Why ``backend`` cannot serve tensors on ``device`` here, in one line; None where it can."""
    try:
        dispatch.choose(torch.empty(1, 1, 1, 1, device=device), backend)
    except (ValueError, RuntimeError) as error:
        return str(error)
    return None


class EagerSE(nn.Module):
    """The block as PyTorch users have it, of timm's operations: mean, 1×1 convolutions, product.

    x (N,C,H,W) → (N,C,H,W), of the parameters' dtype; from w1 (R,C,1,1) and w2 (C,R,1,1).
    """

    def __init__(self, w1: Tensor, w2: Tensor):
        super().__init__()
        reduced, channels = w1.shape[:2]
        self.fc1 = nn.Conv2d(channels, reduced, 1, bias=False)
        self.act = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(reduced, channels, 1, bias=False)
        self.gate = nn.Sigmoid()
        set_weights(self, w1, w2)

    def forward(self, x: Tensor) -> Tensor:
        x_se = x.mean((2, 3), keepdim=True)
        x_se = self.fc2(self.act(self.fc1(x_se)))
        return x * self.gate(x_se)


def fused_se(w1: Tensor, w2: Tensor, backend: str) -> nn.Module:
    """The same block as one operation of se_kernels."""
    reduced, channels = w1.shape[:2]
    module = se_kernels.SqueezeExcite(channels, rd_channels=reduced, backend=backend)
    set_weights(module, w1, w2)
    return module


def set_weights(module: nn.Module, w1: Tensor, w2: Tensor) -> None:
    """Own copies, so that contenders do not share gradients."""
    module.load_state_dict({"fc1.weight": w1, "fc2.weight": w2})


@dataclass
class Contender:
    """``forward``: x (N,C,H,W) → y (N,C,H,W), with the parameters of ``module``."""

    name: str
    kind: str
    module: nn.Module
    forward: Callable[[Tensor], Tensor]


def build(
    kinds: Sequence[str],
    backends: Sequence[str],
    w1: Tensor,
    w2: Tensor,
    *,
    dtype: torch.dtype,
    layout: str,
) -> list[Contender]:
    """The contenders that compute y, in the order of ``KINDS``. Copies are timed apart."""

    def placed(module: nn.Module) -> nn.Module:
        return module.to(device=w1.device, dtype=dtype, memory_format=MEMORY_FORMATS[layout])

    built = []
    if "eager" in kinds:
        module = placed(EagerSE(w1, w2))
        built.append(Contender("eager", "eager", module, module))
    if "compile" in kinds:
        module = placed(EagerSE(w1, w2))
        built.append(Contender("compile", "compile", module, torch.compile(module, fullgraph=True)))
    if "fused" in kinds:
        for backend in backends:
            module = placed(fused_se(w1, w2, backend))
            built.append(Contender(backend, "fused", module, module))
    return built


@dataclass
class Layer:
    """Times one contender: forward, and backward where the sets have a dy, with fresh gradients."""

    contender: Contender
    sets: list[InputSet]

    def prepare(self, k: int) -> None:
        self.sets[k].x.grad = None
        self.contender.module.zero_grad(set_to_none=True)

    def call(self, k: int) -> Tensor:
        s = self.sets[k]
        y = self.contender.forward(s.x)
        if s.dy is not None:
            y.backward(s.dy)
        return y


class Graphed:
    """Times a replay of a captured CUDA graph of one contender's forward, without its launches.

    Always of the first input set: the clock overwrites the cache before each call.
    """

    def __init__(self, contender: Contender, sets: list[InputSet], warmup: int = 3):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(warmup):
                contender.forward(sets[0].x)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.y = contender.forward(sets[0].x)

    def prepare(self, k: int) -> None:
        pass

    def call(self, k: int) -> Tensor:
        self.graph.replay()
        return self.y


class CopyFloor:
    """Times ``dst.copy_(src)`` into one tensor that exists: one read and one write of x's size."""

    def __init__(self, sets: list[InputSet]):
        self.sources = [s.x.detach() for s in sets]
        self.copied = torch.zeros_like(self.sources[0])

    def prepare(self, k: int) -> None:
        pass

    def call(self, k: int) -> Tensor:
        return self.copied.copy_(self.sources[k])


class CloneFloor:
    """Times ``src.clone()``: the same copy into fresh memory, on a CPU with its page faults."""

    def __init__(self, sets: list[InputSet]):
        self.sources = [s.x.detach() for s in sets]

    def prepare(self, k: int) -> None:
        pass

    def call(self, k: int) -> Tensor:
        return self.sources[k].clone()


COPIES = {"copy": CopyFloor, "clone": CloneFloor}
