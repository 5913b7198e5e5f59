"""What the kernels must know of the GPU's maker: NVIDIA, or AMD through torch for ROCm."""

import torch

HIP = torch.version.hip is not None

# AMD's CDNA GPUs: their block barrier waits for no store, so that each wave must make its own
# stores visible to the GPU before it. The others' barriers do.
RELEASES = {
    "gfx90": "s_waitcnt vmcnt(0)",
    "gfx94": "s_waitcnt vmcnt(0)\nbuffer_wbl2 sc1\ns_waitcnt vmcnt(0)",
    "gfx95": "s_waitcnt vmcnt(0)\nbuffer_wbl2 sc1\ns_waitcnt vmcnt(0)",
}


def release_of(architecture: str) -> str:
    """The instructions by which a wave releases its stores at the scope of the GPU; "" if its block
    barrier does so. ``architecture``: such as "gfx942:sramecc+:xnack-"."""
    return RELEASES.get(architecture[:5], "")


def release_here() -> str:
    """That of this machine's first GPU."""
    if not HIP or not torch.cuda.is_available():
        return ""
    return release_of(torch.cuda.get_device_properties(0).gcnArchName)
