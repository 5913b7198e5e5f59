"""Builds the native code, ``se_kernels._C`` and ``se_kernels._cuda``, with CMake and Ninja.

The rest is in pyproject.toml.

Environment variables (docs/build.md): SE_KERNELS_CPU and SE_KERNELS_CUDA = AUTO | ON | OFF,
SE_KERNELS_CUDA_ARCHS, CUDACXX, MAX_JOBS, CMAKE_ARGS.
torch is never imported: native code knows pointers only, so one build serves every torch version.
The version comes from git's tags, by setuptools-scm.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = "se_kernels"
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
BUILD_INFO = "_build_info.py"
SETTINGS = ("SE_KERNELS_CPU", "SE_KERNELS_CUDA", "SE_KERNELS_CUDA_ARCHS")
ERROR_LINES = 30  # of a failed command's output, kept in the build information

# csrc/cuda asks for nothing newer than 8.0: newer ones are compiled from the PTX of these
FRONT_ENDS = (80, 75)
# Code runs on later minor versions too: one for each major version
CUDA_ARCHS = "7.5;8.0;9.0;10.0;12.0+PTX"


class BuildFailed(Exception):
    """A library could not be built; the text says why."""


class LeftOut(BuildFailed):
    """Nobody is to be warned: it is switched off, or this machine has no compiler for it."""


@dataclass(frozen=True)
class Library:
    """A library of native code and the CMake project that it is built by."""

    name: str  # SE_KERNELS_<name>, <name>_BUILT, <name>_ERROR
    module: str
    source: Path
    words: str
    without: str  # what an installation without it is
    prepare: Callable[[], tuple[list[str], dict]]  # options of CMake, build information

    @property
    def file(self) -> str:
        return self.module + SUFFIX


def _prepare_cuda() -> tuple[list[str], dict]:
    nvcc = _nvcc()
    wanted, known = os.environ.get("SE_KERNELS_CUDA_ARCHS", ""), _known_to(nvcc)
    here = [] if wanted else [gpu for gpu in _gpus() if gpu in known]
    code, ptx = (here, []) if here else _architectures(wanted, known)
    names = ", ".join(f"{number / 10:.1f}" for number in code) or "none (PTX only)"
    reason = "as SE_KERNELS_CUDA_ARCHS says" if wanted else "found here" if here else "no GPU here"
    minutes = len(code or ptx)  # all five took 337 s, beside other work
    print(
        f"compiling the CUDA kernels for {names} ({reason}): about {minutes} min on "
        "2 cores. SE_KERNELS_CUDA_ARCHS=9.0 chooses another, SE_KERNELS_CUDA=OFF leaves them out.",
        flush=True,
    )
    options = [
        f"-DCMAKE_CUDA_COMPILER={nvcc}",
        f"-DSE_KERNELS_CUDA_GENCODE={';'.join(_gencode(code, ptx))}",
    ]
    archs = {"code": [*map(str, code)], "ptx": [*map(str, ptx)]}
    return options, {"CUDA_ARCHS": archs, "CUDA_SOURCES": _digest(ROOT / "csrc")}


def _digest(folder: Path) -> str:
    """Of the sources in it, by name and content; as in tools/digest.py."""
    found = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.suffix in {".cpp", ".cu", ".cuh", ".h", ".py", ".txt"}:
            found.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return found.hexdigest()[:12]


def _nvcc() -> str:
    named, standard = os.environ.get("CUDACXX"), "/usr/local/cuda/bin/nvcc"
    found = shutil.which(named or "nvcc") or (None if named else shutil.which(standard))
    if found is None:
        where = f"CUDACXX={named} cannot be run" if named else f"not on PATH, no {standard}"
        raise LeftOut(f"nvcc was not found: {where}")
    return found


def _gpus() -> list[int]:
    """The compute capabilities of this machine's GPUs, 90 for 9.0; none without a driver."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return []
    found = re.findall(r"^(\d+)\.(\d)$", result.stdout, re.M)
    return sorted({int(major + minor) for major, minor in found})


