"""The CUDA backend: torch tensors in, plain pointers to csrc/cuda out.

One launch forward, one launch backward, on the current stream of x's GPU; everything that a launch
needs is allocated by torch.
"""

import importlib
import os

import torch
from torch import Tensor

from se_kernels.backends.weight_gradients import weight_gradients
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

DEVICE = "cuda"  # whose tensors this backend is chosen for by itself

# "cluster" or "two_sweeps" makes every launch go that way or raise; see docs/kernels.md
way = os.environ.get("SE_KERNELS_CUDA_WAY") or "automatic"

_MOST = 2**31 - 2**16  # of N, C, R and P: they are numbered in 32 bits


def _load():
    try:
        built = importlib.import_module("se_kernels._build_info")
    except ImportError:
        built = None
    archs, failure = (getattr(built, name, None) for name in ("CUDA_ARCHS", "CUDA_ERROR"))
    try:
        return importlib.import_module("se_kernels._cuda"), None, archs
    except ImportError as error:
        return None, failure or f"the package was never built with CUDA ({error})", archs


# the kernels, or why they are missing; what they are built for: {"code": ["90"], "ptx": ["90"]}
native, reason, archs = _load()


def why_not() -> str | None:
    """Why the kernels cannot be used on this machine, or None where they can."""
    if native is None:
        return reason
    if native.DEVICE_TYPE == "cuda" and not torch.cuda.is_available():
        return "torch finds no GPU"
    return None


def why_not_for(x: Tensor) -> str | None:
    """Why this backend does not serve x, or None where it does."""
    device = DEVICE if native is None else native.DEVICE_TYPE
    if x.device.type != device:
        return f"expected x on {'a GPU' if device == 'cuda' else device}, got {x.device}"
    # each on its own, for torch.export: their maximum would fix their order
    if x.dim() == 4 and any(size > _MOST for size in (*x.shape[:2], x.shape[2] * x.shape[3])):
        return f"expected at most {_MOST} images, channels and pixels, got {tuple(x.shape)}"
    missing = why_not()
    return missing if missing is not None or not x.is_cuda else _why_not_on(x.device.index)


