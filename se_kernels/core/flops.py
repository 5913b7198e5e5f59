"""FLOPs of the registered ops, for ``torch.utils.flop_counter``: those of the FCs, as it counts
them in the definition. A counter copies the formulas when it is made, so they are registered on
import; torch's module brings Triton in, 0.13 s here."""

import math

from torch.utils.flop_counter import register_flop_formula

from se_kernels.core import ops


def _product(x_shape, w_shape) -> int:
    """A product with w, (R, C) or (C, R), for each image of x (N, C, H, W)."""
    return 2 * x_shape[0] * math.prod(w_shape)


@register_flop_formula([ops.inference.overloadpacket, ops.forward.overloadpacket])
def _forward(x_shape, w1_shape, w2_shape, *_, **__) -> int:
    return _product(x_shape, w1_shape) + _product(x_shape, w2_shape)


@register_flop_formula(ops.norm_inference.overloadpacket)
def _norm_inference(x, bn_weight, bn_bias, mean, var, eps, w1, w2, *_, **__) -> int:
    return _product(x, w1) + _product(x, w2)


@register_flop_formula(ops.norm_forward.overloadpacket)
def _norm_forward(u, bn_weight, bn_bias, mean, var, means, w1, w2, *_, **__) -> int:
    return _product(u, w1) + _product(u, w2)


@register_flop_formula(ops.backward.overloadpacket)
def _backward(dy, x, w1, w2, mask, z, a, s, squeeze, act, act_slope, gate, needs, *_, **__) -> int:
    need_dx, _, need_dw1, need_dw2, need_db1, _ = needs
    return _of_gradients(x, w1, w2, need_dx or need_dw1 or need_db1, need_dx, need_dw1, need_dw2)


@register_flop_formula(ops.norm_backward.overloadpacket)
def _norm_backward(
    dy, u, mask, numbers, a, w1, w2, training, pre, act, act_slope, gate, needs, *_, **__
) -> int:
    return _of_gradients(u, w1, w2, True, True, *needs[3:5])  # the norm's own need dz


def _of_gradients(x, w1, w2, need_da, need_dz, need_dw1, need_dw2) -> int:
    of_w1, of_w2 = _product(x, w1), _product(x, w2)
    return need_da * of_w2 + need_dz * of_w1 + need_dw1 * of_w1 + need_dw2 * of_w2
