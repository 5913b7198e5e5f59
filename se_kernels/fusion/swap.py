"""The fused class of a class: a module becomes fused, and unfused, by changing its class in place.

So everything else stays the same objects: parameters, buffers, hooks, the module itself and all
that refers to it. ``isinstance`` still tells its original class.
"""

import copyreg
import functools
import inspect
import types

from torch import nn

from se_kernels import direct
from se_kernels.fusion.run import Plan, can_run, plan_of, run
from se_kernels.fusion.tail import Tail, can_run_tail, run_tail, tail_of
from se_kernels.fusion.witness import witness_of


class Fused(nn.Module):
    """What the fused classes have in common."""

    def extra_repr(self) -> str:
        plan = plan_of(self) or tail_of(self)
        parts = (super().extra_repr(), "" if plan is None else plan.describe())
        return ", ".join(part for part in parts if part)

    def __reduce_ex__(self, protocol):
        """Fused classes are made as needed, so they are pickled, and copied, by their original."""
        make, arguments, *state = super().__reduce_ex__(protocol)
        if state and isinstance(state[0], dict):
            state[0] = {k: v for k, v in state[0].items() if k != "se_kernels_witness"}
        if make is copyreg.__newobj__ and arguments[0] is type(self):
            cls = type(self)
            make, arguments = restore, (unfused_class(cls), cls.se_kernels_way, *arguments[1:])
        return make, arguments, *state


def restore(cls: type[nn.Module], way: str, *arguments) -> nn.Module:
    """A fused module of original class ``cls``, still empty: called when it is unpickled."""
    fused = fused_class(cls, way)
    return fused.__new__(fused, *arguments)


@functools.cache
def fused_class(cls: type[nn.Module], way: str) -> type[nn.Module]:
    """The subclass of ``cls`` whose forward is fused: "plan", the SE module that it is, or "tail",
    the SE module in it with what is around."""
    forward = _fused_forward(cls.forward, *_WAYS[way])
    body = {"forward": forward, "se_kernels_way": way, "__module__": cls.__module__}
    return type(f"Fused{cls.__name__}", (Fused, cls), body)


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
    module.__dict__.pop("se_kernels_witness", None)


def swap_back(module: nn.Module) -> None:
    """Makes a fused ``module`` what it was."""
    for name in ("se_kernels_plan", "se_kernels_tail", "se_kernels_witness"):
        module.__dict__.pop(name, None)
    # one whose class was changed once more since then (parametrised, sharded) only forgets its plan
    if Fused in type(module).__bases__:
        module.__class__ = unfused_class(type(module))


def _run_unchanged(module, plan, x):
    """y of an inference by a module that has not changed since its last; else None."""
    if plan.fc1 is None or plan.nhwc or not direct.is_open():
        return None
    state = module.__dict__
    witness = state.get("se_kernels_witness")
    if witness is None or not witness.holds(module):
        witness = witness_of(module, plan) if can_run(module, plan, x) else None
        if witness is None:
            return None
        state["se_kernels_witness"] = witness
    w1, w2 = witness.fc1, witness.fc2
    return direct.run(
        x,
        w1["weight"],
        w2["weight"],
        w1["bias"],
        w2["bias"],
        None,
        plan.squeeze,
        plan.act,
        plan.act_slope,
        plan.gate,
        "none",
    )


def _never(module, plan, x):
    return None


# where the plan is, whether it can be run, the call, and a short way of an inference
_WAYS = {
    "plan": ("se_kernels_plan", can_run, run, _run_unchanged),
    "tail": ("se_kernels_tail", can_run_tail, run_tail, _never),
}


def _fused_forward(original, key, can, call, short):  # so that forward has no global name
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
        return original(self, *args, **kwargs)

    # TorchScript compiles the source of __wrapped__, and looks for its names in the globals here
    names = getattr(original, "__globals__", forward.__globals__)
    forward = types.FunctionType(forward.__code__, names, "forward", None, forward.__closure__)
    return functools.wraps(original)(forward)
