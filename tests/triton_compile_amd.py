"""Compiles the Triton kernels for an AMD GPU that is not here; a JSON line for each.

python tests/triton_compile_amd.py gfx942
"""

import json
import re
import sys

import triton
import triton.language as tl
import triton_compile
from triton.backends.compiler import GPUTarget

from se_kernels.backends.triton import launch, target
from se_kernels.backends.triton.phases import schedule
from se_kernels.backends.triton.plan import Device

# (lanes of a wave, what each wave does before the barrier of a publish)
AMD = {
    "gfx942": (64, r"s_waitcnt vmcnt\(0\)\s+buffer_wbl2 sc1\s+s_waitcnt vmcnt\(0\)"),
    "gfx1100": (32, r"s_waitcnt_vscnt null, 0x0"),
}
STORE = r"\b(?:buffer|global|flat)_store"


def publishes(assembly: str, release: str) -> dict:
    """The counters of a publish in the assembly, and how many of them are reached by each wave
    only with its stores released, and with no store since.

    One is an atomic addition behind a barrier; the ticket, which orders nothing, has none before.
    A wait adds zero, by the register that also holds the zero offset of the address.
    """
    code = re.sub(r"\s*;.*", "", assembly)
    found = released = 0
    for match in re.finditer(r"\bglobal_atomic_add\w* (?:v\d+, )?(v\d+), (v\d+), s\[", code):
        barrier = code.rfind("s_barrier", 0, match.start())
        if barrier < 0 or match[1] == match[2]:
            continue
        found += 1
        before = [*re.finditer(release, code[:barrier])]
        released += bool(before) and not re.search(STORE, code[before[-1].end() : match.start()])
    return dict(publishes=found, released=released)


def compiled(name: str):
    """(kernel, config, what the assembly tells) of one configuration for each kernel; with waves of
    64 lanes in each layout."""
    wave, release = AMD[name]
    launch.HIP = True
    schedule.RELEASE = tl.constexpr(target.release_of(name))
    seen = set()
    for config in triton_compile.configs():
        for kernel, arguments, constants in triton_compile.launches(config):
            layout = config.nhwc if wave == 64 else None
            if (kernel, layout) in seen:
                continue
            seen.add((kernel, layout))
            built, options = triton_compile.source(kernel, arguments, constants)
            result = triton.compile(built, target=GPUTarget("hip", name, wave), options=options)
            assembly = result.asm["amdgcn"]
            spilled = sum(map(int, re.findall(r"[sv]gpr_spill_count: +(\d+)", assembly)))
            yield dict(
                name=f"{kernel.__name__} {config.name}",
                shared=result.metadata.shared,
                spilled=spilled,
                options=sorted(options),
                **publishes(assembly, release),
            )


def main(name: str) -> None:
    launch.device_of = lambda x: Device(tf32=False)
    for told in compiled(name):
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
