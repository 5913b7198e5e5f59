"""What is called and timed of a network: its logits, or a training step."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        self.network.optimizer.zero_grad(set_to_none=True)
        _, loss = self.network.loss(*self.batches[k])
        loss.backward()
        self.network.optimizer.step()
        return loss


TIMED = {"inference": Inference, "train": TrainingStep}
