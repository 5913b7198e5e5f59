"""Reads a module by its ``BlockSpec``: the plan of its fused call, or why there is none."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from se_kernels.core import guards
from se_kernels.core.checks import DTYPES
from se_kernels.core.guards import Watch
from se_kernels.core.variants import ACTS, GATES, PRES
from se_kernels.modules.recognition import TENSORS, act_of, class_path, gate_of
from se_kernels.surgery.call import (
    BlockPlan,
    Path,
    child,
    excitation_of,
    has_act,
    is_norm,
    layer_plan_of,
    path_of,
    resolve,
)
from se_kernels.surgery.steps import BlockSpec, ExcitationSteps

_QUANTISED = ("torch.ao.", "torchao.")
_POOLS = {nn.AdaptiveAvgPool2d: "avg", nn.AdaptiveMaxPool2d: "max"}


class Refusal(Exception):
    """Why a module is not fused: it is no longer as its family made it (a hook, an adapter)."""


class Misfit(Refusal):
    """Why a module is not fused: it is not what its spec says."""


def read(module: nn.Module, spec: BlockSpec, cls: type[nn.Module]) -> BlockPlan:
    """The plan of ``module``'s fused call, ``cls`` being its class before it was fused. Raises
    Refusal or Misfit."""
    if spec.excitation is not None:
        fields, marks = _read_layer(module, spec.excitation)
    else:
        fields, marks = _read_around(module, spec)
    return BlockPlan(watch=_watch(module, cls, marks), **fields)


def channels_of(module: nn.Module, spec: BlockSpec) -> int:
    """C of x: of the spec, or of the first layer that has any; 8 where nothing tells."""
    if spec.excitation is None:
        names = (*spec.before, spec.norm)
    elif spec.excitation.channels is not None:
        return spec.excitation.channels
    else:
        names = spec.excitation.excitation[:1]
    for first in (resolve(module, name) for name in names):
        for layer in first.modules() if isinstance(first, nn.Module) else ():
            for name in ("in_channels", "in_features", "num_features"):
                if channels := getattr(layer, name, None):
                    return int(channels)
    return 8


# What is watched of a child: None, its call is stood for; True, it is called; False, it must not be
# there; or as it says.
_Marks = dict[Path, Watch | bool | None]


def _watch(module: nn.Module, cls: type[nn.Module], marks: _Marks) -> Watch:
    """``module``, whose class was ``cls`` before it was fused, with the children of these paths. A
    child that holds one of them is stood for too. Raises Refusal where a function of torch is
    patched."""
    marks = {(): None} | marks
    for path in _holders(marks):
        marks.setdefault(path)

    def look(path: Path) -> Watch | bool:
        mark = marks[path]
        if isinstance(mark, bool):
            return mark
        inside = {p[-1]: look(p) for p in marks if p and p[:-1] == path}
        if mark is not None:
            return mark._replace(children=tuple(inside.items()))
        return guards.watch(child(module, path), inside, cls=None if path else cls)

    watch = look(())
    assert isinstance(watch, Watch)
    _check_unpatched(watch)
    return watch


def _holders(paths: Iterable[Path]) -> list[Path]:
    """The children that hold these."""
    return sorted({path[:i] for path in paths for i in range(1, len(path))})


# --- a layer -------------------------------------------------------------------------------------


def _read_layer(module: nn.Module, spec: ExcitationSteps) -> tuple[dict[str, Any], _Marks]:
    steps = [(name, _step(module, name)) for name in spec.excitation]
    for name, piece in module.named_modules():
        if name:
            _check_untouched(name, piece)
    _check_parameters(module)
    fields = dict[str, Any](squeeze=spec.squeeze, nhwc=spec.layout == "nhwc")
    marks: _Marks = {} if spec.pool is None else {_pool(module, spec.pool, spec.squeeze): None}
    paths = [path for path in map(path_of, spec.excitation) if child(module, path) is not None]
    working = [(name, step) for name, step in steps if not _does_nothing(step)]
    two_fcs = _two_fcs(working)
    if two_fcs is not None:
        return fields | two_fcs, marks | dict.fromkeys(paths)
    flat = bool(working) and isinstance(working[0][1], nn.Linear)
    return fields | dict(steps=spec.excitation, flat=flat), marks | dict.fromkeys(paths, True)


def _step(module: nn.Module, name: str) -> Any:
    step = resolve(module, name)
    if step is None:
        variants = dict.fromkeys((*ACTS, *GATES))
        raise Misfit(
            f"excitation: expected the name of a child, of a method, or one of "
            f"{', '.join(variants)}; got {name!r}"
        )
    if not callable(step):
        raise Misfit(f"excitation: expected something to call as {name!r}, got {step!r}")
    return step


def _pool(module: nn.Module, name: str, squeeze: str) -> Path:
    pool = child(module, path_of(name))
    if pool is None:
        raise Misfit(f"pool: expected the name of a child, got {name!r}")
    kind = _POOLS.get(type(pool))
    if kind is None or pool.output_size not in (1, (1, 1)):
        raise Misfit(f"{name}: expected a pooling to 1x1, got {pool}")
    if kind != squeeze:
        raise Misfit(f"{name}: expected squeeze={kind!r} with {pool}, got {squeeze!r}")
    return path_of(name)


def _two_fcs(steps: list[tuple[str, Any]]) -> dict[str, Any] | None:
    """FC, activation (or none), FC, gate, as the fields of a plan; None for any other steps."""
    if len(steps) not in (3, 4):
        return None
    (first, fc1), *middle, (second, fc2), (gate_name, gate_step) = steps
    if not (isinstance(fc1, (nn.Conv2d, nn.Linear)) and isinstance(fc2, (nn.Conv2d, nn.Linear))):
        return None
    act = _act(*middle[0]) if middle else ("identity", 0.01)
    gate = _gate(gate_name, gate_step)
    if act is None or gate is None:
        return None
    for name, fc in ((first, fc1), (second, fc2)):
        check_fc(name, fc)
    (reduced, channels), (out, into) = fc1.weight.shape[:2], fc2.weight.shape[:2]
    if (out, into) != (channels, reduced):
        raise Misfit(
            f"{second}: expected weights from R={reduced} to C={channels}, as {first} has them, "
            f"got from {into} to {out}"
        )
    paths = dict(fc1=path_of(first), fc2=path_of(second))
    return dict(**paths, act=act[0], act_slope=act[1], gate=gate)


def _act(name: str, step: Any) -> tuple[str, float] | None:
    if isinstance(step, nn.Module):
        return act_of(step)
    return (name, 0.01) if isinstance(step, partial) and name in ACTS else None


def _gate(name: str, step: Any) -> str | None:
    if isinstance(step, nn.Module):
        return gate_of(step)
    return name if isinstance(step, partial) and name in GATES else None


def _does_nothing(step: Any) -> bool:
    return type(step) is nn.Identity or (isinstance(step, nn.Dropout) and step.p == 0)


def check_fc(name: str, fc: nn.Module | None) -> None:
    """Raises Refusal unless ``fc`` is a fully connected layer and nothing else."""
    if type(fc) not in (nn.Conv2d, nn.Linear):
        raise Refusal(f"{name}: expected an nn.Conv2d or nn.Linear, got {class_path(type(fc))}")
    if not isinstance(fc, nn.Conv2d):
        return
    elif fc.kernel_size != (1, 1):
        expected = "a kernel size of 1"
    elif fc.groups != 1:
        expected = "groups=1"
    elif fc.stride != (1, 1) or fc.padding not in ("same", "valid", (0, 0)):
        expected = "stride 1 and no padding"
    else:
        return
    raise Refusal(f"{name}: expected {expected}, got {fc}")


# --- what is around a layer ----------------------------------------------------------------------


def _read_around(module: nn.Module, spec: BlockSpec) -> tuple[dict[str, Any], _Marks]:
    _check_parameters(module)
    norm_path, se_path = path_of(spec.norm), path_of(spec.se)
    pre_path, idle = path_of(spec.pre) if spec.pre else (), [*map(path_of, spec.idle)]
    if has_act(_norm(module, norm_path)):
        pre_path = (*norm_path, "act")
        idle.append((*norm_path, "drop"))
    idle = [path for path in idle if child(module, path) is not None]
    for path in idle:
        if type(child(module, path)) is not nn.Identity:
            raise Refusal(
                f"{'.'.join(path)}: expected nothing between the norm and the SE module, "
                f"got {class_path(type(child(module, path)))}"
            )
    pre = _pre(module, pre_path) if pre_path else "identity"
    _check_se(module, se_path)

    stood_for = [*idle, pre_path] if pre_path else idle
    named = (*spec.before, *spec.after, *spec.idle, spec.drop, spec.shortcut, spec.post)
    paths = [path_of(name) for name in named if name]
    for path in (*_holders((*stood_for, *paths, norm_path, se_path)), *stood_for):
        _check_untouched(".".join(path), child(module, path))

    def present(names: tuple[str, ...]) -> tuple[Path, ...]:
        return tuple(path for path in map(path_of, names) if child(module, path) is not None)

    marks: _Marks = dict.fromkeys(stood_for)
    marks |= {path: child(module, path) is not None for path in paths}
    # of the norm the class may change, and it is looked at when it is called
    marks[norm_path] = guards.ANY
    marks[se_path] = guards.watch_class(type(child(module, se_path)), guards.OBSERVED)
    skip = spec.skip
    if isinstance(skip, str):
        skip = getattr(module, skip, None) not in (None, False)
    return dict(
        before=present(spec.before),
        norm=norm_path,
        pre=pre,
        pre_path=pre_path,
        se=se_path,
        after=present(spec.after),
        skip=skip,
        in_place=spec.in_place,
        **{
            field: path
            for field in ("drop", "shortcut", "post")
            for path in present((getattr(spec, field),))
        },
    ), marks


def _norm(module: nn.Module, path: Path) -> nn.Module:
    norm: nn.Module | None = child(module, path)
    name = ".".join(path)
    if norm is None:
        raise Refusal(f"{name}: expected a batch norm before the SE module, got none")
    _check_untouched(name, norm)
    _check_unpatched(guards.watch_class(type(norm)))
    if not is_norm(norm, has_act(norm)):
        raise Refusal(f"{name}: expected a batch norm, got {class_path(type(norm))}")
    return norm


def _pre(module: nn.Module, path: Path) -> str:
    act = child(module, path)
    found = None if act is None else act_of(act)
    if found is None or found[0] not in PRES:
        raise Refusal(
            f"{'.'.join(path)}: expected one of {', '.join(PRES)} between the norm and the SE "
            f"module, got {class_path(type(act))}"
        )
    return found[0]


def _check_se(module: nn.Module, path: Path) -> None:
    se, name = child(module, path), ".".join(path)
    if excitation_of(se) is None:
        plan = layer_plan_of(se)
        if plan is None:
            raise Refusal(f"{name} is not fused itself")
        raise Refusal(
            f"{name}: expected two FCs on the average of (N, C, H, W), got {plan.describe()}"
        )


# --- of any block --------------------------------------------------------------------------------


def _check_unpatched(watch: Watch) -> None:
    patched = guards.patched(watch)
    if patched is not None:
        raise Refusal(f"{patched} is patched")


def _check_untouched(name: str, piece: nn.Module) -> None:
    """Raises Refusal where a call of it does more than its class's forward."""
    if isinstance(piece, torch.jit.ScriptModule):
        raise Refusal(f"{name} is scripted")
    cls = type(piece)
    if cls.__module__.startswith(_QUANTISED):
        raise Refusal(f"{name} is quantised: {class_path(cls)}")
    if any(base.__module__.startswith("torch.distributed") for base in cls.__mro__):
        raise Refusal(f"{name} is sharded: {cls.__name__}")
    if nn.utils.parametrize.is_parametrized(piece):
        raise Refusal(f"{name} is parametrised")
    if guards.is_intercepted(piece):
        raise Refusal(f"{name} has hooks, or a forward of its own")


def _check_parameters(module: nn.Module) -> None:
    """Raises Refusal where they are not all plain tensors that the kernels read, in one place."""
    for name, t in (*module.named_parameters(), *module.named_buffers()):
        if isinstance(t, (UninitializedBuffer, UninitializedParameter)):
            raise Refusal(f"{name} is not initialised yet")
    first = None
    for name, p in module.named_parameters():
        if type(p) not in TENSORS:
            raise Refusal(f"{name} is a {type(p).__name__}, not a plain tensor")
        if p.dtype not in DTYPES:
            raise Refusal(f"{name} has dtype {p.dtype}")
        first = (name, p) if first is None else first
        if p.device != first[1].device:
            raise Refusal(f"{name} is on {p.device}, {first[0]} on {first[1].device}")
