"""The running statistics of a batch norm, and those of a batch of several processes."""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from se_kernels.core import batch_statistics, distributed, ops
from se_kernels.core.dispatch import under_transform


class Statistics(NamedTuple):
    """Of a norm: its mean and var (C), or in training mode the running ones, or None; a group's
    are of ``count`` numbers per channel, exchanged already, with the images' means (N, C)."""

    mean: Tensor | None
    var: Tensor | None
    means: Tensor | None = None
    count: Tensor | None = None  # type: ignore[assignment] # not tuple.count


def of_group(
    u: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    wide: bool,
    group: "dist.ProcessGroup | None",
    backend: str,
) -> Statistics:
    """Those of all the group's processes, towards which the running ones move."""
    means, m2 = ops.below(ops.norm_moments, u, wide, backend)
    mean, m2 = batch_statistics.of_images(means, m2, u.shape[2] * u.shape[3])
    own = u.shape[0] * u.shape[2] * u.shape[3]
    mean, m2, count = distributed.statistics(mean, m2, own, group)
    _move(running_mean, running_var, mean, m2, count, momentum)
    return Statistics(mean, m2 / count.clamp(min=1), means, count)


def store_moved(
    running_mean: Tensor | None, running_var: Tensor | None, moved: Tensor, backend: str
) -> None:
    """The running statistics (C) to what the call left in ``moved`` (2, C), if anything."""
    if running_mean is None or running_var is None or not moved.numel():
        return
    if backend == "cpu" or torch.compiler.is_compiling():
        running_mean.copy_(moved[0])
        running_var.copy_(moved[1])
    else:
        torch._foreach_copy_((running_mean, running_var), moved.unbind())  # one launch


def move_by_definition(
    u: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    group: "dist.ProcessGroup | None",
) -> None:
    """The running statistics towards those of u (N, C, H, W)."""
    count = u.shape[0] * u.shape[2] * u.shape[3]
    if under_transform() and group is None:
        if running_mean is not None and count > 0:
            # torch moves them through a transform, without a tangent, or says why it cannot
            F.batch_norm(
                u.to(running_mean.dtype), running_mean, running_var, None, None, True, momentum, eps
            )
        return
    mean, m2 = batch_statistics.of_batch(u)
    of_all: int | Tensor = count
    if group is not None:
        mean, m2, of_all = distributed.statistics(mean, m2, count, group)
    _move(running_mean, running_var, mean, m2, of_all, momentum)


def _move(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor,
    m2: Tensor,
    count: int | Tensor,
    momentum: float,
) -> None:
    """The running statistics, where there are any, towards mean and m2 (C) of ``count`` numbers a
    channel (a tensor: of all processes), unless these are none."""
    if running_mean is None or running_var is None:
        return
    if not isinstance(count, Tensor) and count == 0:
        return
    running = running_mean, running_var
    for old, new in zip(
        running, batch_statistics.moved(*running, mean, m2, count, momentum), strict=True
    ):
        old.copy_(torch.where(count > 0, new, old) if isinstance(count, Tensor) else new)
