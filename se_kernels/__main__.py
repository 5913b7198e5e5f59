"""``python -m se_kernels``: what was found and built, and why a backend is missing."""

import platform

import torch

import se_kernels
from se_kernels.backends import cpu


def main() -> None:
    print(f"se_kernels {se_kernels.__version__}")
    print(f"python     {platform.python_version()} on {platform.machine()}")
    print(f"torch      {torch.__version__}, {torch.get_num_threads()} threads")
    for name, reason in se_kernels.available_backends().items():
        print(f"{name:<10} {'available' if reason is None else 'missing: ' + reason}")
        if name == "cpu" and reason is None:
            print(f"           instruction set {cpu.instruction_set()}")
        if name == "cuda" and (gpus := compiled_for()):
            print(f"           compiled for {gpus}")


def compiled_for() -> str | None:
    """The compute capabilities that the CUDA kernels are built for, and the compiler."""
    try:
        from se_kernels import _build_info as built
    except ImportError:
        return None
    if not getattr(built, "CUDA_BUILT", False):
        return None
    code, ptx = (
        ", ".join(f"{int(arch) / 10:.1f}" for arch in built.CUDA_ARCHS[kind])
        for kind in ("code", "ptx")
    )
    later = f", later ones by the PTX of {ptx}" if ptx else ""
    return f"{code}{later} ({built.CUDA_COMPILER})"


if __name__ == "__main__":
    main()
