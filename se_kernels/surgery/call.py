"""A call of a fused block: its plan, and what runs by it.

A layer, an SE module, is a block with nothing around it. Any other block is its layer together with
the norm before it and, where the block ends with them, the shortcut and the ReLU after it. All else
of a block is called as ever.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from se_kernels import reference
from se_kernels.core import fast_path, guards
from se_kernels.core.activations import activate, open_gate
from se_kernels.core.checks import DTYPES
from se_kernels.core.guards import Watch
from se_kernels.core.variants import ACTS, GATES
from se_kernels.functional import squeeze_excite
from se_kernels.modules import norm_call
from se_kernels.modules.observers import call_observed, observers_of
from se_kernels.modules.recognition import (
    TENSORS,
    Fcs,
    alike,
    class_path,
    is_plain,
    is_traced,
    weights,
)
from se_kernels.modules.squeeze_excite import SqueezeExcite

Path = tuple[str, ...]  # of a child: ("attention", "0")

# timm's, with the activation in them
_NORM_ACTS = (
    "timm.layers.norm_act.BatchNormAct2d",
    "timm.layers.norm_act.SyncBatchNormAct",
    "timm.layers.norm_act.FrozenBatchNormAct2d",
)
# what drops whole branches in training, and its probability
_DROPS = {
    "timm.layers.drop.DropPath": "drop_prob",
    "torchvision.ops.stochastic_depth.StochasticDepth": "p",
}


class BlockPlan(NamedTuple):
    """A ``BlockSpec`` as paths of the children that are there."""

    watch: Watch  # the module, and the children whose calls the block stands for
    # a layer; it has no FCs where the excitation runs step by step
    squeeze: str = "avg"
    nhwc: bool = False
    fc1: Path = ()
    fc2: Path = ()
    act: str = "identity"
    act_slope: float = 0.01
    gate: str = "sigmoid"
    steps: tuple[str, ...] = ()
    flat: bool = False  # the steps take z as (N, C)
    # around a layer; () where there is none
    before: tuple[Path, ...] = ()
    norm: Path = ()
    pre: str = "identity"
    pre_path: Path = ()
    se: Path = ()
    after: tuple[Path, ...] = ()
    skip: bool = False
    drop: Path = ()
    shortcut: Path = ()
    in_place: bool = False
    post: Path = ()

    def describe(self) -> str:
        if self.norm:
            pre = () if self.pre == "identity" else (self.pre,)
            return " -> ".join((".".join(self.norm), *pre, ".".join(self.se)))
        excite = " -> ".join(self.steps) if self.steps else f"act={self.act}, gate={self.gate}"
        return f"squeeze={self.squeeze}, {excite}"


def plan_of(module: nn.Module | None) -> BlockPlan | None:
    """None where ``module`` is not fused."""
    return None if module is None else module.__dict__.get("se_kernels_plan")


def layer_plan_of(module: nn.Module | None) -> BlockPlan | None:
    """None where ``module`` is no fused SE module."""
    plan = plan_of(module)
    return None if plan is None or plan.norm else plan


def path_of(name: str) -> Path:
    return tuple(name.split("."))


def child(module: nn.Module, path: Path) -> Any:  # a module, or None
    for name in path:
        module = module.__dict__["_modules"].get(name)
        if module is None:
            return None
    return module


def call(module: nn.Module, plan: BlockPlan, x: Any) -> Tensor | None:
    """The output of a fused block; None where the module's own forward is to run."""
    if fast_path.can_bypass_dispatcher():
        if plan.norm:
            y = run(module, plan, x, joined=_infer) if _can_infer(module, plan, x) else None
        elif plan.fc1 and not plan.nhwc and guards.is_valid(module, plan.watch):
            y = _infer(module, plan, x)
        else:
            y = None
        if y is not None:
            return y
    if plan.norm:
        return run(module, plan, x) if can_run(module, plan, x) else None
    is_valid = is_plain_call(x) and guards.is_valid(module, plan.watch)
    return _layer(module, plan, x) if is_valid else None


def can_run(module: nn.Module, plan: BlockPlan, x: object) -> bool:
    """Whether the fused block computes what the module's own forward would, here and now.

    It does not where the module has been changed since it was read (a hook inside, an adapter in
    place of an FC, another setting), nor where a tracer is to see the definition (TorchScript,
    ONNX, torch.fx).
    """
    if not (is_plain_call(x) and guards.is_valid(module, plan.watch)):
        return False
    if not plan.norm:
        return not plan.fc1 or alike(*_weights_of(module, plan)) is not None
    se = child(module, plan.se)
    if not isinstance(se, SqueezeExcite):
        layer = layer_plan_of(se)
        if layer is None or not can_run(se, layer, x):
            return False
    return (
        is_norm(child(module, plan.norm), _has_act_inside(plan))
        and excitation_of(se) is not None
        and observers_of(se) is not None
    )


