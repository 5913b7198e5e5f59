"""A call of a fused block: the SE module together with the norm before it and, where the block ends
with them, the shortcut and the ReLU after it. All else of the block is called as ever."""

from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from se_kernels.core import fast_path, guards
from se_kernels.core.checks import DTYPES
from se_kernels.core.guards import Watch
from se_kernels.modules import norm_call
from se_kernels.modules.observers import call_observed, observers_of
from se_kernels.modules.recognition import TENSORS, alike, class_path, is_plain
from se_kernels.modules.squeeze_excite import SqueezeExcite
from se_kernels.surgery.call import Path, can_run, child, fcs_of, is_plain_call, plan_of

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


class Tail(NamedTuple):
    """One block: ``BlockSpec`` as paths of the children that are there."""

    before: tuple[Path, ...]
    norm: Path
    act: Path | None
    pre: str  # what act is
    se: Path
    after: tuple[Path, ...]
    skip: bool
    drop: Path | None
    shortcut: Path | None
    in_place: bool
    post: Path | None
    watch: Watch

    def describe(self) -> str:
        norm, se = ".".join(self.norm), ".".join(self.se)
        return f"{norm} -> {se}" if self.pre == "identity" else f"{norm} -> {self.pre} -> {se}"


def tail_of(module: nn.Module) -> Tail | None:
    """None where ``module`` is no fused block."""
    return module.__dict__.get("se_kernels_tail")


def is_norm(norm: nn.Module | None, with_act: bool) -> bool:
    """Whether it is a plain batch norm, or one ``with_act``, of a class that is known."""
    return norm is not None and (
        norm_call.is_batch_norm(norm)
        if not with_act
        else class_path(type(norm)) in _NORM_ACTS and norm_call.is_batch_norm(norm, (type(norm),))
    )


def has_act(norm: nn.Module) -> bool:
    return class_path(type(norm)) in _NORM_ACTS


class Excitation(NamedTuple):
    """What the fused call is told of the SE module."""

    fcs: tuple[Tensor | None, ...]
    variant: dict


def excitation_of(se: nn.Module | None) -> Excitation | None:
    """None where the SE module is not one call of two FCs on averages of (N, C, H, W)."""
    if type(se) is SqueezeExcite:
        of, fcs, backend = se, se.fcs(), se.backend
        if fcs is None or se.squeeze != "avg" or se.post != "none":
            return None
    else:
        of, backend = None if se is None else plan_of(se), None
        if of is None or of.fc1 is None or of.squeeze != "avg" or of.nhwc:
            return None
        fcs = alike(*fcs_of(se, of))
        if fcs is None:
            return None
    variant = dict(act=of.act, act_slope=of.act_slope, gate=of.gate, backend=backend)
    return Excitation(fcs, variant)


def can_run_tail(module: nn.Module, tail: Tail, x) -> bool:
    """``run.can_run`` for a block: whether ``run_tail`` computes what its own forward would."""
    if not (is_plain_call(x) and guards.is_valid(module, tail.watch)):
        return False
    se = child(module, tail.se)
    if not isinstance(se, SqueezeExcite):
        plan = None if se is None else plan_of(se)
        if plan is None or not can_run(se, plan, x):
            return False
    return (
        is_norm(child(module, tail.norm), _act_is_inside(tail))
        and excitation_of(se) is not None
        and observers_of(se) is not None
    )


def infer_tail(module: nn.Module, tail: Tail, x) -> Tensor | None:
    """The block's output in an inference, where the SE module and the norm are taken past autograd
    and ops; None where the long way is to be taken."""
    if not (
        fast_path.can_bypass_dispatcher()
        and type(x) in TENSORS
        and guards.is_valid(module, tail.watch)
    ):
        return None
    se, norm = child(module, tail.se), child(module, tail.norm)
    plan = plan_of(se)
    if (
        plan is None
        or plan.fc1 is None
        or not guards.is_valid(se, plan.watch)
        or guards.is_intercepted(se)
        or norm_call.inferred_with(norm) is None
    ):
        return None
    return run_tail(module, tail, x, scaled=_inferred)


def _inferred(module, tail, u, residual, closes, backend):
    se, of_norm = child(module, tail.se), norm_call.inferred_with(child(module, tail.norm))
    plan = plan_of(se)
    if of_norm is not None and plan is not None and plan.fc1 is not None:
        y = fast_path.run_norm(
            u,
            *fcs_of(se, plan),
            residual,
            plan.squeeze,
            plan.act,
            plan.act_slope,
            plan.gate,
            "relu" if closes else "none",
            *of_norm,
            tail.pre,
        )
        if y is not None:
            return y
    return _scaled(module, tail, u, residual, closes, backend)


def run_tail(
    module: nn.Module, tail: Tail, x: Tensor, backend: str | None = None, scaled=None
) -> Tensor:
    """The block's output: x (N, C, H, W) to (N, C', H', W'). ``scaled`` computes the norm, the SE
    module and what joins them."""
    u = x
    for path in tail.before:
        u = child(module, path)(u)
    residual = None
    if tail.skip:
        residual = x if tail.shortcut is None else child(module, tail.shortcut)(x)
    # the sum and the ReLU join the call where nothing is between
    drop = None if tail.drop is None else child(module, tail.drop)
    ends = not tail.after
    sums = ends and tail.skip and _is_idle(drop) and _fits(residual, u)
    post = None if tail.post is None else child(module, tail.post)
    closes = ends and sums == tail.skip and is_plain(post, nn.ReLU)

    scaled = scaled or _scaled
    y = scaled(module, tail, u, residual if sums else None, closes, backend)
    for path in tail.after:
        y = child(module, path)(y)
    if tail.skip and not sums:
        y = y if drop is None else drop(y)
        y = y.add_(residual) if tail.in_place else y + residual
    return y if closes or post is None else post(y)


def _scaled(module, tail, u, residual, closes, backend):
    """y of the SE module, its norm before it, the residual and the ReLU after it."""
    norm, se = child(module, tail.norm), child(module, tail.se)
    if not is_plain_call(u):  # what the convolutions gave is not for it
        v = norm(u)
        if tail.act is not None and not _act_is_inside(tail):
            v = child(module, tail.act)(v)
        y = se(v)
        y = y if residual is None else y + residual
        return y.relu_() if closes else y
    excitation = excitation_of(se)
    variant = excitation.variant | dict(pre=tail.pre, residual=residual)
    variant["post"] = "relu" if closes else "none"
    if backend is not None:
        variant["backend"] = backend
    call = partial(norm_call.run, norm, u, *excitation.fcs, **variant)
    observers = observers_of(se)
    return (
        call_observed(observers, call, partial(norm_call.normed, norm, u, tail.pre))
        if observers
        else call()
    )


def _act_is_inside(tail: Tail) -> bool:
    return tail.act is not None and tail.act[:-1] == tail.norm


def _is_idle(drop: nn.Module | None) -> bool:
    if drop is None:
        return True
    probability = _DROPS.get(class_path(type(drop)))
    if probability is None:
        return is_plain(drop, nn.Identity)
    return is_plain(drop, type(drop)) and not (drop.training and getattr(drop, probability))


def _fits(residual, u) -> bool:
    return (
        type(residual) in TENSORS
        and residual.shape == u.shape
        and residual.dtype == u.dtype
        and residual.dtype in DTYPES
        and residual.device == u.device
    )
