"""One clear ImportError where torch is missing or too old; imported before the other modules."""

import importlib.util
import re
from importlib import metadata

OLDEST_TORCH = "2.11"  # as in pyproject.toml


def check_torch() -> None:
    """
    Raises:
        ImportError: torch cannot be found, or is older than ``OLDEST_TORCH``.
    """
    wanted = f"se_kernels needs torch {OLDEST_TORCH} or later"
    mend = f"pip install 'torch>={OLDEST_TORCH}'"
    if importlib.util.find_spec("torch") is None:
        raise ImportError(f"{wanted}, and there is none: {mend}")
    import torch

    if _numbers(torch.__version__) < _numbers(OLDEST_TORCH):
        raise ImportError(f"{wanted}, got {torch.__version__}: {mend}")


def version() -> str:
    """Of se_kernels, as installed; "0+unknown" where it is not, such as in a bare checkout."""
    try:
        return metadata.version("se_kernels")
    except metadata.PackageNotFoundError:
        return "0+unknown"


def _numbers(version: str) -> tuple[int, int]:
    major, minor, *_ = re.findall(r"\d+", version)
    return int(major), int(minor)


check_torch()
