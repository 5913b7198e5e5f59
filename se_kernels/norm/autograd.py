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


class Results(NamedTuple):
    """What forward leaves; the rest of its numbers follow from them."""

    y: Tensor  # (N, C, H, W)
    mask: Tensor  # one bit an element, where it is kept
    norm: Tensor  # (3, C): mean, scale, bias
    rstd: Tensor  # (C)
    squeezed: Tensor  # (N, C): z; with pre="identity" the centred means, from which z follows
    a: Tensor  # (N, R)
    s: Tensor  # (N, C)


def run_forward(
    u, bn_weight, bn_bias, w1, w2, b1, b2, residual, mean, var, means, settings, keep
) -> Results:
    """The block from the norm's mean and var (C), and for pre="identity" the images' means (N, C);
    its mask is kept where asked for."""
    eps, pre, post, backend = settings.eps, settings.pre, settings.post, settings.backend
    with reference.outside_autocast(u.device.type):
        norm, rstd = solve.norm_of(mean, var, bn_weight, bn_bias, eps)
        if pre == "identity":
            squeezed = solve.centred(means, norm)
            z = solve.affine(squeezed, norm)
        else:
            z = squeezed = ops.norm_squeeze(u, norm, pre, backend)
        a, s = ops.norm_excite(z, w1, w2, b1, b2, *settings.excitation)
        keep = keep and post == "relu"
        y, mask = ops.norm_scale(u, norm, s, residual, pre, post, keep, backend)
    return Results(y, mask, norm, rstd, squeezed, a, s)


class BatchNormSqueezeExciteFunction(torch.autograd.Function):
    """A batch norm, equations 2 to 4, and their gradients on a native backend.

    ``apply(u, bn_weight, bn_bias, w1, w2, b1, b2, residual, mean, var, count, means, settings)``
    returns y. mean and var (C) are the norm's; in training mode they are functions of u, and count
    is how many numbers of a channel they are of. Saved for backward, beside the inputs: where
    post="relu" one bit per element; z or what it follows from, s (N, C),
    a (N, R), and a few numbers a channel. Under ``create_graph`` the gradients come from the
    differentiable definition.
    """

    @staticmethod
    def forward(
        ctx, u, bn_weight, bn_bias, w1, w2, b1, b2, residual, mean, var, count, means, settings
    ) -> Tensor:
        y, mask, norm, rstd, squeezed, a, s = run_forward(
            u, bn_weight, bn_bias, w1, w2, b1, b2, residual, mean, var, means, settings, True
        )
        if settings.post != "relu":
            mask = None
        of = (None, None) if settings.training else (mean, var)
        small = (norm, rstd, squeezed, a, s)
        ctx.save_for_backward(u, bn_weight, bn_bias, w1, w2, b1, b2, mask, *of, *small)
        ctx.settings, ctx.count, ctx.layout = settings, count, layout_of(u) or "nchw"
        return y

    @staticmethod
    def backward(ctx, dy):
        if torch.is_grad_enabled():
            return _differentiable_backward(ctx, dy)
        with reference.outside_autocast(dy.device.type):
            return _backward(ctx, dy)


def _backward(ctx, dy):
    saved = ctx.saved_tensors
    u, bn_weight, bn_bias, w1, w2, _, _, mask, _, _, norm, rstd, squeezed, a, s = saved
    training, pre, group, backend = (
        getattr(ctx.settings, name) for name in ("training", "pre", "group", "backend")
    )
    need_u, need_weight, need_bias, *needs, need_residual = ctx.needs_input_grad[:8]
    write = need_residual and mask is not None  # without a mask dr is dy
    solves = need_u or need_weight or need_bias or any(needs)
    if not (solves or write):
        return (*(None,) * 7, dy if need_residual else None, *(None,) * 5)

    # a hook on saved tensors may have laid u otherwise than the mask's bits; none is traced, and
    # the tracer of backward loses hold of autocast where it is asked for strides
    compiling = torch.compiler.is_compiling()
    if mask is not None and not compiling and (layout_of(u) or "nchw") != ctx.layout:
        dy, mask, write = torch.where(unpacked(mask, u, ctx.layout), dy, 0), None, False
    dr, sums = ops.norm_scale_backward(dy, u, mask, norm, pre, write, backend)
    if not solves:
        return (*(None,) * 7, dr if write else dy, *(None,) * 5)
    pixels = u.shape[2] * u.shape[3]
    _, scale, bias = norm.unbind()
    if pre == "identity":
        total, moment = sums.unbind()
        ds = torch.addcmul(scale * moment, bias, total)
        opened, opened_moment = pixels, pixels * squeezed
        z = solve.affine(squeezed, norm)
    else:
        ds, total, moment, opened, opened_moment = sums.unbind()
        z = squeezed
    dz, *weight_gradients = ops.norm_excite_backward(
        ds, z, a, s, w1, w2, *ctx.settings.excitation, needs
    )
    d = dz / pixels if pixels else dz
    d_bias = torch.addcmul(d * opened, s, total).sum(0)
    d_scale = torch.addcmul(d * opened_moment, s, moment).sum(0)
    du = None
    if training and group is not None:  # every process takes part, whatever it needs
        joint_bias, joint_scale = processes.total(torch.stack((d_bias, d_scale)), group)
    else:
        joint_bias, joint_scale = d_bias, d_scale
    if need_u:
        slope = offset = None
        if training:
            share = -scale / ctx.count
            slope = (share * rstd * (rstd * joint_scale)).to(norm.dtype)  # rstd³ may be no float
            offset = (share * joint_bias).to(norm.dtype)
        g, g_mask = (dr, None) if write else (dy, mask)
        du = ops.norm_squeeze_backward(g, u, g_mask, norm, s, d, pre, slope, offset, backend)
    return (
        du,
        (d_scale * rstd).to(bn_weight.dtype) if need_weight else None,
        d_bias.to(bn_bias.dtype) if need_bias else None,
        *(g if need else None for g, need in zip(weight_gradients, needs, strict=True)),
        (dr if write else dy) if need_residual else None,
        *(None,) * 5,
    )


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
