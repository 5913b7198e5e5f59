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
from se_kernels.fusion.run import Plan, can_run, run
from se_kernels.fusion.witness import witness_of


class Fused(nn.Module):
    """What the fused classes have in common."""

    def extra_repr(self) -> str:
        plan = plan_of(self)
        parts = (super().extra_repr(), "" if plan is None else plan.describe())
        return ", ".join(part for part in parts if part)

    def __reduce_ex__(self, protocol):
        """Fused classes are made as needed, so they are pickled, and copied, by their original."""
        make, arguments, *state = super().__reduce_ex__(protocol)
        if state and isinstance(state[0], dict):
            state[0] = {k: v for k, v in state[0].items() if k != "se_kernels_witness"}
        if make is copyreg.__newobj__ and arguments[0] is type(self):
            make, arguments = restore, (unfused_class(type(self)), *arguments[1:])
        return make, arguments, *state


def restore(cls: type[nn.Module], *arguments) -> nn.Module:
    """A fused module of original class ``cls``, still empty: called when it is unpickled."""
    fused = fused_class(cls)
    return fused.__new__(fused, *arguments)


@functools.cache
def fused_class(cls: type[nn.Module]) -> type[nn.Module]:
    """The subclass of ``cls`` whose forward is the fused block."""
    body = {"forward": _fused_forward(cls.forward), "__module__": cls.__module__}
    return type(f"Fused{cls.__name__}", (Fused, cls), body)


def unfused_class(cls: type[nn.Module]) -> type[nn.Module]:
    return cls.__mro__[2]  # after the fused class itself and Fused


def original_class(module: nn.Module) -> type[nn.Module]:
    for cls in type(module).__mro__:
        if Fused in cls.__bases__:
            return unfused_class(cls)
    return type(module)


def plan_of(module: nn.Module) -> Plan | None:
    """None where ``module`` is not fused."""
    return module.__dict__.get("se_kernels_plan")


def swap(module: nn.Module, plan: Plan) -> None:
    """Makes ``module`` fused. Raises TypeError where its class cannot be extended."""
    if not isinstance(module, Fused):
        module.__class__ = fused_class(type(module))
    module.se_kernels_plan = plan
    module.__dict__.pop("se_kernels_witness", None)


def swap_back(module: nn.Module) -> None:
    """Makes a fused ``module`` what it was."""
    del module.se_kernels_plan
    module.__dict__.pop("se_kernels_witness", None)
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


def _fused_forward(original):
    argument = next(iter(list(inspect.signature(original).parameters)[1:]), None)
    # so that forward has no global name
    can, block, short = can_run, run, _run_unchanged

    def forward(self, *args, **kwargs):
        plan = self.__dict__.get("se_kernels_plan")
        if plan is not None and len(args) + len(kwargs) == 1:
            x = args[0] if args else kwargs.get(argument)
            y = short(self, plan, x)
            if y is not None:
                return y
            if can(self, plan, x):
                return block(self, plan, x)
        return original(self, *args, **kwargs)

    # TorchScript compiles the source of __wrapped__, and looks for its names in the globals here
    names = getattr(original, "__globals__", forward.__globals__)
    forward = types.FunctionType(forward.__code__, names, "forward", None, forward.__closure__)
    return functools.wraps(original)(forward)
