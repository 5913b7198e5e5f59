"""The fused class of a class: a module becomes fused, and unfused, by changing its class in place.

So everything else stays the same objects: parameters, buffers, hooks, the module itself and all
that refers to it. ``isinstance`` still tells its original class.
"""

import functools
import importlib
import inspect
import types
from collections.abc import Callable
from typing import Any

from torch import nn

from se_kernels.surgery.call import BlockPlan, call, plan_of


class Fused(nn.Module):
    """What the fused classes have in common."""

    def extra_repr(self) -> str:
        plan = plan_of(self)
        parts = (super().extra_repr(), "" if plan is None else plan.describe())
        return ", ".join(part for part in parts if part)

    def __setstate__(self, state: dict[str, Any]) -> None:
        restore: Any = super().__setstate__  # has no types
        restore(state)
        plan, tail = (self.__dict__.pop(f"se_kernels_{way}", None) for way in ("plan", "tail"))
        if isinstance(plan, BlockPlan):
            swap(self, plan)
        elif plan is not None or tail is not None:  # of an earlier version: see earlier_pickles
            from se_kernels.surgery.fuse import fuse  # which makes these classes

            fuse(self, "layer" if tail is None else "block")


_classes: dict[type, type[nn.Module]] = {}


def fused_class(cls: type[nn.Module]) -> type[nn.Module]:
    """The subclass of ``cls`` whose forward is fused."""
    if cls not in _classes:
        # a pickle names the class as one of that module, see class_named
        name = "|".join(("plan", cls.__module__, cls.__qualname__)).replace(".", "/")
        body = dict(forward=_fused_forward(cls), __module__="se_kernels.pickles", __qualname__=name)
        _classes[cls] = type(f"Fused{cls.__name__}", (Fused, cls), body)
    return _classes[cls]


def class_named(name: str) -> type[nn.Module]:
    """The fused class that a pickle names. AttributeError where it names none."""
    way, *path = name.replace("/", ".").split("|")
    if way not in ("plan", "tail") or len(path) != 2:  # "tail": once that of a block
        raise AttributeError(f"module 'se_kernels.pickles' has no attribute {name!r}")
    found: Any = importlib.import_module(path[0])
    for part in path[1].split("."):
        found = getattr(found, part)
    return fused_class(found)


def unfused_class(cls: type[nn.Module]) -> type[nn.Module]:
    return cls.__mro__[2]  # after the fused class itself and Fused


def original_class(module: nn.Module) -> type[nn.Module]:
    for cls in type(module).__mro__:
        if Fused in cls.__bases__:
            return unfused_class(cls)
    return type(module)


def swap(module: nn.Module, plan: BlockPlan) -> None:
    """Makes ``module`` fused. Raises TypeError where its class cannot be extended."""
    if not isinstance(module, Fused):
        module.__class__ = fused_class(type(module))
    module.__dict__["se_kernels_plan"] = plan


def swap_back(module: nn.Module) -> None:
    """Makes a fused ``module`` what it was."""
    for name in ("se_kernels_plan", "se_kernels_tail"):
        module.__dict__.pop(name, None)
    # one whose class was changed once more since then (parametrised, sharded) only forgets its plan
    if Fused in type(module).__bases__:
        module.__class__ = unfused_class(type(module))


def _fused_forward(cls: type[nn.Module]) -> Callable[..., Any]:
    original = cls.forward
    argument: Any = next(iter(list(inspect.signature(original).parameters)[1:]), None)
    fused = call  # so that forward has no global name

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        plan = self.__dict__.get("se_kernels_plan")
        if plan is not None and len(args) + len(kwargs) == 1:
            y = fused(self, plan, args[0] if args else kwargs.get(argument))
            if y is not None:
                return y
        return cls.forward(self, *args, **kwargs)  # as it is now

    # TorchScript compiles the source of __wrapped__, and looks for its names in the globals here
    names = getattr(original, "__globals__", forward.__globals__)
    forward = types.FunctionType(forward.__code__, names, "forward", None, forward.__closure__)
    return functools.wraps(original)(forward)
