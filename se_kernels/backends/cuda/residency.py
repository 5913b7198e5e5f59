"""How much of each launch a GPU holds at a time, asked of the driver without launching."""

from collections.abc import Callable
from typing import NamedTuple

from se_kernels.backends.cuda import library


class Launch(NamedTuple):
    """One launch. ``resident_blocks``: of a multiprocessor, at a time."""

    kernel: str
    blocks: int
    threads: int
    shared_bytes: int  # of a block
    resident_blocks: int


def launches_of(call: Callable[[], object]) -> list[Launch]:
    """The launches that ``call`` would make in this thread; none is made, so what its tensors then
    hold is undefined."""
    library.native.begin_survey()
    try:
        call()
    finally:
        found = library.native.end_survey()
    return [Launch(*launch) for launch in found]
