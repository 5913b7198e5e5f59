"""The block as a function, squeeze_excite, and its two passes over x: squeeze and scale."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from se_kernels import direct, dispatch, ops, reference
from se_kernels.autograd import ScaleFunction, SqueezeExciteFunction, SqueezeFunction
from se_kernels.checks import (
    check_arguments,
    check_excitation,
    check_gates,
    check_scale,
    check_squeeze,
)
from se_kernels.variants import Variant


def squeeze_excite(
    x: Tensor,
    w1: Tensor | None = None,
    w2: Tensor | None = None,
    b1: Tensor | None = None,
    b2: Tensor | None = None,
    *,
    excitation: Callable[[Tensor], Tensor] | None = None,
    squeeze: str = "avg",
    act: str = "relu",
    act_slope: float = 0.01,
    gate: str = "sigmoid",
    residual: Tensor | None = None,
    post: str = "none",
    backend: str | None = None,
) -> Tensor:
    """The squeeze-and-excitation block, equations 2 to 4 of the paper, fused.

    y = post(s * x + residual), s = gate(W2 act(W1 z + b1) + b2), z = squeeze of x over H and W.

    Args:
        x: (N, C, H, W), float32, float64, bfloat16 or float16; any of N, C, H, W may be 0 (H and W
            only with squeeze="avg"). Contiguous and channels_last tensors, and their slices along
            N and C, are read where they lie; other strides cost one copy.
        w1: (R, C) or (R, C, 1, 1), the first FC; its float dtype may differ from x's.
        w2: (C, R) or (C, R, 1, 1), the second FC; dtype of w1.
        b1: (R,) or None; dtype of w1.
        b2: (C,) or None; dtype of w1.
        excitation: instead of w1, w2, b1, b2, act and gate, a module or function from z
            (N, C, 1, 1) in x's dtype to s (N, C, 1, 1) or (N, C) in any float dtype. It runs in
            eager between the fused squeeze and the fused scale; what it holds gets its gradients,
            and autocast reaches it.
        squeeze: "avg" (equation 2), "max" (Table 11) or "avgmax", 0.5 * (mean + max).
        act: δ, "relu" (the paper's), "silu", "gelu", "gelu_tanh", "hardswish", "leaky_relu" or
            "identity".
        act_slope: the negative slope of "leaky_relu".
        gate: σ, "sigmoid" (the paper's), "hardsigmoid", "tanh" or "relu" (Table 12).
        residual: (N, C, H, W), dtype of x, or None; added after the scale (Fig. 3). In another
            layout than x it costs one copy.
        post: "none", or "relu" after the addition.
        backend: None for the automatic choice, or a name of ``available_backends()``.

    Returns:
        y (N, C, H, W) in x's dtype: channels_last where x lies so, else contiguous.

    Sums are carried in float32, or in float64 where x or the weights are float64. Results are
    bitwise the same from run to run at a fixed number of threads. Differentiable, twice too.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: an argument of another shape or device, an unknown name, or a named backend
            that does not serve x's device.
        RuntimeError: a named backend that was not built.
    """
    if excitation is not None:
        check_excitation(
            x, excitation, w1, w2, b1, b2, squeeze, act, act_slope, gate, residual, post
        )
        return _squeeze_excite_by(excitation, x, squeeze, residual, post, backend)
    if direct.is_open(backend):
        y = direct.run(x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post)
        if y is not None:
            return y
    check_arguments(x, w1, w2, b1, b2, squeeze, act, act_slope, gate, residual, post)
    name = dispatch.choose(x, backend)
    if name == dispatch.REFERENCE or under_transform():
        variant = Variant(squeeze, act, act_slope, gate, post)
        return reference.squeeze_excite(x, w1, w2, b1, b2, residual=residual, **variant._asdict())
    if torch.is_grad_enabled() and (
        x.requires_grad
        or w1.requires_grad
        or w2.requires_grad
        or (b1 is not None and b1.requires_grad)
        or (b2 is not None and b2.requires_grad)
        or (residual is not None and residual.requires_grad)
    ):
        inputs, variant = (x, w1, w2, b1, b2, residual), (squeeze, act, act_slope, gate, post)
        if torch.compiler.is_compiling():
            return ops.forward(*inputs, *variant, name)[0]
        return SqueezeExciteFunction.apply(*inputs, variant, name)
    return ops.below(
        ops.inference, x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post, name
    )


def squeeze(x: Tensor, squeeze: str = "avg", *, backend: str | None = None) -> Tensor:
    """Global pooling, equation 2: x (N, C, H, W) to z (N, C) in x's dtype.

    x, ``squeeze``, ``backend`` and the errors are those of ``squeeze_excite``. Differentiable,
    twice too; backward reads x only where there is a maximum.
    """
    check_squeeze(x, squeeze)
    name = dispatch.choose(x, backend)
    if name == dispatch.REFERENCE or under_transform():
        with reference.outside_autocast(x.device.type):
            dtype = reference.compute_dtype(x, x)
            return reference.squeeze(x.to(dtype), squeeze).to(x.dtype)
    if torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling():
        return SqueezeFunction.apply(x, squeeze, name, False).to(x.dtype)
    return ops.below(ops.squeeze, x, squeeze, name).to(x.dtype)


def scale(
    x: Tensor,
    s: Tensor,
    residual: Tensor | None = None,
    *,
    post: str = "none",
    backend: str | None = None,
) -> Tensor:
    """post(s * x + residual), equation 4 and the tail of Fig. 3.

    Args:
        x: (N, C, H, W), as in ``squeeze_excite``.
        s: (N, C) or (N, C, 1, 1); its float dtype may differ from x's.
        residual, post, backend: as in ``squeeze_excite``.

    Returns:
        y (N, C, H, W) in x's dtype, computed in float32, or in float64 where x or s is float64.

    The errors are those of ``squeeze_excite``. Differentiable, twice too.
    """
    check_scale(x, s, residual, post)
    name = dispatch.choose(x, backend)
    dtype = reference.compute_dtype(x, s)
    s = s.flatten(1).to(dtype)
    if name == dispatch.REFERENCE or under_transform():
        with reference.outside_autocast(x.device.type):
            residual = None if residual is None else residual.to(dtype)
            return reference.scale(x.to(dtype), s, residual, post).to(x.dtype)
    return _scale(x, s, residual, None, None, post, name)


def _squeeze_excite_by(excitation, x, squeeze, residual, post, backend):
    name = dispatch.choose(x, backend)
    if name == dispatch.REFERENCE or under_transform():
        return reference.squeeze_excite(
            x, excitation=excitation, squeeze=squeeze, residual=residual, post=post
        )
    carrier = token = None
    # an exported graph holds ops alone: x gets the gradients of both, one from each
    if torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_exporting():
        z, carrier, token = SqueezeFunction.apply(x, squeeze, name, True)
    else:
        z = ops.below(ops.squeeze, x, squeeze, name)
    s = excitation(z.to(x.dtype)[:, :, None, None])
    check_gates("excitation(z)", s, x)
    s = s.flatten(1).to(reference.compute_dtype(x, s))
    return _scale(x, s, residual, carrier, token, post, name)


def _scale(x, s, residual, carrier, token, post, name):
    grads = torch.is_grad_enabled() and (
        x.requires_grad or s.requires_grad or (residual is not None and residual.requires_grad)
    )
    if carrier is not None or (grads and not torch.compiler.is_compiling()):
        return ScaleFunction.apply(x, s, residual, carrier, token, post, name)
    return ops.below(ops.scale, x, s, residual, post, False, name)[0]


def under_transform() -> bool:
    """Whether the definition is to run: transforms do not see through the registered ops."""
    # torch.func and forward-mode AD see through the definition, not through the registered ops
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
