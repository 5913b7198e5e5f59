"""Which backend serves a tensor, and why."""

import logging
import os
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad

from se_kernels.backends import cpu, cuda, triton
from se_kernels.backends.protocol import Backend

REFERENCE = "reference"
# In the order of the automatic choice; each has why_not(), why_not_for(x) and the ops' functions.
BACKENDS: dict[str, Backend] = {"cpu": cpu, "cuda": cuda, "triton": triton}
NAMES = (*BACKENDS, REFERENCE)

# (backend, architecture, reason): the automatic choice skips the backend on such a GPU, since
# `python -m se_kernels check` failed there or never ran; a line goes when it passes.
# The architecture is a compute capability of NVIDIA's, "9.0", or "AMD".
SKIPPED = (("triton", "AMD", "its kernels have not yet run on an AMD GPU"),)

_log = logging.getLogger("se_kernels")
DEFAULT = os.environ.get("SE_KERNELS_BACKEND") or None


def available_backends() -> dict[str, str | None]:
    """Each backend's name, with None if it can be used on this machine, else the reason.

    Example:
        >>> se_kernels.available_backends()["reference"] is None
        True
    """
    return {**{name: module.why_not() for name, module in BACKENDS.items()}, REFERENCE: None}


def choose(x: Tensor, backend: str | None = None) -> str:
    """The name of the backend that serves x (N, C, H, W).

    ``backend`` (or the environment variable SE_KERNELS_BACKEND, read at import) names one, and a
    named backend that cannot serve x raises ValueError (an unknown name, another device) or
    RuntimeError (not built). Otherwise: the native backend of x's device, Triton on a GPU, then
    "reference", each unless it is ``SKIPPED`` on that GPU; a fallback is logged at debug level with
    its reason.
    """
    name = backend if backend is not None else DEFAULT
    if name is None:
        for candidate, module in BACKENDS.items():
            reason = _why_not_by_itself(candidate, module, x)
            if reason is None:
                return candidate
            _log.debug("backend %s passed over: %s", candidate, reason)
        return REFERENCE
    if name == REFERENCE:
        return REFERENCE
    if not isinstance(name, str) or name not in BACKENDS:
        argument = "SE_KERNELS_BACKEND" if backend is None else "backend"
        raise ValueError(f"{argument}: expected one of {', '.join(NAMES)}; got {name!r}")
    missing = BACKENDS[name].why_not()
    if missing is not None:
        raise RuntimeError(f"backend {name!r} is not available: {missing}")
    reason = BACKENDS[name].why_not_for(x)
    if reason is not None:
        raise ValueError(f"backend {name!r}: {reason}")
    return name


def native_core() -> ModuleType | None:
    """The native module, which ``fast_path`` and ``guards`` call, or None if there is none."""
    library: ModuleType | None = cpu.extension._C
    return library


def _why_not_by_itself(name: str, module: Backend, x: Tensor) -> str | None:
    if x.device.type != module.DEVICE:
        return f"chosen by itself for {module.DEVICE} tensors only, got {x.device}"
    skipped = SKIPPED and x.device.type == "cuda"
    return module.why_not_for(x) or (why_skipped(name, x) if skipped else None)


def why_skipped(name: str, x: Tensor) -> str | None:
    """Why the automatic choice skips the backend on x's GPU, or None where it does not."""
    if x.device.type != "cuda":
        return None
    here = architecture(x.device.index)
    for backend, skipped, reason in SKIPPED:
        if (backend, skipped) == (name, here):
            return f"not chosen by itself on {here}: {reason}; backend={name!r} takes it"
    return None


def architecture(index: int) -> str:
    """Of a GPU, as ``SKIPPED`` names it."""
    if torch.version.hip is not None:
        return "AMD"
    gpu = torch.cuda.get_device_properties(index)  # a constant to torch.compile
    return f"{gpu.major}.{gpu.minor}"


def get(name: str) -> Backend:
    """The module of a backend chosen by ``choose``; it has a function for each op of ``ops``."""
    return BACKENDS[name]


def under_transform() -> bool:
    """Whether the definition is to run: transforms do not see through the registered ops."""
    # torch.func and forward-mode AD see through the definition, not through the registered ops
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
