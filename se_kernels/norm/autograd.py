"""Batch norm and the fused block as one node of the graph."""

from typing import NamedTuple

import torch
from torch import Tensor

from se_kernels import batch_statistics, ops, reference
from se_kernels.autograd import gradients_of, keep_mask, lies_as, of_op, only_needed
from se_kernels.layout import masked
from se_kernels.norm import processes


class Statistics(NamedTuple):
    """Of a norm: its mean and var (C), or in training mode the running ones, or None; a group's
    are of ``count`` numbers per channel, exchanged already, with the images' means (N, C)."""

    mean: Tensor | None
    var: Tensor | None
    means: Tensor | None = None
    count: Tensor | None = None


class Joint(NamedTuple):
    """The processes whose batches are normalised together, and how many numbers per channel."""

    group: object
    count: Tensor


def move(running_mean, running_var, moved: Tensor, backend: str) -> None:
    """The running statistics (C) to what the call left in ``moved`` (2, C), if anything."""
    if not moved.numel():
        return
    if backend == "cpu" or torch.compiler.is_compiling():
        running_mean.copy_(moved[0])
        running_var.copy_(moved[1])
    else:
        torch._foreach_copy_((running_mean, running_var), moved.unbind())  # one launch


class BatchNormSqueezeExciteFunction(torch.autograd.Function):
    """A batch norm, equations 2 to 4, and their gradients on a native backend.

    ``apply(joint, *tensors, settings, backend)`` takes the ``Joint`` processes, or None, and the
    arguments of ``ops.norm_forward``, of which those between the tensors and the backend are a
    tuple; it returns y and moves the running statistics, if any. Saved for backward, beside the
    inputs: for post="relu" one bit per element; z or what it follows from, s (N, C), a (N, R), and
    a few numbers per channel. Under ``create_graph`` the gradients come from the differentiable
    definition.
    """

    @staticmethod
    def forward(ctx, *args) -> Tensor:
        y, *_, moved = BatchNormSqueezeExciteFunction.run(ctx, *args)
        _, _, _, _, mean, var, *_, backend = args
        move(mean, var, moved, backend)
        return y

    @staticmethod
    def run(
        ctx, joint, u, bn_weight, bn_bias, mean, var, means, w1, w2, b1, b2, residual, settings,
        backend,
    ):  # fmt: skip
        training, momentum, eps, *variant, post, _ = settings
        outputs = ops.below(
            ops.norm_forward, u, bn_weight, bn_bias, mean, var, means, w1, w2, b1, b2, residual,
            training, momentum, eps, *variant, post, post == "relu", backend,
        )  # fmt: skip
        _, mask, numbers, a, _ = outputs
        mask, ctx.layout = keep_mask(mask, u, post)
        of = (None, None) if training or joint is not None else (mean, var)
        ctx.save_for_backward(u, bn_weight, bn_bias, w1, w2, b1, b2, mask, *of, numbers, a)
        ctx.joint, ctx.training, ctx.backend = joint, training or joint is not None, backend
        ctx.eps, ctx.variant = eps, variant
        return outputs

    @staticmethod
    def backward(ctx, dy, *_):
        if dy is None:
            return (None,) * 14
        saved = ctx.saved_tensors  # which a checkpoint lets be read once
        u, bn_weight, bn_bias, w1, w2, b1, b2, mask, mean, var, _, _ = saved
        wanted = ctx.needs_input_grad
        needs, need_residual = [*wanted[1:4], *wanted[7:11]], wanted[11]
        again = torch.is_grad_enabled()
        if mask is not None and (again or not (any(needs) and lies_as(u, ctx.layout))):
            dy, mask = masked(dy, mask, u, ctx.layout), None
        if again:
            pre, act, act_slope, gate = ctx.variant
            group = None if ctx.joint is None else ctx.joint.group
            variant = dict(pre=pre, act=act, act_slope=act_slope, gate=gate, eps=ctx.eps)

            def definition(u, bn_weight, bn_bias, *fcs):
                return reference.batch_norm_squeeze_excite(
                    u, bn_weight, bn_bias, mean, var, *fcs, **variant, process_group=group
                )

            inputs = u, bn_weight, bn_bias, w1, w2, b1, b2
            gradients = gradients_of(definition, inputs, needs, dy)
        elif any(needs):
            dy, gradients = _gradients(ctx, saved, dy, mask, needs, need_residual)
        else:
            gradients = (None,) * 7
        du_and_norm, fcs = gradients[:3], gradients[3:]
        dr = dy if need_residual else None
        return None, *du_and_norm, None, None, None, *fcs, dr, None, None


def _gradients(ctx, saved, dy, mask, needs, need_residual):
    """g (N, C, H, W) if the residual needs it, and the gradients of u, bn_weight, bn_bias, w1, w2,
    b1, b2."""
    u, bn_weight, bn_bias, w1, w2, *_, numbers, a = saved
    need_u, _, _, *need_fcs = needs
    pre, *excitation = ctx.variant
    joint = ctx.joint
    write = need_residual and mask is not None  # without a mask dr is dy
    wants = [need_u and joint is None, write, need_u and joint is not None, *need_fcs]
    d_weight, d_bias, du, dr, d, *fcs = ops.below(
        ops.norm_backward, dy, u, mask, numbers, a, w1, w2, ctx.training, pre, *excitation, wants,
        ctx.backend,
    )  # fmt: skip
    if joint is not None:  # every process takes part, whatever it needs
        of_all = processes.total(torch.stack((d_weight, d_bias)), joint.group)
        if need_u:
            adds = batch_statistics.through_statistics(numbers[:4], *of_all, joint.count)
            g, g_mask = (dr, None) if write else (dy, mask)
            s = numbers[4 + u.shape[0] :]
            du = ops.below(
                ops.norm_squeeze_backward, g, u, g_mask, numbers[:3], s, d, pre, *adds, ctx.backend
            )
    return dr if write else dy, only_needed(
        (du, _as(d_weight, bn_weight), _as(d_bias, bn_bias), *fcs), needs
    )


def _as(gradient, parameter):
    """In the dtype of the parameter, if there is one."""
    if parameter is None or gradient.dtype == parameter.dtype:
        return gradient
    return gradient.to(parameter.dtype)


def _apply(*args):
    tensors, settings, backend = args[:11], args[11:-1], args[-1]
    if args[5] is not None:  # means: of several processes, whose exchange a graph does not hold
        raise RuntimeError(
            "se_kernels::norm_forward: expected no means with a gradient; statistics of several "
            "processes are differentiable through batch_norm_squeeze_excite alone"
        )
    y, mask, *rest = _NormOp.apply(None, *tensors, settings, backend)
    return y, mask if settings[-1] else mask.new_empty(0), *rest


def _apply_inference(u, bn_weight, bn_bias, mean, var, eps, w1, w2, b1, b2, residual, *variant):
    *variant, backend = variant
    tensors = u, bn_weight, bn_bias, mean, var, None, w1, w2, b1, b2, residual
    settings = False, 0.0, eps, *variant, True
    return BatchNormSqueezeExciteFunction.apply(None, *tensors, settings, backend)


_NormOp = of_op(BatchNormSqueezeExciteFunction)
ops.set_autograd(ops.norm_forward, _apply)
ops.set_autograd(ops.norm_inference, _apply_inference)
