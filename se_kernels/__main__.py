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


if __name__ == "__main__":
    main()
