"""The pieces a block is made of, as modules: which variant each is, and whether it is all there.

Recognised by their very class: a subclass may compute anything.
"""

import functools
import numbers
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _get_tracing_state
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.compiler import is_compiling, is_exporting

from se_kernels.core import fast_path, guards
from se_kernels.core.checks import DTYPES

# What the kernels read. Any other (a sharded or quantised weight, a proxy of torch.fx) says for
# itself what an operation on it means.
TENSORS: frozenset[type] = frozenset((Tensor, nn.Parameter, FakeTensor, FunctionalTensor))
Fcs = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # w1, w2, b1, b2

ACT_MODULES: dict[type, str] = {
    nn.ReLU: "relu",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
    nn.Hardswish: "hardswish",
    nn.LeakyReLU: "leaky_relu",
    nn.Identity: "identity",
}
GATE_MODULES: dict[type, str] = {
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
    slope = getattr(module, "negative_slope", 0.01)  # torch takes NumPy's numbers, and tensors
    return (name, float(slope)) if isinstance(slope, numbers.Real) else None


def gate_of(module: nn.Module) -> str | None:
    """A name of ``variants.GATES``, or None."""
    return GATE_MODULES.get(type(module)) or _TIMM_GATES.get(class_path(type(module)))


def class_path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def is_traced(x: object) -> bool:
    """Whether a call with x is for others to see: a tracer (TorchScript, ONNX, torch.fx), a
    TorchFunctionMode, or a tensor that says for itself what an operation on it means."""
    return (
        (type(x) not in TENSORS and isinstance(x, (Tensor, torch.fx.Proxy)))
        or _get_tracing_state() is not None
        or (not is_compiling() and fast_path.is_function_seen())
        or (is_exporting() and torch.onnx.is_in_onnx_export())
    )


def weights(fc: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a Conv2d or Linear."""
    state = fc.__dict__
    parameters = state["_parameters"]  # faster than nn.Module.__getattr__
    if (
        not ("weight" in state or "bias" in state)
        and "weight" in parameters
        and "bias" in parameters
    ):
        return parameters["weight"], parameters["bias"]
    return fc.weight, fc.bias  # a plain tensor in its place, or lent to a replica of DataParallel


def is_plain(module: nn.Module, *classes: type[nn.Module]) -> bool:
    """Whether a call of it is the forward of one of these very classes, and no more."""
    cls = type(module)
    return cls in classes and guards.is_valid(module, guards.watch_class(cls))


def are_plain(*tensors: Tensor | None) -> bool:
    """Whether all are tensors that the kernels read, or None."""
    return all(t is None or (type(t) in TENSORS and t.dtype in DTYPES) for t in tensors)


def alike(w1: Tensor, w2: Tensor, b1: Tensor | None, b2: Tensor | None) -> Fcs | None:
    """The same in one dtype, which autocast gives them too; None where they are not for the
    kernels to read, or differ outside autocast."""
    dtype = w1.dtype
    if not (
        type(w1) in TENSORS
        and type(w2) in TENSORS
        and (b1 is None or type(b1) in TENSORS)
        and (b2 is None or type(b2) in TENSORS)
    ):
        return None
    if (
        w2.dtype == dtype
        and (b1 is None or b1.dtype == dtype)
        and (b2 is None or b2.dtype == dtype)
    ):
        return (w1, w2, b1, b2) if dtype in DTYPES else None
    if not (are_plain(w1, w2, b1, b2) and torch.is_autocast_enabled(w1.device.type)):
        return None
    fcs = [t for t in (w1, w2, b1, b2) if t is not None]
    widest = functools.reduce(torch.promote_types, (t.dtype for t in fcs))
    b1, b2 = (None if b is None else b.to(widest) for b in (b1, b2))
    return w1.to(widest), w2.to(widest), b1, b2
