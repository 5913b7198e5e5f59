"""The native CPU backend: torch tensors in, plain pointers to csrc/ out."""

import ctypes
import importlib
from pathlib import Path

import torch
from torch import Tensor

from se_kernels.layout import (
    empty_gradients,
    empty_output,
    empty_scale_gradients,
    flat,
    like_layout,
    readable,
    row_major,
    walk,
)
from se_kernels.reference import compute_dtype


def _share_openmp() -> None:
    # csrc/ is not linked to an OpenMP runtime: a second one beside torch's would fight it for cores
    packages = Path(torch.__file__).parent
    bundled = [*packages.glob("lib/lib*omp*"), *packages.parent.glob("torch.libs/lib*omp*")]
    for library in [str(path) for path in bundled] or ["libgomp.so.1", "libomp.so.5"]:
        try:
            ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
            return
        except OSError:
            continue


def _load():
    _share_openmp()
    try:
        return importlib.import_module("se_kernels._C"), None
    except ImportError as error:
        reason = str(error)
    try:
        built = importlib.import_module("se_kernels._build_info")
        reason = built.CPU_ERROR or reason
    except ImportError:
        reason = f"the package was never built ({reason})"
    return None, reason


DEVICE = "cpu"  # whose tensors this backend is chosen for by itself

_C, _reason = _load()

_SUPPORTED = ("float32", "float64", "bfloat16", "float16")
native_direct = None  # the module with the calls of se_kernels.direct, where they work
if _C is not None:
    _DTYPES = {getattr(torch, name): getattr(_C, name) for name in _SUPPORTED}
    _exchange = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    if _exchange is not None and _C.direct_setup(
        _exchange, (torch.Tensor, torch.nn.Parameter), torch.empty_like, torch.get_num_threads
    ):
        native_direct = _C


def why_not() -> str | None:
    """Why the extension cannot be used on this machine, or None where it can."""
    return _reason


def why_not_for(x: Tensor) -> str | None:
    """Why this backend does not serve x, or None where it does."""
    if not x.is_cpu:
        return f"expected x on a CPU, got {x.device}"
    return _reason


def instruction_set() -> str:
    """The instruction set that the kernels chose on this processor."""
    return _C.instruction_set()


def inference(x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post):
    """y (N, C, H, W)."""
    y = empty_output(x)
    _run_forward(x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post, y)
    return y


def forward(x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post):
    """y (N, C, H, W), z (N, C), a (N, R), s (N, C)."""
    dtype = compute_dtype(x, w1)
    images, channels = x.shape[:2]
    y = empty_output(x)
    z = torch.empty(images, channels, dtype=dtype)
    a = torch.empty(images, w1.shape[0], dtype=dtype)
    s = torch.empty_like(z)
    _run_forward(x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post, y, z, a, s)
    return y, z, a, s


def _run_forward(
    x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post, y, z=None, a=None, s=None
):
    layout, x = readable(x)
    residual = like_layout(residual, layout)
    w1, w2, b1, b2 = row_major(w1), row_major(w2), flat(b1), flat(b2)
    _C.forward(
        *_problem(x, w1, layout, squeeze, act, act_slope, gate, post),
        *_place(x),
        *_place(residual),
        *_place(y),
        w1.data_ptr(),
        w2.data_ptr(),
        _pointer(b1),
        _pointer(b2),
        _pointer(z),
        _pointer(a),
        _pointer(s),
    )


def backward(dy, x, w1, w2, y, z, a, s, squeeze, act, act_slope, gate, post, needs):
    """dx, dr (N, C, H, W), dw1, dw2, db1 (R,), db2 (C,); each empty where ``needs`` says so."""
    gradients = empty_gradients(x, w1, w2, needs)
    dx, dr, *weight_gradients = (g if n else None for g, n in zip(gradients, needs, strict=True))
    layout, x = readable(x)
    dy = like_layout(dy, layout)
    y = like_layout(y, layout)
    w1, w2 = row_major(w1), row_major(w2)
    z, a, s = z.contiguous(), a.contiguous(), s.contiguous()
    _C.backward(
        *_problem(x, w1, layout, squeeze, act, act_slope, gate, post),
        *_place(x),
        *_place(dy),
        *_place(y),
        *_place(dx),
        *_place(dr),
        w1.data_ptr(),
        w2.data_ptr(),
        z.data_ptr(),
        a.data_ptr(),
        s.data_ptr(),
        *map(_pointer, weight_gradients),
    )
    return gradients


def squeeze(x, squeeze):
    """z (N, C) in the dtype of the sums."""
    z = torch.empty(x.shape[:2], dtype=compute_dtype(x, x))
    layout, x = readable(x)
    _C.squeeze(*_phase(x, z, layout, squeeze=squeeze), *_place(x), z.data_ptr())
    return z


def scale(x, s, residual, post):
    """y (N, C, H, W)."""
    y = empty_output(x)
    layout, x = readable(x)
    residual = like_layout(residual, layout)
    s = s.contiguous()
    _C.scale(
        *_phase(x, s, layout, post=post), *_place(x), *_place(residual), *_place(y), s.data_ptr()
    )
    return y


def scale_backward(dy, x, y, s, post, needs):
    """dx = g s and dr = g (N, C, H, W), ds (N, C); each empty where ``needs`` says so."""
    gradients = empty_scale_gradients(x, s, needs)
    dx, dr, ds = (g if n else None for g, n in zip(gradients, needs, strict=True))
    layout, x = readable(x)
    dy = like_layout(dy, layout)
    y = like_layout(y, layout)
    s = s.contiguous()
    _C.scale_backward(
        *_phase(x, s, layout, post=post),
        *_place(x),
        *_place(dy),
        *_place(y),
        *_place(dx),
        *_place(dr),
        s.data_ptr(),
        _pointer(ds),
    )
    return gradients


def squeeze_backward(g, x, s, dz, squeeze):
    """dx (N, C, H, W) = g s, where there is a g, + what dz gives."""
    dx = empty_output(x)
    layout, x = readable(x)
    g = like_layout(g, layout)
    s, dz = flat(s), dz.contiguous()
    _C.squeeze_backward(
        *_phase(x, dz, layout, squeeze=squeeze),
        *_place(x),
        *_place(g),
        *_place(dx),
        _pointer(s),
        dz.data_ptr(),
    )
    return dx


def _phase(x, s, layout, squeeze="avg", post="none"):
    """What a phase on its own needs to know; s (N, C) is in the dtype of the sums."""
    images, channels, height, width = x.shape
    return (
        images,
        channels,
        height * width,
        _DTYPES[x.dtype],
        _DTYPES[s.dtype],
        layout == "nhwc",
        squeeze,
        post,
        torch.get_num_threads(),
    )


def _problem(x, w1, layout, squeeze, act, act_slope, gate, post):
    images, channels, height, width = x.shape
    return (
        images,
        channels,
        w1.shape[0],
        height * width,
        _DTYPES[x.dtype],
        _DTYPES[w1.dtype],
        layout == "nhwc",
        squeeze,
        act,
        act_slope,
        gate,
        post,
        torch.get_num_threads(),
    )


def _place(t):
    """Address, strides of image, channel and pixel; a null address for None."""
    return (0, 0, 0, 0) if t is None else (t.data_ptr(), *walk(t))


def _pointer(t):
    return 0 if t is None else t.data_ptr()
