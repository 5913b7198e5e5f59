"""Timing of contenders in turn, and the statistics of what came out.

The contenders of one point are called round by round, A B C A B C ..., in one process, so that a
change of the machine's speed meets all of them. Ratios are taken within a round and only then
reduced, so such a change cancels.
"""

import functools
import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike

FLUSH_BYTES = 256 * 2**20  # at least; several times the L2 of any GPU so far


class Timed(Protocol):
    """Something to be timed on input set ``k``."""

    def prepare(self, k: int) -> None:
        """Before each call, not timed."""

    def call(self, k: int) -> object:
        """Timed. The result is kept until the clock has stopped, so its release is not timed."""


@dataclass(frozen=True)
class Budget:
    """How long a point is measured: exactly ``rounds``, or for ``seconds`` within the bounds.

    One round calls each contender once. Warm-up rounds come first and are thrown away.
    """

    rounds: int | None = None
    seconds: float = 3.0
    min_rounds: int = 10
    max_rounds: int = 1000
    warmup: int = 2

    def goes_on(self, done: int, elapsed: float) -> bool:
        if self.rounds is not None:
            return done < self.rounds
        return done < self.min_rounds or (elapsed < self.seconds and done < self.max_rounds)


class CpuClock:
    def __init__(self) -> None:
        self.flush_bytes = 0

    def time(self, call: Callable[[], object]) -> float:
        """Seconds that ``call()`` takes."""
        start = time.perf_counter()
        result = call()
        seconds = time.perf_counter() - start
        del result
        return seconds


class CudaClock:
    """Times between two events on the current stream, after the L2 was overwritten.

    Between the two the device is kept busy for a millisecond, so that the host gets ahead of it and
    launches are hidden as they are in a network.
    """

    BUSY_CYCLES = 2_000_000

    def __init__(self, device: torch.device, cache_bytes: int) -> None:
        self.flush_bytes = max(FLUSH_BYTES, 4 * cache_bytes)
        self.flush = torch.empty(self.flush_bytes, dtype=torch.uint8, device=device)
        self.start = torch.cuda.Event(enable_timing=True)
        self.stop = torch.cuda.Event(enable_timing=True)

    def time(self, call: Callable[[], object]) -> float:
        """Seconds that what ``call()`` launches takes on the device."""
        self.flush.zero_()
        torch.cuda._sleep(self.BUSY_CYCLES)
        self.start.record()
        result = call()
        self.stop.record()
        self.stop.synchronize()
        del result
        return self.start.elapsed_time(self.stop) * 1e-3  # milliseconds


def clock_for(device: torch.device, cache_bytes: int) -> CpuClock | CudaClock:
    return CudaClock(device, cache_bytes) if device.type == "cuda" else CpuClock()


def in_turn(
    contenders: Mapping[str, Timed],
    clock: CpuClock | CudaClock,
    budget: Budget,
    sets: int,
    on_round: Callable[[int], None] = lambda done: None,
) -> dict[str, np.ndarray]:
    """Seconds of each contender in each round: arrays of one length, in the order of the rounds.

    Every call takes the next of the ``sets`` input sets, so no contender finds the input that the
    one before it has just brought into the cache.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    k = 0

    def round_(keep: bool) -> None:
        nonlocal k
        for name, contender in contenders.items():
            contender.prepare(k)
            took = clock.time(functools.partial(contender.call, k))
            if keep:
                seconds[name].append(took)
            k = (k + 1) % sets

    with no_garbage_collection():
        for _ in range(budget.warmup):
            round_(keep=False)
        done, start = 0, time.perf_counter()
        while budget.goes_on(done, time.perf_counter() - start):
            round_(keep=True)
            done += 1
            on_round(done)
    return {name: np.array(values) for name, values in seconds.items()}


@contextmanager
def no_garbage_collection():
    """Python's collector runs before, not in between."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def percentiles(seconds: ArrayLike) -> dict[str, float]:
    """``p20_us``, ``p50_us`` and ``p80_us``: microseconds, linear between samples."""
    p20, p50, p80 = np.percentile(np.asarray(seconds, dtype=float), [20, 50, 80]) * 1e6
    return {"p20_us": float(p20), "p50_us": float(p50), "p80_us": float(p80)}


def paired_ratio(above: ArrayLike, below: ArrayLike) -> float:
    """The median over the rounds of above/below; both hold one number per round.

    Raises:
        ValueError: different numbers of rounds, or none.
    """
    return float(np.median(paired_ratios(above, below)))


def paired_ratios(above: ArrayLike, below: ArrayLike) -> np.ndarray:
    """above/below of each round; raises as ``paired_ratio``."""
    over, under = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    if over.shape != under.shape or over.size == 0:
        raise ValueError(f"expected as many rounds of each, got {over.size} and {under.size}")
    return over / under


def geometric_mean(ratios: Sequence[float]) -> float:
    """Of positive numbers; NaN of none."""
    if len(ratios) == 0:
        return math.nan
    return float(np.exp(np.mean(np.log(ratios))))
