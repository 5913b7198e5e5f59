"""Fills the Python environment that runs this file with what a make target needs.

    python tools/dev_env.py GROUP ...          those groups of requirements-dev.txt
    python tools/dev_env.py --build GROUP ...  and se_kernels, editable, if its build is out of date

The repository's own .venv gets every version as pinned. Any other environment keeps what it has,
its torch above all, and gets only what it lacks. torchvision fits one torch: another torch than the
pinned one gets its own or, if there is none, does without it and timm, and the tests that need them
are skipped. A triton that torch requires is torch's to choose. On a Python that a pin does not
support, the newest version that does is installed.

A command that fails ends this one with a line that says what to do; its output is in build/logs/.
"""

import argparse
import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements-dev.txt"
LOGS = ROOT / "build" / "logs"
OLDEST_PYTHON = (3, 10)
PINNED_FOR = (3, 11)  # the oldest Python that every pin supports
OLDEST_MAJOR = {"setuptools": 77, "setuptools-scm": 8, "pybind11": 3}  # as in pyproject.toml
FIT_TORCH = ("torchvision", "timm")  # timm needs torchvision, and that one version of torch
OLDEST_TORCHVISION = "0.26"  # older ones name no torch that they fit, or torch before 2.11
PROGRAMS = ("cmake", "ninja")  # any copy on PATH will do
BUILT_FROM = ("CMakeLists.txt", "pyproject.toml", "setup.py")
GIGABYTE = 10**9
ROOM = 3 * GIGABYTE  # for torch without CUDA, its packages and a build


def groups() -> dict[str, dict[str, str]]:
    """{group: {name: version}} of the pins."""
    found: dict[str, dict[str, str]] = {}
    group: dict[str, str] = {}
    for line in REQUIREMENTS.read_text().splitlines():
        if heading := re.fullmatch(r"# \[(\w+)\]", line):
            group = found.setdefault(heading[1], {})
        elif requirement := line.partition("#")[0].strip():
            name, _, version = requirement.partition("==")
            group[name] = version
    return found


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


def is_missing(name: str, pinned: str | None, exact: bool) -> bool:
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


def install_requirements(wanted: Iterable[str]) -> None:
    """The pins of some groups."""
    exact = is_own_environment() and sys.version_info >= PINNED_FOR
    pins = {name: pin for group in wanted for name, pin in groups()[group].items()}
    last = {name: pins.pop(name) for name in (*FIT_TORCH, "triton") if name in pins}
    install([requirement(name, pin) for name, pin in pins.items() if is_missing(name, pin, exact)])

    # torch is there now
    triton = {name: pin for name, pin in last.items() if name == "triton"}
    if sys.platform == "linux" and triton and not torch_requires("triton"):
        install_where_possible(triton, exact)
    fit_torch: dict[str, str | None] = {n: pin for n, pin in last.items() if n in FIT_TORCH}
    if fit_torch and public(installed("torch") or "") != groups()["torch"]["torch"]:
        fit_torch["torchvision"] = None
    install_where_possible(fit_torch, exact)


def requirement(name: str, pin: str) -> str:
    return f"{name}{'==' if sys.version_info >= PINNED_FOR else '<='}{pin}"


def install_where_possible(pins: Mapping[str, str | None], exact: bool) -> None:
    wanted = [
        requirement(name, pin) if pin else f"{name}>={OLDEST_TORCHVISION}"
        for name, pin in pins.items()
        if is_missing(name, pin, exact)
    ]
    try:
        install(wanted)
    except SystemExit:
        if exact:
            raise
        names = ", ".join(name for name, pin in pins.items() if is_missing(name, pin, exact))
        print(f"left out: {names}; the tests that need one are skipped", flush=True)


