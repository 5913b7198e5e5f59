"""Where and with what a measurement was made."""

import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import torch

import se_kernels

ROOT = Path(__file__).resolve().parent.parent
STEERING = (
    "OMP_",
    "KMP_",
    "GOMP_",
    "MKL_",
    "ONEDNN_",
    "MALLOC_",
    "CUDA_",
    "SE_KERNELS_",
)
UNKNOWN_CACHE = 32 * 2**20  # bytes, where the system does not tell


@dataclass(frozen=True)
class Environment:
    """The fields of a result line that do not depend on the point measured."""

    device: str  # model name of the processor or of the GPU
    device_type: str  # "cpu" or "cuda"
    threads: int
    load: (
        float | None
    )  # processes that wanted to run in the last minute, on average, before the point
    python: str
    torch: str
    triton: str | None
    se_kernels: str
    commit: str | None  # None outside a git checkout
    dirty: bool | None  # tracked or new files differ from the commit, results aside
    time: str  # UTC, ISO 8601
    command: str
    variables: dict[
        str, str
    ]  # of the shell, that steer threads, compiling or the choice of backend

    def as_dict(self) -> dict:
        return asdict(self)


def gather(device: torch.device, command: str) -> Environment:
    """The environment now; ``command`` is what a person types to repeat the measurement."""
    commit, dirty = git_state()
    return Environment(
        device=device_name(device),
        device_type=device.type,
        threads=torch.get_num_threads(),
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        python=platform.python_version(),
        torch=torch.__version__,
        triton=version_of("triton"),
        se_kernels=se_kernels.__version__,
        commit=commit,
        dirty=dirty,
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command,
        variables={k: v for k, v in sorted(os.environ.items()) if k.startswith(STEERING)},
    )


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_state(root: Path = ROOT) -> tuple[str | None, bool | None]:
    """(commit, dirty) of the checkout at ``root``; where there is none, the commit is that of
    SE_KERNELS_COMMIT, if it is set, and ``dirty`` unknown."""
    commit = _git(root, "rev-parse", "--verify", "-q", "HEAD")
    if commit is None:
        return os.environ.get("SE_KERNELS_COMMIT") or None, None
    status = _git(root, "status", "--porcelain", "--", ".", ":!benchmarks/results")
    return commit or None, None if status is None else bool(status)


def _git(root: Path, *args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *args], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def last_level_cache_bytes(device: torch.device) -> int:
    """Bytes of the GPU's L2, or of all last-level caches of the processors this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    cpus: Iterable[int] = range(os.cpu_count() or 1)
    if hasattr(os, "sched_getaffinity"):
        cpus = os.sched_getaffinity(0)
    caches: dict[str, int] = {}  # the processors that share a cache -> its bytes
    for cpu in cpus:
        levels = []
        for index in Path(f"/sys/devices/system/cpu/cpu{cpu}/cache").glob("index*"):
            try:
                level, size, shared = (
                    (index / name).read_text().strip()
                    for name in ("level", "size", "shared_cpu_list")
                )
            except OSError:
                continue
            if size.endswith("K"):
                levels.append((int(level), shared, int(size[:-1]) * 1024))
        if levels:
            _, shared, in_bytes = max(levels)
            caches[shared] = in_bytes
    return sum(caches.values()) or UNKNOWN_CACHE
