"""The block as a function, with a batch norm before it or without, and its two passes over x."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from se_kernels import reference
from se_kernels.core import dispatch, distributed, fast_path, ops
from se_kernels.core.autograd import (
    BatchNormSqueezeExciteFunction,
    Joint,
    SqueezeExciteFunction,
)
from se_kernels.core.checks import (
    check_arguments,
    check_batch_norm,
    check_excitation,
    check_gates,
    check_scale,
    check_squeeze,
)
from se_kernels.core.dispatch import under_transform
from se_kernels.core.phases import ScaleFunction, SqueezeFunction
from se_kernels.core.precision import (
    compute_dtype,
    norm_compute_dtype,
    outside_autocast,
)
from se_kernels.core.running_statistics import Statistics, move_by_definition, of_group, store_moved
from se_kernels.core.variants import Variant


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

    Example:
        >>> x = torch.randn(2, 64, 7, 7)
        >>> w1, w2 = torch.randn(4, 64), torch.randn(64, 4)
        >>> se_kernels.squeeze_excite(x, w1, w2, residual=x, post="relu").shape
        torch.Size([2, 64, 7, 7])

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
    if fast_path.can_bypass_dispatcher(backend):
        inferred = fast_path.run(x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post)
        if inferred is not None:
            return inferred
    weights: tuple[Any, Any] = (w1, w2)  # None is refused
    check_arguments(x, *weights, b1, b2, squeeze, act, act_slope, gate, residual, post)
    assert w1 is not None
    assert w2 is not None
    name = dispatch.choose(x, backend)
    if name == dispatch.REFERENCE or under_transform():
        choice = Variant(squeeze, act, act_slope, gate, post)._asdict()
        return reference.squeeze_excite(x, w1, w2, b1, b2, residual=residual, **choice)
    y: Tensor
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
            y = ops.forward(*inputs, *variant, name)[0]
        else:
            y = SqueezeExciteFunction.apply(*inputs, variant, name)  # type: ignore[no-untyped-call]
        return y
    y = ops.below(
        ops.inference, x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post, name
    )
    return y


def batch_norm_squeeze_excite(
    u: Tensor,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    w1: Tensor,
    w2: Tensor,
    b1: Tensor | None = None,
    b2: Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    pre: str = "identity",
    squeeze: str = "avg",
    act: str = "relu",
    act_slope: float = 0.01,
    gate: str = "sigmoid",
    residual: Tensor | None = None,
    post: str = "none",
    y_is_kept: bool | None = None,
    process_group: "dist.ProcessGroup | None" = None,
    backend: str | None = None,
) -> Tensor:
    """A batch norm, an activation and the squeeze-and-excitation block, fused.

    v = pre(batch norm of u), y = post(s * v + residual), s = gate(W2 act(W1 z + b1) + b2),
    z = squeeze of v over H and W: equations 2 to 4 of the paper with the norm before them (Fig. 3).

    Args:
        u: (N, C, H, W), float32, float64, bfloat16 or float16: what a convolution gives. It is read
            where it lies as x is in ``squeeze_excite``.
        bn_weight, bn_bias: (C,) or None for 1 and 0; any float dtype.
        running_mean, running_var: (C,), any float dtype, updated in place in training mode; None
            keeps none.
        w1, w2, b1, b2, act, act_slope, gate, residual, post, backend: as in ``squeeze_excite``, of
            v in place of x.
        training: True normalises by the mean and the biased variance of the batch and moves the
            running statistics towards them (the variance unbiased) as ``torch.nn.BatchNorm2d``
            does; False normalises by the running statistics, which are then constants.
        momentum: the share of the new statistics in the running ones.
        eps: added to the variance; above 0 in training mode.
        pre: between the norm and the squeeze: "identity", "relu", "silu" or "hardswish".
        squeeze: "avg"; with "max" or "avgmax" the norm runs apart from the block, in eager.
        y_is_kept: deprecated and without effect; backward always reads one bit per element.
        process_group: of ``torch.distributed``: in training mode the statistics, and their
            gradients, are those of all its processes' batches, as in ``torch.nn.SyncBatchNorm``.

    Returns:
        y (N, C, H, W) in u's dtype and layout.

    Sums are carried in float32, or in float64 where u or a weight is float64; the variance is that
    of the numbers less their mean, never a difference of squares. Results are bitwise the same from
    run to run at a fixed number of threads. Differentiable, twice too. Backward keeps u and, for
    post="relu", one bit per element.

    Example:
        >>> u = torch.randn(2, 64, 7, 7)
        >>> weight = var = torch.ones(64)
        >>> bias = mean = torch.zeros(64)
        >>> w1, w2 = torch.randn(4, 64), torch.randn(64, 4)
        >>> y = se_kernels.batch_norm_squeeze_excite(
        ...     u, weight, bias, mean, var, w1, w2, residual=u, post="relu"
        ... )
        >>> y.shape
        torch.Size([2, 64, 7, 7])

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: an argument of another shape or device, an unknown name, one value per channel
            in training mode (of one process), no running statistics in evaluation mode, or a named
            backend that does not serve u's device.
        RuntimeError: a named backend that was not built.
    """
    if y_is_kept is not None:
        warnings.warn(
            "y_is_kept is deprecated and has no effect: backward reads one bit per element",
            DeprecationWarning,
            stacklevel=2,
        )
    if training is False and fast_path.can_bypass_dispatcher(backend):
        inferred = fast_path.run_norm(
            u, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post,
            bn_weight, bn_bias, running_mean, running_var, eps, pre,
        )  # fmt: skip
        if inferred is not None:
            return inferred
    check_batch_norm(
        u, bn_weight, bn_bias, running_mean, running_var, training, momentum, eps, pre,
        distributed.size(process_group) > 1,
    )  # fmt: skip
    check_arguments(u, w1, w2, b1, b2, squeeze, act, act_slope, gate, residual, post, images="u")
    name = dispatch.choose(u, backend)
    group = process_group if training else None
    fcs, variant = (w1, w2, b1, b2, residual), (pre, act, act_slope, gate, post)
    norm, running = (u, bn_weight, bn_bias), (running_mean, running_var)
    # without an element the sweeps only serve the processes that have some
    sweeps = squeeze == "avg" and name != dispatch.REFERENCE and not under_transform()
    if not sweeps or (u.numel() == 0 and group is None):
        return _norm_apart(
            norm, running, fcs, training, momentum, name, eps=eps, pre=pre, squeeze=squeeze,
            act=act, act_slope=act_slope, gate=gate, post=post, process_group=group,
        )  # fmt: skip
    grads = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (*norm, *fcs)
    )
    y: Tensor
    if not (training or grads):
        y = ops.below(ops.norm_inference, *norm, *running, eps, *fcs, *variant, name)
        return y

    of, joint = Statistics(*running), None
    if group is not None:
        wide = norm_compute_dtype(u, bn_weight, w1) == torch.float64
        with torch.no_grad():
            of = of_group(u, *running, momentum, wide, group, name)
        assert of.count is not None
        joint = Joint(group, of.count)
    tensors = *norm, of.mean, of.var, of.means, *fcs
    settings = training and group is None, momentum, eps, *variant, grads and post == "relu"
    # traced, the op itself: it has its gradients at hand, and nothing is written in a Function
    traced = torch.compiler.is_compiling()
    if grads and (joint is not None or not traced):
        y = BatchNormSqueezeExciteFunction.apply(joint, *tensors, settings, name)  # type: ignore[no-untyped-call]
        return y
    y, *_, moved = ops.below(ops.norm_forward, *tensors, *settings, name)
    store_moved(*running, moved, name)
    return y


def squeeze(x: Tensor, squeeze: str = "avg", *, backend: str | None = None) -> Tensor:
    """Global pooling, equation 2: x (N, C, H, W) to z (N, C) in x's dtype.

    x, ``squeeze``, ``backend`` and the errors are those of ``squeeze_excite``. Differentiable,
    twice too; backward reads x only where there is a maximum.

    Example:
        >>> se_kernels.squeeze(torch.ones(2, 3, 4, 4), "max")
        tensor([[1., 1., 1.],
                [1., 1., 1.]])
    """
    check_squeeze(x, squeeze)
    name = dispatch.choose(x, backend)
    if name == dispatch.REFERENCE or under_transform():
        with outside_autocast(x.device.type):
            dtype = compute_dtype(x, x)
            return reference.squeeze(x.to(dtype), squeeze).to(x.dtype)
    if torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling():
        z: Tensor = SqueezeFunction.apply(x, squeeze, name, False)  # type: ignore[no-untyped-call]
    else:
        z = ops.below(ops.squeeze, x, squeeze, name)
    return z.to(x.dtype)


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

    Example:
        >>> se_kernels.scale(torch.ones(1, 2, 1, 2), torch.tensor([[0.5, 2.0]])).flatten()
        tensor([0.5000, 0.5000, 2.0000, 2.0000])
    """
    check_scale(x, s, residual, post)
    name = dispatch.choose(x, backend)
    dtype = compute_dtype(x, s)
    s = s.flatten(1).to(dtype)
    if name == dispatch.REFERENCE or under_transform():
        with outside_autocast(x.device.type):
            residual = None if residual is None else residual.to(dtype)
            return reference.scale(x.to(dtype), s, residual, post).to(x.dtype)
    return _scale(x, s, residual, None, None, post, name)


