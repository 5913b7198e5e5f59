"""The fused block as one node of the graph; squeeze and scale as nodes of their own."""

import torch
from torch import Tensor

from se_kernels import ops, reference
from se_kernels.layout import layout_of, masked
from se_kernels.variants import Variant


class SqueezeExciteFunction(torch.autograd.Function):
    """Equations 2 to 4 and their gradients on a native backend.

    ``apply(x, w1, w2, b1, b2, residual, variant, backend)`` returns y. Saved for backward, beside
    the inputs: z (N, C), a (N, R), s (N, C), and for post="relu" one bit per element. Only the
    gradients that are needed are computed. Under ``create_graph`` the gradients come from the
    differentiable definition, so that they can be differentiated again.
    """

    @staticmethod
    def forward(ctx, x, w1, w2, b1, b2, residual, variant: Variant, backend: str) -> Tensor:
        y, mask, z, a, s = ops.forward(x, w1, w2, b1, b2, residual, *variant, backend)
        mask, ctx.layout = _kept(mask, x, variant.post)
        ctx.save_for_backward(x, w1, w2, b1, b2, mask, z, a, s)
        ctx.variant, ctx.backend = variant, backend
        return y

    @staticmethod
    def backward(ctx, dy):
        if torch.is_grad_enabled():
            return _differentiable_backward(ctx, dy)
        x, w1, w2, _, _, mask, z, a, s = ctx.saved_tensors
        need_dx, need_dw1, need_dw2, need_db1, need_db2, need_dr = ctx.needs_input_grad[:6]
        solves = need_dx or need_dw1 or need_dw2 or need_db1 or need_db2
        if mask is not None and not (solves and _lies_as(x, ctx.layout)):
            dy, mask = masked(dy, mask, x, ctx.layout), None
        if not solves:
            return None, None, None, None, None, dy, None, None
        write_dr = need_dr and mask is not None  # without a mask dr is dy
        needs = [need_dx, write_dr, need_dw1, need_dw2, need_db1, need_db2]
        dx, dr, dw1, dw2, db1, db2 = ops.backward(
            dy, x, w1, w2, mask, z, a, s, *ctx.variant[:-1], needs, ctx.backend
        )
        return (
            dx if need_dx else None,
            dw1 if need_dw1 else None,
            dw2 if need_dw2 else None,
            db1 if need_db1 else None,
            db2 if need_db2 else None,
            (dr if write_dr else dy) if need_dr else None,
            None,
            None,
        )


class SqueezeFunction(torch.autograd.Function):
    """Equation 2 and its gradient.

    ``apply(x, squeeze, backend, carries)`` returns z (N, C) in the dtype of the sums. Where it
    carries, a carrier (N, C, H, W) and a token (N, C) follow, which hold no numbers: a
    ``ScaleFunction`` given both sends g and s back through them instead of g s, so that dx =
    g s + dz / P is written here in one pass.
    """

    @staticmethod
    def forward(ctx, x, squeeze: str, backend: str, carries: bool):
        z = ops.squeeze(x, squeeze, backend)
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
            dx = ops.squeeze_backward(g, x, s, dz, ctx.squeeze, ctx.backend)
        return dx, None, None, None


class ScaleFunction(torch.autograd.Function):
    """Equation 4 with the tail of Fig. 3, and their gradients.

    ``apply(x, s, residual, carrier, token, post, backend)`` returns y; s (N, C) is in the dtype of
    the sums. With the carrier and token of a ``SqueezeFunction``, x gets its gradient there.
    """

    @staticmethod
    def forward(ctx, x, s, residual, carrier, token, post: str, backend: str) -> Tensor:
        y, mask = ops.scale(x, s, residual, post, post == "relu", backend)
        mask, ctx.layout = _kept(mask, x, post)
        ctx.save_for_backward(x, s, mask)
        ctx.backend = backend
        ctx.token_dtype = None if token is None else token.dtype
        return y

    @staticmethod
    def backward(ctx, dy):
        x, s, mask = ctx.saved_tensors
        need_dx, need_ds, need_dr, carries = ctx.needs_input_grad[:4]
        dx = ds = None
        again = torch.is_grad_enabled()
        if mask is not None and (again or not _lies_as(x, ctx.layout)):
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
                dx, dr, ds = ops.scale_backward(dy, x, mask, s, needs, ctx.backend)
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


def _kept(mask: Tensor, x: Tensor, post: str) -> tuple[Tensor | None, str | None]:
    """The mask that backward needs, if any, and the layout of x that its bits go by."""
    return (mask, layout_of(x) or "nchw") if post == "relu" else (None, None)


def _lies_as(x: Tensor, layout: str) -> bool:
    """Whether x lies as it did in forward; a hook on saved tensors may have moved it."""
    # none is traced, and the tracer of backward loses hold of autocast if it is asked for strides
    return torch.compiler.is_compiling() or (layout_of(x) or "nchw") == layout


def _differentiable_backward(ctx, dy):
    x, w1, w2, b1, b2, mask, *_ = ctx.saved_tensors
    variant = ctx.variant
    g = dy if mask is None else masked(dy, mask, x, ctx.layout)
    need = ctx.needs_input_grad[:5]
    # aliases: a gradient must not run on through what w1 and the others were made from
    inputs = [None if t is None else t.view_as(t) for t in (x, w1, w2, b1, b2)]
    wanted = [t for t, needed in zip(inputs, need, strict=True) if needed]
    grads = iter(())
    if wanted:
        out = reference.squeeze_excite(*inputs, **variant._replace(post="none")._asdict())
        with reference.outside_autocast(x.device.type):
            grads = iter(torch.autograd.grad(out, wanted, g, create_graph=True))
    first = [next(grads) if needed else None for needed in need]
    return (*first, g if ctx.needs_input_grad[5] else None, None, None)
