"""A batch norm and the block as a function, batch_norm_squeeze_excite."""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from se_kernels import batch_statistics, direct, dispatch, ops, reference
from se_kernels.checks import check_arguments, check_batch_norm
from se_kernels.functional import squeeze_excite, under_transform
from se_kernels.norm import processes
from se_kernels.norm.autograd import (
    BatchNormSqueezeExciteFunction,
    Joint,
    Statistics,
    move,
)


def batch_norm_squeeze_excite(
    u: Tensor,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    w1: Tensor,
    w2: Tensor,
    b1: Tensor | None = None,
    b2: Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    pre: str = "identity",
    squeeze: str = "avg",
    act: str = "relu",
    act_slope: float = 0.01,
    gate: str = "sigmoid",
    residual: Tensor | None = None,
    post: str = "none",
    y_is_kept: bool | None = None,
    process_group=None,
    backend: str | None = None,
) -> Tensor:
    """A batch norm, an activation and the squeeze-and-excitation block, fused.

    v = pre(batch norm of u), y = post(s * v + residual), s = gate(W2 act(W1 z + b1) + b2),
    z = squeeze of v over H and W: equations 2 to 4 of the paper with the norm before them (Fig. 3).

    Args:
        u: (N, C, H, W), float32, float64, bfloat16 or float16: what a convolution gives. It is read
            where it lies as x is in ``squeeze_excite``.
        bn_weight, bn_bias: (C,) or None for 1 and 0; any float dtype.
        running_mean, running_var: (C,), any float dtype, updated in place in training mode; None
            keeps none.
        w1, w2, b1, b2, act, act_slope, gate, residual, post, backend: as in ``squeeze_excite``, of
            v in place of x.
        training: True normalises by the mean and the biased variance of the batch and moves the
            running statistics towards them (the variance unbiased) as ``torch.nn.BatchNorm2d``
            does; False normalises by the running statistics, which are then constants.
        momentum: the share of the new statistics in the running ones.
        eps: added to the variance; above 0 in training mode.
        pre: between the norm and the squeeze: "identity", "relu", "silu" or "hardswish".
        squeeze: "avg"; with "max" or "avgmax" the norm runs apart from the block, in eager.
        y_is_kept: deprecated and without effect; backward always reads one bit per element.
        process_group: of ``torch.distributed``: in training mode the statistics, and their
            gradients, are those of all its processes' batches, as in ``torch.nn.SyncBatchNorm``.

    Returns:
        y (N, C, H, W) in u's dtype and layout.

    Sums are carried in float32, or in float64 where u or a weight is float64; the variance is that
    of the numbers less their mean, never a difference of squares. Results are bitwise the same from
    run to run at a fixed number of threads. Differentiable, twice too. Backward keeps u and, for
    post="relu", one bit per element.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: an argument of another shape or device, an unknown name, one value per channel
            in training mode (of one process), no running statistics in evaluation mode, or a named
            backend that does not serve u's device.
        RuntimeError: a named backend that was not built.
    """
    if y_is_kept is not None:
        warnings.warn(
            "y_is_kept is deprecated and has no effect: backward reads one bit per element",
            DeprecationWarning,
            stacklevel=2,
        )
    if training is False and direct.is_open(backend):
        y = direct.run_norm(
            u, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post,
            bn_weight, bn_bias, running_mean, running_var, eps, pre,
        )  # fmt: skip
        if y is not None:
            return y
    check_batch_norm(
        u, bn_weight, bn_bias, running_mean, running_var, training, momentum, eps, pre,
        processes.size(process_group) > 1,
    )  # fmt: skip
    check_arguments(u, w1, w2, b1, b2, squeeze, act, act_slope, gate, residual, post, images="u")
    name = dispatch.choose(u, backend)
    group = process_group if training else None
    fcs, variant = (w1, w2, b1, b2, residual), (pre, act, act_slope, gate, post)
    norm, running = (u, bn_weight, bn_bias), (running_mean, running_var)
    # without an element the sweeps only serve the processes that have some
    sweeps = squeeze == "avg" and name != dispatch.REFERENCE and not under_transform()
    if not sweeps or (u.numel() == 0 and group is None):
        return _apart(
            norm, running, fcs, training, momentum, name, eps=eps, pre=pre, squeeze=squeeze,
            act=act, act_slope=act_slope, gate=gate, post=post, process_group=group,
        )  # fmt: skip
    grads = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (*norm, *fcs)
    )
    if not (training or grads):
        return ops.below(ops.norm_inference, *norm, *running, eps, *fcs, *variant, name)

    of, joint = Statistics(*running), None
    if group is not None:
        wide = reference.norm_compute_dtype(u, bn_weight, w1) == torch.float64
        with torch.no_grad():
            of = _of_all(u, *running, momentum, wide, group, name)
        joint = Joint(group, of.count)
    tensors = *norm, of.mean, of.var, of.means, *fcs
    settings = training and group is None, momentum, eps, *variant, grads and post == "relu"
    # traced, the op itself: it has its gradients at hand, and nothing is written in a Function
    traced = torch.compiler.is_compiling()
    if grads and (joint is not None or not traced):
        return BatchNormSqueezeExciteFunction.apply(joint, *tensors, settings, name)
    y, *_, moved = ops.below(ops.norm_forward, *tensors, *settings, name)
    move(*running, moved, name)
    return y


