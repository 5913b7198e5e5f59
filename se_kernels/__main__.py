"""``python -m se_kernels``: what was found and built, and why a backend is missing;
``python -m se_kernels check``: whether each backend is right on this machine."""

import importlib
import platform
import sys

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
        built = importlib.import_module("se_kernels._build_info")
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


def run(arguments: list[str]) -> int:
    if not arguments:
        main()
        return 0
    if arguments[0] != "check":
        usage = "python -m se_kernels, or python -m se_kernels check [--help]"
        print(f"expected {usage}; got {arguments[0]!r}", file=sys.stderr)
        return 2
    from se_kernels.verification import command

    return command.run(arguments[1:])


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
