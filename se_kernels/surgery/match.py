"""Reads a module by its ``ExcitationSteps``: the plan of its fused call, or why there is none."""

from collections.abc import Iterable, Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import nn

from se_kernels.core import guards
from se_kernels.core.checks import DTYPES
from se_kernels.core.guards import Watch
from se_kernels.core.variants import ACTS, GATES
from se_kernels.modules.recognition import TENSORS, act_of, class_path, gate_of
from se_kernels.surgery.call import Path, Plan, child, resolve
from se_kernels.surgery.steps import ExcitationSteps

_NONE: Mapping = MappingProxyType({})
_QUANTISED = ("torch.ao.", "torchao.")
_POOLS = {nn.AdaptiveAvgPool2d: "avg", nn.AdaptiveMaxPool2d: "max"}


class Refusal(Exception):
    """Why a module is not fused: it is no longer as its family made it (a hook, an adapter)."""


class Misfit(Refusal):
    """Why a module is not fused: it is not what its ``ExcitationSteps`` says."""


def read(module: nn.Module, block: ExcitationSteps, cls: type[nn.Module]) -> Plan:
    """The plan of ``module``'s fused call, ``cls`` being its class before it was fused. Raises
    Refusal or Misfit."""
    steps = [(name, _step(module, name)) for name in block.excitation]
    for path, piece in _named_pieces(module):
        check_untouched(path, piece)
    check_parameters(module)
    pool = () if block.pool is None else _pool(module, block)
    common = dict(squeeze=block.squeeze, nhwc=block.layout == "nhwc")
    working = [(name, step) for name, step in steps if not _does_nothing(step)]
    two_fcs = _two_fcs(working)
    if two_fcs is not None:
        watch = watch_paths(module, cls, skipped=(*pool, *_paths(module, block.excitation)))
        return Plan(**common, watch=watch, **two_fcs)
    flat = bool(working) and isinstance(working[0][1], nn.Linear)
    watch = watch_paths(module, cls, skipped=pool, called=_paths(module, block.excitation))
    return Plan(**common, watch=watch, steps=block.excitation, flat=flat)


def channels_of(module: nn.Module, block: ExcitationSteps) -> int | None:
    """C, where the first step or the block tells."""
    first = resolve(module, block.excitation[0])
    if isinstance(first, nn.Sequential) and len(first):
        first = first[0]
    return block.channels or getattr(first, "in_channels", None) or getattr(
        first, "in_features", None
    )  # fmt: skip


def _step(module, name):
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


def _named_pieces(module):
    return ((name, piece) for name, piece in module.named_modules() if name)


def check_untouched(name: str, piece: nn.Module) -> None:
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


def check_parameters(module: nn.Module) -> None:
    """Raises Refusal where they are not all plain tensors that the kernels read, in one place."""
    for name, t in (*module.named_parameters(), *module.named_buffers()):
        if isinstance(t, nn.parameter.UninitializedTensorMixin):
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


def _pool(module, block) -> tuple[Path, ...]:
    path = tuple(block.pool.split("."))
    pool = child(module, path)
    if pool is None:
        raise Misfit(f"pool: expected the name of a child, got {block.pool!r}")
    kind = _POOLS.get(type(pool))
    if kind is None or pool.output_size not in (1, (1, 1)):
        raise Misfit(f"{block.pool}: expected a pooling to 1x1, got {pool}")
    if kind != block.squeeze:
        raise Misfit(f"{block.pool}: expected squeeze={kind!r} with {pool}, got {block.squeeze!r}")
    return (path,)


def _paths(module, names) -> tuple[Path, ...]:
    """Of those that are children."""
    paths = (tuple(name.split(".")) for name in names)
    return tuple(path for path in paths if child(module, path) is not None)


def watch_paths(
    module: nn.Module,
    cls: type[nn.Module],
    skipped: Iterable[Path] = (),
    called: Iterable[Path] = (),
    absent: Iterable[Path] = (),
    special: Mapping[Path, Watch] = _NONE,
) -> Watch:
    """``module``, whose class was ``cls`` before it was fused, with the children of these paths:
    those whose calls are stood for, that are called, and that must not be there. A child that
    holds one of them is stood for too. Raises Refusal where a function of torch is patched."""
    marks = {(): None} | dict.fromkeys(skipped) | dict.fromkeys(called, True)
    marks |= dict.fromkeys(absent, False) | dict(special)
    for path in list(marks):
        for i in range(1, len(path)):
            marks.setdefault(path[:i])

    def look(path: Path) -> Watch | bool:
        mark = marks[path]
        if isinstance(mark, bool):
            return mark
        inside = {p[-1]: look(p) for p in marks if p and p[:-1] == path}
        if mark is not None:
            return mark._replace(children=tuple(inside.items()))
        return guards.watch(child(module, path), inside, cls=None if path else cls)

    watch = look(())
    patched = guards.patched(watch)
    if patched is not None:
        raise Refusal(f"{patched} is patched")
    return watch


def _two_fcs(steps) -> dict | None:
    """FC, activation (or none), FC, gate, as the fields of a plan; None for any other steps."""
    if len(steps) not in (3, 4):
        return None
    (first, fc1), *middle, (second, fc2), (gate_name, gate) = steps
    if not (_is_fc(fc1) and _is_fc(fc2)):
        return None
    act = _act(*middle[0]) if middle else ("identity", 0.01)
    gate = _gate(gate_name, gate)
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
    paths = dict(fc1=tuple(first.split(".")), fc2=tuple(second.split(".")))
    return dict(**paths, act=act[0], act_slope=act[1], gate=gate)


def _act(name, step) -> tuple[str, float] | None:
    if isinstance(step, nn.Module):
        return act_of(step)
    return (name, 0.01) if isinstance(step, partial) and name in ACTS else None


def _gate(name, step) -> str | None:
    if isinstance(step, nn.Module):
        return gate_of(step)
    return name if isinstance(step, partial) and name in GATES else None


def _does_nothing(step) -> bool:
    return type(step) is nn.Identity or (isinstance(step, nn.Dropout) and step.p == 0)


def _is_fc(step) -> bool:
    return isinstance(step, (nn.Conv2d, nn.Linear))


def check_fc(name: str, fc: nn.Module) -> None:
    """Raises Refusal unless ``fc`` is a fully connected layer and nothing else."""
    if type(fc) not in (nn.Conv2d, nn.Linear):
        raise Refusal(f"{name}: expected an nn.Conv2d or nn.Linear, got {class_path(type(fc))}")
    if type(fc) is nn.Linear:
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
