"""The names of every variant of the block, and the bundle that carries one choice of them."""

from typing import NamedTuple

SQUEEZES = ("avg", "max", "avgmax")
ACTS = ("relu", "silu", "gelu", "gelu_tanh", "hardswish", "leaky_relu", "identity")
GATES = ("sigmoid", "hardsigmoid", "tanh", "relu")
POSTS = ("none", "relu")
PRES = ("identity", "relu", "silu", "hardswish")  # between a batch norm and the squeeze


class Variant(NamedTuple):
    """One choice of squeeze, act (δ), gate (σ) and post, in the order of the registered ops."""

    squeeze: str = "avg"
    act: str = "relu"
    act_slope: float = 0.01
    gate: str = "sigmoid"
    post: str = "none"
