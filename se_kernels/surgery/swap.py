"""The fused class of a class: a module becomes fused, and unfused, by changing its class in place.

So everything else stays the same objects: parameters, buffers, hooks, the module itself and all
that refers to it. ``isinstance`` still tells its original class.
"""

import functools
import importlib
import inspect
import types

from torch import nn

from se_kernels.surgery.block_call import Tail, can_run_tail, infer_tail, run_tail, tail_of
from se_kernels.surgery.call import Plan, can_run, infer, plan_of, run


class Fused(nn.Module):
    """What the fused classes have in common."""

    def extra_repr(self) -> str:
        plan = plan_of(self) or tail_of(self)
        parts = (super().extra_repr(), "" if plan is None else plan.describe())
        return ", ".join(part for part in parts if part)

    def __setstate__(self, state):
        super().__setstate__(state)
        kinds = {"se_kernels_plan": Plan, "se_kernels_tail": Tail}
        if not all(isinstance(state[name], kinds[name]) for name in kinds if name in state):
            from se_kernels.surgery.fuse import fuse  # which makes these classes

            level = "block" if "se_kernels_tail" in state else "layer"
            for name in kinds:
                self.__dict__.pop(name, None)
            fuse(self, level)  # a plan of an earlier version: see earlier_pickles


@functools.cache
def fused_class(cls: type[nn.Module], way: str) -> type[nn.Module]:
    """The subclass of ``cls`` whose forward is fused: "plan", the SE module that it is, or "tail",
    the SE module in it with what is around."""
    forward = _fused_forward(cls, *_WAYS[way])
    # a pickle names the class as one of that module, see class_named
    name = "|".join((way, cls.__module__, cls.__qualname__)).replace(".", "/")
    body = {"forward": forward, "__module__": "se_kernels.pickles", "__qualname__": name}
    return type(f"Fused{cls.__name__}", (Fused, cls), body)


def class_named(name: str) -> type[nn.Module]:
    """The fused class that a pickle names. AttributeError where it names none."""
    way, *path = name.replace("/", ".").split("|")
    if way not in _WAYS or len(path) != 2:
        raise AttributeError(f"module 'se_kernels.pickles' has no attribute {name!r}")
    found = importlib.import_module(path[0])
    for part in path[1].split("."):
        found = getattr(found, part)
    return fused_class(found, way)


def unfused_class(cls: type[nn.Module]) -> type[nn.Module]:
    return cls.__mro__[2]  # after the fused class itself and Fused


def original_class(module: nn.Module) -> type[nn.Module]:
    for cls in type(module).__mro__:
        if Fused in cls.__bases__:
            return unfused_class(cls)
    return type(module)


def is_fused(module: nn.Module) -> bool:
    return plan_of(module) is not None or tail_of(module) is not None


def swap(module: nn.Module, plan: Plan | Tail) -> None:
    """Makes ``module`` fused. Raises TypeError where its class cannot be extended."""
    way = "plan" if isinstance(plan, Plan) else "tail"
    if not isinstance(module, Fused):
        module.__class__ = fused_class(type(module), way)
    setattr(module, f"se_kernels_{way}", plan)


def swap_back(module: nn.Module) -> None:
    """Makes a fused ``module`` what it was."""
    for name in ("se_kernels_plan", "se_kernels_tail"):
        module.__dict__.pop(name, None)
    # one whose class was changed once more since then (parametrised, sharded) only forgets its plan
    if Fused in type(module).__bases__:
        module.__class__ = unfused_class(type(module))


# where the plan is, whether it can be run, the call, and a short way of an inference
_WAYS = {
    "plan": ("se_kernels_plan", can_run, run, infer),
    "tail": ("se_kernels_tail", can_run_tail, run_tail, infer_tail),
}


def _fused_forward(cls, key, can, call, short):  # so that forward has no global name
    original = cls.forward
    argument = next(iter(list(inspect.signature(original).parameters)[1:]), None)

    def forward(self, *args, **kwargs):
        plan = self.__dict__.get(key)
        if plan is not None and len(args) + len(kwargs) == 1:
            x = args[0] if args else kwargs.get(argument)
            y = short(self, plan, x)
            if y is not None:
                return y
            if can(self, plan, x):
                return call(self, plan, x)
        return cls.forward(self, *args, **kwargs)  # as it is now

    # TorchScript compiles the source of __wrapped__, and looks for its names in the globals here
    names = getattr(original, "__globals__", forward.__globals__)
    forward = types.FunctionType(forward.__code__, names, "forward", None, forward.__closure__)
    return functools.wraps(original)(forward)
