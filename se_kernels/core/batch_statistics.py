"""What several processes exchange of a batch norm: statistics in float64, and their gradients."""

import torch
from torch import Tensor


def of_images(means: Tensor, m2: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
    """mean and m2 (C) of a batch from those of its images (N, C); m2 is Σ (u - mean)²."""
    if means.shape[0] == 0:
        return tuple(means.new_zeros((2, means.shape[1])))
    var, mean = torch.var_mean(means, 0, correction=0)
    return mean, torch.add(m2.sum(0), var, alpha=pixels * means.shape[0])


def of_batch(u: Tensor) -> tuple[Tensor, Tensor]:
    """The same, in float64 too, from u (N, C, H, W) itself."""
    if u.numel() == 0:
        return tuple(u.new_zeros((2, u.shape[1]), dtype=torch.float64))
    var, mean = torch.var_mean(u, (0, 2, 3), correction=0)
    return mean.double(), var.double() * (u.numel() // u.shape[1])


def moved(running_mean, running_var, mean, m2, count, momentum) -> tuple[Tensor, Tensor]:
    """The running statistics after a batch with this mean and m2 (C) of ``count`` numbers per
    channel, in the dtype of mean."""
    return tuple(
        momentum * new + (1 - momentum) * running.to(new.dtype)
        for running, new in ((running_mean, mean), (running_var, m2 / (count - 1)))
    )


def through_statistics(norm, d_weight, d_bias, count) -> tuple[Tensor, Tensor]:
    """slope and offset (C) of du: what the gradients of the batch's mean and variance add.

    d_weight and d_bias (C): Σ dt (u - mean) / √(var + eps) and Σ dt over the ``count`` numbers per
    channel.
    """
    _, scale, _, rstd = norm.unbind()
    share = -scale / count
    slope = share * rstd * d_weight  # in this order: rstd³ may be no float
    return slope.to(norm.dtype), (share * d_bias).to(norm.dtype)
