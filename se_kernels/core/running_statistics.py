"""The running statistics of a batch norm, and those of a batch of several processes."""

from typing import NamedTuple

import torch
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
    count: Tensor | None = None


def of_group(u, running_mean, running_var, momentum, wide, group, backend) -> Statistics:
    """Those of all the group's processes, towards which the running ones move."""
    means, m2 = ops.below(ops.norm_moments, u, wide, backend)
    mean, m2 = batch_statistics.of_images(means, m2, u.shape[2] * u.shape[3])
    count = u.shape[0] * u.shape[2] * u.shape[3]
    mean, m2, count = distributed.statistics(mean, m2, count, group)
    _move(running_mean, running_var, mean, m2, count, momentum)
    return Statistics(mean, m2 / count.clamp(min=1), means, count)


def store_moved(running_mean, running_var, moved: Tensor, backend: str) -> None:
    """The running statistics (C) to what the call left in ``moved`` (2, C), if anything."""
    if not moved.numel():
        return
    if backend == "cpu" or torch.compiler.is_compiling():
        running_mean.copy_(moved[0])
        running_var.copy_(moved[1])
    else:
        torch._foreach_copy_((running_mean, running_var), moved.unbind())  # one launch


def move_by_definition(u, running_mean, running_var, momentum, eps, group) -> None:
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
    if group is not None:
        mean, m2, count = distributed.statistics(mean, m2, count, group)
    _move(running_mean, running_var, mean, m2, count, momentum)


def _move(running_mean, running_var, mean, m2, count: int | Tensor, momentum) -> None:
    """The running statistics, where there are any, towards mean and m2 (C) of ``count`` numbers a
    channel (a tensor: of all processes), unless these are none."""
    if running_mean is None or (not _is_of_all(count) and count == 0):
        return
    running = running_mean, running_var
    for old, new in zip(
        running, batch_statistics.moved(*running, mean, m2, count, momentum), strict=True
    ):
        old.copy_(torch.where(count > 0, new, old) if _is_of_all(count) else new)


def _is_of_all(count: int | Tensor) -> bool:
    return isinstance(count, Tensor)
