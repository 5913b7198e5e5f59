"""The registered ops, private: schema, fakes, and the way to the chosen backend.

They have no autograd of their own; ``se_kernels.autograd`` is their only caller beside inference.
"""

import torch

from se_kernels import dispatch, solve
from se_kernels.layout import (
    empty_gradients,
    empty_mask,
    empty_output,
    empty_scale_gradients,
    empty_weight_gradients,
)
from se_kernels.reference import compute_dtype

_VARIANT = "str squeeze, str act, float act_slope, str gate, str post"
_INPUTS = "Tensor x, Tensor w1, Tensor w2, Tensor? b1, Tensor? b2, Tensor? residual"

_library = torch.library.Library("se_kernels", "DEF")


def _register(schema, implementation, fake):
    name = _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"se_kernels::{name}", fake, lib=_library)
    return getattr(torch.ops.se_kernels, name).default


def _inference(x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post, backend):
    return dispatch.get(backend).inference(
        x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post
    )


def _inference_fake(x, w1, w2, b1, b2, residual, *_):
    return empty_output(x)


def _forward(x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post, backend):
    return dispatch.get(backend).forward(
        x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post
    )


def _forward_fake(x, w1, w2, b1, b2, residual, *_):
    images, channels = x.shape[:2]
    small = dict(dtype=compute_dtype(x, w1), device=x.device)
    z = torch.empty((images, channels), **small)
    a = torch.empty((images, w1.shape[0]), **small)
    return empty_output(x), z, a, torch.empty((images, channels), **small)


def _backward(dy, x, w1, w2, y, z, a, s, squeeze, act, act_slope, gate, post, needs, backend):
    return dispatch.get(backend).backward(
        dy, x, w1, w2, y, z, a, s, squeeze, act, act_slope, gate, post, needs
    )


def _backward_fake(dy, x, w1, w2, y, z, a, s, squeeze, act, act_slope, gate, post, needs, backend):
    return empty_gradients(x, w1, w2, needs)


def _squeeze(x, squeeze, backend):
    return dispatch.get(backend).squeeze(x, squeeze)


def _squeeze_fake(x, squeeze, backend):
    return x.new_empty(x.shape[:2], dtype=compute_dtype(x, x))


def _scale(x, s, residual, post, backend):
    return dispatch.get(backend).scale(x, s, residual, post)


def _scale_fake(x, s, residual, post, backend):
    return empty_output(x)


def _scale_backward(dy, x, y, s, post, needs, backend):
    return dispatch.get(backend).scale_backward(dy, x, y, s, post, needs)


def _scale_backward_fake(dy, x, y, s, post, needs, backend):
    return empty_scale_gradients(x, s, needs)


def _squeeze_backward(g, x, s, dz, squeeze, backend):
    return dispatch.get(backend).squeeze_backward(g, x, s, dz, squeeze)


def _squeeze_backward_fake(g, x, s, dz, squeeze, backend):
    return empty_output(x)


def _norm_moments(x, wide, backend):
    if x.numel() == 0:  # the backends see no empty images with a norm
        return tuple(t.zero_() for t in _norm_moments_fake(x, wide, backend))
    return tuple(t.double() for t in dispatch.get(backend).norm_moments(x, wide))


def _norm_moments_fake(x, wide, backend):
    return tuple(x.new_empty(x.shape[:2], dtype=torch.float64) for _ in range(2))


def _norm_squeeze(x, norm, pre, backend):
    if x.numel() == 0:
        return _norm_squeeze_fake(x, norm).zero_()
    return dispatch.get(backend).norm_squeeze(x, norm, pre)


def _norm_squeeze_fake(x, norm, *_):
    return norm.new_empty(x.shape[:2])


def _norm_excite_fake(z, w1, *_):
    return z.new_empty((z.shape[0], w1.shape[0])), torch.empty_like(z)


def _norm_excite_backward_fake(ds, z, a, s, w1, w2, act, act_slope, gate, needs):
    return torch.empty_like(z), *empty_weight_gradients(w1, w2, needs)


def _norm_scale(x, norm, s, residual, pre, post, keep, backend):
    if x.numel() == 0:
        return _norm_scale_fake(x, norm, s, residual, pre, post, keep, backend)
    return dispatch.get(backend).norm_scale(x, norm, s, residual, pre, post, keep)


def _norm_scale_fake(x, norm, s, residual, pre, post, keep, backend):
    return empty_output(x), empty_mask(x) if keep else x.new_empty(0, dtype=torch.uint8)


def _norm_scale_backward(dy, x, mask, norm, pre, write, backend):
    if x.numel() == 0:
        dr, sums = _norm_scale_backward_fake(dy, x, mask, norm, pre, write, backend)
        return dr, sums.zero_()
    return dispatch.get(backend).norm_scale_backward(dy, x, mask, norm, pre, write)


def _norm_scale_backward_fake(dy, x, mask, norm, pre, write, backend):
    sums = 2 if pre == "identity" else 5
    dr = empty_output(x) if write else x.new_empty(0)
    return dr, norm.new_empty((sums, x.shape[0], x.shape[1]))


def _norm_squeeze_backward(g, x, mask, norm, s, d, pre, slope, offset, backend):
    if x.numel() == 0:
        return empty_output(x)
    return dispatch.get(backend).norm_squeeze_backward(g, x, mask, norm, s, d, pre, slope, offset)


def _norm_squeeze_backward_fake(g, x, *_):
    return empty_output(x)


