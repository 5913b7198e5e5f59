"""Builds wheels and proves each: `make wheels`.

    python tools/wheels.py [--python PATH ...] [--torch REQUIREMENT ...] [--cpu-only]

For each CPython from 3.10 on that is found, one wheel without CUDA (dist/cpu) and, if there is
nvcc, one with its kernels for all GPUs (dist/cuda). auditwheel grafts nothing, as nothing is
linked: it says for which Linux the wheel is good, and renames it. Then each wheel is installed into
an empty environment, with each torch that is asked for, and `python -m se_kernels check` must pass
there. A line for each wheel; an error at the end if one of them failed.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
LOG = ROOT / "build" / "logs" / "wheels.log"
VERSIONS = range(10, 15)  # 3.10 to 3.14
ALL_GPUS = "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"  # also on a machine with a GPU; as setup.py's


class Failed(Exception):
    """A step failed; the text says which."""


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


def pythons() -> list[str]:
    """One interpreter of each version, from PATH and pyenv's folder."""
    folders = [*map(Path, os.environ["PATH"].split(os.pathsep))]
    folders += sorted(Path.home().glob(".pyenv/versions/*/bin"))
    found: dict[int, str] = {}
    for minor in VERSIONS:
        candidates = [folder / f"python3.{minor}" for folder in folders]
        for path in filter(Path.exists, candidates):
            command = [str(path), "-c", "import sys; print(sys.version_info[:2], sys.prefix)"]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.stdout.startswith(f"(3, {minor})"):  # pyenv's shims may refuse
                found[minor] = str(path)
                break
    return [*found.values()]


def run(step: str, command: list, **environment: str) -> str:
    """The output, which goes to the log as well."""
    result = subprocess.run(
        [*map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **environment},
        cwd=tempfile.gettempdir(),  # the checkout must not come before what is installed
        check=False,
    )
    with LOG.open("a") as log:
        log.write(f"\n### {step}\n{result.stdout}")
    if result.returncode != 0:
        raise Failed(f"{step} failed: {LOG} says why")
    return result.stdout


def environment(python: str, folder: Path) -> Path:
    """An empty environment's Python."""
    run(f"an environment of {python}", [python, "-m", "venv", folder])
    return folder / "bin" / "python"


def build(python: str, kind: str, folder: Path) -> Path:
    """The wheel as it is built."""
    settings = {"SE_KERNELS_CPU": "ON", "SE_KERNELS_CUDA": "OFF", "VIRTUAL_ENV": ""}
    if kind == "cuda":
        settings |= {"SE_KERNELS_CUDA": "ON", "SE_KERNELS_CUDA_ARCHS": ALL_GPUS}
    own = environment(python, folder / "build")
    raw = folder / "raw"
    run(
        f"the {kind} wheel of {python}",
        [own, "-m", "pip", "wheel", "--verbose", "--no-deps", "--wheel-dir", raw, ROOT],
        **settings,
    )
    (wheel,) = raw.iterdir()
    return wheel


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
    own = environment(python, folder / "check")
    pip = [own, "-m", "pip", "install", "--no-compile"]
    run(f"{wheel.name} with {torch}", [*pip, torch, wheel])
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
    LOG.parent.mkdir(parents=True, exist_ok=True)
    LOG.write_text("")
    print(f"{len(found) * len(kinds)} wheels: {', '.join(found)}; all output: {LOG}", flush=True)
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
