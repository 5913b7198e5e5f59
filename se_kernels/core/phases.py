"""The gradients of the two passes over x on their own: squeeze and scale."""

import torch
from torch import Tensor

from se_kernels import reference
from se_kernels.core import ops
from se_kernels.core.differentiation import keep_mask, lies_as, of_op
from se_kernels.core.layout import masked


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


def _scale(x, s, residual, post, keep, backend):
    y, mask = _ScaleOp.apply(x, s, residual, None, None, post, backend)
    return y, mask if keep else mask.new_empty(0)


_ScaleOp = of_op(ScaleFunction)
ops.set_autograd(ops.squeeze, lambda *args: SqueezeFunction.apply(*args, False))
ops.set_autograd(ops.scale, _scale)
