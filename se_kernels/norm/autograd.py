"""Batch norm and the fused block as one node of the graph."""

from typing import NamedTuple

import torch
from torch import Tensor

from se_kernels import ops, reference, solve
from se_kernels.layout import layout_of, unpacked
from se_kernels.norm import processes


class Settings(NamedTuple):
    """What a call is told beside its tensors."""

    training: bool
    momentum: float
    eps: float
    pre: str
    act: str
    act_slope: float
    gate: str
    post: str
    group: object  # of processes that share the statistics, or None
    backend: str

    @property
    def excitation(self) -> tuple[str, float, str]:
        return self.act, self.act_slope, self.gate

    @property
    def variant(self) -> dict:
        """As ``reference.batch_norm_squeeze_excite`` takes it."""
        named = dict(pre=self.pre, act=self.act, act_slope=self.act_slope, gate=self.gate)
        return named | dict(eps=self.eps, process_group=self.group)


class Statistics(NamedTuple):
    """Of a norm: its mean and var (C), or in training mode the running ones, or None; a group's
    are of ``count`` numbers per channel, exchanged already, with the images' means (N, C)."""

    mean: Tensor | None
    var: Tensor | None
    means: Tensor | None = None
    count: Tensor | None = None


def run_forward(
    u, bn_weight, bn_bias, w1, w2, b1, b2, residual, of: Statistics, settings: Settings, keep: bool
) -> tuple[Tensor, ...]:
    """What ``ops.norm_forward`` returns; the mask is kept where asked for and there is a ReLU."""
    training, momentum, eps, pre, *excitation, post, group, backend = settings
    return ops.norm_forward(
        u, bn_weight, bn_bias, of.mean, of.var, of.means, w1, w2, b1, b2, residual,
        training and group is None, momentum, eps, pre, *excitation, post,
        keep and post == "relu", backend,
    )  # fmt: skip


def move(running_mean, running_var, moved: Tensor) -> None:
    """The running statistics (C) to what the call left in ``moved`` (2, C), if anything."""
    if moved.numel():
        with torch.no_grad():  # one launch on a GPU
            torch._foreach_copy_([running_mean, running_var], list(moved.unbind()))


class BatchNormSqueezeExciteFunction(torch.autograd.Function):
    """A batch norm, equations 2 to 4, and their gradients on a native backend.

    ``apply(u, bn_weight, bn_bias, w1, w2, b1, b2, residual, *statistics, settings)`` returns y and
    the running statistics (2, C) after the call, if any; they are moved, unless traced. Saved for
    backward, beside the inputs: where post="relu" one bit per element; z or what it follows from,
    s (N, C), a (N, R), and a few numbers per channel. Under ``create_graph`` the gradients come
    from the differentiable definition.
    """

    @staticmethod
    def forward(
        ctx, u, bn_weight, bn_bias, w1, w2, b1, b2, residual, mean, var, means, count, settings
    ) -> tuple[Tensor, Tensor]:
        y, mask, numbers, a, moved = run_forward(
            u, bn_weight, bn_bias, w1, w2, b1, b2, residual, Statistics(mean, var, means),
            settings, True,
        )  # fmt: skip
        if not torch.compiler.is_compiling():  # a tracer takes no writing to inputs here
            move(mean, var, moved)
        if settings.post != "relu":
            mask = None
        of = (None, None) if settings.training else (mean, var)
        ctx.save_for_backward(u, bn_weight, bn_bias, w1, w2, b1, b2, mask, *of, numbers, a)
        ctx.settings, ctx.count, ctx.layout = settings, count, layout_of(u) or "nchw"
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(moved)
        return y, moved

    @staticmethod
    def backward(ctx, dy, _):
        if dy is None:
            return (None,) * 13
        if torch.is_grad_enabled():
            return _differentiable_backward(ctx, dy)
        return _backward(ctx, dy)


def _backward(ctx, dy):
    saved = ctx.saved_tensors
    u, bn_weight, bn_bias, w1, w2, _, _, mask, _, _, numbers, a = saved
    training, group, backend = (
        getattr(ctx.settings, name) for name in ("training", "group", "backend")
    )
    need_u, need_weight, need_bias, *needs, need_residual = ctx.needs_input_grad[:8]
    # a hook on saved tensors may have laid u otherwise than the mask's bits; none is traced, and
    # the tracer of backward loses hold of autocast where it is asked for strides
    compiling = torch.compiler.is_compiling()
    elsewhere = not compiling and (layout_of(u) or "nchw") != ctx.layout
    solves = need_u or need_weight or need_bias or any(needs)
    if mask is not None and (elsewhere or not solves):
        dy, mask = torch.where(unpacked(mask, u, ctx.layout), dy, 0), None
    if not solves:
        return (*(None,) * 7, dy if need_residual else None, *(None,) * 5)
    write = need_residual and mask is not None  # without a mask dr is dy
    joint = training and group is not None
    wants = [need_u and not joint, write, need_u and joint, *needs]
    d_weight, d_bias, du, dr, d, *weight_gradients = ops.norm_backward(
        dy, u, mask, numbers, a, w1, w2, training, ctx.settings.pre, *ctx.settings.excitation,
        wants, backend,
    )  # fmt: skip
    if joint:  # every process takes part, whatever it needs
        of_all = processes.total(torch.stack((d_weight, d_bias)), group)
        if need_u:
            adds = solve.through_statistics(numbers[:4], *of_all, ctx.count)
            g, g_mask = (dr, None) if write else (dy, mask)
            s = numbers[4 + u.shape[0] :]
            du = ops.norm_squeeze_backward(
                g, u, g_mask, numbers[:3], s, d, ctx.settings.pre, *adds, backend
            )
    return (
        du if need_u else None,
        _as(d_weight, bn_weight) if need_weight else None,
        _as(d_bias, bn_bias) if need_bias else None,
        *(g if need else None for g, need in zip(weight_gradients, needs, strict=True)),
        (dr if write else dy) if need_residual else None,
        *(None,) * 5,
    )


def _as(gradient, parameter):
    """In the dtype of the parameter."""
    return gradient if gradient.dtype == parameter.dtype else gradient.to(parameter.dtype)


def _differentiable_backward(ctx, dy):
    u, bn_weight, bn_bias, w1, w2, b1, b2, mask, mean, var, *_ = ctx.saved_tensors
    settings = ctx.settings
    g = dy
    if mask is not None:
        g = torch.where(unpacked(mask, u, ctx.layout), dy, 0)
    need = ctx.needs_input_grad[:7]
    # aliases: a gradient must not run on through what w1 and the others were made from
    inputs = [None if t is None else t.view_as(t) for t in (u, bn_weight, bn_bias, w1, w2, b1, b2)]
    wanted = [t for t, needed in zip(inputs, need, strict=True) if needed]
    grads = iter(())
    if wanted:
        out = reference.batch_norm_squeeze_excite(
            *inputs[:3], mean, var, *inputs[3:], **settings.variant
        )
        with reference.outside_autocast(u.device.type):
            grads = iter(torch.autograd.grad(out, wanted, g, create_graph=True))
    first = [next(grads) if needed else None for needed in need]
    return (*first, g if ctx.needs_input_grad[7] else None, *(None,) * 5)
