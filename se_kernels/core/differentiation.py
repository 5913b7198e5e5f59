"""What the autograd functions of the ops share.

The layers apply a ``torch.autograd.Function``, which returns y. The same runs at the op's Autograd
key (``of_op``), so that a graph which holds the op is differentiable.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from se_kernels.core import ops
from se_kernels.core.layout import layout_of
from se_kernels.core.precision import outside_autocast


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
        with outside_autocast(dy.device.type):
            grads = iter(torch.autograd.grad(out, wanted, dy, create_graph=True))
    return tuple(next(grads) if needed else None for needed in needs)
