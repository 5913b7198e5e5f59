"""prune_by_gate: a network without the SE blocks whose gates do nothing (sections 7.2 and 8)."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from se_kernels import reference
from se_kernels.gates.constant import ConstantGate
from se_kernels.gates.layers import se_layers
from se_kernels.gates.moments import Moments
from se_kernels.gates.prune_report import PruneReport
from se_kernels.gates.record import record_gates
from se_kernels.modules.observers import Args, Kwargs, inputs_of
from se_kernels.surgery.call import layer_plan_of

CONSTANTS = ("one", "mean")
BATCH = 64  # images of one call, where they come as one tensor


def prune_by_gate(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    fraction: float,
    *,
    constant: str = "one",
    tolerance: float = 0.1,
) -> PruneReport:
    """Removes, in place, the SE blocks whose gates are saturated near one (section 7.2).

    The blocks are ranked by how far their gates are from one on ``images``; the nearest are
    replaced by a ``ConstantGate``: no pooling, no FCs, no parameters. Two things follow. The pruned
    network is *exactly* the original with those gates held at one, which is checked on the images
    (a difference beyond rounding undoes everything). It is *approximately* the original: by how
    much is in the report, beside the number of predictions that changed. Train it further where
    that is too much.

    The model runs in eval mode without gradients, and is left in the mode it came in. An optimizer
    still holds the parameters of removed blocks: make it anew.

    Args:
        model: as in ``record_gates``; not an SE block itself.
        images: (N, C, H, W), on the model's device; or batches of them to go through twice (a list,
            a DataLoader), each a tensor or a tuple that begins with one. A few hundred that are
            like those of training.
        fraction: above 0, at most 1: of the SE blocks, how many may be removed at most, rounded
            down.
        constant: what the gates of a removed block become: "one", or "mean", each channel's mean
            over the images. With "mean" a block is removed where its gates vary little from image
            to image, wherever they are, and a buffer of C numbers stays.
        tolerance: a block is removed only if the distance of its gates from the constant (root mean
            square) is at most this.

    Example:
        >>> model = se_kernels.models.se_mobilenet()
        >>> report = se_kernels.prune_by_gate(model, torch.randn(8, 3, 64, 64), 0.25, tolerance=1.0)
        >>> len(report.removed)
        3

    Raises:
        TypeError: ``images`` are neither, or can be gone through once only.
        ValueError: the model has no SE block, is one, or is compiled; no image; or a number or name
            not as above; a ``fraction`` of less than one block.
        RuntimeError: the pruned model is not the original with constant gates: the model is as it
            was.
    """
    layers = se_layers(model)
    if "" in layers:
        raise ValueError(f"model: expected a model around SE blocks, got {type(model).__name__}")
    if constant not in CONSTANTS:
        raise ValueError(f"constant: expected one of {', '.join(CONSTANTS)}; got {constant!r}")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction: expected more than 0, at most 1, got {fraction}")
    most = math.floor(fraction * len(layers) + 1e-9)
    if most == 0:
        raise ValueError(
            f"fraction: expected at least {1 / len(layers):.3g}, one of {len(layers)} SE blocks, "
            f"got {fraction}"
        )
    if not tolerance >= 0:
        raise ValueError(f"tolerance: expected 0 or more, got {tolerance}")
    batches = _batches(images)
    before = _count(model)
    with _evaluating(model):
        moments, count = _moments(model, batches)
        distances = _distances(moments, constant)
        removed = [name for name in list(distances)[:most] if distances[name] <= tolerance]
        gates = {
            name: ConstantGate(
                None if constant == "one" else moments.mean(name).to(_dtype_of(layers[name])),
                post=getattr(layers[name], "post", "none"),
                nhwc=getattr(layer_plan_of(layers[name]), "nhwc", False),
            )
            for name in removed
        }
        replacements = {layers[name]: gate for name, gate in gates.items()}
        differences = _compare(model, batches if removed else (), replacements)
    allowed = differences.rounding
    if not differences.exact <= allowed:
        raise RuntimeError(
            "prune_by_gate: expected the outputs of the model with constant gates, within "
            f"{allowed:.2g}, got a difference of {differences.exact:.2g}; the model is as it was"
        )
    _replace(model, replacements)
    return PruneReport(
        model=type(model).__name__,
        images=count,
        constant=constant,
        tolerance=tolerance,
        distances=distances,
        mean_gates={name: moments.mean(name).float() for name in distances},
        removed=tuple(removed),
        parameters=(before, _count(model)),
        exact=differences.exact,
        approximate=differences.approximate,
        largest=differences.largest,
        changed=differences.changed,
    )


def _batches(images: Any) -> Iterable[Any]:
    if isinstance(images, Tensor):
        if images.dim() != 4:
            raise ValueError(f"images: expected (N, C, H, W), got {tuple(images.shape)}")
        parts: tuple[Tensor, ...] = images.split(BATCH)
        return parts
    if not isinstance(images, Iterable) or isinstance(images, Iterator):
        raise TypeError(
            "images: expected a tensor, or batches that can be gone through twice (a list, a "
            f"DataLoader), got {type(images).__name__}"
        )
    return images


def _tensors(batches: Iterable[Any]) -> Iterator[Tensor]:
    for batch in batches:
        images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        if not isinstance(images, Tensor):
            raise TypeError(
                "images: expected batches that are tensors, or tuples that begin with one, got "
                f"{type(batch).__name__}"
            )
        if len(images):
            yield images


def _moments(model: nn.Module, batches: Iterable[Any]) -> tuple[Moments, int]:
    moments, count = Moments(), 0
    with record_gates(model) as gates:
        for images in _tensors(batches):
            model(images)
            moments.add(gates)
            gates.clear()
            count += len(images)
    if count == 0:
        raise ValueError("images: expected at least one, got none")
    return moments, count


def _distances(moments: Moments, constant: str) -> dict[str, float]:
    """Name → distance, the nearest first; a gate that is not a number comes last."""
    to = 1.0 if constant == "one" else None
    found = {name: moments.distance(name, to) for name in moments.names}
    return dict(sorted(found.items(), key=lambda item: (math.isnan(item[1]), item[1])))


class _Differences(NamedTuple):
    exact: float
    approximate: float
    largest: float
    changed: int | None
    rounding: float  # the most that ``exact`` may be: √ε of the largest output


def _compare(
    model: nn.Module, batches: Iterable[Any], replacements: dict[nn.Module, ConstantGate]
) -> _Differences:
    """The model as it was, with constant gates, and with the replacements, batch by batch."""
    sizes, eps = [[0.0, 0.0, 0.0, 0.0]], 0.0
    changed: int | None = 0
    for images in _tensors(batches):
        original = _outputs(model(images))
        with _held(replacements):
            held = _outputs(model(images))
        with _replaced(model, replacements):
            pruned = _outputs(model(images))
        compared = (pruned - held, pruned - original, original, held)
        sizes.append([_largest(outputs) for outputs in compared])
        eps = torch.finfo(original.dtype).eps
        if original.dim() == 2 and changed is not None:
            changed += int((pruned.argmax(1) != original.argmax(1)).sum())
        else:
            changed = None
    # NaN, where one was NaN
    exact, approximate, largest, size = torch.tensor(sizes, dtype=torch.float64).amax(0).tolist()
    return _Differences(exact, approximate, largest, changed, eps**0.5 * size)


def _largest(outputs: Tensor) -> float:
    return outputs.abs().max().item() if outputs.numel() else 0.0


def _outputs(outputs: Any) -> Tensor:
    """Logits (N, K) as they are; several tensors (feature maps) as one."""
    outputs = getattr(outputs, "logits", outputs)
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, (list, tuple)) and all(isinstance(t, Tensor) for t in outputs):
        return torch.cat([t.flatten() for t in outputs])
    raise TypeError(
        "model: expected outputs that are a tensor, have logits or are a list of tensors, got "
        f"{type(outputs).__name__}"
    )


@contextmanager
def _held(replacements: dict[nn.Module, ConstantGate]) -> Iterator[None]:
    """The SE blocks of the model themselves, by the definition, with s held at the constant."""
    with ExitStack() as stack:
        for module, gate in replacements.items():
            hook = module.register_forward_hook(partial(_hold, gate), with_kwargs=True)
            stack.callback(hook.remove)
        yield


def _hold(gate: ConstantGate, module: nn.Module, args: Args, kwargs: Kwargs, y: Tensor) -> Tensor:
    x, residual = inputs_of(args, kwargs)
    x = x.permute(0, 3, 1, 2) if gate.nhwc else x
    s = x.new_ones(x.shape[1]) if gate.s is None else gate.s
    y = reference.squeeze_excite(
        x,
        excitation=lambda z: s.expand(len(z), -1),
        residual=residual,
        post=gate.post,
    )
    return y.permute(0, 2, 3, 1) if gate.nhwc else y


@contextmanager
def _replaced(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> Iterator[None]:
    _replace(model, replacements)
    try:
        yield
    finally:
        _replace(model, {gate: module for module, gate in replacements.items()})


def _replace(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """At every name that a module is reached by."""
    for parent in list(model.modules()):
        for name, module in list(parent._modules.items()):
            if module is not None and module in replacements:
                setattr(parent, name, replacements[module])


def _dtype_of(module: nn.Module) -> torch.dtype:
    """Of the sums."""
    wide = any(p.dtype == torch.float64 for p in module.parameters())
    return torch.float64 if wide else torch.float32


def _count(model: nn.Module) -> int:
    """Parameters, and the numbers of constant gates, which take their place."""
    constants = (m.s for m in model.modules() if isinstance(m, ConstantGate) and m.s is not None)
    return sum(t.numel() for t in (*model.parameters(), *constants))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
