"""A call of a fused module: the plan of its block, and the block run by it."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._C import _get_tracing_state
from torch.compiler import is_exporting

from se_kernels import reference
from se_kernels.checks import DTYPES
from se_kernels.functional import squeeze_excite
from se_kernels.pieces import TENSORS, is_every_module_hooked, is_intercepted, weights
from se_kernels.variants import ACTS, GATES

Path = tuple[str, ...]  # of a child: ("attention", "0")
Settings = tuple[tuple[str, object], ...]  # attributes and their values


class Piece(NamedTuple):
    """A child whose call the fused block stands for, as it was when the block was read."""

    name: str
    cls: type
    children: int  # how many it has
    is_fc: bool
    settings: Settings
    inside: tuple["Piece", ...]  # those of its children that are pieces


class Plan(NamedTuple):
    """One module's block. The FCs' paths are None where the excitation runs step by step."""

    squeeze: str
    nhwc: bool
    settings: Settings
    pieces: tuple[Piece, ...]
    fc1: Path | None = None
    fc2: Path | None = None
    act: str = "identity"
    act_slope: float = 0.01
    gate: str = "sigmoid"
    steps: tuple[str, ...] = ()
    flat: bool = False  # the steps take z as (N, C)

    def describe(self) -> str:
        excite = " → ".join(self.steps) if self.steps else f"act={self.act}, gate={self.gate}"
        return f"squeeze={self.squeeze}, {excite}"


def plan_of(module: nn.Module) -> Plan | None:
    """None where ``module`` is no fused SE module."""
    return module.__dict__.get("se_kernels_plan")


def child(module: nn.Module, path: Path) -> nn.Module | None:
    for name in path:
        module = module.__dict__["_modules"].get(name)
        if module is None:
            return None
    return module


def can_run(module: nn.Module, plan: Plan, x) -> bool:
    """Whether the fused block computes what the module's own forward would, here and now.

    It does not where the module has been changed since it was read (a hook inside, an adapter in
    place of an FC, another setting), nor where a tracer is to see the definition (TorchScript,
    ONNX, torch.fx).
    """
    state = module.__dict__
    return (
        is_plain_call(x)
        and (not plan.settings or are_as_read(state, plan.settings))
        and _are_intact(state["_modules"], plan.pieces)
    )


def is_plain_call(x) -> bool:
    """Whether x is for the kernels to read, and nothing is to see the pieces called."""
    return (
        type(x) in TENSORS
        and x.dim() == 4
        and x.dtype in DTYPES
        and not is_every_module_hooked()
        and _get_tracing_state() is None
        and not (is_exporting() and torch.onnx.is_in_onnx_export())
    )


def _are_intact(modules, pieces) -> bool:
    for name, cls, children, is_fc, settings, inside in pieces:
        piece = modules.get(name)
        if type(piece) is not cls:
            return False
        state = piece.__dict__
        if is_intercepted(state) or len(state["_modules"]) != children:
            return False
        if settings and not are_as_read(state, settings):
            return False
        if is_fc and not (type(weights(piece)[0]) in TENSORS and _is_matrix(state)):
            return False
        if inside and not _are_intact(state["_modules"], inside):
            return False
    return True


def _is_matrix(fc) -> bool:
    """Of a Conv2d's or Linear's attributes: whether it multiplies by a matrix and nothing more."""
    return "kernel_size" not in fc or (
        fc["kernel_size"] == (1, 1)
        and fc["stride"] == (1, 1)
        and fc["padding"] in ((0, 0), "same", "valid")
        and fc["groups"] == 1
    )


def are_as_read(state, settings) -> bool:
    return all(state.get(name) == value for name, value in settings)


def run(module: nn.Module, plan: Plan, x: Tensor, backend: str | None = None) -> Tensor:
    """y of the block: x (N, C, H, W), or (N, H, W, C) where ``plan.nhwc``."""
    if plan.nhwc:
        x = x.permute(0, 3, 1, 2)
    if plan.fc1 is None:
        excitation = partial(excite, module, plan)
        y = squeeze_excite(x, excitation=excitation, squeeze=plan.squeeze, backend=backend)
    else:
        w1, b1 = weights(child(module, plan.fc1))
        w2, b2 = weights(child(module, plan.fc2))
        y = squeeze_excite(
            x,
            w1,
            w2,
            b1,
            b2,
            squeeze=plan.squeeze,
            act=plan.act,
            act_slope=plan.act_slope,
            gate=plan.gate,
            backend=backend,
        )
    return y.permute(0, 2, 3, 1) if plan.nhwc else y


def gates(module: nn.Module, plan: Plan, x: Tensor) -> Tensor:
    """s (N, C) of the block's x, by the definition and in the dtype of the sums.

    RuntimeError where the module runs its own forward: the plan does not tell its gates then.
    """
    if not can_run(module, plan, x):
        raise RuntimeError(
            f"{type(module).__name__}: expected a block as fuse has read it, got one that was "
            "changed since then, or a hook on all modules: its gates cannot be told"
        )
    if plan.nhwc:
        x = x.permute(0, 3, 1, 2)
    if plan.fc1 is None:
        return reference.gates(x, excitation=partial(excite, module, plan), squeeze=plan.squeeze)
    w1, b1 = weights(child(module, plan.fc1))
    w2, b2 = weights(child(module, plan.fc2))
    variant = dict(squeeze=plan.squeeze, act=plan.act, act_slope=plan.act_slope, gate=plan.gate)
    return reference.gates(x, w1, w2, b1, b2, **variant)


def excite(module: nn.Module, plan: Plan, z: Tensor) -> Tensor:
    """z (N, C, 1, 1) through the steps to s (N, C) or (N, C, 1, 1)."""
    s = z.flatten(1) if plan.flat else z
    for step in plan.steps:
        s = resolve(module, step)(s)
    return s


def resolve(module: nn.Module, step: str):
    """What a step of ``Block.excitation`` names, to be called; None for nothing."""
    found = child(module, tuple(step.split(".")))
    if found is None:
        found = getattr(module, step, None)
    if found is None and step in ACTS:
        found = partial(reference.activate, act=step)
    if found is None and step in GATES:
        found = partial(reference.open_gate, gate=step)
    return found
