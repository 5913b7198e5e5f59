"""Whether the installed Triton can compile and run the kernels."""

import importlib.util
import os
import shutil
import sysconfig
from importlib import metadata
from pathlib import Path

OLDEST = (3, 6)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # as Triton reads it, once


def fault() -> str | None:
    """Why this Triton cannot be used, or cannot interpret if that is asked for; else None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    try:
        version = metadata.version("triton")
    except metadata.PackageNotFoundError:
        version = ""  # of a source tree on the path, which does not tell
    if version and _release(version) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return f"expected Triton {oldest} or later, got {version}: pip install 'triton>={oldest}'"
    return _interpreter_fault(version) if INTERPRETED else None


def _interpreter_fault(version: str) -> str | None:
    try:
        numpy = metadata.version("numpy")
    except metadata.PackageNotFoundError:
        return "the interpreter of Triton needs numpy, which is not installed"
    if version and _release(version) < (3, 7) and _release(numpy) >= (2, 4):
        return (
            "the interpreter of Triton before 3.7 needs NumPy before 2.4, "
            f"got Triton {version} and NumPy {numpy}"
        )
    return None


def build_fault() -> str | None:
    """Why Triton cannot build the C code that launches kernels; None if it can."""
    compiler = os.environ.get("CC")
    if compiler is None and not (shutil.which("gcc") or shutil.which("clang")):
        return "Triton needs a C compiler: expected gcc or clang on PATH, or its name in CC"
    if compiler is not None and shutil.which(compiler) is None:
        return f"Triton needs a C compiler: CC={compiler} cannot be run"
    scheme = sysconfig.get_default_scheme()
    scheme = "posix_prefix" if scheme == "posix_local" else scheme  # as Triton does, for Debian
    header = Path(sysconfig.get_paths(scheme=scheme)["include"]) / "Python.h"
    if not header.exists():
        return f"Triton needs the headers of Python (python3-dev): expected {header}"
    return None


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])
