"""One run: a contender trained from one seed, epoch by epoch, with a checkpoint after each."""

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

import se_kernels

from .data import Images, batches
from .network import network
from .processes import Processes

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Settings:
    """What decides a curve, beside contender and seed."""

    epochs: int
    batch: int
    size: int
    blocks: int
    width: int
    dtype: str
    backend: str | None


@dataclass
class Curves:
    """Errors in %, one number an epoch, and the loss of every step."""

    train_error: list[float] = field(default_factory=list)
    test_error: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)


class Run:
    """A contender and a seed. ``epoch`` has been reached; ``curves`` tell how.

    ``steps`` are those of an epoch. A checkpoint in ``folder`` is taken up where it ended.

    Raises:
        ValueError: the checkpoint is of other settings.
    """

    def __init__(
        self,
        contender: str,
        seed: int,
        steps: int,
        settings: Settings,
        folder: Path,
        processes: Processes,
    ):
        self.contender, self.seed, self.steps = contender, seed, steps
        self.settings, self.processes = settings, processes
        self.path = folder / f"{contender}-{seed}.pt"
        dtype = DTYPES[settings.dtype]
        model = network(contender, settings.blocks, settings.width, seed, dtype, settings.backend)
        self.parameters = sum(p.numel() for p in model.parameters())
        self.joined = processes.joined(model.to(processes.device))
        # as plain batch norms, so that a checkpoint fits any number of processes
        self.model = getattr(self.joined, "module", self.joined)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._warmth)
        self.epoch, self.curves = 0, Curves()
        if self.path.exists():
            self._load()

    def _warmth(self, step: int) -> float:
        """The learning rate over its largest: up in the first epoch, down in a cosine."""
        epoch = step / self.steps
        cosine = 0.5 * (1 + math.cos(math.pi * min(1, epoch / self.settings.epochs)))
        return min(1, (step + 1) / self.steps) * cosine

    def train(self, images: Images, on_step: Callable[[], None]) -> None:
        """One epoch more, without a test."""
        settings, processes = self.settings, self.processes
        self.joined.train()
        wrong = 0.0
        for pixels, labels in batches(images, settings.batch, self.seed, self.epoch):
            pixels, labels = processes.share(pixels), processes.share(labels)
            logits = self.joined(pixels)
            loss = nn.functional.cross_entropy(logits, labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            missed = (logits.argmax(1) != labels).sum().item()
            missed, joint_loss = processes.total([missed, loss.item() / processes.number])
            wrong += missed
            self.curves.loss.append(joint_loss)
            on_step()
        self.epoch += 1
        seen = self.steps * settings.batch
        self.curves.train_error.append(100 * wrong / seen)

    @torch.inference_mode()
    def test(self, images: Images) -> None:
        """Adds the error on ``images`` to the curve."""
        self.model.eval()
        pixels, labels = (self.processes.share(tensor) for tensor in images)
        logits = torch.cat([self.model(part) for part in pixels.split(256)])
        (wrong,) = self.processes.total([(logits.argmax(1) != labels).sum().item()])
        self.curves.test_error.append(100 * wrong / len(images.labels))

    def save(self) -> None:
        """Whole or not at all: a run that is killed here leaves the last checkpoint."""
        if self.processes.rank == 0:
            state = {
                "settings": asdict(self.settings),
                "epoch": self.epoch,
                "curves": asdict(self.curves),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
            }
            unfinished = self.path.with_suffix(".unfinished")
            torch.save(state, unfinished)
            os.replace(unfinished, self.path)
        self.processes.wait()

    def record(self) -> dict:
        """For one line of JSON."""
        settings, errors = asdict(self.settings), asdict(self.curves)
        del errors["loss"]
        versions = {"torch": torch.__version__, "se_kernels": se_kernels.__version__}
        return {
            "contender": self.contender,
            "seed": self.seed,
            "parameters": self.parameters,
            "processes": self.processes.number,
            "device": self.processes.device.type,
            **settings,
            **versions,
            **errors,
        }

    def _load(self) -> None:
        state = torch.load(self.path, map_location=self.processes.device, weights_only=True)
        expected = asdict(self.settings)
        for name, value in state["settings"].items():
            if value != expected[name]:
                raise ValueError(
                    f"{name}: expected {value!r}, as in the checkpoint {self.path}, "
                    f"got {expected[name]!r}"
                )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.epoch, self.curves = state["epoch"], Curves(**state["curves"])
