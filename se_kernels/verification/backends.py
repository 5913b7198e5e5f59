"""Which backends are to be checked on which devices of this machine, and why not the others."""

from dataclasses import dataclass

import torch

from se_kernels.core import dispatch


@dataclass(frozen=True)
class Served:
    """A backend and a device whose tensors it takes. ``slow``: not compiled for that device, but
    interpreted, or the host's stand-in of a GPU."""

    backend: str
    device: str

    @property
    def slow(self) -> bool:
        on_cpu = torch.device(self.device).type == "cpu"
        return on_cpu and dispatch.BACKENDS[self.backend].DEVICE != "cpu"

    @property
    def name(self) -> str:
        """Of the device, for people."""
        device = torch.device(self.device)
        if device.type != "cuda":
            return self.device
        return f"{self.device} {torch.cuda.get_device_name(device)}"


def devices() -> list[str]:
    return ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]


def why_not(backend: str, device: str) -> str | None:
    """Why the backend does not serve the device's tensors; None where it claims to."""
    module = dispatch.BACKENDS[backend]
    return module.why_not() or module.why_not_for(torch.empty(1, 1, 1, 1, device=device))


def served(backends: list[str], on: list[str]) -> tuple[list[Served], dict[str, str]]:
    """Those that are served, and for each backend that serves none of the devices the reason."""
    found, reasons = [], {}
    for backend in backends:
        missing = {device: why_not(backend, device) for device in on}
        here = [Served(backend, device) for device in on if missing[device] is None]
        found += here
        if not here:
            reasons[backend] = missing[on[-1]]  # the GPU's, where there is one
    return found, reasons
