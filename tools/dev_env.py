"""Fills the Python environment that runs this file with all that development needs.

    python tools/dev_env.py            the packages of requirements-dev.txt
    python tools/dev_env.py --build    and se_kernels, editable, where its build is out of date

The repository's own .venv gets every version as pinned. Any other environment keeps what it has,
its torch above all, and gets only what it lacks. torchvision fits one torch: another torch than the
pinned one gets its own or, where there is none, does without it and timm, and the tests that need
them are skipped. A triton that torch requires is torch's to choose.
"""

import argparse
import ast
import ctypes
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements-dev.txt"
OLDEST_MAJOR = {"setuptools": 77, "pybind11": 3}  # pyproject.toml, build-system
FIT_TORCH = ("torchvision", "timm")  # timm needs torchvision, and that one version of torch
OLDEST_TORCHVISION = "0.26"  # older ones name no torch that they fit, or torch before 2.11
PROGRAMS = ("cmake", "ninja")  # any copy on PATH will do
BUILT_FROM = ("CMakeLists.txt", "pyproject.toml", "setup.py", "se_kernels/_version.py")
CAPABILITIES = (
    "import torch\n"
    "for device in range(torch.cuda.device_count()):\n"
    "    print('%d.%d' % torch.cuda.get_device_capability(device))\n"
)


def requirements() -> Iterator[tuple[str, str]]:
    """(name, version) of each pin."""
    for line in REQUIREMENTS.read_text().splitlines():
        requirement = line.partition("#")[0].strip()
        if requirement:
            name, _, version = requirement.partition("==")
            yield name, version


def installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def is_own_environment() -> bool:
    config = ROOT / ".venv" / "pyvenv.cfg"
    if Path(sys.prefix) != ROOT / ".venv" or not config.exists():
        return False
    return "include-system-site-packages = false" in config.read_text()


def is_missing(name: str, pinned: str, exact: bool) -> bool:
    have = installed(name)
    if exact:
        return have is None or public(have) != pinned
    if name in PROGRAMS and shutil.which(name):
        return False
    return have is None or int(have.partition(".")[0]) < OLDEST_MAJOR.get(name, 0)


def public(version: str) -> str:
    """2.13.0 of 2.13.0+cpu."""
    return version.partition("+")[0]


def torch_requires(name: str) -> bool:
    requirements_of_torch = metadata.requires("torch") or []
    return any(re.match(rf"{name}\b", requirement) for requirement in requirements_of_torch)


def install_requirements() -> None:
    exact = is_own_environment()
    pins = dict(requirements())
    fit_torch = {name: pins.pop(name) for name in FIT_TORCH}
    triton = {"triton": pins.pop("triton")}
    install([f"{name}=={pin}" for name, pin in pins.items() if is_missing(name, pin, exact)], exact)

    # torch is there now
    if sys.platform == "linux" and not torch_requires("triton"):
        install_where_possible(triton, exact)
    if public(installed("torch")) != pins["torch"]:
        fit_torch["torchvision"] = None
    install_where_possible(fit_torch, exact)


def install_where_possible(pins: dict[str, str | None], exact: bool) -> None:
    wanted = []
    for name, pin in pins.items():
        if is_missing(name, pin, exact):
            wanted.append(f"{name}=={pin}" if pin else f"{name}>={OLDEST_TORCHVISION}")
    try:
        install(wanted)
    except SystemExit:
        if exact:
            raise
        names = ", ".join(name for name, pin in pins.items() if is_missing(name, pin, exact))
        print(f"left out: {names}; the tests that need one are skipped", flush=True)


def install(wanted: list[str], torch_too: bool = False) -> None:
    """Installs what is wanted, and with it no other torch than the one that is there."""
    if not wanted:
        return
    print(f"installing into {sys.prefix}: {' '.join(wanted)}", flush=True)
    torch = None if torch_too else installed("torch")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        if torch is not None:
            constraints.write(f"torch=={torch}\n")
            constraints.flush()
        pip("install", "--quiet", "--constraint", constraints.name, *wanted)
    importlib.invalidate_caches()  # for metadata.version


def capabilities() -> list[str]:
    """Of the GPUs that torch finds here, such as 9.0."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []  # no driver; importing torch takes seconds
    command = [sys.executable, "-c", CAPABILITIES]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return sorted(set(result.stdout.split())) if result.returncode == 0 else []


def settings() -> dict[str, str]:
    """What the build is told, unless the caller has said otherwise.

    CUDA's kernels for the GPUs that are here; without a GPU none, as the tests run them on the CPU.
    """
    gpus = capabilities()
    wanted = {
        "SE_KERNELS_CPU": "ON",
        "SE_KERNELS_CUDA": "AUTO" if gpus else "OFF",
        "SE_KERNELS_CUDA_ARCHS": ";".join(gpus),
    }
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def built_with(build_info: Path) -> dict[str, str]:
    """The settings of the last build."""
    for node in ast.parse(build_info.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "SETTINGS":
            return ast.literal_eval(node.value)
    return {}


def build_is_current(wanted: dict[str, str]) -> bool:
    """Whether this checkout is installed, built with these settings, no older than its sources."""
    try:
        url = json.loads(metadata.distribution("se_kernels").read_text("direct_url.json") or "{}")
    except metadata.PackageNotFoundError:
        return False
    package = ROOT / "se_kernels"
    outputs = (package / "_build_info.py", package / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}")
    if url.get("url") != ROOT.as_uri() or not all(path.exists() for path in outputs):
        return False
    sources = [ROOT / name for name in BUILT_FROM] + [*(ROOT / "csrc").rglob("*.*")]
    newest = max(path.stat().st_mtime for path in sources)
    return newest <= outputs[0].stat().st_mtime and built_with(outputs[0]) == wanted


def build() -> None:
    wanted = settings()
    if build_is_current(wanted):
        return
    print("building se_kernels", flush=True)
    os.environ.update(wanted)
    pip("install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    result = subprocess.run(command, check=False)
    if result.returncode != 0:
        raise SystemExit(result.returncode)


def main() -> None:
    parser = argparse.ArgumentParser(description="prepare this environment for development")
    parser.add_argument("--build", action="store_true", help="build and install se_kernels too")
    arguments = parser.parse_args()
    install_requirements()
    if arguments.build:
        build()


if __name__ == "__main__":
    main()
