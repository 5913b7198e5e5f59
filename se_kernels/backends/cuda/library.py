"""The kernels, built or not; whose tensors they take."""

import importlib
from typing import Any

import torch
from torch import Tensor

DEVICE = "cuda"  # whose tensors this backend is chosen for by itself
_MOST = 2**31 - 2**16  # of N, C, R and P: they are numbered in 32 bits


def _load() -> tuple[Any, str | None, Any]:
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
