"""The CUDA kernels for this machine's GPU, in the checkout: `python -m tools.gpu.build 9.0`.

First what the build lacks here, if it lacks anything. A library that is there already, for this
GPU, this Python and these sources, is kept: it may come from another machine.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

from tools.digest import digest
from tools.gpu.steps import ROOT

PACKAGE = ROOT / "se_kernels"


def main(arguments: Sequence[str]) -> int:
    (capability,) = arguments
    if capability == "host":
        return on_host()
    library = PACKAGE / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    stale = why_stale(library, capability)
    if stale is None:
        print(f"{library.name} is of these sources and for {capability}: nothing to build")
        return 0
    print(f"to be built for {capability}: {stale}", flush=True)
    lacking = missing()
    for what in lacking:
        print(f"missing: {what}", flush=True)
    if lacking:
        print("bring a library that was built elsewhere: docs/build.md, A GPU without a compiler")
        return 1
    began = time.monotonic()
    cpu = "AUTO" if any(PACKAGE.glob("_C.*.so")) else "OFF"  # one that is there is kept
    environment = {**os.environ, "SE_KERNELS_CUDA": "ON", "SE_KERNELS_CUDA_ARCHS": capability}
    environment |= {"SE_KERNELS_CPU": cpu, "MAX_JOBS": str(os.cpu_count() or 1)}
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    print(f"built in {time.monotonic() - began:.0f} s" if code == 0 else "the build failed")
    return code


def on_host() -> int:
    """The stand-in is built by make, which says what it lacks itself."""
    folder = ROOT / "build" / "cuda_on_host"
    if any(folder.glob("_cuda*.so")):
        return 0
    print(f"no stand-in for a GPU in {folder}: make cuda-on-host")
    return 1


def missing() -> list[str]:
    """What the build needs and this machine does not have."""
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    found = {
        "pybind11": importlib.util.find_spec("pybind11"),
        f"Python's headers ({headers})": headers.exists(),
        "nvcc (CUDACXX, PATH, /usr/local/cuda/bin)": nvcc(),
        "setuptools": importlib.util.find_spec("setuptools"),
        **{name: tool(name) for name in ("cmake", "ninja")},
        "a C++ compiler (CXX, PATH)": shutil.which(os.environ.get("CXX") or "c++"),
    }
    return [name for name, there in found.items() if not there]


def nvcc() -> str | None:
    named = os.environ.get("CUDACXX")
    return shutil.which(named or "nvcc") or (
        None if named else shutil.which("/usr/local/cuda/bin/nvcc")
    )


def tool(name: str) -> str | None:
    path = os.pathsep.join((os.environ.get("PATH", ""), sysconfig.get_path("scripts")))
    return shutil.which(name, path=path)


def why_stale(library: Path, capability: str) -> str | None:
    """Why the library has to be built, or None where it serves the GPU as it is."""
    if not library.exists():
        return f"no {library.name}"
    info: dict = {}
    built = PACKAGE / "_build_info.py"
    if not built.exists():
        return f"{library.name} came without _build_info.py"
    exec(built.read_text(), info)
    if info.get("CUDA_SOURCES") != digest([ROOT / "csrc"]):
        return f"{library.name} is of other sources"
    major, minor = map(int, capability.split("."))
    codes = (divmod(int(code), 10) for code in info["CUDA_ARCHS"]["code"])
    if not any(code[0] == major and code[1] <= minor for code in codes):
        return f"{library.name} is for {', '.join(info['CUDA_ARCHS']['code'])}"
    probe = [sys.executable, "-c", "import se_kernels._cuda"]
    done = subprocess.run(probe, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return f"{library.name} cannot be loaded: {done.stderr.strip().splitlines()[-1]}"
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
