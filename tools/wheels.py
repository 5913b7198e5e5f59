"""Builds wheels and proves each: `make wheels`.

    python -m tools.wheels [--python PATH ...] [--torch REQUIREMENT ...] [--cpu-only]

For each CPython from 3.10 on that is found, one wheel without CUDA (dist/cpu) and, if there is
nvcc, one with its kernels for all GPUs, or for SE_KERNELS_CUDA_ARCHS (dist/cuda). auditwheel grafts
nothing, as nothing is linked: it says for which Linux the wheel is good, and renames it. Then each
wheel is installed into an empty environment, with each torch that is asked for, and `python -m
se_kernels check` must pass there. A line for each wheel; an error at the end if one of them failed.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tools.environments import ROOT, Failed, Runner, pythons

DIST = ROOT / "dist"
ALL_GPUS = "7.5;8.0;9.0;10.0;12.0+PTX"  # also on a machine with a GPU; as setup.py's


@dataclass
class Row:
    python: str
    kind: str
    wheel: str = ""
    verdict: str = ""
    checks: str = ""
    seconds: float = 0

    @property
    def is_fine(self) -> bool:
        return "failed" not in self.verdict + self.checks


run = Runner("wheels")


def build(python: str, kind: str, folder: Path) -> Path:
    architectures = os.environ.get("SE_KERNELS_CUDA_ARCHS", ALL_GPUS)
    cuda = {"SE_KERNELS_CUDA": "ON", "SE_KERNELS_CUDA_ARCHS": architectures}
    return run.wheel(python, folder, **(cuda if kind == "cuda" else {}))


def repair(wheel: Path, kind: str) -> tuple[Path, str]:
    """The wheel that is good for the oldest Linux, and auditwheel's word for it."""
    auditwheel = [sys.executable, "-m", "auditwheel"]
    target = DIST / kind
    target.mkdir(parents=True, exist_ok=True)
    before = {*target.iterdir()}
    run(f"auditwheel repair {wheel.name}", [*auditwheel, "repair", "--wheel-dir", target, wheel])
    found = [path for path in target.iterdir() if path not in before]
    repaired = found[0] if found else max(target.iterdir(), key=lambda path: path.stat().st_mtime)
    shown = run(f"auditwheel show {repaired.name}", [*auditwheel, "show", repaired])
    tag = re.search(r'"(manylinux_\w+|linux_\w+)"', shown)
    if tag is None or not tag[1].startswith("manylinux"):
        raise Failed(f"auditwheel failed: {repaired.name} fits no manylinux")
    return repaired, tag[1]


def check(python: str, wheel: Path, torch: str, folder: Path) -> None:
    """``check`` in an empty environment."""
    own = run.environment(python, folder / "check")
    run.install(own, torch, wheel)
    said = run(f"check of {wheel.name} with {torch}", [own, "-m", "se_kernels", "check"])
    info = run("what was installed", [own, "-m", "se_kernels"])
    if not re.search(r"^cpu +available", info, re.M):
        raise Failed(f"the check failed: no native core in {wheel.name}\n{said}")


def prove(python: str, kind: str, torches: list[str]) -> Row:
    row, begin = Row(python, kind), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            row.verdict = "failed"
            wheel, row.verdict = repair(build(python, kind, Path(folder)), kind)
            row.wheel = f"{wheel.name} ({wheel.stat().st_size / 1e6:.1f} MB)"
            for torch in torches:
                with tempfile.TemporaryDirectory() as empty:
                    check(python, wheel, torch, Path(empty))
                row.checks += f"{torch} passed  "
        except Failed as error:
            row.checks += str(error)
    row.seconds = time.perf_counter() - begin
    return row


def pinned_torch() -> str:
    pins = (ROOT / "requirements-dev.txt").read_text()
    found = re.search(r"^torch==\S+", pins, re.M)
    assert found is not None
    return found[0]


def main() -> None:
    parser = argparse.ArgumentParser(description="build wheels, audit, install and check them")
    parser.add_argument("--python", nargs="+", help="interpreters; by default all that are found")
    parser.add_argument("--torch", nargs="*", help="to check with; by default the pinned one")
    parser.add_argument("--cpu-only", action="store_true", help="no wheels with CUDA")
    arguments = parser.parse_args()
    torches = [pinned_torch()] if arguments.torch is None else arguments.torch
    found = arguments.python or pythons()
    nvcc = shutil.which(os.environ.get("CUDACXX", "nvcc")) or shutil.which(
        "/usr/local/cuda/bin/nvcc"
    )
    kinds = ["cpu"] if arguments.cpu_only or not nvcc else ["cpu", "cuda"]
    print(
        f"{len(found) * len(kinds)} wheels: {', '.join(found)}; all output: {run.log}", flush=True
    )
    rows = []
    for python in found:
        for kind in kinds:
            rows.append(row := prove(python, kind, torches))
            print(
                f"{row.python} {row.kind}: {row.wheel} {row.verdict} {row.checks}"
                f" {row.seconds:.0f} s",
                flush=True,
            )
    if not all(row.is_fine for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
