"""Triton's interpreter, in which the kernels run where there is no GPU."""

import os


def interpreted(backend: str | None) -> bool:
    """Whether ``backend`` runs in the interpreter, some thousand times slower than compiled."""
    return backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