def _known_to(nvcc: str) -> list[int]:
    """The compute capabilities that nvcc compiles for, 90 for 9.0."""
    command = [nvcc, "--list-gpu-code"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    known = sorted({int(number) for number in re.findall(r"\bsm_(\d+)\b", result.stdout)})
    if result.returncode != 0 or not known:
        raise BuildFailed(f"{shlex.join(command)} failed: {result.stderr.strip()}")
    return known


def _architectures(wanted: str, known: list[int]) -> tuple[list[int], list[int]]:
    """The compute capabilities that get code, and those that get PTX: ([80, 90], [90]).

    ``wanted`` as SE_KERNELS_CUDA_ARCHS; empty for all of CUDA_ARCHS that are known.
    """
    code, ptx = [], []
    for arch in re.split(r"[;,\s]+", (wanted or CUDA_ARCHS).strip(";, ")):
        match = re.fullmatch(r"(\d+)\.(\d)[af]?(\+PTX)?", arch)
        if match is None or int(match[1] + match[2]) < FRONT_ENDS[-1]:
            raise SystemExit(
                "SE_KERNELS_CUDA_ARCHS: expected compute capabilities from 7.5 on, such as "
                f"8.0;9.0+PTX, got {arch!r}"
            )
        capability = int(match[1] + match[2])
        if capability in known:
            code.append(capability)
        elif wanted:
            names = ", ".join(f"{number / 10:.1f}" for number in known)
            raise SystemExit(
                f"SE_KERNELS_CUDA_ARCHS: expected some of {names}, which this nvcc compiles for, "
                f"got {arch!r}"
            )
        else:
            print(f"without code for {arch}: this nvcc does not compile for it", flush=True)
        if match[3]:
            ptx.append(_front_end(capability))
    return list(dict.fromkeys(code)), list(dict.fromkeys(ptx))


def _front_end(capability: int) -> int:
    """The PTX that code for it is made from."""
    return next(number for number in FRONT_ENDS if number <= capability)


def _gencode(code: list[int], ptx: list[int]) -> list[str]:
    """nvcc's flags: one pass of its front end for all that is made from one PTX."""
    flags = []
    for front in FRONT_ENDS:
        made = [f"sm_{number}" for number in code if _front_end(number) == front]
        made += [f"compute_{front}"] if front in ptx else []
        if made:
            flags.append(f"-gencode=arch=compute_{front},code=[{','.join(made)}]")
    return flags


LIBRARIES = (
    Library(
        name="CPU",
        module="_C",
        source=ROOT,
        words="the native core",
        without="its native CPU kernels.\nIt works, at the speed of eager PyTorch.",
        prepare=lambda: ([], {}),
    ),
    Library(
        name="CUDA",
        module="_cuda",
        source=ROOT / "csrc" / "cuda",
        words="the CUDA kernels",
        without="its CUDA kernels.\nOn a GPU it runs Triton's, or at the speed of eager PyTorch.",
        prepare=_prepare_cuda,
    ),
)


class BuildPython(build_py):
    """Starts from an empty tree, so that a module removed since the last build stays removed."""

    def run(self):
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / PACKAGE, ignore_errors=True)
        super().run()


class BuildNative(build_ext):
    """Puts each library into the package, or only the reason why not, and ``_build_info.py``."""

    def initialize_options(self):
        super().initialize_options()
        self.produced = []

    def run(self):
        package = ROOT / PACKAGE if self.inplace else Path(self.build_lib) / PACKAGE
        package.mkdir(parents=True, exist_ok=True)
        info = {"SETTINGS": {name: os.environ.get(name, "") for name in SETTINGS}}
        for library in LIBRARIES:
            built, told = _build_as_wanted(library)
            info.update(told)
            if built is None:
                (package / library.file).unlink(missing_ok=True)
            else:
                _replace(package / library.file, built.read_bytes(), mode=0o755)
                self.produced.append(library.file)
        _replace(package / BUILD_INFO, _build_info(info).encode())
        self.produced.append(BUILD_INFO)

    def get_outputs(self):
        return [os.path.join(self.build_lib, PACKAGE, name) for name in self.produced]

    def get_output_mapping(self):
        names = self.produced if self.inplace else ()
        return {
            os.path.join(self.build_lib, PACKAGE, name): os.path.join(PACKAGE, name)
            for name in names
        }


def _switch(name: str) -> str:
    value = (os.environ.get(name) or "AUTO").upper()
    if value not in ("AUTO", "ON", "OFF"):
        raise SystemExit(f"{name}: expected AUTO, ON or OFF, got {value!r}")
    return value


def _build_as_wanted(library: Library) -> tuple[Path | None, dict]:
    """The built file or None, and what the build information says of it."""
    switch = f"SE_KERNELS_{library.name}"
    wanted = _switch(switch)
    try:
        if wanted == "OFF":
            raise LeftOut(f"switched off with {switch}=OFF")
        built, told = _build(library)
    except BuildFailed as error:
        if wanted == "ON":
            raise SystemExit(f"{switch}=ON, and {error}") from None
        if not isinstance(error, LeftOut):
            _warn(library, switch, str(error))
        return None, {f"{library.name}_BUILT": False, f"{library.name}_ERROR": str(error)}
    return built, {f"{library.name}_BUILT": True, f"{library.name}_ERROR": None, **told}


