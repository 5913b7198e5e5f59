"""How many blocks of a kernel a multiprocessor holds at once."""

from dataclasses import dataclass

WARP = 32


@dataclass(frozen=True)
class Multiprocessor:
    """Limits of one compute capability (CUDA C++ Programming Guide, technical specifications)."""

    threads: int
    blocks: int
    shared_bytes: int
    reserved_bytes: int  # of shared memory, for the system, per block
    registers: int = 65536
    register_unit: int = 256  # registers are given to a warp in such portions


MULTIPROCESSORS = {
    75: Multiprocessor(1024, 16, 64 << 10, 0),
    80: Multiprocessor(2048, 32, 164 << 10, 1024),
    86: Multiprocessor(1536, 16, 100 << 10, 1024),
    89: Multiprocessor(1536, 24, 100 << 10, 1024),
    90: Multiprocessor(2048, 32, 228 << 10, 1024),
    100: Multiprocessor(2048, 32, 228 << 10, 1024),
    120: Multiprocessor(1536, 24, 100 << 10, 1024),
}


def resident_blocks(capability: int, registers: int, threads: int, shared_bytes: int = 0) -> int:
    """Blocks of ``threads`` threads that fit a multiprocessor, with so many registers a thread and
    bytes of shared memory a block."""
    m = MULTIPROCESSORS[capability]
    warps = -(-threads // WARP)
    per_warp = -(-registers * WARP // m.register_unit) * m.register_unit
    warps_that_fit = m.registers // per_warp // 4 * 4  # a quarter of the registers a scheduler
    limits = [m.blocks, m.threads // threads, warps_that_fit // warps]
    if shared_bytes + m.reserved_bytes > 0:
        limits.append(m.shared_bytes // (shared_bytes + m.reserved_bytes))
    return max(0, min(limits))
