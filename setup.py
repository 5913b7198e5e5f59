"""Builds the native core, ``se_kernels._C``, with CMake and Ninja. The rest is in pyproject.toml.

Environment variables (docs/build.md): SE_KERNELS_CPU = AUTO | ON | OFF, MAX_JOBS, CMAKE_ARGS.
torch is never imported: the core knows pointers only, so one build serves every torch version.
"""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections import deque
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = "se_kernels"
LIBRARY = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
BUILD_INFO = "_build_info.py"
ERROR_LINES = 30  # of a failed command's output, kept in the build information


class BuildFailed(Exception):
    """The native core could not be built; the text says why."""


class BuildPython(build_py):
    """Starts from an empty tree, so that a module removed since the last build stays removed."""

    def run(self):
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / PACKAGE, ignore_errors=True)
        super().run()


class BuildNative(build_ext):
    """Puts the native core and ``_build_info.py`` into the package, or only the reason why not."""

    def initialize_options(self):
        super().initialize_options()
        self.produced = []

    def run(self):
        package = ROOT / PACKAGE if self.inplace else Path(self.build_lib) / PACKAGE
        package.mkdir(parents=True, exist_ok=True)
        info = {"CPU_BUILT": False, "CPU_ERROR": None}
        wanted = _switch("SE_KERNELS_CPU")
        library = None
        if wanted == "OFF":
            info["CPU_ERROR"] = "switched off with SE_KERNELS_CPU=OFF"
        else:
            try:
                library, built = _build_native()
                info.update(CPU_BUILT=True, **built)
            except BuildFailed as error:
                if wanted == "ON":
                    raise SystemExit(f"SE_KERNELS_CPU=ON, and {error}") from None
                info["CPU_ERROR"] = str(error)
                _warn(str(error))
        if library is None:
            (package / LIBRARY).unlink(missing_ok=True)
        else:
            _replace(package / LIBRARY, library.read_bytes(), mode=0o755)
            self.produced.append(LIBRARY)
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


def _build_native() -> tuple[Path, dict]:
    """The built library, and what CMake says of it: compiler, instruction sets, flags."""
    cmake, ninja = _tool("cmake"), _tool("ninja")
    try:
        import pybind11
    except ImportError as error:
        raise BuildFailed(f"pybind11 cannot be imported: {error}") from None
    directory = _build_directory()
    configure = [
        *(cmake, "-S", str(ROOT), "-B", str(directory), "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={ninja}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        *shlex.split(os.environ.get("CMAKE_ARGS", "")),
    ]
    was_there = directory.exists()
    try:
        _run("the configuration", configure)
    except BuildFailed:
        if not was_there:
            raise
        shutil.rmtree(directory)  # left by a compiler or a checkout that has moved since
        _run("the configuration", configure)
    jobs = os.environ.get("MAX_JOBS")
    parallel = ["--parallel", jobs] if jobs else []
    _run("the compilation", [cmake, "--build", str(directory), *parallel])
    library = directory / LIBRARY
    if not library.exists():
        raise BuildFailed(f"the build ended without {library}")
    return library, json.loads((directory / "build_info.json").read_text())


def _tool(name: str) -> str:
    scripts = sysconfig.get_path("scripts")  # of an environment that is used but not activated
    path = os.pathsep.join((os.environ.get("PATH", ""), scripts))
    found = shutil.which(name, path=path)
    if found is None:
        raise BuildFailed(f"{name} was not found on PATH or in {scripts}")
    return found


def _build_directory() -> Path:
    """One directory for each interpreter and configuration, so that none meets another's cache."""
    names = ("CC", "CXX", "CPPFLAGS", "CXXFLAGS", "LDFLAGS", "ARCHFLAGS", "CMAKE_ARGS")
    key = json.dumps([sys.prefix, *(os.environ.get(name) for name in names)])
    tag = f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
    return ROOT / "build" / f"cmake-{tag}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


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
        head = f"{step} of the native core failed (exit status {process.returncode}):"
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


def _warn(reason: str) -> None:
    rule = "=" * 78
    print(
        f"\n{rule}\nWARNING: se_kernels is being installed WITHOUT its native CPU kernels.\n"
        "It works, at the speed of eager PyTorch. SE_KERNELS_CPU=ON makes this an error;\n"
        f"`python -m se_kernels` shows the reason again:\n\n{reason}\n{rule}\n",
        file=sys.stderr,
        flush=True,
    )


setup(
    ext_modules=[Extension(f"{PACKAGE}._C", sources=[])],
    cmdclass={"build_ext": BuildNative, "build_py": BuildPython},
)