def _squeeze_excite_by(
    excitation: Callable[[Tensor], Tensor],
    x: Tensor,
    squeeze: str,
    residual: Tensor | None,
    post: str,
    backend: str | None,
) -> Tensor:
    name = dispatch.choose(x, backend)
    if name == dispatch.REFERENCE or under_transform():
        return reference.squeeze_excite(
            x, excitation=excitation, squeeze=squeeze, residual=residual, post=post
        )
    carrier = token = None
    # an exported graph holds ops alone: x gets the gradients of both, one from each
    if torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_exporting():
        z, carrier, token = SqueezeFunction.apply(x, squeeze, name, True)  # type: ignore[no-untyped-call]
    else:
        z = ops.below(ops.squeeze, x, squeeze, name)
    s = excitation(z.to(x.dtype)[:, :, None, None])
    check_gates("excitation(z)", s, x)
    s = s.flatten(1).to(compute_dtype(x, s))
    return _scale(x, s, residual, carrier, token, post, name)


def _scale(
    x: Tensor,
    s: Tensor,
    residual: Tensor | None,
    carrier: Tensor | None,
    token: Tensor | None,
    post: str,
    name: str,
) -> Tensor:
    grads = torch.is_grad_enabled() and (
        x.requires_grad or s.requires_grad or (residual is not None and residual.requires_grad)
    )
    if carrier is not None or (grads and not torch.compiler.is_compiling()):
        y: Tensor = ScaleFunction.apply(x, s, residual, carrier, token, post, name)  # type: ignore[no-untyped-call]
    else:
        y = ops.below(ops.scale, x, s, residual, post, False, name)[0]
    return y


def _norm_apart(
    norm: tuple[Tensor, Tensor | None, Tensor | None],
    running: tuple[Tensor | None, Tensor | None],
    fcs: tuple[Any, ...],
    training: bool,
    momentum: float,
    backend: str,
    **variant: Any,
) -> Tensor:
    """The norm in eager, then the block: by its definition, or with a maximum on its backend."""
    (u, bn_weight, _), (*weights, residual) = norm, fcs
    dtype = norm_compute_dtype(u, bn_weight, weights[0])
    how = {name: variant[name] for name in ("eps", "pre", "process_group")}
    if training:
        with torch.no_grad(), outside_autocast(u.device.type):
            move_by_definition(u.to(dtype), *running, momentum, how["eps"], how["process_group"])
        running = None, None
    if backend == dispatch.REFERENCE or under_transform() or variant["squeeze"] == "avg":
        return reference.batch_norm_squeeze_excite(
            *norm, *running, *weights, residual=residual, **variant
        )
    v = reference.normed(*norm, *running, dtype, **how).to(u.dtype)
    block = {name: value for name, value in variant.items() if name not in how}
    return squeeze_excite(v, *weights, residual=residual, backend=backend, **block)
