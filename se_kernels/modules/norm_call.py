"""A batch norm module before the block: what its own forward would do, and the fused call."""

from typing import Any

import torch.distributed as dist
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.compiler import is_exporting

from se_kernels import reference
from se_kernels.core import guards
from se_kernels.core.precision import norm_compute_dtype
from se_kernels.functional import batch_norm_squeeze_excite
from se_kernels.modules.recognition import are_plain, class_path, is_plain

# One is passed as Any: its attributes may be what nn.BatchNorm2d has there, or of other types.
NORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm2d, nn.SyncBatchNorm)
# torchvision's, by name, and timm's with the activation in it: all their numbers are buffers
FROZEN = (
    "torchvision.ops.misc.FrozenBatchNorm2d",
    "timm.layers.norm_act.FrozenBatchNormAct2d",
)


def is_batch_norm(norm: Any, classes: tuple[type[nn.Module], ...] = NORMS) -> bool:
    """Whether a call of ``norm`` is a batch norm of its parameters and buffers, and no more."""
    if is_exporting() and _is_training(norm):
        return False  # what quantises an exported program, or moves it to evaluation, looks for it
    cls = type(norm)
    if class_path(cls) == FROZEN[0]:
        classes = (*classes, cls)
    return is_plain(norm, *classes) and are_plain(
        norm.weight, norm.bias, norm.running_mean, norm.running_var
    )


def run(norm: Any, u: Tensor, *fcs: Any, **variant: Any) -> Tensor:
    """``batch_norm_squeeze_excite`` of u (N, C, H, W) as ``norm`` would normalise it.

    ``norm`` has the attributes of ``nn.BatchNorm2d`` or ``nn.SyncBatchNorm``, all of which are
    read at each call: its mode, its momentum (None for a plain mean over the batches), whether it
    has parameters and statistics. Its statistics and its count of batches are kept as by its own
    forward. Errors, fcs and variant are those of ``batch_norm_squeeze_excite``.
    """
    training = _is_training(norm)
    momentum = norm.momentum if training and norm.momentum is not None else 0.0
    count = norm.num_batches_tracked if training and norm.track_running_stats else None
    if count is not None and norm.momentum is None:
        momentum = 1.0 / float(count + 1)
    kept = not training or norm.track_running_stats
    mean, var = (norm.running_mean, norm.running_var) if kept else (None, None)
    try:
        y = batch_norm_squeeze_excite(
            u,
            norm.weight,
            norm.bias,
            mean,
            var,
            *fcs,
            training=is_of_the_batch(norm),
            momentum=_number(momentum),
            eps=_number(norm.eps),
            process_group=_group(norm),
            **variant,
        )
    except _STOPPED:
        _add_one(count)
        raise
    _add_one(count)  # once nothing was refused
    return y


# a checkpoint that recomputes ends the call once it has what backward needs: statistics have moved
_STOPPED = getattr(torch.utils.checkpoint, "_StopRecomputationError", ())


def _add_one(count: Tensor | None) -> None:
    if count is not None:
        count.add_(1)


def inferred_with(norm: nn.Module) -> tuple[Any, ...] | None:
    """weight, bias, mean, var and eps of a norm in evaluation mode that keeps them where its class
    does; None for any other."""
    guard = _INFERENCE.get(type(norm))
    if guard is None or not guards.is_valid(norm, guard):
        return None
    state = norm.__dict__
    parameters, buffers = state["_parameters"], state["_buffers"]
    if not ("weight" in parameters and "running_mean" in buffers):
        return None
    mean, var = buffers["running_mean"], buffers["running_var"]
    return parameters["weight"], parameters["bias"], mean, var, state["eps"]


_TENSORS = ("weight", "bias", "running_mean", "running_var")
_INFERENCE = {
    cls: watch._replace(unset=(*watch.unset, *_TENSORS), settings=(("training", False),))
    for cls, watch in ((cls, guards.watch_class(cls)) for cls in NORMS)
}


def normed(norm: Any, u: Tensor, pre: str) -> Tensor:
    """v (N, C, H, W) as ``run`` has it, by the definition, which leaves the statistics alone."""
    dtype = norm_compute_dtype(u, norm.weight, u)
    of: tuple[Any, Any] = (
        (None, None) if is_of_the_batch(norm) else (norm.running_mean, norm.running_var)
    )
    how: dict[str, Any] = dict(eps=_number(norm.eps), pre=pre, process_group=_group(norm))
    return reference.normed(u, norm.weight, norm.bias, *of, dtype, **how)


def _number(value: Any) -> float:
    """Of a momentum or eps that is a tensor or NumPy's, as torch takes them."""
    return value if type(value) in (float, int) else float(value)


def is_frozen(norm: nn.Module) -> bool:
    """Whether it never takes statistics of the batch."""
    return class_path(type(norm)) in FROZEN


def _is_training(norm: nn.Module) -> bool:
    return norm.training and not is_frozen(norm)


def is_of_the_batch(norm: Any) -> bool:
    """Whether it normalises by the statistics of the batch."""
    return _is_training(norm) or (norm.running_mean is None and norm.running_var is None)


def _group(norm: nn.Module) -> "dist.ProcessGroup | None":
    """The processes whose batches are normalised together; None: this one's alone."""
    if not (norm.training and isinstance(norm, nn.SyncBatchNorm)):
        return None
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = norm.process_group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None
