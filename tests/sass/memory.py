"""Global memory of a launch: the memory of this process, where tensors lie."""

import ctypes

import numpy as np

from sass.machine import MachineError


class ProcessMemory:
    """Reads and writes tensors (address, bytes) of this process at their addresses.

    Elsewhere reads give zeros and writes are lost if ``lenient``, else they are errors.
    ``counters``: (address, bytes) -> answers of the counters that blocks share; see ``Sampled``.
    """

    def __init__(self, tensors, lenient=False, counters=None):
        self.starts = np.array(sorted(a for a, n in tensors if n), np.int64)
        ends = {a: a + n for a, n in tensors}
        self.ends = np.array([ends[int(a)] for a in self.starts], np.int64)
        self.lenient, self.counters = lenient, counters
        self.base = int(self.starts[0]) & ~15
        size = (int(self.ends[-1]) - self.base + 15) // 4
        self.words = np.frombuffer((ctypes.c_uint32 * size).from_address(self.base), np.uint32)

    def known(self, address):
        at = np.searchsorted(self.starts, address, side="right") - 1
        return (at >= 0) & (address < self.ends[np.maximum(at, 0)])

    def _places(self, i, address, size, on):
        """The lanes of ``on`` that lie in a tensor."""
        if (address[on] % size).any():
            raise MachineError(f"{i.text}: a misaligned address")
        known = on & self.known(address)
        if not self.lenient and (known != on).any():
            raise MachineError(f"{i.text}: an address outside all tensors")
        return known

    def load(self, i, address, size, on):
        if self.counters is not None and "STRONG" in i.modifiers:
            return [np.full(len(on), 1 << 30, np.uint32)]
        known = self._places(i, address, size, on)
        at = np.where(known, address - self.base, 0) >> 2
        return [np.where(known, self.words[at + n], np.uint32(0)) for n in range(max(1, size // 4))]

    def store(self, i, address, size, on, rows):
        known = self._places(i, address, size, on)
        at = address[known] - self.base
        if size >= 4:
            for n, row in enumerate(rows):
                self.words[(at >> 2) + n] = row[known]
        else:
            kind = {1: np.uint8, 2: np.uint16}[size]
            self.words.view(kind)[at // size] = rows[0][known].astype(kind)

    def add(self, address, by, on):
        """Atomics, lane by lane."""
        before = np.zeros(len(on), np.uint32)
        for lane in np.flatnonzero(on):
            if self.counters is not None:
                before[lane] = self.counters(int(address[lane]))
            else:
                at = (int(address[lane]) - self.base) >> 2
                before[lane] = self.words[at]
                self.words[at] += by[lane]
        return before


class NoMemory:
    """Global memory that reads as zero and keeps nothing; counters answer as ``counters`` says."""

    def __init__(self, counters):
        self.counters = counters

    def load(self, i, address, size, on):
        strong = "STRONG" in i.modifiers
        return [np.full(len(on), strong << 30, np.uint32) for _ in range(max(1, size // 4))]

    def store(self, i, address, size, on, rows):
        if (address[on] % size).any():
            raise MachineError(f"{i.text}: a misaligned address")

    def add(self, address, by, on):
        before = np.zeros(len(on), np.uint32)
        for lane in np.flatnonzero(on):
            before[lane] = self.counters(int(address[lane]))
        return before
