"""Reads a block by its ``BlockSpec``: the plan of its fused call, or why there is none."""

from torch import nn

from se_kernels.core import guards
from se_kernels.core.variants import PRES
from se_kernels.modules.recognition import act_of, class_path
from se_kernels.surgery.block_call import Tail, excitation_of, has_act, is_norm
from se_kernels.surgery.block_specs import BlockSpec
from se_kernels.surgery.call import Path, child, plan_of
from se_kernels.surgery.match import Refusal, check_parameters, check_untouched, watch_paths


def read_tail(module: nn.Module, around: BlockSpec, cls: type[nn.Module]) -> Tail:
    """The plan of ``module``'s fused call, ``cls`` being its class before it was fused. Raises
    Refusal."""
    norm_path, se_path = _path(around.norm), _path(around.se)
    check_parameters(module)
    norm = _norm(module, around.norm)
    act_path, inside = _path(around.act), ()
    if has_act(norm):
        act_path, inside = (*norm_path, "act"), ((*norm_path, "drop"),)
    idle = [path for path in (*map(_path, around.idle), *inside) if child(module, path) is not None]
    for path in idle:
        if type(child(module, path)) is not nn.Identity:
            raise Refusal(
                f"{'.'.join(path)}: expected nothing between the norm and the SE module, "
                f"got {class_path(type(child(module, path)))}"
            )
    pre = "identity" if act_path is None else _pre(module, act_path)
    _check_se(module, se_path)

    replaced = [path for path in (act_path, *idle) if path is not None]
    named = (*around.before, *around.after, *around.idle, around.drop, around.shortcut, around.post)
    paths = dict.fromkeys(_path(name) for name in named if name is not None)
    inner = (*replaced, *paths, norm_path, se_path)
    holders = {path[:i] for path in inner for i in range(1, len(path))}
    for path in (*sorted(holders), *replaced):
        check_untouched(".".join(path), child(module, path))
    present = {path for path in paths if child(module, path) is not None}
    se = child(module, se_path)
    watch = watch_paths(
        module,
        cls,
        skipped=replaced,
        called=present,
        absent=[path for path in paths if path not in present],
        # of the norm the class may change, and it is looked at when it is called
        special={norm_path: guards.ANY, se_path: guards.watch_class(type(se), guards.OBSERVED)},
    )
    skip = around.skip
    if isinstance(skip, str):
        skip = getattr(module, skip, None) not in (None, False)
    return Tail(
        before=tuple(path for path in map(_path, around.before) if path in present),
        norm=norm_path,
        act=act_path,
        pre=pre,
        se=se_path,
        after=tuple(path for path in map(_path, around.after) if path in present),
        skip=bool(skip),
        drop=_if_in(present, around.drop),
        shortcut=_if_in(present, around.shortcut),
        in_place=around.in_place,
        post=_if_in(present, around.post),
        watch=watch,
    )


def channels_into(module: nn.Module, tail: Tail) -> int | None:
    """Of x: those of the first layer of the block that has any."""
    for path in (*tail.before, tail.norm):
        for layer in child(module, path).modules():
            channels = getattr(layer, "in_channels", None) or getattr(layer, "num_features", None)
            if channels:
                return channels
    return None


def _norm(module, name) -> nn.Module:
    norm = child(module, _path(name))
    if norm is None:
        raise Refusal(f"{name}: expected a batch norm before the SE module, got none")
    check_untouched(name, norm)
    patched = guards.patched(guards.watch_class(type(norm)))
    if patched is not None:
        raise Refusal(f"{patched} is patched")
    if not is_norm(norm, has_act(norm)):
        raise Refusal(f"{name}: expected a batch norm, got {class_path(type(norm))}")
    return norm


def _pre(module, path) -> str:
    act = child(module, path)
    found = None if act is None else act_of(act)
    if found is None or found[0] not in PRES:
        raise Refusal(
            f"{'.'.join(path)}: expected one of {', '.join(PRES)} between the norm and the SE "
            f"module, got {class_path(type(act))}"
        )
    return found[0]


def _check_se(module, path) -> None:
    se = child(module, path)
    if excitation_of(se) is None:
        plan = plan_of(se)
        name = ".".join(path)
        if plan is None:
            raise Refusal(f"{name} is not fused itself")
        raise Refusal(
            f"{name}: expected two FCs on the average of (N, C, H, W), got {plan.describe()}"
        )


def _if_in(present, name) -> Path | None:
    path = _path(name)
    return path if path in present else None


def _path(name: str | None) -> Path | None:
    return None if name is None else tuple(name.split("."))
