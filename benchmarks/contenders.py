"""What is compared of one block: eager PyTorch, its compiled form, each backend, copies."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import se_kernels
from se_kernels.core import dispatch

from .inputs import InputSet
from .timing import Timed


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


@dataclass(frozen=True)
class Contender:
    """``forward``: x (N,C,H,W), and a residual where the block adds one, → y (N,C,H,W).

    ``definition``: the name of what it computes; ``gradients``: quantity, as the judge names it,
    → the name of a parameter of ``module``; ``buffers``: the same for what a training call changes.
    """

    name: str
    definition: str
    module: nn.Module
    forward: Callable[..., Tensor]
    gradients: Mapping[str, str]
    buffers: Mapping[str, str] = field(default_factory=dict)

    def leaves(self, s: InputSet) -> dict[str, Tensor]:
        """What backward gives gradients of, by quantity."""
        named = {"dx": s.x} if s.residual is None else {"dx": s.x, "dr": s.residual}
        return named | {q: self.module.get_parameter(p) for q, p in self.gradients.items()}


class Call:
    """Times one contender: ``inference`` and ``forward`` give y; ``backward`` the gradients of x,
    the residual and the parameters, of a forward before it; ``train`` is both.

    Before a backward alone the caches of a CPU are overwritten: in a network, too, the forward is
    long past. The clock does so for a GPU.
    """

    def __init__(
        self, contender: Contender, sets: Sequence[InputSet], mode: str, cache_bytes: int = 0
    ):
        self.contender, self.sets, self.mode = contender, sets, mode
        self.leaves = [tuple(contender.leaves(s).values()) for s in sets]
        on_cpu = sets[0].x.device.type == "cpu"
        self.flushed = torch.empty(cache_bytes * (mode == "backward" and on_cpu) // 8)
        self.y: Tensor | None = None

    def prepare(self, k: int) -> None:
        self.y = None
        if self.mode == "backward":
            self.y = self.contender.forward(*self.sets[k].inputs)
            self.flushed.fill_(k)

    def call(self, k: int) -> object:
        y = self.contender.forward(*self.sets[k].inputs) if self.y is None else self.y
        if self.mode in ("inference", "forward"):
            return y
        return y, torch.autograd.grad(y, self.leaves[k], self.sets[k].dy)


class Graphed:
    """Times a replay of a captured CUDA graph of one contender's forward, without its launches.

    Always of the first input set: the clock overwrites the cache before each call.
    """

    def __init__(self, contender: Contender, sets: Sequence[InputSet], warmup: int = 3):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(warmup):
                contender.forward(*sets[0].inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.y = contender.forward(*sets[0].inputs)

    def prepare(self, k: int) -> None:
        pass

    def call(self, k: int) -> Tensor:
        self.graph.replay()
        return self.y


class CopyFloor:
    """Times ``dst.copy_(src)`` into one tensor that exists: one read and one write of x's size."""

    def __init__(self, sets: Sequence[InputSet]):
        self.sources = [s.x.detach() for s in sets]
        self.copied = torch.zeros_like(self.sources[0])

    def prepare(self, k: int) -> None:
        pass

    def call(self, k: int) -> Tensor:
        return self.copied.copy_(self.sources[k])


class CloneFloor:
    """Times ``src.clone()``: the same copy into fresh memory, on a CPU with its page faults."""

    def __init__(self, sets: Sequence[InputSet]):
        self.sources = [s.x.detach() for s in sets]

    def prepare(self, k: int) -> None:
        pass

    def call(self, k: int) -> Tensor:
        return self.sources[k].clone()


COPIES: dict[str, Callable[[Sequence[InputSet]], Timed]] = {"copy": CopyFloor, "clone": CloneFloor}
