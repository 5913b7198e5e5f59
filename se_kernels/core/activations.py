"""δ and σ of equation 3 by their names, in torch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def activate(a: Tensor, act: str = "relu", act_slope: float = 0.01) -> Tensor:
    """δ of equation 3, elementwise; ``act`` is one of ``variants.ACTS``."""
    if act == "relu":
        return F.relu(a)
    if act == "silu":
        return F.silu(a)
    if act == "gelu":
        return F.gelu(a)
    if act == "gelu_tanh":
        return F.gelu(a, approximate="tanh")
    if act == "hardswish":
        return F.hardswish(a)
    if act == "leaky_relu":
        return F.leaky_relu(a, act_slope)
    return a


def open_gate(e: Tensor, gate: str = "sigmoid") -> Tensor:
    """σ of equation 3 (Table 12 for tanh and ReLU), elementwise; one of ``variants.GATES``."""
    if gate == "sigmoid":
        return torch.sigmoid(e)
    if gate == "hardsigmoid":
        return F.relu6(e + 3) / 6  # F.hardsigmoid's own gradient is rounded to float32
    if gate == "tanh":
        return torch.tanh(e)
    return F.relu(e)
