"""What is called and timed of a network: its logits, or a training step, and its memory."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .memory import bytes_of, peak_bytes
from .timing import Timed


@dataclass
class Network:
    """One contender: ``run`` is the model or its compiled form; the optimizer is for training."""

    name: str
    model: nn.Module
    run: Callable[[Tensor], Tensor]
    autocast: torch.dtype | None  # training below float32
    optimizer: torch.optim.Optimizer | None

    def logits(self, images: Tensor) -> Tensor:
        """(N, classes)."""
        return self.run(images)

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(N, classes) logits and the mean cross-entropy, under autocast where that is used."""
        dtype = self.autocast
        with torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None):
            logits = self.run(images)
            return logits, F.cross_entropy(logits, labels)


@dataclass
class Inference:
    """Times the logits of a batch."""

    network: Network
    batches: list[tuple[Tensor, Tensor]]

    def prepare(self, k: int) -> None:
        pass

    def call(self, k: int) -> Tensor:
        return self.network.logits(self.batches[k][0])


@dataclass
class TrainingStep:
    """Times forward, cross-entropy, backward and an SGD step."""

    network: Network
    batches: list[tuple[Tensor, Tensor]]

    def prepare(self, k: int) -> None:
        pass

    def call(self, k: int) -> Tensor:
        optimizer = self.network.optimizer
        assert optimizer is not None  # a network that trains has one
        optimizer.zero_grad(set_to_none=True)
        _, loss = self.network.loss(*self.batches[k])
        loss.backward()
        optimizer.step()
        return loss


TIMED: dict[str, Callable[[Network, list[tuple[Tensor, Tensor]]], Timed]] = {
    "inference": Inference,
    "train": TrainingStep,
}


def training_memory(network: Network, batch: tuple[Tensor, Tensor]) -> dict[str, int]:
    """``weights_bytes``: parameters, buffers and the optimizer's state, which must be there;
    ``peak_bytes``: with what a training step needs at its peak, but for its images."""
    step, optimizer = TrainingStep(network, [batch]), network.optimizer
    assert optimizer is not None

    def call() -> None:
        step.call(0)
        optimizer.zero_grad(set_to_none=True)

    optimizer.zero_grad(set_to_none=True)  # those of the step before
    state = optimizer.state.values()
    weights = [*network.model.parameters(), *network.model.buffers()]
    weights += [t for of_one in state for t in of_one.values() if isinstance(t, Tensor)]
    held = bytes_of(weights)
    return {"weights_bytes": held, "peak_bytes": held + peak_bytes(call, batch[0].device)}


def input_bytes(network: Network, modules: Iterable[str], batch: tuple[Tensor, Tensor]) -> int:
    """Of the x of all the modules so named, in one forward pass."""
    seen = []

    def hook(module, inputs) -> None:
        seen.append(inputs[0].nbytes)

    found = {network.model.get_submodule(name) for name in modules}
    handles = [module.register_forward_pre_hook(hook) for module in found]
    with torch.no_grad():
        network.loss(*batch)
    for handle in handles:
        handle.remove()
    return sum(seen)
