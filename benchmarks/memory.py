"""The most memory that is live at once during a call."""

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

EVENT = "[memory]"  # of a trace: memory that was taken or given back


def peak_bytes(call: Callable[[], None], device: torch.device) -> int:
    """What tensors that ``call()`` makes hold when they hold the most, in bytes.

    Exact: the allocator says it, torch's caching one on a GPU, and on a CPU the profiler's record
    of each tensor's memory. What is allocated apart from torch's tensors is not seen. ``call`` must
    release what it makes: the profiler would take what is released later for something else.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it tells of its start and stop
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    found = sorted((e["ts"], e["args"]) for e in events if e.get("name") == EVENT)
    totals = [args["Total Allocated"] for _, args in found]
    if not totals:
        return 0
    _, first = found[0]
    return max(totals) - (first["Total Allocated"] - first["Bytes"])


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Of distinct tensors."""
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())
