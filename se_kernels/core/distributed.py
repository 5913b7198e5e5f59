"""What the processes of a group tell each other: joint statistics, joint gradients of a norm."""

import torch
import torch.distributed as dist
from torch import Tensor


def size(group: "dist.ProcessGroup | None") -> int:
    """The number of processes in a group; 1 where there is none."""
    if group is None:
        return 1
    if not dist.is_available() or not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"process_group: expected a group of torch.distributed or None, got {group!r}"
        )
    return dist.get_world_size(group)


def statistics(
    mean: Tensor, m2: Tensor, count: int, group: "dist.ProcessGroup | None"
) -> tuple[Tensor, Tensor, Tensor]:
    """Joint mean and m2 (C), and how many numbers they are of (1), from those of each process.

    m2 is Σ (u - mean)²; the order of the sums is that of the ranks, so all get the same. Of no
    number at all both are 0.
    """
    mine = torch.cat((mean, m2, mean.new_tensor([count])))
    all_of_them = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(all_of_them, mine, group=group)
    channels = mean.shape[0]
    means, m2s, counts = torch.stack(all_of_them).split((channels, channels, 1), dim=1)
    total = counts.sum(0)
    # about one process's mean, so that a constant channel has exactly its constant
    near = means[counts[:, 0].argmax()].nan_to_num(0, 0, 0)
    joint = near + (counts * (means - near)).sum(0) / total.clamp(min=1)
    return joint, (m2s + counts * (means - joint).square()).sum(0), total


def total(t: Tensor, group: "dist.ProcessGroup | None") -> Tensor:
    """Σ over the processes."""
    t = t.clone()
    dist.all_reduce(t, group=group)
    return t