def install(wanted: list[str]) -> None:
    """Installs what is wanted, and with it no other torch than the one that is there, unless
    torch itself is wanted."""
    if not wanted:
        return
    print(f"installing into {sys.prefix}: {' '.join(wanted)}", flush=True)
    torch_too = any(re.match(r"torch\b", requirement) for requirement in wanted)
    if torch_too and (free := shutil.disk_usage(sys.prefix).free) < ROOM:
        raise SystemExit(
            f"no room in {sys.prefix}: {free / GIGABYTE:.1f} GB are free and "
            f"{ROOM / GIGABYTE:.0f} GB are needed; free some, or set VIRTUAL_ENV to an environment "
            "on another disk"
        )
    torch = None if torch_too else installed("torch")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        if torch is not None:
            constraints.write(f"torch=={torch}\n")
            constraints.flush()
        # compiling all of torch to bytecode takes longer than unpacking it
        pip("install", "--no-compile", "--constraint", constraints.name, *wanted)
    importlib.invalidate_caches()  # for metadata.version


def capabilities() -> list[str]:
    """Of the GPUs that the driver finds here, such as 9.0."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return []  # no driver
    return sorted(set(re.findall(r"^\d+\.\d$", result.stdout, re.M)))


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
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SETTINGS":
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


def refuse_old_torch() -> None:
    """Before anything is installed: another environment than .venv keeps its torch."""
    found = re.search(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert found is not None
    have, oldest = installed("torch"), found[1]
    if have is None or is_own_environment():
        return
    if [*map(int, have.split(".")[:2])] < [*map(int, oldest.split("."))]:
        raise SystemExit(
            f"torch {oldest} or later is needed, {sys.prefix} has {have}: "
            f"pip install 'torch>={oldest}' there, or leave it (deactivate) for a new environment"
        )


def build() -> None:
    wanted = settings()
    if build_is_current(wanted):
        return
    print("building se_kernels", flush=True)
    os.environ.update(wanted)
    # a failed build leaves the installation that was there, if any
    pip("install", "--verbose", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))


def pip(*arguments: str) -> None:
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / ("build.log" if "--editable" in arguments else "packages.log")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    with log.open("w") as output:
        result = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
    if result.returncode != 0:
        raise SystemExit(f"{why(log.read_text(errors='replace'))} (all of it: {log})")


# What the output of a failed command says, and what to do; the first that is found counts.
ADVICE = (
    (
        r"No space left on device",
        "the disk is full: free some space and run this again",
    ),
    (
        r"Failed to establish a new connection|Temporary failure in name resolution|"
        r"Connection(?:Reset|Refused)?Error|ConnectTimeout|ReadTimeout|IncompleteRead|ProtocolError|"
        r"from versions: none",
        "the packages could not be fetched: connect to the network, or name a mirror with "
        "PIP_INDEX_URL, and run this again; what was fetched is kept",
    ),
    (
        r"Killed signal terminated program|internal compiler error: Killed",
        "the compiler ran out of memory: run this again with MAX_JOBS=1",
    ),
    (
        r"is not able to compile a simple test program|No CMAKE_CXX_COMPILER could be found|"
        r"CMAKE_CXX_COMPILER:\s+\S+\s+is not",
        "the C++ compiler does not work: install GCC 9 or later (Debian, Ubuntu: apt install g++), "
        "or name one with CXX, and run this again",
    ),
    (
        r"Could NOT find Python.*Development",
        "Python's headers are missing: install them (Debian, Ubuntu: apt install python3-dev), "
        "or name another Python with PYTHON, and run this again",
    ),
)


def why(output: str) -> str:
    """One line about a command that failed."""
    for pattern, advice in ADVICE:
        if re.search(pattern, output):
            return advice
    for pattern in (r": (?:fatal )?error: ", r"SE_KERNELS_\w+[=:]", r"CMake Error", r"^ *ERROR: "):
        if found := re.search(rf"^.*{pattern}.*$", output, re.M):
            return found[0].strip()
    return "pip failed"


def main() -> None:
    if sys.version_info < OLDEST_PYTHON:
        found, oldest = (".".join(map(str, v[:2])) for v in (sys.version_info, OLDEST_PYTHON))
        raise SystemExit(f"Python {oldest} or later is needed, this is {found}: set PYTHON")
    parser = argparse.ArgumentParser(description="prepare this environment for development")
    parser.add_argument("--build", action="store_true", help="build and install se_kernels too")
    parser.add_argument("groups", nargs="+", choices=groups(), metavar="GROUP")
    arguments = parser.parse_args()
    refuse_old_torch()
    install_requirements(arguments.groups)
    if arguments.build:
        build()


if __name__ == "__main__":
    main()
