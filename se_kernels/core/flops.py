"""FLOPs of the registered ops, for ``torch.utils.flop_counter``: those of the FCs, as it counts
them in the definition. A counter copies the formulas when it is made, so they are registered on
import; torch's module brings Triton in."""

import math
from collections.abc import Sequence

from torch.utils.flop_counter import register_flop_formula

from se_kernels.core import ops


def _product(x_shape: Sequence[int], w_shape: Sequence[int]) -> int:
    """A product with w, (R, C) or (C, R), for each image of x (N, C, H, W)."""
    return 2 * x_shape[0] * math.prod(w_shape)


@register_flop_formula([ops.inference.overloadpacket, ops.forward.overloadpacket])
def _forward(
    x_shape: Sequence[int],
    w1_shape: Sequence[int],
    w2_shape: Sequence[int],
    *_: object,
    **__: object,
) -> int:
    return _product(x_shape, w1_shape) + _product(x_shape, w2_shape)


@register_flop_formula(ops.norm_inference.overloadpacket)
def _norm_inference(
    x: Sequence[int],
    bn_weight: object,
    bn_bias: object,
    mean: object,
    var: object,
    eps: object,
    w1: Sequence[int],
    w2: Sequence[int],
    *_: object,
    **__: object,
) -> int:
    return _product(x, w1) + _product(x, w2)


@register_flop_formula(ops.norm_forward.overloadpacket)
def _norm_forward(
    u: Sequence[int],
    bn_weight: object,
    bn_bias: object,
    mean: object,
    var: object,
    means: object,
    w1: Sequence[int],
    w2: Sequence[int],
    *_: object,
    **__: object,
) -> int:
    return _product(u, w1) + _product(u, w2)


@register_flop_formula(ops.backward.overloadpacket)
def _backward(
    dy: object, x: Sequence[int], w1: Sequence[int], w2: Sequence[int], mask: object, z: object,
    a: object, s: object, squeeze: object, act: object, act_slope: object, gate: object,
    needs: Sequence[bool], *_: object, **__: object,
) -> int:  # fmt: skip
    need_dx, _dr, need_dw1, need_dw2, need_db1, _db2 = needs
    return _of_gradients(x, w1, w2, need_dx or need_dw1 or need_db1, need_dx, need_dw1, need_dw2)


@register_flop_formula(ops.norm_backward.overloadpacket)
def _norm_backward(
    dy: object, u: Sequence[int], mask: object, numbers: object, a: object, w1: Sequence[int],
    w2: Sequence[int], training: object, pre: object, act: object, act_slope: object, gate: object,
    needs: Sequence[bool], *_: object, **__: object,
) -> int:  # fmt: skip
    return _of_gradients(u, w1, w2, True, True, *needs[3:5])  # the norm's own need dz


def _of_gradients(
    x: Sequence[int],
    w1: Sequence[int],
    w2: Sequence[int],
    need_da: bool,
    need_dz: bool,
    need_dw1: bool,
    need_dw2: bool,
) -> int:
    of_w1, of_w2 = _product(x, w1), _product(x, w2)
    return need_da * of_w2 + need_dz * of_w1 + need_dw1 * of_w1 + need_dw2 * of_w2
