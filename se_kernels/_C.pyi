"""The native CPU kernels (csrc/python/bindings.cpp, norm_bindings.cpp).

Tensors arrive as addresses, with strides of image, channel and pixel in elements; 0 for none.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

bfloat16: int
float16: int
float32: int
float64: int

def backward(
    images: int, channels: int, reduced: int, pixels: int, x_type: int, w_type: int, nhwc: bool,
    squeeze: str, act: str, act_slope: float, gate: str, post: str, threads: int, x: int, x_i: int,
    x_c: int, x_p: int, dy: int, dy_i: int, dy_c: int, dy_p: int, mask: int, dx: int, dx_i: int,
    dx_c: int, dx_p: int, dr: int, dr_i: int, dr_c: int, dr_p: int, w1: int, w2: int, z: int,
    a: int, s: int, dw1: int, dw2: int, db1: int, db2: int, /,
) -> None: ...  # fmt: skip
def forward(
    images: int, channels: int, reduced: int, pixels: int, x_type: int, w_type: int, nhwc: bool,
    squeeze: str, act: str, act_slope: float, gate: str, post: str, threads: int, x: int, x_i: int,
    x_c: int, x_p: int, residual: int, r_i: int, r_c: int, r_p: int, y: int, y_i: int, y_c: int,
    y_p: int, w1: int, w2: int, b1: int, b2: int, mask: int, z: int, a: int, s: int, /,
) -> None: ...  # fmt: skip
def instruction_set() -> str: ...
def norm_backward(
    images: int, channels: int, reduced: int, pixels: int, x_type: int, w_type: int, nhwc: bool,
    squeeze: str, act: str, act_slope: float, gate: str, post: str, threads: int, dy: int,
    dy_i: int, dy_c: int, dy_p: int, x: int, x_i: int, x_c: int, x_p: int, dr: int, dr_i: int,
    dr_c: int, dr_p: int, dx: int, dx_i: int, dx_c: int, dx_p: int, mask: int, training: bool,
    norm: int, squeezed: int, s: int, a: int, pre: str, w1: int, w2: int, dweight: int, dbias: int,
    d: int, dw1: int, dw2: int, db1: int, db2: int, /,
) -> None: ...  # fmt: skip
def norm_forward(
    images: int, channels: int, reduced: int, pixels: int, x_type: int, w_type: int, nhwc: bool,
    squeeze: str, act: str, act_slope: float, gate: str, post: str, threads: int, x: int, x_i: int,
    x_c: int, x_p: int, residual: int, r_i: int, r_c: int, r_p: int, y: int, y_i: int, y_c: int,
    y_p: int, training: bool, mean: int, mean_type: int, var: int, var_type: int, means: int,
    momentum: float, eps: float, weight: int, bias: int, pre: str, w1: int, w2: int, b1: int,
    b2: int, mask: int, moved: int, norm: int, squeezed: int, s: int, a: int, /,
) -> None: ...  # fmt: skip
def norm_inference(
    images: int, channels: int, reduced: int, pixels: int, x_type: int, w_type: int, nhwc: bool,
    squeeze: str, act: str, act_slope: float, gate: str, post: str, threads: int, x: int, x_i: int,
    x_c: int, x_p: int, residual: int, r_i: int, r_c: int, r_p: int, y: int, y_i: int, y_c: int,
    y_p: int, mean: int, var: int, weight: int, bias: int, eps: float, pre: str, w1: int, w2: int,
    b1: int, b2: int, /,
) -> None: ...  # fmt: skip
def norm_moments(
    images: int, channels: int, pixels: int, x_type: int, compute_type: int, nhwc: bool,
    squeeze: str, post: str, threads: int, x: int, x_i: int, x_c: int, x_p: int, mean: int,
    m2: int, /,
) -> None: ...  # fmt: skip
def norm_scale(
    images: int, channels: int, pixels: int, x_type: int, compute_type: int, nhwc: bool,
    squeeze: str, post: str, threads: int, x: int, x_i: int, x_c: int, x_p: int, residual: int,
    r_i: int, r_c: int, r_p: int, y: int, y_i: int, y_c: int, y_p: int, mean: int, scale: int,
    bias: int, pre: str, s: int, mask: int, /,
) -> None: ...  # fmt: skip
def norm_scale_backward(
    images: int, channels: int, pixels: int, x_type: int, compute_type: int, nhwc: bool,
    squeeze: str, post: str, threads: int, dy: int, dy_i: int, dy_c: int, dy_p: int, x: int,
    x_i: int, x_c: int, x_p: int, dr: int, dr_i: int, dr_c: int, dr_p: int, mean: int, scale: int,
    bias: int, pre: str, mask: int, sums: int, /,
) -> None: ...  # fmt: skip
def norm_squeeze(
    images: int, channels: int, pixels: int, x_type: int, compute_type: int, nhwc: bool,
    squeeze: str, post: str, threads: int, x: int, x_i: int, x_c: int, x_p: int, mean: int,
    scale: int, bias: int, pre: str, z: int, /,
) -> None: ...  # fmt: skip
def norm_squeeze_backward(
    images: int, channels: int, pixels: int, x_type: int, compute_type: int, nhwc: bool,
    squeeze: str, post: str, threads: int, g: int, g_i: int, g_c: int, g_p: int, x: int, x_i: int,
    x_c: int, x_p: int, dx: int, dx_i: int, dx_c: int, dx_p: int, mean: int, scale: int, bias: int,
    pre: str, mask: int, s: int, d: int, slope: int, offset: int, /,
) -> None: ...  # fmt: skip
def scale(
    images: int, channels: int, pixels: int, x_type: int, compute_type: int, nhwc: bool,
    squeeze_kind: str, post: str, threads: int, x: int, x_i: int, x_c: int, x_p: int,
    residual: int, r_i: int, r_c: int, r_p: int, y: int, y_i: int, y_c: int, y_p: int, s: int,
    mask: int, /,
) -> None: ...  # fmt: skip
def scale_backward(
    images: int, channels: int, pixels: int, x_type: int, compute_type: int, nhwc: bool,
    squeeze_kind: str, post: str, threads: int, x: int, x_i: int, x_c: int, x_p: int, dy: int,
    dy_i: int, dy_c: int, dy_p: int, mask: int, dx: int, dx_i: int, dx_c: int, dx_p: int, dr: int,
    dr_i: int, dr_c: int, dr_p: int, s: int, ds: int, /,
) -> None: ...  # fmt: skip
def squeeze(
    images: int, channels: int, pixels: int, x_type: int, compute_type: int, nhwc: bool,
    squeeze_kind: str, post: str, threads: int, x: int, x_i: int, x_c: int, x_p: int, z: int, /,
) -> None: ...  # fmt: skip
def squeeze_backward(
    images: int, channels: int, pixels: int, x_type: int, compute_type: int, nhwc: bool,
    squeeze_kind: str, post: str, threads: int, x: int, x_i: int, x_c: int, x_p: int, g: int,
    g_i: int, g_c: int, g_p: int, dx: int, dx_i: int, dx_c: int, dx_p: int, s: int, dz: int, /,
) -> None: ...  # fmt: skip

# read by METH_FASTCALL, with no signature in their documentation; csrc/python/direct.h, guard.h
def direct_setup(
    exchange: object, tensor_types: tuple[type, ...], empty_like: Callable[..., Tensor],
    get_num_threads: Callable[[], int], /,
) -> bool: ...  # fmt: skip
def direct_inference(
    x: Tensor, w1: Tensor, w2: Tensor, b1: Tensor | None, b2: Tensor | None,
    residual: Tensor | None, squeeze: str, act: str, act_slope: float, gate: str, post: str, /,
) -> Tensor | None: ...  # fmt: skip
def direct_norm_inference(
    x: Tensor, w1: Tensor, w2: Tensor, b1: Tensor | None, b2: Tensor | None,
    residual: Tensor | None, squeeze: str, act: str, act_slope: float, gate: str, post: str,
    bn_weight: Tensor | None, bn_bias: Tensor | None, mean: Tensor | None, var: Tensor | None,
    eps: float, pre: str, /,
) -> Tensor | None: ...  # fmt: skip
def direct_are_plain(*args: object) -> bool: ...
def guard_setup(modules: dict[str, Any], tracer: dict[str, Any], /) -> None: ...
def guard_is_valid(module: nn.Module, watch: tuple[Any, ...], /) -> bool: ...