def _build(library: Library) -> tuple[Path, dict]:
    """The built file, and what CMake says of it: compiler, instruction sets or GPUs, flags."""
    if sys.platform == "win32":
        raise BuildFailed("Windows is not supported yet: use Linux, or WSL")
    options, told = library.prepare()
    options += _launcher(library) + shlex.split(os.environ.get("CMAKE_ARGS", ""))
    cmake, ninja = _tool("cmake"), _tool("ninja")
    try:
        import pybind11
    except ImportError as error:
        raise BuildFailed(f"pybind11 cannot be imported: {error}") from None
    directory = _build_directory(library, options)
    configure = [
        *(cmake, "-S", str(library.source), "-B", str(directory), "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={ninja}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        *options,
    ]
    was_there = directory.exists()
    try:
        _run(f"the configuration of {library.words}", configure)
    except BuildFailed:
        if not was_there:
            raise
        shutil.rmtree(directory)  # left by a compiler or a checkout that has moved since
        _run(f"the configuration of {library.words}", configure)
    jobs = os.environ.get("MAX_JOBS")
    parallel = ["--parallel", jobs] if jobs else []
    _run(f"the compilation of {library.words}", [cmake, "--build", str(directory), *parallel])
    built = directory / library.file
    if not built.exists():
        raise BuildFailed(f"the build ended without {built}")
    return built, {**json.loads((directory / "build_info.json").read_text()), **told}


def _launcher(library: Library) -> list[str]:
    """ccache, if it is there and no other launcher is named."""
    ccache = shutil.which("ccache")
    languages = ("CXX", "CUDA") if library.name == "CUDA" else ("CXX",)
    names = [f"CMAKE_{language}_COMPILER_LAUNCHER" for language in languages]
    return [f"-D{name}={ccache}" for name in names if ccache and name not in os.environ]


def _tool(name: str) -> str:
    scripts = sysconfig.get_path("scripts")  # of an environment that is used but not activated
    path = os.pathsep.join((os.environ.get("PATH", ""), scripts))
    found = shutil.which(name, path=path)
    if found is None:
        raise BuildFailed(f"{name} was not found on PATH or in {scripts}")
    return found


def _build_directory(library: Library, options: list[str]) -> Path:
    """One directory for each interpreter and configuration, so that none meets another's cache."""
    names = ("CC", "CXX", "CPPFLAGS", "CXXFLAGS", "LDFLAGS", "ARCHFLAGS")
    if library.name == "CUDA":
        names += ("CUDAFLAGS", "CUDAHOSTCXX")
    key = json.dumps([sys.prefix, *options, *(os.environ.get(name) for name in names)])
    tag = f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
    folder = f"cmake-{library.name.lower()}-{tag}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    return ROOT / "build" / folder


def _run(step: str, command: list[str]) -> None:
    print("+", shlex.join(command), flush=True)
    tail = deque(maxlen=ERROR_LINES)
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
    except OSError as error:
        raise BuildFailed(f"{command[0]} cannot be run: {error}") from None
    with process:
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.strip() and not line.startswith("-- "):  # CMake's progress
                tail.append(line.rstrip())
    if process.returncode != 0:
        head = f"{step} failed (exit status {process.returncode}):"
        raise BuildFailed("\n".join((head, *tail)))


def _replace(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Swaps the file in whole: a process that has the old one mapped keeps it."""
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(content)
    new.chmod(mode)
    os.replace(new, path)


def _build_info(info: dict) -> str:
    head = '"""How this installation was built. Written by setup.py at every build."""\n\n'
    return head + "".join(f"{name} = {value!r}\n" for name, value in info.items())


def _warn(library: Library, switch: str, reason: str) -> None:
    rule = "=" * 78
    print(
        f"\n{rule}\nWARNING: se_kernels is being installed WITHOUT {library.without}\n"
        f"{switch}=ON makes this an error; `python -m se_kernels` shows the reason again:\n\n"
        f"{reason}\n{rule}\n",
        file=sys.stderr,
        flush=True,
    )


setup(
    ext_modules=[Extension(f"{PACKAGE}.{library.module}", sources=[]) for library in LIBRARIES],
    cmdclass={"build_ext": BuildNative, "build_py": BuildPython},
)
