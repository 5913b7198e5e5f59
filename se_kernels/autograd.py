"""The gradients of the registered ops: the block as one node of the graph, and its two phases.

The layers apply a ``torch.autograd.Function``, which returns y. The same runs at the op's Autograd
key (``of_op``), so that a graph which holds the op is differentiable.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from se_kernels import ops, reference
from se_kernels.layout import layout_of, masked


def of_op(function: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """``function`` with all that its op returns; y alone has a gradient."""

    class OfOp(function):
        @staticmethod
        def forward(ctx, *args):
            outputs = function.run(ctx, *args)
            ctx.set_materialize_grads(False)
            ctx.mark_non_differentiable(*outputs[1:])
            return outputs

    return OfOp


class SqueezeExciteFunction(torch.autograd.Function):
    """Equations 2 to 4 and their gradients on a native backend.

    ``apply(x, w1, w2, b1, b2, residual, variant, backend)``, with the variant as a tuple, returns
    y. Saved for backward, beside the inputs: z (N, C), a (N, R), s (N, C), and for post="relu" one
    bit per element. Only the gradients that are needed are computed. Under ``create_graph`` they
    come from the differentiable definition, so that they can be differentiated again.
    """

    @staticmethod
    def forward(ctx, *args) -> Tensor:
        return SqueezeExciteFunction.run(ctx, *args)[0]

    @staticmethod
    def run(ctx, x, w1, w2, b1, b2, residual, variant, backend):
        outputs = ops.below(ops.forward, x, w1, w2, b1, b2, residual, *variant, backend)
        _, mask, z, a, s = outputs
        *ctx.excitation, post = variant
        ctx.backend = backend
        mask, ctx.layout = keep_mask(mask, x, post)
        ctx.save_for_backward(x, w1, w2, b1, b2, mask, z, a, s)
        return outputs

    @staticmethod
    def backward(ctx, dy, *_):
        if dy is None:
            return (None,) * 8
        x, w1, w2, b1, b2, mask, z, a, s = ctx.saved_tensors
        *needs, need_dr = ctx.needs_input_grad[:6]
        again = torch.is_grad_enabled()
        if mask is not None and (again or not (any(needs) and lies_as(x, ctx.layout))):
            dy, mask = masked(dy, mask, x, ctx.layout), None
        if again:
            squeeze, act, act_slope, gate = ctx.excitation
            variant = dict(squeeze=squeeze, act=act, act_slope=act_slope, gate=gate)
            gradients = gradients_of(
                lambda *inputs: reference.squeeze_excite(*inputs, **variant),
                (x, w1, w2, b1, b2), needs, dy,
            )  # fmt: skip
        elif any(needs):
            need_dx, *need_weights = needs
            write_dr = need_dr and mask is not None  # without a mask dr is dy
            wants = [need_dx, write_dr, *need_weights]
            dx, dr, *gradients = ops.below(
                ops.backward, dy, x, w1, w2, mask, z, a, s, *ctx.excitation, wants, ctx.backend
            )
            gradients = only_needed((dx, *gradients), needs)
            dy = dr if write_dr else dy
        else:
            gradients = (None,) * 5
        return *gradients, dy if need_dr else None, None, None


class SqueezeFunction(torch.autograd.Function):
    """Equation 2 and its gradient.

    ``apply(x, squeeze, backend, carries)`` returns z (N, C) in the dtype of the sums. If it
    carries, a carrier (N, C, H, W) and a token (N, C) follow, which hold no numbers: a
    ``ScaleFunction`` given both sends g and s back through them instead of g s, so that dx =
    g s + dz / P is written here in one pass.
    """

    @staticmethod
    def forward(ctx, x, squeeze: str, backend: str, carries: bool):
        z = ops.below(ops.squeeze, x, squeeze, backend)
        ctx.set_materialize_grads(False)
        ctx.squeeze, ctx.backend, ctx.shape, ctx.dtype = squeeze, backend, x.shape, x.dtype
        if carries or squeeze != "avg":
            ctx.save_for_backward(x)
        if not carries:
            return z
        return z, x.new_empty(()).expand(x.shape), z.new_empty(()).expand(z.shape)

    @staticmethod
    def backward(ctx, dz, g=None, s=None):
        if dz is None and g is None:
            return None, None, None, None
        if g is None and ctx.squeeze == "avg":
            dx = _spread(dz, ctx.shape).to(ctx.dtype)
        elif torch.is_grad_enabled():
            dx = _differentiable_squeeze_backward(ctx, dz, g, s)
        else:
            (x,) = ctx.saved_tensors
            dz = torch.zeros_like(s) if dz is None else dz
            dx = ops.below(ops.squeeze_backward, g, x, s, dz, ctx.squeeze, ctx.backend)
        return dx, None, None, None


class ScaleFunction(torch.autograd.Function):
    """Equation 4 with the tail of Fig. 3, and their gradients.

    ``apply(x, s, residual, carrier, token, post, backend)`` returns y; s (N, C) is in the dtype of
    the sums. With the carrier and token of a ``SqueezeFunction``, x gets its gradient there.
    """

    @staticmethod
    def forward(ctx, *args) -> Tensor:
        return ScaleFunction.run(ctx, *args)[0]

    @staticmethod
    def run(ctx, x, s, residual, carrier, token, post: str, backend: str):
        y, mask = ops.below(ops.scale, x, s, residual, post, post == "relu", backend)
        kept, ctx.layout = keep_mask(mask, x, post)
        ctx.save_for_backward(x, s, kept)
        ctx.backend = backend
        ctx.token_dtype = None if token is None else token.dtype
        return y, mask

    @staticmethod
    def backward(ctx, dy, *_):
        if dy is None:
            return (None,) * 7
        x, s, mask = ctx.saved_tensors
        need_dx, need_ds, need_dr, carries = ctx.needs_input_grad[:4]
        dx = ds = None
        again = torch.is_grad_enabled()
        if mask is not None and (again or not lies_as(x, ctx.layout)):
            dy, mask = masked(dy, mask, x, ctx.layout), None
        g = dy
        if again:
            if need_ds:
                ds = (g.to(s.dtype) * x).sum((2, 3))
            if need_dx and not carries:
                dx = (g * s[:, :, None, None]).to(x.dtype)
        else:
            write_g = mask is not None and (need_dr or carries)  # without a mask g is dy
            needs = [need_dx and not carries, write_g, need_ds]
            if any(needs):
                dx, dr, ds = ops.below(ops.scale_backward, dy, x, mask, s, needs, ctx.backend)
                dx, g, ds = dx if needs[0] else None, dr if write_g else dy, ds if need_ds else None
        token = s.to(ctx.token_dtype) if carries else None
        return dx, ds, g if need_dr else None, g if carries else None, token, None, None


class Undifferentiable(torch.autograd.Function):
    """``apply(op, *args)``: what the op returns; a gradient of it is an error."""

    @staticmethod
    def forward(ctx, op, *args):
        ctx.op = op
        return ops.below(op, *args)

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            f"{ctx.op} is not differentiable: a gradient that is to be differentiated again has to "
            "be taken with create_graph=True"
        )


def keep_mask(mask: Tensor, x: Tensor, post: str) -> tuple[Tensor | None, str | None]:
    """The mask that backward needs, if any, and the layout of x that its bits go by."""
    return (mask, layout_of(x) or "nchw") if post == "relu" else (None, None)


def lies_as(x: Tensor, layout: str) -> bool:
    """Whether x lies as it did in forward; a hook on saved tensors may have moved it."""
    # none is traced, and the tracer of backward loses hold of autocast if it is asked for strides
    return torch.compiler.is_compiling() or (layout_of(x) or "nchw") == layout


def only_needed(gradients, needs) -> tuple[Tensor | None, ...]:
    """None for those that ``needs`` does not want; the ops return them empty."""
    return tuple(g if need else None for g, need in zip(gradients, needs, strict=True))


def gradients_of(
    definition: Callable[..., Tensor], inputs, needs, dy: Tensor
) -> tuple[Tensor | None, ...]:
    """Those of ``definition(*inputs)`` that are needed, which can be differentiated again."""
    # aliases: a gradient must not run on through what the inputs were made from
    inputs = [None if t is None else t.view_as(t) for t in inputs]
    wanted = [t for t, needed in zip(inputs, needs, strict=True) if needed]
    grads = iter(())
    if wanted:
        out = definition(*inputs)
        with reference.outside_autocast(dy.device.type):
            grads = iter(torch.autograd.grad(out, wanted, dy, create_graph=True))
    return tuple(next(grads) if needed else None for needed in needs)


def _spread(dz: Tensor, shape) -> Tensor:
    """The gradient of the mean, dz / P everywhere: (N, C) to a view (N, C, H, W)."""
    return (dz / (shape[2] * shape[3]))[:, :, None, None].expand(shape)


def _differentiable_squeeze_backward(ctx, dz, g, s):
    (x,) = ctx.saved_tensors
    dx = 0
    if dz is not None:
        if ctx.squeeze == "avg":
            dx = _spread(dz, x.shape)
        else:
            v = x.view_as(x)  # an alias: the gradient must not run on through what x was made from
            z = reference.squeeze(v.to(dz.dtype), ctx.squeeze)
            (dx,) = torch.autograd.grad(z, v, dz, create_graph=True)
    if g is not None:
        dx = dx + g * s[:, :, None, None]
    return dx.to(x.dtype)


def _forward(*args):
    return _ForwardOp.apply(*args[:6], args[6:-1], args[-1])


def _inference(*args):
    return SqueezeExciteFunction.apply(*args[:6], args[6:-1], args[-1])


def _scale(x, s, residual, post, keep, backend):
    y, mask = _ScaleOp.apply(x, s, residual, None, None, post, backend)
    return y, mask if keep else mask.new_empty(0)


_ForwardOp, _ScaleOp = of_op(SqueezeExciteFunction), of_op(ScaleFunction)
ops.set_autograd(ops.forward, _forward)
ops.set_autograd(ops.inference, _inference)
ops.set_autograd(ops.squeeze, lambda *args: SqueezeFunction.apply(*args, False))
ops.set_autograd(ops.scale, _scale)
for _op in ops.UNDIFFERENTIABLE:
    ops.set_autograd(_op, partial(Undifferentiable.apply, _op))
