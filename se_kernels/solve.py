"""The algebra between the sweeps of a batch norm with its SE block, on N×C numbers, in plain torch.

Statistics of the norm, the excitation and its gradients, and what the second sweep of backward
multiplies with. All is in the dtype of the sums, but for the statistics: these are in float64.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from se_kernels import reference
from se_kernels.layout import empty_weight_gradients
from se_kernels.products import exact, weight_gradients


def statistics(means: Tensor, m2: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
    """mean and m2 (C) of a batch from those of its images (N, C); m2 is Σ (u - mean)²."""
    if means.shape[0] == 0:
        return tuple(means.new_zeros((2, means.shape[1])))
    var, mean = torch.var_mean(means, 0, correction=0)
    return mean, torch.add(m2.sum(0), var, alpha=pixels * means.shape[0])


def statistics_of(u: Tensor) -> tuple[Tensor, Tensor]:
    """The same, in float64 too, from u (N, C, H, W) itself."""
    if u.numel() == 0:
        return tuple(u.new_zeros((2, u.shape[1]), dtype=torch.float64))
    var, mean = torch.var_mean(u, (0, 2, 3), correction=0)
    return mean.double(), var.double() * (u.numel() // u.shape[1])


def moved(running_mean, running_var, mean, m2, count, momentum) -> tuple[Tensor, Tensor]:
    """The running statistics after a batch with this mean and m2 (C) of ``count`` numbers per
    channel, in the dtype of mean."""
    return tuple(
        momentum * new + (1 - momentum) * running.to(new.dtype)
        for running, new in ((running_mean, mean), (running_var, m2 / (count - 1)))
    )


def norm_of(mean, var, weight, bias, eps: float) -> Tensor:
    """norm (4, C): mean, scale, bias: t = (u - mean) * scale + bias; and 1 / √(var + eps)."""
    rstd = torch.rsqrt(var + eps)
    scale = rstd if weight is None else rstd * weight.to(rstd.dtype)
    shift = torch.zeros_like(rstd) if bias is None else bias.to(rstd.dtype)
    return torch.stack((mean, scale, shift, rstd))


def centred(means: Tensor, norm: Tensor) -> Tensor:
    """means (N, C), which may be of a wider dtype, less the norm's."""
    return (means - norm[0]).to(norm.dtype)


def affine(centred: Tensor, norm: Tensor) -> Tensor:
    """z (N, C), the norm of means that are ``centred``, where nothing is before the squeeze."""
    return torch.addcmul(norm[2], centred, norm[1])


def excite(z, w1, w2, b1, b2, act: str, act_slope: float, gate: str) -> tuple[Tensor, Tensor]:
    """Equation 3: z (N, C) to a (N, R) and s (N, C)."""
    b1, b2 = (None if b is None else b.to(z.dtype) for b in (b1, b2))
    with exact(z.device.type):
        a = F.linear(z, w1.flatten(1).to(z.dtype), b1)
        e = F.linear(reference.activate(a, act, act_slope), w2.flatten(1).to(z.dtype), b2)
        return a, reference.open_gate(e, gate)


def excite_backward(
    ds, z, a, s, w1, w2, act: str, act_slope: float, gate: str, needs: list[bool]
) -> tuple[Tensor, ...]:
    """dz (N, C), and dw1, dw2, db1, db2, each empty where ``needs`` says so."""
    gradients = empty_weight_gradients(w1, w2, needs)
    de = close_gate(ds, s, gate)
    with exact(z.device.type):
        dh = de @ w2.flatten(1).to(de.dtype)
        da = activate_backward(dh, a, act, act_slope)
        dz = da @ w1.flatten(1).to(de.dtype)
    weight_gradients(gradients, needs, de, da, reference.activate(a, act, act_slope), z)
    return dz, *gradients


def through_statistics(norm, d_weight, d_bias, count) -> tuple[Tensor, Tensor]:
    """slope and offset (C) of du: what the gradients of the batch's mean and variance add.

    d_weight and d_bias (C): Σ dt (u - mean) / √(var + eps) and Σ dt over the ``count`` numbers per
    channel.
    """
    _, scale, _, rstd = norm.unbind()
    share = -scale / count
    slope = share * rstd * d_weight  # in this order: rstd³ may be no float
    return slope.to(norm.dtype), (share * d_bias).to(norm.dtype)


def close_gate(ds: Tensor, s: Tensor, gate: str) -> Tensor:
    """σ': de from ds, by s alone."""
    match gate:
        case "sigmoid":
            return torch.ops.aten.sigmoid_backward(ds, s)
        case "hardsigmoid":
            return torch.where((s > 0) & (s < 1), ds / 6, 0)
        case "tanh":
            return torch.ops.aten.tanh_backward(ds, s)
    return torch.ops.aten.threshold_backward(ds, s, 0)


def activate_backward(dh: Tensor, a: Tensor, act: str, act_slope: float) -> Tensor:
    """δ': da from dh."""
    match act:
        case "relu":
            return torch.ops.aten.threshold_backward(dh, a, 0)
        case "silu":
            return torch.ops.aten.silu_backward(dh, a)
        case "gelu":
            return torch.ops.aten.gelu_backward(dh, a)
        case "gelu_tanh":
            return torch.ops.aten.gelu_backward(dh, a, approximate="tanh")
        case "hardswish":
            return torch.ops.aten.hardswish_backward(dh, a)
        case "leaky_relu":
            return torch.ops.aten.leaky_relu_backward(dh, a, act_slope, False)
    return dh
