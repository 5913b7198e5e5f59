"""Results as JSON lines: one line per point, appended."""

import json
import os
import re
from contextlib import suppress
from pathlib import Path

SCHEMA = 2  # to be raised when a field changes its meaning
RESULTS = Path(__file__).resolve().parent / "results"


def append(path: Path, record: dict) -> None:
    """Append the record as one line, which is on the disk at the return; creates folders as needed.
    After a line that was cut short it starts a new one.

    Raises:
        ValueError: a number in a record is NaN or infinite, which JSON has no word for.
        OSError: the file cannot be written.
    """
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        if file.seek(0, os.SEEK_END) > 0:
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)
        os.fsync(file.fileno())


def read(path: Path) -> list[dict]:
    """All records of a file, without lines that were cut short."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def default_path(kind: str, device: str) -> Path:
    """``benchmarks/results/<kind>-<device>.jsonl``."""
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return RESULTS / f"{kind}-{slug}.jsonl"
