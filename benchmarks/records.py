"""Results as JSON lines: one line per point, appended."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from .environment import ROOT

SCHEMA = 2  # to be raised when a field changes its meaning
RESULTS = ROOT / "benchmarks" / "results"


def append(path: Path, records: Iterable[dict]) -> None:
    """Append each record as one line, creating folders as needed.

    Raises:
        ValueError: a number in a record is NaN or infinite, which JSON has no word for.
        OSError: the file cannot be written.
    """
    lines = [json.dumps(record, allow_nan=False) + "\n" for record in records]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(lines)


def read(path: Path) -> list[dict]:
    """All records of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def default_path(kind: str, device: str) -> Path:
    """``benchmarks/results/<kind>-<device>.jsonl``."""
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return RESULTS / f"{kind}-{slug}.jsonl"
