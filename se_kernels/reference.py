"""The eager definition of the block: plain PyTorch, differentiable, and the judge of every kernel.

Computed in the widest of float32, x's dtype and the weights' dtype, and rounded once, at the end,
to x's dtype. The three phases carry the paper's names (section 3): squeeze, excite, scale.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from se_kernels.core.activations import activate, open_gate
from se_kernels.core.checks import check_gates
from se_kernels.core.precision import compute_dtype, norm_compute_dtype, outside_autocast


def squeeze(v: Tensor, kind: str = "avg", keepdim: bool = False) -> Tensor:
    """Global pooling, equation 2: v (N, C, H, W) to z (N, C), or (N, C, 1, 1) with ``keepdim``.

    ``kind`` is "avg" (the paper's), "max" (Table 11) or "avgmax", 0.5 * (mean + max).
    """
    if kind == "avg":
        return v.mean((2, 3), keepdim)
    peak = v.amax((2, 3), keepdim)
    return peak if kind == "max" else 0.5 * (v.mean((2, 3), keepdim) + peak)


def excite(
    z: Tensor,
    w1: Tensor,
    w2: Tensor,
    b1: Tensor | None = None,
    b2: Tensor | None = None,
    *,
    act: str = "relu",
    act_slope: float = 0.01,
    gate: str = "sigmoid",
) -> Tensor:
    """Equation 3, s = σ(W2 δ(W1 z + b1) + b2): z (N, C), w1 (R, C), w2 (C, R) to s (N, C)."""
    h = activate(F.linear(z, w1, b1), act, act_slope)
    return open_gate(F.linear(h, w2, b2), gate)


def scale(v: Tensor, s: Tensor, residual: Tensor | None = None, post: str = "none") -> Tensor:
    """Equation 4 and the tail of Fig. 3: post(s * v + residual), v (N, C, H, W), s (N, C)."""
    y = v * s[:, :, None, None]
    if residual is not None:
        y = y + residual
    return F.relu(y) if post == "relu" else y


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
) -> Tensor:
    """The whole block, equations 2 to 4; shapes and names as in ``se_kernels.squeeze_excite``.

    Autocast does not reach inside: the definition is the same with and without it. It does reach
    an ``excitation``.
    """
    if excitation is not None:
        return _squeeze_excite_by(excitation, x, squeeze, residual, post)
    dtype = compute_dtype(x, w1)
    with outside_autocast(x.device.type):
        v = x.to(dtype)
        s = gates(v, w1, w2, b1, b2, squeeze=squeeze, act=act, act_slope=act_slope, gate=gate)
        y = scale(v, s, None if residual is None else residual.to(dtype), post)
        return y.to(x.dtype)


def gates(
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
) -> Tensor:
    """s (N, C) of ``squeeze_excite``, equations 2 and 3, not yet rounded to x's dtype."""
    if excitation is not None:
        return _gates_by(excitation, x, squeeze)
    dtype = compute_dtype(x, w1)
    with outside_autocast(x.device.type):
        return excite(
            _squeeze(x.to(dtype), squeeze),
            w1.flatten(1).to(dtype),
            w2.flatten(1).to(dtype),
            None if b1 is None else b1.to(dtype),
            None if b2 is None else b2.to(dtype),
            act=act,
            act_slope=act_slope,
            gate=gate,
        )


def _squeeze_excite_by(excitation, x, squeeze, residual, post):
    s = _gates_by(excitation, x, squeeze)
    with outside_autocast(x.device.type):
        residual = None if residual is None else residual.to(s.dtype)
        return scale(x.to(s.dtype), s, residual, post).to(x.dtype)


def _gates_by(excitation, x, squeeze):
    with outside_autocast(x.device.type):
        z = _squeeze(x.to(compute_dtype(x, x)), squeeze).to(x.dtype)
    s = excitation(z[:, :, None, None])
    check_gates("excitation(z)", s, x)
    return s.flatten(1).to(compute_dtype(x, s))


def batch_statistics(u: Tensor, group=None) -> tuple[Tensor, Tensor]:
    """mean and (biased) variance (C) of u (N, C, H, W), over the batches of all the group's
    processes where there is one; differentiable."""
    if group is None:
        if u.numel() == 0:
            return u.new_zeros(u.shape[1]), u.new_zeros(u.shape[1])
        return u.mean((0, 2, 3)), u.var((0, 2, 3), correction=0)
    from torch.distributed.nn.functional import all_reduce

    count = u.new_tensor([u.numel() // max(u.shape[1], 1)])
    total, count = all_reduce(torch.cat((u.sum((0, 2, 3)), count)), group=group).tensor_split([-1])
    mean = total / count
    squares = (u - mean[:, None, None]).square().sum((0, 2, 3))
    return mean, all_reduce(squares, group=group) / count


def batch_norm(
    u: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> Tensor:
    """u (N, C, H, W) normalised with mean and variance (C), times weight, plus bias."""
    t = (u - mean[:, None, None]) * torch.rsqrt(var + eps)[:, None, None]
    if weight is not None:
        t = t * weight[:, None, None]
    return t if bias is None else t + bias[:, None, None]


def batch_norm_squeeze_excite(
    u: Tensor,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    w1: Tensor,
    w2: Tensor,
    b1: Tensor | None = None,
    b2: Tensor | None = None,
    *,
    eps: float = 1e-5,
    pre: str = "identity",
    squeeze: str = "avg",
    act: str = "relu",
    act_slope: float = 0.01,
    gate: str = "sigmoid",
    residual: Tensor | None = None,
    post: str = "none",
    process_group=None,
) -> Tensor:
    """Batch norm, ``pre`` and the block; shapes and names as in
    ``se_kernels.batch_norm_squeeze_excite``. mean and var (C) are the norm's, or None for those of
    the batch."""
    dtype = norm_compute_dtype(u, bn_weight, w1)
    variant = dict(squeeze=squeeze, act=act, act_slope=act_slope, gate=gate, post=post)
    norm = dict(eps=eps, pre=pre, process_group=process_group)
    v = normed(u, bn_weight, bn_bias, mean, var, dtype, **norm)
    residual = None if residual is None else residual.to(dtype)
    return squeeze_excite(v, w1, w2, b1, b2, residual=residual, **variant).to(u.dtype)


def normed(
    u: Tensor,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    dtype: torch.dtype,
    *,
    eps: float,
    pre: str,
    process_group=None,
) -> Tensor:
    """v (N, C, H, W) in ``dtype``: batch norm and ``pre`` of u."""
    with outside_autocast(u.device.type):
        t = u.to(dtype)
        if mean is None:
            mean, var = batch_statistics(t, process_group)
        weight, bias = (None if p is None else p.to(dtype) for p in (bn_weight, bn_bias))
        return activate(batch_norm(t, weight, bias, mean.to(dtype), var.to(dtype), eps), pre)


_squeeze = squeeze  # the argument of squeeze_excite hides the phase's name
