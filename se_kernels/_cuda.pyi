"""The CUDA kernels (csrc/python/cuda_bindings.cpp, cuda_norm_bindings.cpp).

Tensors arrive as addresses, with strides of image, channel and pixel in elements; 0 for none.
"""

DEVICE_TYPE: str
bfloat16: int
float16: int
float32: int
float64: int

def backward(
    device: int, stream: int, workspace: int, images: int, channels: int, reduced: int,
    pixels: int, x_type: int, w_type: int, nhwc: bool, squeeze: str, act: str, act_slope: float,
    gate: str, x: int, x_i: int, x_c: int, x_p: int, dy: int, dy_i: int, dy_c: int, dy_p: int,
    dx: int, dx_i: int, dx_c: int, dx_p: int, dr: int, dr_i: int, dr_c: int, dr_p: int, w1: int,
    w2: int, mask: int, a: int, s: int, de: int, da: int, h: int, /,
) -> None: ...  # fmt: skip
def begin_survey() -> None: ...
def end_survey() -> list[tuple[str, int, int, int, int, int, int]]: ...
def explain(
    device: int, images: int, channels: int, reduced: int, pixels: int, x_type: int, w_type: int,
    nhwc: bool, /,
) -> str: ...  # fmt: skip
def forward(
    device: int, stream: int, workspace: int, images: int, channels: int, reduced: int,
    pixels: int, x_type: int, w_type: int, nhwc: bool, squeeze: str, act: str, act_slope: float,
    gate: str, post: str, x: int, x_i: int, x_c: int, x_p: int, residual: int, r_i: int, r_c: int,
    r_p: int, y: int, y_i: int, y_c: int, y_p: int, w1: int, w2: int, b1: int, b2: int, mask: int,
    z: int, a: int, s: int, /,
) -> None: ...  # fmt: skip
def norm_backward(
    device: int, stream: int, workspace: int, images: int, channels: int, reduced: int,
    pixels: int, x_type: int, w_type: int, nhwc: bool, act: str, act_slope: float, gate: str,
    dy: int, dy_i: int, dy_c: int, dy_p: int, x: int, x_i: int, x_c: int, x_p: int, dr: int,
    dr_i: int, dr_c: int, dr_p: int, dx: int, dx_i: int, dx_c: int, dx_p: int, mask: int,
    training: bool, numbers: int, squeezed: int, s: int, a: int, pre: str, w1: int, w2: int,
    dweight: int, dbias: int, d: int, dw1: int, dw2: int, db1: int, db2: int, /,
) -> None: ...  # fmt: skip
def norm_backward_workspace_bytes(
    device: int, images: int, channels: int, reduced: int, pixels: int, x_type: int, w_type: int,
    nhwc: bool, pre: str, /,
) -> int: ...  # fmt: skip
def norm_forward(
    device: int, stream: int, workspace: int, images: int, channels: int, reduced: int,
    pixels: int, x_type: int, w_type: int, nhwc: bool, act: str, act_slope: float, gate: str,
    post: str, x: int, x_i: int, x_c: int, x_p: int, residual: int, r_i: int, r_c: int, r_p: int,
    y: int, y_i: int, y_c: int, y_p: int, training: bool, mean: int, mean_type: int, var: int,
    var_type: int, means: int, momentum: float, eps: float, weight: int, bias: int, pre: str,
    w1: int, w2: int, b1: int, b2: int, mask: int, moved: int, numbers: int, squeezed: int, s: int,
    a: int, /,
) -> None: ...  # fmt: skip
def norm_forward_workspace_bytes(
    device: int, images: int, channels: int, reduced: int, pixels: int, x_type: int, w_type: int,
    nhwc: bool, /,
) -> int: ...  # fmt: skip
def norm_moments(
    device: int, stream: int, workspace: int, images: int, channels: int, pixels: int, x_type: int,
    compute_type: int, nhwc: bool, x: int, x_i: int, x_c: int, x_p: int, mean: int, m2: int, /,
) -> None: ...  # fmt: skip
def norm_scale(
    device: int, stream: int, workspace: int, images: int, channels: int, pixels: int, x_type: int,
    compute_type: int, nhwc: bool, mean: int, factor: int, bias: int, pre: str, post: str, x: int,
    x_i: int, x_c: int, x_p: int, residual: int, r_i: int, r_c: int, r_p: int, y: int, y_i: int,
    y_c: int, y_p: int, s: int, mask: int, /,
) -> None: ...  # fmt: skip
def norm_scale_backward(
    device: int, stream: int, workspace: int, images: int, channels: int, pixels: int, x_type: int,
    compute_type: int, nhwc: bool, mean: int, factor: int, bias: int, pre: str, dy: int, dy_i: int,
    dy_c: int, dy_p: int, x: int, x_i: int, x_c: int, x_p: int, mask: int, dr: int, dr_i: int,
    dr_c: int, dr_p: int, sums: int, /,
) -> None: ...  # fmt: skip
def norm_squeeze(
    device: int, stream: int, workspace: int, images: int, channels: int, pixels: int, x_type: int,
    compute_type: int, nhwc: bool, mean: int, scale: int, bias: int, pre: str, x: int, x_i: int,
    x_c: int, x_p: int, z: int, /,
) -> None: ...  # fmt: skip
def norm_squeeze_backward(
    device: int, stream: int, workspace: int, images: int, channels: int, pixels: int, x_type: int,
    compute_type: int, nhwc: bool, mean: int, factor: int, bias: int, pre: str, g: int, g_i: int,
    g_c: int, g_p: int, x: int, x_i: int, x_c: int, x_p: int, mask: int, s: int, d: int,
    slope: int, offset: int, dx: int, dx_i: int, dx_c: int, dx_p: int, /,
) -> None: ...  # fmt: skip
def norm_workspace_bytes(
    device: int, images: int, channels: int, pixels: int, x_type: int, compute_type: int,
    nhwc: bool, /,
) -> int: ...  # fmt: skip
def scale(
    device: int, stream: int, workspace: int, images: int, channels: int, pixels: int, x_type: int,
    compute_type: int, nhwc: bool, post: str, x: int, x_i: int, x_c: int, x_p: int, residual: int,
    r_i: int, r_c: int, r_p: int, y: int, y_i: int, y_c: int, y_p: int, s: int, mask: int, /,
) -> None: ...  # fmt: skip
def scale_backward(
    device: int, stream: int, workspace: int, images: int, channels: int, pixels: int, x_type: int,
    compute_type: int, nhwc: bool, x: int, x_i: int, x_c: int, x_p: int, dy: int, dy_i: int,
    dy_c: int, dy_p: int, dx: int, dx_i: int, dx_c: int, dx_p: int, dr: int, dr_i: int, dr_c: int,
    dr_p: int, mask: int, s: int, ds: int, /,
) -> None: ...  # fmt: skip
def squeeze(
    device: int, stream: int, workspace: int, images: int, channels: int, pixels: int, x_type: int,
    compute_type: int, nhwc: bool, squeeze: str, x: int, x_i: int, x_c: int, x_p: int, z: int, /,
) -> None: ...  # fmt: skip
def squeeze_backward(
    device: int, stream: int, workspace: int, images: int, channels: int, pixels: int, x_type: int,
    compute_type: int, nhwc: bool, squeeze: str, x: int, x_i: int, x_c: int, x_p: int, g: int,
    g_i: int, g_c: int, g_p: int, dx: int, dx_i: int, dx_c: int, dx_p: int, s: int, dz: int, /,
) -> None: ...  # fmt: skip
def weight_gradients(
    device: int, stream: int, workspace: int, images: int, channels: int, reduced: int,
    pixels: int, x_type: int, w_type: int, nhwc: bool, de: int, da: int, h: int, z: int, dw1: int,
    dw2: int, db1: int, db2: int, /,
) -> None: ...  # fmt: skip
def workspace_bytes(
    device: int, images: int, channels: int, reduced: int, pixels: int, x_type: int, w_type: int,
    nhwc: bool, /,
) -> int: ...  # fmt: skip
