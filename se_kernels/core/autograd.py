"""The gradients of the block as one node of the graph, with a batch norm before it or without."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from se_kernels import reference
from se_kernels.core import batch_statistics, distributed, ops
from se_kernels.core.differentiation import (
    Undifferentiable,
    gradients_of,
    keep_mask,
    lies_as,
    of_op,
    only_needed,
)
from se_kernels.core.layout import masked
from se_kernels.core.running_statistics import store_moved


class SqueezeExciteFunction(torch.autograd.Function):
    """Equations 2 to 4 and their gradients on a native backend.

    ``apply`` takes the arguments of ``ops.forward`` and returns y. Saved for backward, beside the
    inputs: z (N, C), a (N, R), s (N, C), and for post="relu" one bit per element. Only the
    gradients that are needed are computed. Under ``create_graph`` they come from the differentiable
    definition, so that they can be differentiated again.
    """

    @staticmethod
    def forward(ctx, *args) -> Tensor:
        return SqueezeExciteFunction.run(ctx, *args)[0]

    @staticmethod
    def run(ctx, x, w1, w2, b1, b2, residual, *variant):
        outputs = ops.below(ops.forward, x, w1, w2, b1, b2, residual, *variant)
        _, mask, z, a, s = outputs
        ctx.excitation, ctx.backend = variant[:4], variant[5]
        mask, ctx.layout = keep_mask(mask, x, variant[4])
        ctx.save_for_backward(x, w1, w2, b1, b2, mask, z, a, s)
        return outputs

    @staticmethod
    def backward(ctx, dy, *_):
        if dy is None:
            return (None,) * 12
        x, w1, w2, b1, b2, mask, z, a, s = ctx.saved_tensors
        *needs, need_dr = ctx.needs_input_grad[:6]
        squeeze, act, act_slope, gate = ctx.excitation
        variant = dict(squeeze=squeeze, act=act, act_slope=act_slope, gate=gate)

        def native(dy, mask, write_dr):
            need_dx, *need_weights = needs
            wants = [need_dx, write_dr, *need_weights]
            dx, dr, *gradients = ops.below(
                ops.backward, dy, x, w1, w2, mask, z, a, s, *ctx.excitation, wants, ctx.backend
            )
            return dr, (dx, *gradients)

        definition = partial(reference.squeeze_excite, **variant)
        inputs = x, w1, w2, b1, b2
        dr, gradients = _gradients(ctx.layout, dy, mask, inputs, needs, need_dr, definition, native)
        return *gradients, dr if need_dr else None, *(None,) * 6


class Joint(NamedTuple):
    """The processes whose batches are normalised together, and how many numbers per channel."""

    group: object
    count: Tensor


class BatchNormSqueezeExciteFunction(torch.autograd.Function):
    """A batch norm, equations 2 to 4, and their gradients on a native backend.

    ``apply(joint, *args)`` takes the ``Joint`` processes, or None, and the arguments of
    ``ops.norm_forward``, returns y and moves the running statistics, if any. Saved for backward,
    beside the inputs: for post="relu" one bit per element; z or what it follows from, s (N, C),
    a (N, R), and a few numbers per channel. Under ``create_graph`` the gradients come from the
    differentiable definition.
    """

    @staticmethod
    def forward(ctx, *args) -> Tensor:
        y, *_, moved = BatchNormSqueezeExciteFunction.run(ctx, *args)
        _, _, _, _, mean, var, *_, backend = args
        store_moved(mean, var, moved, backend)
        return y

    @staticmethod
    def run(
        ctx, joint, u, bn_weight, bn_bias, mean, var, means, w1, w2, b1, b2, residual,
        training, momentum, eps, pre, act, act_slope, gate, post, keep, backend,
    ):  # fmt: skip
        outputs = ops.below(
            ops.norm_forward, u, bn_weight, bn_bias, mean, var, means, w1, w2, b1, b2, residual,
            training, momentum, eps, pre, act, act_slope, gate, post, post == "relu", backend,
        )  # fmt: skip
        _, mask, numbers, a, _ = outputs
        mask, ctx.layout = keep_mask(mask, u, post)
        of = (None, None) if training or joint is not None else (mean, var)
        ctx.save_for_backward(u, bn_weight, bn_bias, w1, w2, b1, b2, mask, *of, numbers, a)
        ctx.joint, ctx.training, ctx.backend = joint, training or joint is not None, backend
        ctx.eps, ctx.variant = eps, (pre, act, act_slope, gate)
        return outputs

    @staticmethod
    def backward(ctx, dy, *_):
        if dy is None:
            return (None,) * 22
        saved = ctx.saved_tensors  # which a checkpoint lets be read once
        *inputs, mask, mean, var, _, _ = saved
        wanted = ctx.needs_input_grad
        needs, need_dr = [*wanted[1:4], *wanted[7:11]], wanted[11]
        pre, act, act_slope, gate = ctx.variant
        group = None if ctx.joint is None else ctx.joint.group
        variant = dict(pre=pre, act=act, act_slope=act_slope, gate=gate, eps=ctx.eps)

        def definition(u, bn_weight, bn_bias, *fcs):
            return reference.batch_norm_squeeze_excite(
                u, bn_weight, bn_bias, mean, var, *fcs, **variant, process_group=group
            )

        def native(dy, mask, write_dr):
            return _norm_gradients(ctx, saved, dy, mask, needs, write_dr)

        dr, gradients = _gradients(ctx.layout, dy, mask, inputs, needs, need_dr, definition, native)
        dr = dr if need_dr else None
        return None, *gradients[:3], None, None, None, *gradients[3:], dr, *(None,) * 10


def _gradients(
    layout, dy, mask, inputs, needs, need_dr, definition: Callable[..., Tensor], native: Callable
):
    """dr (N, C, H, W) if it is needed, and of the ``inputs`` the gradients that are, else None.

    Under ``create_graph`` those of the ``definition`` of the inputs; else
    ``native(dy, mask, write_dr)``, which returns dr, if it is to be written, and all gradients.
    """
    x, again = inputs[0], torch.is_grad_enabled()
    if mask is not None and (again or not (any(needs) and lies_as(x, layout))):
        dy, mask = masked(dy, mask, x, layout), None
    if again:
        return dy, gradients_of(definition, inputs, needs, dy)
    if not any(needs):
        return dy, (None,) * len(needs)
    write_dr = need_dr and mask is not None  # without a mask dr is dy
    dr, gradients = native(dy, mask, write_dr)
    return dr if write_dr else dy, only_needed(gradients, needs)


def _norm_gradients(ctx, saved, dy, mask, needs, write_dr):
    """dr (N, C, H, W) if it is to be written, and the gradients of u, bn_weight, bn_bias, w1, w2,
    b1, b2."""
    u, bn_weight, bn_bias, w1, w2, *_, numbers, a = saved
    need_u, _, _, *need_fcs = needs
    pre, *excitation = ctx.variant
    joint = ctx.joint
    wants = [need_u and joint is None, write_dr, need_u and joint is not None, *need_fcs]
    d_weight, d_bias, du, dr, d, *fcs = ops.below(
        ops.norm_backward, dy, u, mask, numbers, a, w1, w2, ctx.training, pre, *excitation, wants,
        ctx.backend,
    )  # fmt: skip
    if joint is not None:  # every process takes part, whatever it needs
        of_all = distributed.total(torch.stack((d_weight, d_bias)), joint.group)
        if need_u:
            adds = batch_statistics.through_statistics(numbers[:4], *of_all, joint.count)
            g, g_mask = (dr, None) if write_dr else (dy, mask)
            s = numbers[4 + u.shape[0] :]
            du = ops.below(
                ops.norm_squeeze_backward, g, u, g_mask, numbers[:3], s, d, pre, *adds, ctx.backend
            )
    return dr, (du, _as(d_weight, bn_weight), _as(d_bias, bn_bias), *fcs)


def _as(gradient, parameter):
    """In the dtype of the parameter, if there is one."""
    if parameter is None or gradient.dtype == parameter.dtype:
        return gradient
    return gradient.to(parameter.dtype)


def _apply(*args):
    *_, keep, _ = args
    if args[5] is not None:  # means: of several processes, whose exchange a graph does not hold
        raise RuntimeError(
            "se_kernels::norm_forward: expected no means with a gradient; statistics of several "
            "processes are differentiable through batch_norm_squeeze_excite alone"
        )
    y, mask, *rest = _NormOp.apply(None, *args)
    return y, mask if keep else mask.new_empty(0), *rest


def _apply_inference(u, bn_weight, bn_bias, mean, var, eps, w1, w2, b1, b2, residual, *variant):
    *variant, backend = variant
    return BatchNormSqueezeExciteFunction.apply(
        None, u, bn_weight, bn_bias, mean, var, None, w1, w2, b1, b2, residual, False, 0.0,
        eps, *variant, True, backend,
    )  # fmt: skip


_NormOp = of_op(BatchNormSqueezeExciteFunction)
ops.set_autograd(ops.forward, of_op(SqueezeExciteFunction).apply)
ops.set_autograd(ops.inference, SqueezeExciteFunction.apply)
ops.set_autograd(ops.norm_forward, _apply)
ops.set_autograd(ops.norm_inference, _apply_inference)
for _op in ops.UNDIFFERENTIABLE:
    ops.set_autograd(_op, partial(Undifferentiable.apply, _op))
