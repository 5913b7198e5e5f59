"""SqueezeExciteFunction: the fused forward and backward as one node of the graph."""

import torch
from torch import Tensor

from se_kernels import ops, reference
from se_kernels.variants import Variant


class SqueezeExciteFunction(torch.autograd.Function):
    """Equations 2 to 4 and their gradients on a native backend.

    ``apply(x, w1, w2, b1, b2, residual, variant, backend)`` returns y. Saved for backward, beside
    the inputs and (for post="relu") y: z (N, C), a (N, R), s (N, C), and never a tensor of x's
    size. Only the gradients that are needed are computed. Under ``create_graph`` the gradients
    come from the differentiable definition, so that they can be differentiated again.
    """

    @staticmethod
    def forward(ctx, x, w1, w2, b1, b2, residual, variant: Variant, backend: str) -> Tensor:
        y, z, a, s = ops.forward(x, w1, w2, b1, b2, residual, *variant, backend)
        masked = y if variant.post == "relu" else None
        ctx.save_for_backward(x, w1, w2, b1, b2, masked, z, a, s)
        ctx.variant, ctx.backend = variant, backend
        return y

    @staticmethod
    def backward(ctx, dy):
        if torch.is_grad_enabled():
            return _differentiable_backward(ctx, dy)
        x, w1, w2, _, _, y, z, a, s = ctx.saved_tensors
        need_dx, need_dw1, need_dw2, need_db1, need_db2, need_dr = ctx.needs_input_grad[:6]
        if not (need_dx or need_dw1 or need_dw2 or need_db1 or need_db2):
            return None, None, None, None, None, dy if y is None else _mask(dy, y), None, None
        write_dr = need_dr and y is not None  # without a mask dr is dy
        needs = [need_dx, write_dr, need_dw1, need_dw2, need_db1, need_db2]
        dx, dr, dw1, dw2, db1, db2 = ops.backward(
            dy, x, w1, w2, y, z, a, s, *ctx.variant, needs, ctx.backend
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


def _mask(dy: Tensor, y: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward(dy, y, 0)


def _differentiable_backward(ctx, dy):
    x, w1, w2, b1, b2, y, *_ = ctx.saved_tensors
    variant = ctx.variant
    g = dy if y is None else _mask(dy, y.detach())
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
