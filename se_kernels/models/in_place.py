"""Elementwise operations in place, where that is allowed."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from se_kernels.modules.recognition import is_traced


def relu(v: Tensor) -> Tensor:
    return F.relu(v, inplace=_is_allowed(v))


def add(v: Tensor, shortcut: Tensor) -> Tensor:
    return v.add_(shortcut) if _is_allowed(v) else v + shortcut


def mul(v: Tensor, factor: float) -> Tensor:
    return v.mul_(factor) if _is_allowed(v) else v * factor


class ReLU(nn.ReLU):
    """``relu`` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        return relu(input)


def _is_allowed(v: Tensor) -> bool:
    # a module with a full backward hook returns a view that torch lets nobody write to
    return not (torch.compiler.is_compiling() or is_traced(v) or v._is_view())
