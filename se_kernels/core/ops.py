"""The registered ops: schema, fakes, and the way to the chosen backend.

A graph may hold them: ``set_autograd`` gives each its gradients, which are in ``autograd``.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C import _AutoDispatchBelowAutograd as BelowAutograd
from torch._ops import OpOverload
from torch.compiler import is_compiling

from se_kernels.backends import no_elements
from se_kernels.backends.protocol import Forward, NormForward, Sweeps
from se_kernels.core import dispatch, fast_path
from se_kernels.core.layout import (
    Gradients,
    NormGradients,
    ScaleGradients,
    empty_forward,
    empty_gradients,
    empty_mask,
    empty_norm_gradients,
    empty_norm_numbers,
    empty_output,
    empty_scale_gradients,
)
from se_kernels.core.precision import compute_dtype

_VARIANT = "str squeeze, str act, float act_slope, str gate, str post"
_INPUTS = "Tensor x, Tensor w1, Tensor w2, Tensor? b1, Tensor? b2, Tensor? residual"

_library = torch.library.Library("se_kernels", "DEF")
_run: dict[OpOverload, Callable[..., Any]] = {}  # what each op calls


def _register(schema: str, fake: Callable[..., object]) -> OpOverload:
    """The op: its backend's function of the same name, with all arguments but the backend."""
    name = _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    after_norm = name.startswith("norm_")

    def run(*args: Any) -> Any:
        of = sweeps(args[0], args[-1]) if after_norm else dispatch.get(args[-1])
        return getattr(of, name)(*args[:-1])

    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"se_kernels::{name}", fake, lib=_library)
    op: OpOverload = getattr(torch.ops.se_kernels, name).default
    _run[op] = run
    return op


def set_autograd(op: OpOverload, function: Callable[..., Any]) -> None:
    """``function`` runs in place of ``op`` if gradients are enabled and an argument has one; it
    calls the op ``below``."""

    def at_autograd(*args: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in args):
            return function(*args)
        with BelowAutograd():
            return op(*args)

    _library.impl(op._schema.name.removeprefix("se_kernels::"), at_autograd, "Autograd")


def below(op: OpOverload, *args: Any) -> Any:
    """The op past its own autograd, for a call whose gradients are seen to. If it is traced, the op
    as it is: the graph has its gradients from it. If nobody sees the op, what it calls."""
    if is_compiling():
        return op(*args)
    if args[-1] == "cpu" and not fast_path.is_op_seen() and fast_path.are_plain(*args):
        return _run[op](*args)
    with BelowAutograd():
        return op(*args)


def _inference_fake(
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    b1: Tensor | None,
    b2: Tensor | None,
    residual: Tensor | None,
    *_: object,
) -> Tensor:
    return empty_output(x)


def _forward_fake(
    x: Tensor, w1: Tensor, w2: Tensor, b1: Tensor | None, b2: Tensor | None,
    residual: Tensor | None, squeeze: str, act: str, act_slope: float, gate: str, post: str,
    backend: str,
) -> Forward:  # fmt: skip
    return empty_forward(x, w1, post)


def _backward_fake(
    dy: Tensor, x: Tensor, w1: Tensor, w2: Tensor, mask: Tensor | None, z: Tensor, a: Tensor,
    s: Tensor, squeeze: str, act: str, act_slope: float, gate: str, needs: Sequence[bool],
    backend: str,
) -> Gradients:  # fmt: skip
    return empty_gradients(x, w1, w2, needs)


def _squeeze_fake(x: Tensor, squeeze: str, backend: str) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=compute_dtype(x, x))


def _scale_fake(
    x: Tensor, s: Tensor, residual: Tensor | None, post: str, keep: bool, backend: str
) -> tuple[Tensor, Tensor]:
    return empty_output(x), empty_mask(x, keep)


def _scale_backward_fake(
    dy: Tensor, x: Tensor, mask: Tensor | None, s: Tensor, needs: Sequence[bool], backend: str
) -> ScaleGradients:
    return empty_scale_gradients(x, s, needs)


def _squeeze_backward_fake(
    g: Tensor | None, x: Tensor, s: Tensor | None, dz: Tensor, squeeze: str, backend: str
) -> Tensor:
    return empty_output(x)


def sweeps(u: Tensor, backend: str) -> Sweeps:
    """The backend, or what stands for it where u has no element: no backend sees an empty u."""
    return dispatch.get(backend) if u.numel() else no_elements


def _norm_moments_fake(x: Tensor, wide: bool, backend: str) -> tuple[Tensor, Tensor]:
    new = partial(x.new_empty, x.shape[:2], dtype=torch.float64)
    return new(), new()


def _norm_forward_fake(
    u: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None, mean: Tensor | None,
    var: Tensor | None, means: Tensor | None, w1: Tensor, w2: Tensor, b1: Tensor | None,
    b2: Tensor | None, residual: Tensor | None, training: bool, momentum: float, eps: float,
    pre: str, act: str, act_slope: float, gate: str, post: str, keep: bool, backend: str,
) -> NormForward:  # fmt: skip
    numbers = empty_norm_numbers(u, bn_weight, w1, training and mean is not None)
    return empty_output(u), empty_mask(u, keep), *numbers


