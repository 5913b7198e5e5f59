"""Executes the machine code of one block: all its threads side by side, warp instructions counted.

A thread is a lane of numpy arrays. Of the lanes that can run, those at the smallest address go on
together; BSSY and BSYNC bring the lanes of a warp together again, as on a GPU. An instruction
counts once for each warp that has a lane at it.
"""

from dataclasses import dataclass

import numpy as np

from sass.listing import Instruction

WARP = 32
RZ, URZ, PT = 255, 63, 7
MOST_STEPS = 20_000_000
LOCAL_WORDS = 64  # of a thread


class MachineError(RuntimeError):
    """What the interpreter does not know, or a GPU would not do."""


@dataclass
class Launch:
    """A launch as it is recorded: its sizes, and the bytes of its parameters."""

    kernel: str
    blocks: int
    threads: int
    shared_bytes: int
    parameters: bytes


@dataclass
class Counts:
    """What a block has executed, in warp instructions."""

    executed: np.ndarray  # per instruction
    # Times that the slowest warp waits for global memory: for loads of 16 bytes a lane, for others
    wide_waits: int = 0
    other_waits: int = 0

    @property
    def total(self) -> int:
        return int(self.executed.sum())


class Machine:
    """One block of a launch. ``memory`` answers for global memory."""

    def __init__(self, code: list[Instruction], launch: Launch, memory, block=0, tables=b""):
        from sass.operations import compile_instruction

        lanes = launch.threads
        self.code, self.launch, self.memory = code, launch, memory
        self.block, self.lanes = block, lanes
        self.index = {i.address: n for n, i in enumerate(code)}  # of an address
        self.R = np.zeros((256, lanes), np.uint32)
        self.UR = np.zeros((64, lanes), np.uint32)
        self.P = np.zeros((8, lanes), bool)
        self.UP = np.zeros((8, lanes), bool)
        self.P[PT] = self.UP[PT] = True
        self.shared = np.zeros((0x400 + launch.shared_bytes) // 4 + 64, np.uint32)
        self.local = np.zeros((LOCAL_WORDS, lanes), np.uint32)
        self.constants = {0: constant_bank(launch), 2: np.frombuffer(tables or bytes(4), np.uint32)}
        self.thread = np.arange(lanes, dtype=np.uint32)
        self.warp_of = np.arange(lanes) // WARP
        self.bit = np.uint32(1) << (self.thread % WARP).astype(np.uint32)
        self.gathering = np.zeros((16, lanes), np.uint32)  # of BSSY: the lanes to come together
        self.alive = np.ones(lanes, bool)
        self.counts = Counts(np.zeros(len(code), np.int64))
        # Registers that a load of global memory is under way to: 2 of 16 bytes a lane, 1 of others
        self.pending = np.zeros((256, lanes // WARP), np.uint8)
        self.has_pending = False
        self.waits = np.zeros((3, lanes // WARP), np.int64)
        self._operations = [None] * len(code)
        self._sources = [None] * len(code)
        self._compile = compile_instruction

    # --- registers

    def put(self, register: int, value, mask=None) -> None:
        if register == RZ:
            return
        if mask is None:
            self.R[register] = value
        else:
            np.copyto(self.R[register], value, where=mask)

    def put_uniform(self, register: int, value, mask=None) -> None:
        if register == URZ:
            return
        if mask is None:
            self.UR[register] = value
        else:
            np.copyto(self.UR[register], value, where=mask)

    # --- warps

    def warps(self, mask) -> np.ndarray:
        return mask.reshape(-1, WARP).any(1)

    def bits(self, mask) -> np.ndarray:
        """The lanes of ``mask`` in each lane's warp, a bit each."""
        words = np.bitwise_or.reduce(np.where(mask, self.bit, np.uint32(0)).reshape(-1, WARP), 1)
        return np.repeat(words, WARP)

    # --- running

    def run(self) -> Counts:
        self.groups = {0: self.alive.copy()}  # where lanes are that can run
        self.waiting = {}  # (what, instruction) -> the lanes that wait there
        steps = 0
        while True:
            if not self.groups:
                if not self.alive.any():
                    _, self.counts.other_waits, self.counts.wide_waits = (
                        int(n) for n in self.waits[:, self.waits.sum(0).argmax()]
                    )
                    return self.counts
                self._release()
                continue
            pc = min(self.groups)
            mask = self.groups.pop(pc)
            others = min(self.groups, default=len(self.code))
            warps = int(self.warps(mask).sum())
            full = bool(mask.all())
            while True:
                operation = self._operations[pc]
                if operation is None:
                    operation = self._operations[pc] = self._compile(self, self.code[pc])
                    self._sources[pc] = registers_of(self.code[pc])
                if self.has_pending:
                    self._wait(self._sources[pc], mask)
                self.counts.executed[pc] += warps
                steps += 1
                goes_to = operation(mask, full)
                if goes_to is None:
                    pc += 1
                elif goes_to == "moved":  # the operation has put the lanes where they belong
                    break
                else:
                    pc = goes_to
                if pc >= others or goes_to is not None:
                    self.go(pc, mask)
                    break
            if steps > MOST_STEPS:
                raise MachineError(f"no end after {steps} instructions: {self.code[pc].text}")

    def load_begins(self, register: int, words: int, wide: bool, on) -> None:
        """Of global memory, to ``words`` registers."""
        self.pending[register : register + words, self.warps(on)] = 2 if wide else 1
        self.has_pending = True

    def _wait(self, registers, mask) -> None:
        """For the loads under way, in the warps that need one of them."""
        kinds = self.pending[registers].max(0, initial=0) * self.warps(mask)
        if kinds.any():
            warps = np.flatnonzero(kinds)
            self.waits[self.pending[:, warps].max(0), warps] += 1
            self.pending[:, warps] = 0
            self.has_pending = bool(self.pending.any())

    def go(self, pc: int, mask) -> None:
        """Puts lanes at an instruction."""
        if mask.any():
            there = self.groups.get(pc)
            self.groups[pc] = mask.copy() if there is None else there | mask

    def wait(self, what, pc: int, mask) -> None:
        """Puts lanes to wait at instruction ``pc``, past which they go on once released."""
        key = (what, pc)
        there = self.waiting.get(key)
        self.waiting[key] = mask.copy() if there is None else there | mask

    def _release(self) -> None:
        """Lets lanes go on, where nobody else can run: all have come that will."""
        if not self.waiting:
            raise MachineError("lanes are lost")
        for key, mask in list(self.waiting.items()):
            (kind, index), pc = key
            if kind == "block":
                continue
            needed = self.gathering[index] if kind == "gather" else np.uint32(0xFFFFFFFF)
            complete = (needed & self.bits(self.alive) & ~self.bits(mask)) == 0
            self.go(pc + 1, mask & complete)
            if (mask & ~complete).any():
                self.waiting[key] = mask & ~complete
            else:
                del self.waiting[key]
        if self.groups:
            return
        arrived = np.logical_or.reduce(list(self.waiting.values()))
        if not (arrived == self.alive).all() or any(k[0] != "block" for k, _ in self.waiting):
            raise MachineError("not all threads reach a barrier")
        for (_, pc), mask in list(self.waiting.items()):
            self.go(pc + 1, mask)
        self.waiting.clear()

    def exit(self, mask) -> None:
        self.alive &= ~mask


def registers_of(i: Instruction) -> list[int]:
    """The registers that an instruction reads or writes."""
    found = []
    for operand in i.operands:
        for o in (operand, operand.register):
            if o is not None and o.kind == "R" and o.value != RZ:
                wide = 2 if o.part == "64" or operand is not o or "WIDE" in i.modifiers else 1
                found.extend(range(o.value, min(o.value + wide, RZ)))
    if i.name in ("STG", "STS") and i.operands[-1].kind == "R" and i.operands[-1].value != RZ:
        found.extend(range(i.operands[-1].value, i.operands[-1].value + (4 if i.is_wide else 1)))
    return found


def constant_bank(launch: Launch, base: int = 0x210) -> np.ndarray:
    """Bank 0 of compute capability 9.0: the launch's sizes, then its parameters."""
    bank = np.zeros(0x2000 // 4, np.uint32)
    bank[0:3] = launch.threads, 1, 1
    bank[3:6] = launch.blocks, 1, 1
    raw = launch.parameters + bytes(-len(launch.parameters) % 4)
    bank[base // 4 : base // 4 + len(raw) // 4] = np.frombuffer(raw, np.uint32)
    return bank