def _of_all(u, running_mean, running_var, momentum, wide, group, backend) -> Statistics:
    """Those of all the group's processes, towards which the running ones move."""
    means, m2 = ops.below(ops.norm_moments, u, wide, backend)
    mean, m2 = batch_statistics.of_images(means, m2, u.shape[2] * u.shape[3])
    count = u.shape[0] * u.shape[2] * u.shape[3]
    mean, m2, count = processes.statistics(mean, m2, count, group)
    _move(running_mean, running_var, mean, m2, count, momentum)
    return Statistics(mean, m2 / count.clamp(min=1), means, count)


def _apart(norm, running, fcs, training, momentum, backend, **variant) -> Tensor:
    """The norm in eager, then the block: by its definition, or with a maximum on its backend."""
    (u, bn_weight, _), (*weights, residual) = norm, fcs
    dtype = reference.norm_compute_dtype(u, bn_weight, weights[0])
    how = {name: variant[name] for name in ("eps", "pre", "process_group")}
    if training:
        with torch.no_grad(), reference.outside_autocast(u.device.type):
            _move_of(u.to(dtype), *running, momentum, how["eps"], how["process_group"])
        running = None, None
    if backend == dispatch.REFERENCE or under_transform() or variant["squeeze"] == "avg":
        return reference.batch_norm_squeeze_excite(
            *norm, *running, *weights, residual=residual, **variant
        )
    v = reference.normed(*norm, *running, dtype, **how).to(u.dtype)
    block = {name: value for name, value in variant.items() if name not in how}
    return squeeze_excite(v, *weights, residual=residual, backend=backend, **block)


def _move_of(u, running_mean, running_var, momentum, eps, group) -> None:
    """The running statistics towards those of u (N, C, H, W)."""
    count = u.shape[0] * u.shape[2] * u.shape[3]
    if under_transform() and group is None:
        if running_mean is not None and count > 0:
            # torch moves them through a transform, without a tangent, or says why it cannot
            F.batch_norm(
                u.to(running_mean.dtype), running_mean, running_var, None, None, True, momentum, eps
            )
        return
    mean, m2 = batch_statistics.of_batch(u)
    if group is not None:
        mean, m2, count = processes.statistics(mean, m2, count, group)
    _move(running_mean, running_var, mean, m2, count, momentum)


def _move(running_mean, running_var, mean, m2, count: int | Tensor, momentum) -> None:
    """The running statistics, where there are any, towards mean and m2 (C) of ``count`` numbers a
    channel (a tensor: of all processes), unless these are none."""
    if running_mean is None or (not _is_of_all(count) and count == 0):
        return
    running = running_mean, running_var
    for old, new in zip(
        running, batch_statistics.moved(*running, mean, m2, count, momentum), strict=True
    ):
        old.copy_(torch.where(count > 0, new, old) if _is_of_all(count) else new)


def _is_of_all(count: int | Tensor) -> bool:
    return isinstance(count, Tensor)