def _norm_backward_fake(
    dy: Tensor, u: Tensor, mask: Tensor | None, numbers: Tensor, a: Tensor, w1: Tensor, w2: Tensor,
    training: bool, pre: str, act: str, act_slope: float, gate: str, needs: Sequence[bool],
    backend: str,
) -> NormGradients:  # fmt: skip
    return empty_norm_gradients(u, numbers, w1, w2, needs)


def _norm_squeeze_backward_fake(g: Tensor, x: Tensor, *_: object) -> Tensor:
    return empty_output(x)


def _norm_inference_fake(x: Tensor, *_: object) -> Tensor:
    return empty_output(x)


# y (N,C,H,W)
inference = _register(f"inference({_INPUTS}, {_VARIANT}, str backend) -> Tensor", _inference_fake)
# y (N,C,H,W), mask (layout.empty_mask; empty unless post is relu), z (N,C), a (N,R), s (N,C)
forward = _register(
    f"forward({_INPUTS}, {_VARIANT}, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward_fake,
)
# dx, dr (N,C,H,W), dw1, dw2 like w1, w2, db1 (R), db2 (C); needs says which, the others are empty;
# dr only with a mask, without one it is dy
backward = _register(
    "backward(Tensor dy, Tensor x, Tensor w1, Tensor w2, Tensor? mask, Tensor z, Tensor a, "
    "Tensor s, str squeeze, str act, float act_slope, str gate, bool[] needs, str backend) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward_fake,
)

# The phases on their own. s, z and their gradients are in the dtype of the sums.
# z (N,C)
squeeze = _register("squeeze(Tensor x, str squeeze, str backend) -> Tensor", _squeeze_fake)
# y (N,C,H,W); its mask if keep, which goes with post = relu
scale = _register(
    "scale(Tensor x, Tensor s, Tensor? residual, str post, bool keep, str backend)"
    " -> (Tensor, Tensor)",
    _scale_fake,
)
# dx = g s, dr = g (N,C,H,W), ds (N,C); needs says which, the others are empty; dr only with a mask
scale_backward = _register(
    "scale_backward(Tensor dy, Tensor x, Tensor? mask, Tensor s, bool[] needs, str backend)"
    " -> (Tensor, Tensor, Tensor)",
    _scale_backward_fake,
)
# dx (N,C,H,W) = g s, where there is a g, + what dz (N,C) gives
squeeze_backward = _register(
    "squeeze_backward(Tensor? g, Tensor x, Tensor? s, Tensor dz, str squeeze, str backend)"
    " -> Tensor",
    _squeeze_backward_fake,
)

# With a batch norm before the block.
# y (N,C,H,W); mask where it is to be kept; numbers (4 + 2 N,C): mean, scale, bias and
# 1 / √(var + eps) of the norm; of each image z or, for pre = identity, where z follows from it, its
# mean less the norm's; of each image s; a (N,R); moved (2,C) in float64: the running mean and
# variance after the batch.
# mean, var: in training mode the running ones. means (N,C): of each image, where known already.
norm_forward = _register(
    "norm_forward(Tensor u, Tensor? bn_weight, Tensor? bn_bias, Tensor? mean, Tensor? var, "
    "Tensor? means, Tensor w1, Tensor w2, Tensor? b1, Tensor? b2, Tensor? residual, bool training, "
    "float momentum, float eps, str pre, str act, float act_slope, str gate, str post, bool keep, "
    "str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _norm_forward_fake,
)
# the gradients of the norm's weight and bias (C), in the dtype of the numbers; du, dr (N,C,H,W),
# d (N,C) = dz / P, dw1, dw2 like w1, w2, db1 (R), db2 (C); needs says which of these seven, the
# others are empty
norm_backward = _register(
    "norm_backward(Tensor dy, Tensor u, Tensor? mask, Tensor numbers, Tensor a, Tensor w1, "
    "Tensor w2, bool training, str pre, str act, float act_slope, str gate, bool[] needs, "
    "str backend) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _norm_backward_fake,
)
# Of several processes the statistics, and their gradients, are exchanged in between.
# means, m2 (N,C) in float64, whose sums are so only where asked: a mean far from zero has digits in
# float32 for itself, but not for how it differs from another
norm_moments = _register(
    "norm_moments(Tensor x, bool wide, str backend) -> (Tensor, Tensor)",
    _norm_moments_fake,
)
# dx (N,C,H,W) = scale v' (g s + d) + slope (x - mean) + offset; norm (3,C)
norm_squeeze_backward = _register(
    "norm_squeeze_backward(Tensor g, Tensor x, Tensor? mask, Tensor norm, Tensor s, Tensor d, "
    "str pre, Tensor? slope, Tensor? offset, str backend) -> Tensor",
    _norm_squeeze_backward_fake,
)
# y (N,C,H,W), the norm in evaluation mode
norm_inference = _register(
    "norm_inference(Tensor x, Tensor? bn_weight, Tensor? bn_bias, Tensor mean, Tensor var, "
    "float eps, Tensor w1, Tensor w2, Tensor? b1, Tensor? b2, Tensor? residual, str pre, str act, "
    "float act_slope, str gate, str post, str backend) -> Tensor",
    _norm_inference_fake,
)

UNDIFFERENTIABLE = (
    backward, scale_backward, squeeze_backward, norm_moments, norm_backward, norm_squeeze_backward
)  # fmt: skip