def _why_not_on(index: int) -> str | None:
    gpu = torch.cuda.get_device_properties(index)  # a constant to torch.compile
    capability = 10 * gpu.major + gpu.minor
    same = any(int(arch) // 10 == gpu.major and int(arch) <= capability for arch in archs["code"])
    later = any(int(arch) <= capability for arch in archs["ptx"])
    if same or later:
        return None
    names = ", ".join(f"{int(arch) / 10:.1f}" for arch in archs["code"])
    return f"built for compute capability {names}, got a GPU of {gpu.major}.{gpu.minor}"


def inference(x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post):
    """y (N, C, H, W)."""
    y = empty_output(x)
    if x.shape[0] > 0 and x.shape[1] > 0:
        _run_forward(x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post, y)
    return y


def forward(x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post):
    """y (N, C, H, W), z (N, C), a (N, R), s (N, C)."""
    small = dict(dtype=compute_dtype(x, w1), device=x.device)
    y = empty_output(x)
    images, channels = x.shape[:2]
    z, s = (torch.empty(images, channels, **small) for _ in range(2))
    if images == 0 or channels == 0:
        a = torch.zeros(images, w1.shape[0], **small)
        return y, z, a if b1 is None else a + b1, s
    a = torch.empty(images, w1.shape[0], **small)
    _run_forward(x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post, y, z, a, s)
    return y, z, a, s


def _run_forward(
    x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post, y, z=None, a=None, s=None
):
    x, residual, w1, w2, b1, b2 = _on_elements(x, residual, w1, w2, b1, b2)
    layout, x = readable(x)
    residual = like_layout(residual, layout)
    w1, w2, b1, b2 = row_major(w1), row_major(w2), flat(b1), flat(b2)
    sizes = _sizes(x, w1.shape[0], w1.dtype, layout)
    workspace = _workspace(x, sizes)
    native.forward(
        *_launch(x, workspace),
        way,
        *(*sizes, squeeze, act, act_slope, gate, post),
        *_place(x),
        *_place(residual),
        *_place(y),
        *map(_pointer, (w1, w2, b1, b2, z, a, s)),
    )


def backward(dy, x, w1, w2, y, z, a, s, squeeze, act, act_slope, gate, post, needs):
    """dx, dr (N, C, H, W), dw1, dw2, db1 (R,), db2 (C,); each empty where ``needs`` says so."""
    gradients = empty_gradients(x, w1, w2, needs)
    if x.shape[0] == 0 or x.shape[1] == 0:
        for gradient in gradients[2:]:
            gradient.zero_()
        return gradients
    dx, dr = (g if n else None for g, n in zip(gradients[:2], needs[:2], strict=True))
    x, dy, y, w1, w2 = _on_elements(x, dy, y, w1, w2)
    layout, x = readable(x)
    dy, y = like_layout(dy, layout), like_layout(y, layout)
    w1, w2 = row_major(w1), row_major(w2)
    z, a, s = z.contiguous(), a.contiguous(), s.contiguous()
    de, da, h = torch.empty_like(s), torch.empty_like(a), torch.empty_like(a)
    sizes = _sizes(x, w1.shape[0], w1.dtype, layout)
    workspace = _workspace(x, sizes)
    native.backward(
        *_launch(x, workspace),
        way,
        *(*sizes, squeeze, act, act_slope, gate, post),
        *_place(x),
        *_place(dy),
        *_place(y),
        *_place(dx),
        *_place(dr),
        *map(_pointer, (w1, w2, a, s, de, da, h)),
    )
    weight_gradients(gradients[2:], needs[2:], de, da, h, z)
    return gradients


def squeeze(x, squeeze):
    """z (N, C) in the dtype of the sums."""
    z = torch.empty(x.shape[:2], dtype=compute_dtype(x, x), device=x.device)
    if z.numel() > 0:
        (x,) = _on_elements(x)
        layout, x = readable(x)
        sizes = _sizes(x, 0, z.dtype, layout)
        workspace = _workspace(x, sizes)
        native.squeeze(*_launch(x, workspace), *_alone(sizes), squeeze, *_place(x), z.data_ptr())
    return z


def scale(x, s, residual, post):
    """y (N, C, H, W)."""
    y = empty_output(x)
    if y.numel() > 0:
        x, s, residual = _on_elements(x, s, residual)
        layout, x = readable(x)
        residual, s = like_layout(residual, layout), s.contiguous()
        sizes = _sizes(x, 0, s.dtype, layout)
        workspace = _workspace(x, sizes)
        native.scale(
            *_launch(x, workspace),
            *(*_alone(sizes), post),
            *_place(x),
            *_place(residual),
            *_place(y),
            s.data_ptr(),
        )
    return y


def scale_backward(dy, x, y, s, post, needs):
    """dx = g s and dr = g (N, C, H, W), ds (N, C); each empty where ``needs`` says so."""
    gradients = empty_scale_gradients(x, s, needs)
    dx, dr, ds = (g if n else None for g, n in zip(gradients, needs, strict=True))
    if s.numel() > 0:
        dy, x, y, s = _on_elements(dy, x, y, s)
        layout, x = readable(x)
        dy, y, s = like_layout(dy, layout), like_layout(y, layout), s.contiguous()
        sizes = _sizes(x, 0, s.dtype, layout)
        workspace = _workspace(x, sizes)
        native.scale_backward(
            *_launch(x, workspace),
            *(*_alone(sizes), post),
            *_place(x),
            *_place(dy),
            *_place(y),
            *_place(dx),
            *_place(dr),
            *map(_pointer, (s, ds)),
        )
    return gradients


def squeeze_backward(g, x, s, dz, squeeze):
    """dx (N, C, H, W) = g s, where there is a g, + what dz gives."""
    dx = empty_output(x)
    if dx.numel() > 0:
        g, x, s, dz = _on_elements(g, x, s, dz)
        layout, x = readable(x)
        g, s, dz = like_layout(g, layout), flat(s), dz.contiguous()
        sizes = _sizes(x, 0, dz.dtype, layout)
        workspace = _workspace(x, sizes)
        native.squeeze_backward(
            *_launch(x, workspace),
            *(*_alone(sizes), squeeze),
            *_place(x),
            *_place(g),
            *_place(dx),
            *map(_pointer, (s, dz)),
        )
    return dx


def explain(x: Tensor, w1: Tensor) -> str:
    """Which way the forward kernel goes for x (N, C, H, W) and w1 (R, C), and why, in words."""
    layout, x = readable(x)
    sizes = _sizes(x, w1.shape[0], w1.dtype, layout)
    y = empty_output(x)
    return native.explain(
        *(_device(x), 0, 0, way, *sizes, "avg", "relu", 0.0, "sigmoid", "none"),
        *_place(x),
        *_place(None),
        *_place(y),
        *[0] * 7,
    )


def _on_elements(*tensors):
    """Each tensor where it starts at a multiple of its element's size, else a copy that does."""
    return tuple(
        t if t is None or t.data_ptr() % t.element_size() == 0 else t.clone() for t in tensors
    )


def _sizes(x, reduced, w_dtype, layout):
    images, channels, height, width = x.shape
    return (
        *(images, channels, reduced, height * width),
        *(getattr(native, str(dtype)[6:]) for dtype in (x.dtype, w_dtype)),  # without "torch."
        layout == "nhwc",
    )


def _alone(sizes):
    """The sizes of a phase without the FCs."""
    images, channels, _, *rest = sizes
    return images, channels, *rest


def _device(x):
    return x.device.index or 0


def _launch(x, workspace):
    """GPU, stream and workspace of a launch."""
    on_gpu = native.DEVICE_TYPE == "cuda"
    stream = torch.cuda.current_stream(x.device).cuda_stream if on_gpu else 0
    return _device(x), stream, workspace.data_ptr()


def _workspace(x, sizes):
    size = native.workspace_bytes(_device(x), *sizes)
    return torch.empty(size, dtype=torch.uint8, device=x.device)


def _place(t):
    """Address, strides of image, channel and pixel; a null address for None."""
    return (0, 0, 0, 0) if t is None else (t.data_ptr(), *walk(t))


def _pointer(t):
    return 0 if t is None else t.data_ptr()
