"""The GPUs that ``benchmarks predict`` knows, by their public figures."""

from dataclasses import dataclass

COPY_SHARE = 0.9  # of the datasheet's bandwidth, that a copy is taken to reach
CLOCK_SHARE = 0.86  # of the boost clock, that is taken to hold under load
SCHEDULERS = 4  # of a multiprocessor
ISSUE_RATE = 0.6  # warp instructions a cycle and scheduler


@dataclass(frozen=True)
class Gpu:
    """Figures of NVIDIA's datasheets."""

    name: str  # a word of torch.cuda.get_device_name()
    capability: int
    multiprocessors: int
    boost_ghz: float
    datasheet_gb: float  # GB/s of device memory
    l2_bytes: int
    launch_us: float = 2.5  # a small kernel of a stream, from its start to the next one's

    @property
    def bytes_per_us(self) -> float:
        """That a copy reads and writes."""
        return self.datasheet_gb * 1e3 * COPY_SHARE

    @property
    def instructions_per_us(self) -> float:
        """Warp instructions of the whole GPU."""
        cycles = self.boost_ghz * 1e3 * CLOCK_SHARE
        return self.multiprocessors * SCHEDULERS * ISSUE_RATE * cycles


GPUS = {
    "h200": Gpu("H200", 90, 132, 1.98, 4800, 50 << 20),
    "h100": Gpu("H100", 90, 132, 1.98, 3350, 50 << 20),
    "a100": Gpu("A100", 80, 108, 1.41, 2039, 40 << 20),
    "l4": Gpu("L4", 89, 58, 2.04, 300, 48 << 20),
    "t4": Gpu("T4", 75, 40, 1.59, 320, 4 << 20),
}
