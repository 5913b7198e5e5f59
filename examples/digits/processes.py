"""Several processes that train one network on shares of one batch, started by torchrun.

    torchrun --standalone --nproc-per-node=2 -m examples.digits

Gradients are averaged by DistributedDataParallel and batch norms see the joint batch, so that the
curve is that of one process, to rounding.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel


class Processes(NamedTuple):
    rank: int
    number: int
    device: torch.device

    def share(self, tensor: Tensor) -> Tensor:
        """The rows of this process, on its device."""
        return tensor.tensor_split(self.number)[self.rank].to(self.device)

    def total(self, numbers: list[float]) -> list[float]:
        """Element by element, the sums over all processes."""
        if self.number == 1:
            return numbers
        sums = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return sums.tolist()

    def joined(self, model: nn.Module) -> nn.Module:
        """The model to train with: ``model`` itself, whose parameters stay its own."""
        if self.number == 1:
            return model
        if self.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
            return DistributedDataParallel(model, device_ids=[self.device])
        for module in model.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = JointBatchNorm
        return DistributedDataParallel(model)

    def wait(self) -> None:
        if self.number > 1:
            dist.barrier()


@contextmanager
def started() -> Iterator[Processes]:
    """This process among those that torchrun started, or alone."""
    rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if count > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(rank, count, device)
    finally:
        if count > 1:
            dist.destroy_process_group()


class JointBatchNorm(nn.BatchNorm2d):
    """A batch norm over the equal shares of all processes; nn.SyncBatchNorm is for GPUs only."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        mean = _mean_over_processes(x.mean((0, 2, 3)))
        centred = x - mean[:, None, None]
        var = _mean_over_processes(centred.square().mean((0, 2, 3)))
        count = x.numel() / x.shape[1] * dist.get_world_size()
        assert self.momentum is not None
        with torch.no_grad():
            self.get_buffer("num_batches_tracked").add_(1)
            self.get_buffer("running_mean").lerp_(mean, self.momentum)
            self.get_buffer("running_var").lerp_(var * count / (count - 1), self.momentum)
        scale = self.weight * (var + self.eps).rsqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]


def _mean_over_processes(local: Tensor) -> Tensor:
    return all_reduce(local) / dist.get_world_size()