def is_plain_call(x: Any) -> bool:
    """Whether x is for the kernels to read, and nothing is to see the pieces called."""
    return type(x) in TENSORS and x.dim() == 4 and x.dtype in DTYPES and not is_traced(x)


def is_norm(norm: nn.Module | None, with_act: bool) -> bool:
    """Whether it is a plain batch norm, or one ``with_act``, of a class that is known."""
    if norm is None or has_act(norm) is not with_act:
        return False
    return norm_call.is_batch_norm(norm, (type(norm),) if with_act else norm_call.NORMS)


def has_act(norm: nn.Module) -> bool:
    return class_path(type(norm)) in _NORM_ACTS


def _has_act_inside(plan: BlockPlan) -> bool:
    return plan.pre_path[:-1] == plan.norm


def run(
    module: nn.Module,
    plan: BlockPlan,
    x: Tensor,
    backend: str | None = None,
    joined: Callable[..., Tensor | None] | None = None,
) -> Tensor:
    """The block's output: x (N, C, H, W) to (N, C', H', W'); (N, H, W, C) where ``plan.nhwc``.
    ``joined`` is tried first for the layer and what joins it."""
    if not plan.norm:
        y = _layer(module, plan, x, backend)
        assert y is not None  # see can_run
        return y
    u = x
    for path in plan.before:
        u = child(module, path)(u)
    residual: Any = None
    if plan.skip:
        residual = child(module, plan.shortcut)(x) if plan.shortcut else x
    # the sum and the ReLU join the call where nothing is between
    drop: Any = child(module, plan.drop) if plan.drop else None
    post: Any = child(module, plan.post) if plan.post else None
    ends = not plan.after
    sums = ends and plan.skip and _is_idle(drop) and _fits(residual, u)
    closes = ends and sums == plan.skip and is_plain(post, nn.ReLU)

    join = (module, plan, u, residual if sums else None, "relu" if closes else "none")
    y = None if joined is None else joined(*join)
    y = _norm_and_layer(*join, backend) if y is None else y
    for path in plan.after:
        y = child(module, path)(y)
    if plan.skip and not sums:
        y = y if drop is None else drop(y)
        y = y.add_(residual) if plan.in_place else y + residual
    return y if closes or post is None else post(y)


def _layer(
    module: nn.Module, plan: BlockPlan, x: Tensor, backend: str | None = None
) -> Tensor | None:
    """None where the FCs are not for the kernels to read."""
    fcs = alike(*_weights_of(module, plan)) if plan.fc1 else ()
    if fcs is None:
        return None
    if plan.nhwc:
        x = x.permute(0, 3, 1, 2)
    if fcs:
        y = squeeze_excite(
            x,
            *fcs,
            squeeze=plan.squeeze,
            act=plan.act,
            act_slope=plan.act_slope,
            gate=plan.gate,
            backend=backend,
        )
    else:
        excitation = partial(_excite, module, plan)
        y = squeeze_excite(x, excitation=excitation, squeeze=plan.squeeze, backend=backend)
    return y.permute(0, 2, 3, 1) if plan.nhwc else y


def _weights_of(module: nn.Module, plan: BlockPlan) -> Fcs:
    w1, b1 = weights(child(module, plan.fc1))
    w2, b2 = weights(child(module, plan.fc2))
    return w1, w2, b1, b2


def _norm_and_layer(
    module: nn.Module,
    plan: BlockPlan,
    u: Tensor,
    residual: Tensor | None,
    post: str,
    backend: str | None,
) -> Tensor:
    """y of the SE module, its norm before it, the residual and the ReLU after it."""
    norm, se = child(module, plan.norm), child(module, plan.se)
    if not is_plain_call(u):  # what the convolutions gave is not for it
        v = norm(u)
        if plan.pre_path and not _has_act_inside(plan):
            v = child(module, plan.pre_path)(v)
        y: Tensor = se(v)
        y = y if residual is None else y + residual
        return y.relu_() if post == "relu" else y
    variant = excitation_of(se)
    assert variant is not None  # see can_run
    variant |= dict(pre=plan.pre, residual=residual, post=post)
    if backend is not None:
        variant["backend"] = backend
    call = partial(norm_call.run, norm, u, **variant)
    observers = observers_of(se)
    return (
        call_observed(observers, call, partial(norm_call.normed, norm, u, plan.pre))
        if observers
        else call()
    )


