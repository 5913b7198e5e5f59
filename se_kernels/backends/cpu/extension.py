"""The native core, se_kernels._C, loaded, or the reason why it is not."""

import ctypes
import importlib
from pathlib import Path
from typing import Any

import torch


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


def _load() -> tuple[Any, str | None]:
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


_C, reason = _load()
