"""squeeze_excite: the block as a function."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from se_kernels import dispatch, ops, reference
from se_kernels.autograd import SqueezeExciteFunction
from se_kernels.checks import check_arguments
from se_kernels.variants import Variant


def squeeze_excite(
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    b1: Tensor | None = None,
    b2: Tensor | None = None,
    *,
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
    check_arguments(x, w1, w2, b1, b2, squeeze, act, act_slope, gate, residual, post)
    name = dispatch.choose(x, backend)
    if name == dispatch.REFERENCE or _under_transform():
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
        variant = Variant(squeeze, act, act_slope, gate, post)
        return SqueezeExciteFunction.apply(x, w1, w2, b1, b2, residual, variant, name)
    return ops.inference(x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post, name)


def _under_transform() -> bool:
    # torch.func and forward-mode AD see through the definition, not through the registered ops
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
