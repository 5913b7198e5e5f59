"""A call of a fused module: the plan of its block, and the block run by it."""

from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from se_kernels import reference
from se_kernels.core import fast_path, guards
from se_kernels.core.activations import activate, open_gate
from se_kernels.core.checks import DTYPES
from se_kernels.core.guards import Watch
from se_kernels.core.variants import ACTS, GATES
from se_kernels.functional import squeeze_excite
from se_kernels.modules.recognition import TENSORS, alike, is_traced, weights

Path = tuple[str, ...]  # of a child: ("attention", "0")


class Plan(NamedTuple):
    """One module's block. The FCs' paths are None where the excitation runs step by step."""

    squeeze: str
    nhwc: bool
    watch: Watch  # the module, and the children whose calls the block stands for
    fc1: Path | None = None
    fc2: Path | None = None
    act: str = "identity"
    act_slope: float = 0.01
    gate: str = "sigmoid"
    steps: tuple[str, ...] = ()
    flat: bool = False  # the steps take z as (N, C)

    def describe(self) -> str:
        excite = " -> ".join(self.steps) if self.steps else f"act={self.act}, gate={self.gate}"
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
    return (
        is_plain_call(x)
        and guards.is_valid(module, plan.watch)
        and (plan.fc1 is None or alike(*fcs_of(module, plan)) is not None)
    )


def is_plain_call(x) -> bool:
    """Whether x is for the kernels to read, and nothing is to see the pieces called."""
    return type(x) in TENSORS and x.dim() == 4 and x.dtype in DTYPES and not is_traced(x)


def fcs_of(module: nn.Module, plan: Plan) -> tuple[Tensor | None, ...]:
    """w1, w2, b1, b2."""
    w1, b1 = weights(child(module, plan.fc1))
    w2, b2 = weights(child(module, plan.fc2))
    return w1, w2, b1, b2


def run(module: nn.Module, plan: Plan, x: Tensor, backend: str | None = None) -> Tensor:
    """y of the block: x (N, C, H, W), or (N, H, W, C) where ``plan.nhwc``."""
    if plan.nhwc:
        x = x.permute(0, 3, 1, 2)
    if plan.fc1 is None:
        excitation = partial(excite, module, plan)
        y = squeeze_excite(x, excitation=excitation, squeeze=plan.squeeze, backend=backend)
    else:
        y = squeeze_excite(
            x,
            *alike(*fcs_of(module, plan)),
            squeeze=plan.squeeze,
            act=plan.act,
            act_slope=plan.act_slope,
            gate=plan.gate,
            backend=backend,
        )
    return y.permute(0, 2, 3, 1) if plan.nhwc else y


def infer(module: nn.Module, plan: Plan, x: Tensor) -> Tensor | None:
    """y of an inference, past autograd and ops; None where the long way is to be taken."""
    if (
        plan.fc1 is None
        or plan.nhwc
        or not fast_path.can_bypass_dispatcher()
        or not guards.is_valid(module, plan.watch)
    ):
        return None
    return fast_path.run(
        x,
        *fcs_of(module, plan),
        None,
        plan.squeeze,
        plan.act,
        plan.act_slope,
        plan.gate,
        "none",
    )


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
    variant = dict(squeeze=plan.squeeze, act=plan.act, act_slope=plan.act_slope, gate=plan.gate)
    return reference.gates(x, *alike(*fcs_of(module, plan)), **variant)


def excite(module: nn.Module, plan: Plan, z: Tensor) -> Tensor:
    """z (N, C, 1, 1) through the steps to s (N, C) or (N, C, 1, 1)."""
    s = z.flatten(1) if plan.flat else z
    for step in plan.steps:
        s = resolve(module, step)(s)
    return s


def resolve(module: nn.Module, step: str):
    """What a step of ``ExcitationSteps.excitation`` names, to be called; None for nothing."""
    found = child(module, tuple(step.split(".")))
    if found is None:
        found = getattr(module, step, None)
    if found is None and step in ACTS:
        found = partial(activate, act=step)
    if found is None and step in GATES:
        found = partial(open_gate, gate=step)
    return found
