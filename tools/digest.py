"""What sources a build or a measurement is of."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

SUFFIXES = {".cpp", ".cu", ".cuh", ".h", ".py", ".txt"}
WRITTEN_BY_BUILDS = "_build_info.py"


def digest(paths: Iterable[Path]) -> str:
    """Twelve characters, of the sources in the folders, and of the files, by name and content."""
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]
    found = hashlib.sha256()
    for file in sorted(files):
        if file.suffix in SUFFIXES and file.name != WRITTEN_BY_BUILDS:
            found.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return found.hexdigest()[:12]
