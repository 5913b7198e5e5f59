"""The pieces a block is made of, as modules: which variant each is, and whether it is all there.

Recognised by their very class: a subclass may compute anything.
"""

from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn.modules import module as hooks_on_all

# What the kernels read. Any other (a sharded or quantised weight, a proxy of torch.fx) says for
# itself what an operation on it means.
TENSORS = frozenset((Tensor, nn.Parameter, FakeTensor, FunctionalTensor))

ACT_MODULES = {
    nn.ReLU: "relu",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
    nn.Hardswish: "hardswish",
    nn.LeakyReLU: "leaky_relu",
    nn.Identity: "identity",
}
GATE_MODULES = {
    nn.Sigmoid: "sigmoid",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Tanh: "tanh",
    nn.ReLU: "relu",
}
# timm's own, by name: the library imports nothing but torch
_TIMM_ACTS = {
    "timm.layers.activations.GELU": "gelu",
    "timm.layers.activations.GELUTanh": "gelu_tanh",
    "timm.layers.activations.HardSwish": "hardswish",
    "timm.layers.activations.Swish": "silu",
}
_TIMM_GATES = {
    "timm.layers.activations.HardSigmoid": "hardsigmoid",
    "timm.layers.activations.Sigmoid": "sigmoid",
    "timm.layers.activations.Tanh": "tanh",
}


def act_of(module: nn.Module) -> tuple[str, float] | None:
    """(a name of ``variants.ACTS``, its negative slope where it has one), or None."""
    name = ACT_MODULES.get(type(module)) or _TIMM_ACTS.get(class_path(type(module)))
    if name is None:
        return None
    if name == "gelu" and getattr(module, "approximate", "none") == "tanh":
        name = "gelu_tanh"
    return name, getattr(module, "negative_slope", 0.01)


def gate_of(module: nn.Module) -> str | None:
    """A name of ``variants.GATES``, or None."""
    return GATE_MODULES.get(type(module)) or _TIMM_GATES.get(class_path(type(module)))


def class_path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def weights(fc: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a Conv2d or Linear."""
    parameters = fc.__dict__["_parameters"]  # faster than nn.Module.__getattr__
    if "weight" in parameters and "bias" in parameters:
        return parameters["weight"], parameters["bias"]
    return fc.weight, fc.bias  # computed (parametrised), or lent to a replica of DataParallel


def is_intercepted(state: dict):
    """Whether a call does more than the class's forward (hooks, a forward put in its place).

    ``state`` is the module's ``__dict__``: reading attributes of a module is slow.
    """
    return (
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or "forward" in state
    )


def is_every_module_hooked():
    """Whether hooks on all modules wait for calls of the pieces."""
    return (
        hooks_on_all._global_forward_hooks
        or hooks_on_all._global_forward_pre_hooks
        or hooks_on_all._global_backward_hooks
        or hooks_on_all._global_backward_pre_hooks
    )