def excitation_of(se: nn.Module | None) -> dict[str, Any] | None:
    """What a norm's call is passed of its SE module; None where that is not one call of two FCs on
    averages of (N, C, H, W)."""
    of: Any = se if type(se) is SqueezeExcite else layer_plan_of(se)
    if se is None or of is None or of.squeeze != "avg":
        return None
    if of is se:
        fcs, backend = se.fcs() if se.post == "none" else None, se.backend
    elif of.fc1 and not of.nhwc:
        fcs, backend = alike(*_weights_of(se, of)), None
    else:
        return None
    if fcs is None:
        return None
    w1, w2, b1, b2 = fcs
    variant = dict(act=of.act, act_slope=of.act_slope, gate=of.gate, backend=backend)
    return dict(w1=w1, w2=w2, b1=b1, b2=b2, **variant)


def _can_infer(module: nn.Module, plan: BlockPlan, x: object) -> bool:
    """Whether the layer in a block, and the norm before it, may be taken past autograd and ops."""
    if type(x) not in TENSORS or not guards.is_valid(module, plan.watch):
        return False
    se = child(module, plan.se)
    layer = layer_plan_of(se)
    return (
        layer is not None
        and bool(layer.fc1)
        and guards.is_valid(se, layer.watch)
        and not guards.is_intercepted(se)
        and norm_call.inferred_with(child(module, plan.norm)) is not None
    )


def _infer(
    module: nn.Module,
    plan: BlockPlan,
    u: Tensor,
    residual: Tensor | None = None,
    post: str = "none",
) -> Tensor | None:
    """y of an inference of a layer and what joins it; None where the long way is to be taken."""
    se = child(module, plan.se) if plan.norm else module
    layer = layer_plan_of(se) if plan.norm else plan
    if layer is None or not layer.fc1:
        return None
    variant = (layer.squeeze, layer.act, layer.act_slope, layer.gate, post)
    if not plan.norm:
        return fast_path.run(u, *_weights_of(se, layer), residual, *variant)
    norm = norm_call.inferred_with(child(module, plan.norm))
    if norm is None:
        return None
    return fast_path.run_norm(u, *_weights_of(se, layer), residual, *variant, *norm, plan.pre)


def gates(module: nn.Module, plan: BlockPlan, x: Tensor) -> Tensor:
    """s (N, C) of a layer's x, by the definition and in the dtype of the sums.

    RuntimeError where the module runs its own forward: the plan does not tell its gates then.
    """
    if not can_run(module, plan, x):
        raise RuntimeError(
            f"{type(module).__name__}: expected a block as fuse has read it, got one that was "
            "changed since then, or a hook on all modules: its gates cannot be told"
        )
    if plan.nhwc:
        x = x.permute(0, 3, 1, 2)
    if not plan.fc1:
        return reference.gates(x, excitation=partial(_excite, module, plan), squeeze=plan.squeeze)
    variant: dict[str, Any] = dict(act=plan.act, act_slope=plan.act_slope, gate=plan.gate)
    fcs = alike(*_weights_of(module, plan)) or ()
    return reference.gates(x, *fcs, squeeze=plan.squeeze, **variant)


def _excite(module: nn.Module, plan: BlockPlan, z: Tensor) -> Tensor:
    """z (N, C, 1, 1) through the steps to s (N, C) or (N, C, 1, 1)."""
    s = z.flatten(1) if plan.flat else z
    for step in plan.steps:
        s = resolve(module, step)(s)
    return s


def resolve(module: nn.Module, step: str) -> Any:
    """What a step of ``ExcitationSteps.excitation`` names, to be called; None for nothing."""
    found = child(module, path_of(step))
    if found is None:
        found = getattr(module, step, None)
    if found is None and step in ACTS:
        found = partial(activate, act=step)
    if found is None and step in GATES:
        found = partial(open_gate, gate=step)
    return found


def _is_idle(drop: nn.Module | None) -> bool:
    if drop is None:
        return True
    probability = _DROPS.get(class_path(type(drop)))
    if probability is None:
        return is_plain(drop, nn.Identity)
    return is_plain(drop, type(drop)) and not (drop.training and getattr(drop, probability))


def _fits(residual: Any, u: Tensor) -> bool:
    return (
        type(residual) in TENSORS
        and residual.shape == u.shape
        and residual.dtype == u.dtype
        and residual.dtype in DTYPES
        and residual.device == u.device
    )