def _norm_inference(
    x, bn_weight, bn_bias, mean, var, eps, w1, w2, b1, b2, residual,
    pre, act, act_slope, gate, post, backend,
):  # fmt: skip
    if x.numel() == 0:
        return empty_output(x)
    return dispatch.get(backend).norm_inference(
        x, bn_weight, bn_bias, mean, var, eps, w1, w2, b1, b2, residual,
        pre, act, act_slope, gate, post,
    )  # fmt: skip


def _norm_inference_fake(x, *_):
    return empty_output(x)


# y (N,C,H,W)
inference = _register(
    f"inference({_INPUTS}, {_VARIANT}, str backend) -> Tensor", _inference, _inference_fake
)
# y (N,C,H,W), z (N,C), a (N,R), s (N,C)
forward = _register(
    f"forward({_INPUTS}, {_VARIANT}, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)
# dx, dr (N,C,H,W), dw1, dw2 like w1, w2, db1 (R), db2 (C); needs says which, the others are empty
backward = _register(
    "backward(Tensor dy, Tensor x, Tensor w1, Tensor w2, Tensor? y, Tensor z, Tensor a, Tensor s, "
    f"{_VARIANT}, bool[] needs, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)

# The phases on their own. s, z and their gradients are in the dtype of the sums.
# z (N,C)
squeeze = _register(
    "squeeze(Tensor x, str squeeze, str backend) -> Tensor", _squeeze, _squeeze_fake
)
# y (N,C,H,W)
scale = _register(
    "scale(Tensor x, Tensor s, Tensor? residual, str post, str backend) -> Tensor",
    _scale,
    _scale_fake,
)
# dx = g s, dr = g (N,C,H,W), ds (N,C); needs says which, the others are empty; dr only with y
scale_backward = _register(
    "scale_backward(Tensor dy, Tensor x, Tensor? y, Tensor s, str post, bool[] needs, str backend)"
    " -> (Tensor, Tensor, Tensor)",
    _scale_backward,
    _scale_backward_fake,
)
# dx (N,C,H,W) = g s, where there is a g, + what dz (N,C) gives
squeeze_backward = _register(
    "squeeze_backward(Tensor? g, Tensor x, Tensor? s, Tensor dz, str squeeze, str backend)"
    " -> Tensor",
    _squeeze_backward,
    _squeeze_backward_fake,
)

# With a batch norm before the block. norm (3,C): mean, scale, bias; sums are in its dtype.
# means, m2 (N,C) in float64, whose sums are so only where asked: a mean far from zero has digits in
# float32 for itself, but not for how it differs from another
norm_moments = _register(
    "norm_moments(Tensor x, bool wide, str backend) -> (Tensor, Tensor)",
    _norm_moments,
    _norm_moments_fake,
)
# z (N,C); pre is no identity
norm_squeeze = _register(
    "norm_squeeze(Tensor x, Tensor norm, str pre, str backend) -> Tensor",
    _norm_squeeze,
    _norm_squeeze_fake,
)
# a (N,R), s (N,C): of every backend, and opaque, as a precision that the user allows is set aside
norm_excite = _register(
    "norm_excite(Tensor z, Tensor w1, Tensor w2, Tensor? b1, Tensor? b2, str act, float act_slope, "
    "str gate) -> (Tensor, Tensor)",
    solve.excite,
    _norm_excite_fake,
)
# dz (N,C), dw1, dw2 like w1, w2, db1 (R), db2 (C); needs says which of the four, others are empty
norm_excite_backward = _register(
    "norm_excite_backward(Tensor ds, Tensor z, Tensor a, Tensor s, Tensor w1, Tensor w2, str act, "
    "float act_slope, str gate, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    solve.excite_backward,
    _norm_excite_backward_fake,
)
# y (N,C,H,W), mask where it is to be kept
norm_scale = _register(
    "norm_scale(Tensor x, Tensor norm, Tensor s, Tensor? residual, str pre, str post, bool keep, "
    "str backend) -> (Tensor, Tensor)",
    _norm_scale,
    _norm_scale_fake,
)
# dr (N,C,H,W) where it is to be written; sums (K,N,C): K = 2, Σ g and Σ g (x - mean), for
# pre = identity, else 5: Σ g v, Σ g v', Σ g v' (x - mean), Σ v', Σ v' (x - mean)
norm_scale_backward = _register(
    "norm_scale_backward(Tensor dy, Tensor x, Tensor? mask, Tensor norm, str pre, bool write, "
    "str backend) -> (Tensor, Tensor)",
    _norm_scale_backward,
    _norm_scale_backward_fake,
)
# dx (N,C,H,W) = scale v' (g s + d) + slope (x - mean) + offset
norm_squeeze_backward = _register(
    "norm_squeeze_backward(Tensor g, Tensor x, Tensor? mask, Tensor norm, Tensor s, Tensor d, "
    "str pre, Tensor? slope, Tensor? offset, str backend) -> Tensor",
    _norm_squeeze_backward,
    _norm_squeeze_backward_fake,
)
# y (N,C,H,W), the norm in evaluation mode
norm_inference = _register(
    "norm_inference(Tensor x, Tensor? bn_weight, Tensor? bn_bias, Tensor mean, Tensor var, "
    "float eps, Tensor w1, Tensor w2, Tensor? b1, Tensor? b2, Tensor? residual, str pre, str act, "
    "float act_slope, str gate, str post, str backend) -> Tensor",
    _norm_inference,
    _norm_inference_fake,
)
