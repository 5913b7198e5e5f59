"""How the library is built, installed and loaded: no stray runtime, no silent failure."""

import ast
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import types
from pathlib import Path

import pytest
import torch
from host_gpu import is_on_host

import se_kernels

ROOT = Path(__file__).resolve().parents[2]
SANITIZED = os.environ.get("SE_KERNELS_SANITIZED")  # the folder of the sanitized installation

build_info = pytest.importorskip("se_kernels._build_info", reason="the package was never built")
needs_core = pytest.mark.skipif(not build_info.CPU_BUILT, reason=f"{build_info.CPU_ERROR}")
needs_maps = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")


def native_core() -> Path:
    from se_kernels import _C

    return Path(_C.__file__)


def mapped_files() -> set[str]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6}


def run(command, **environment) -> subprocess.CompletedProcess:
    environment = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def call_native():
    x, w1, w2 = torch.randn(2, 8, 4, 4), torch.randn(2, 8), torch.randn(8, 2)
    se_kernels.squeeze_excite(x, w1, w2, backend="cpu")


# --- the native core ----------------------------------------------------------------------------


@needs_core
@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_native_core_links_neither_openmp_nor_torch():
    dynamic = run(["readelf", "--dynamic", "--wide", str(native_core())]).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.+?)\]", dynamic)
    assert needed, dynamic
    forbidden = ("omp", "torch", "c10", "python", "cuda")
    assert [name for name in needed if any(word in name for word in forbidden)] == []


@needs_core
@needs_maps
def test_one_openmp_runtime_after_a_call():
    # in a process of its own: sklearn, where another test imports it, brings a runtime too
    script = (
        "import re, torch, se_kernels\n"
        "x, w1, w2 = torch.randn(64, 8, 64, 64), torch.randn(2, 8), torch.randn(8, 2)\n"
        "se_kernels.squeeze_excite(x, w1, w2, backend='cpu')\n"
        "maps = open('/proc/self/maps').read()\n"
        "print(*set(re.findall(r'/\\S*lib(?:gomp|omp|iomp)\\S*', maps)), sep='\\n')\n"
    )
    result = run([sys.executable, "-c", script], OMP_NUM_THREADS="2")
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.split()) == 1, result.stdout


def test_native_core_is_free_of_torch():
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    assert sources
    foreign = re.compile(r"#\s*include\s*[<\"](torch|ATen|c10|caffe2)/")
    assert [path.name for path in sources if foreign.search(path.read_text())] == []


@pytest.mark.native
@pytest.mark.skipif(SANITIZED is None, reason="only for `make sanitize`")
def test_sanitized_build_is_the_one_under_test():
    assert build_info.SANITIZED
    assert native_core().is_relative_to(SANITIZED)
    call_native()
    mapped = " ".join(mapped_files())
    assert str(native_core()) in mapped
    assert "libasan" in mapped
    assert "libubsan" in mapped


# --- build information --------------------------------------------------------------------------


def test_build_info_is_consistent():
    reason = se_kernels.available_backends()["cpu"]
    if not build_info.CPU_BUILT:
        assert build_info.CPU_ERROR
        assert build_info.CPU_ERROR in reason
        return
    assert build_info.CPU_ERROR is None
    assert reason is None
    assert build_info.ISAS[0] == "baseline"
    assert set(build_info.ISAS) <= {"baseline", "avx2", "avx512"}
    assert re.match(r"\w+ \d+", build_info.COMPILER)
    assert "-std=c++17" in build_info.FLAGS
    assert "-march=native" not in build_info.FLAGS
    assert "-ffast-math" not in build_info.FLAGS


def test_build_info_tells_of_cuda():
    assert (build_info.CUDA_ERROR is None) == build_info.CUDA_BUILT
    if build_info.CUDA_BUILT:
        assert build_info.CUDA_ARCHS["code"]
        assert build_info.CUDA_COMPILER.startswith("nvcc ")
    else:
        assert build_info.CUDA_ERROR


def test_version_has_one_source():
    assert se_kernels.__version__ == importlib.metadata.version("se_kernels")
    assert "version" not in tomli(ROOT / "pyproject.toml", "project")


def tomli(path, table):
    """The keys of a table; Python 3.10 has no tomllib."""
    body = re.search(rf"^\[{table}\]$(.*?)^\[", path.read_text(), re.M | re.S)[1]
    return re.findall(r"^([\w-]+) = ", body, re.M)


@pytest.mark.parametrize(
    "files, expected",
    [
        ({}, "0.0"),
        ({"PKG-INFO": "Metadata-Version: 2.4\nName: se_kernels\nVersion: 3.2.1\n"}, "3.2.1"),
        (
            {".git_archival.txt": "node: 0123abc\nnode-date: x\ndescribe-name: v1.2.3\n"},
            "1.2.3",
        ),
    ],
    ids=["a copy", "a source distribution", "an archive made by git"],
)
def test_version_without_a_repository(tmp_path, files, expected):
    scm = pytest.importorskip("setuptools_scm", reason="needs the build requirements")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    settings = scm.Configuration.from_file(str(tmp_path / "pyproject.toml"))
    assert scm._get_version(settings) == expected


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_version_of_a_shallow_clone(tmp_path):
    pytest.importorskip("setuptools_scm", reason="needs the build requirements")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C"]
    source, clone = tmp_path / "source", tmp_path / "clone"
    source.mkdir()
    shutil.copy(ROOT / "pyproject.toml", source)
    for arguments in (["init", "-q"], ["add", "."], *[["commit", "-qm1", "--allow-empty"]] * 3):
        assert run([*git, str(source), *arguments]).returncode == 0
    depth = ["clone", "-q", "--depth=1", source.as_uri(), str(clone)]
    assert run([*git, str(tmp_path), *depth]).returncode == 0
    told = run([sys.executable, "-m", "setuptools_scm", "--root", str(clone)])
    assert re.fullmatch(r"0\.1\.dev1\+g[0-9a-f]+", told.stdout.strip()), told.stderr


# --- what must be there ---------------------------------------------------------------------------


def test_an_old_torch_is_refused(monkeypatch):
    from se_kernels import _requirements

    monkeypatch.setattr(torch, "__version__", "2.10.1+cpu")
    expected = r"se_kernels needs torch 2\.11 or later, got 2\.10\.1\+cpu: pip install"
    with pytest.raises(ImportError, match=expected):
        _requirements.check_torch()
    monkeypatch.setattr(torch, "__version__", "2.11.0a0+git1")
    _requirements.check_torch()


def test_no_torch_is_told(monkeypatch):
    from se_kernels import _requirements

    monkeypatch.setattr(_requirements.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs torch 2\.11 or later, and there is none"):
        _requirements.check_torch()


def test_the_library_loads_without_triton():
    """torch for CPUs brings none."""
    script = (
        "import sys\n"
        "sys.modules['triton'] = None\n"
        "import torch, se_kernels\n"
        "x, w1, w2 = torch.ones(1, 4, 2, 2), torch.ones(2, 4), torch.ones(4, 2)\n"
        "assert se_kernels.squeeze_excite(x, w1, w2).shape == x.shape\n"
        "print(se_kernels.available_backends()['triton'])\n"
    )
    result = run([sys.executable, "-c", script], TRITON_INTERPRET="0")
    assert result.stdout.strip() == "triton is not installed: pip install triton", result.stderr


def test_the_oldest_torch_is_said_once():
    from se_kernels import _requirements

    assert f'"torch>={_requirements.OLDEST_TORCH}"' in (ROOT / "pyproject.toml").read_text()


def test_main_names_every_backend():
    result = run([sys.executable, "-m", "se_kernels"])
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    for name, reason in se_kernels.available_backends().items():
        if is_on_host(name):  # in this process only
            continue
        line = next(line for line in result.stdout.splitlines() if line.startswith(name))
        assert ("available" in line) == (reason is None)


def test_setup_never_imports_torch():
    tree = ast.parse((ROOT / "setup.py").read_text())
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
        )
    }
    assert imported <= {*sys.stdlib_module_names, "setuptools", "pybind11"}


def test_linters_are_pinned_once():
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "requirements-dev.txt").read_text(), re.M))
    hooks = re.findall(r'"([\w-]+)==([^"]+)"', (ROOT / ".pre-commit-config.yaml").read_text())
    assert hooks
    assert all(pins[name] == version for name, version in hooks)


# --- setup.py by itself ---------------------------------------------------------------------------


@pytest.fixture
def setup_py(monkeypatch):
    setuptools = pytest.importorskip("setuptools", "77", reason="needs the build requirements")
    monkeypatch.setattr(setuptools, "setup", lambda **options: None)
    spec = importlib.util.spec_from_file_location("setup_py", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "setup_py", module)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_windows_gets_the_definition_and_the_reason(setup_py, monkeypatch):
    monkeypatch.setattr(setup_py, "sys", types.SimpleNamespace(platform="win32", stderr=sys.stderr))
    for library in setup_py.LIBRARIES:
        monkeypatch.delenv(f"SE_KERNELS_{library.name}", raising=False)
        built, told = setup_py._build_as_wanted(library)
        assert built is None
        reason = "Windows is not supported yet: use Linux, or WSL"
        assert told == {f"{library.name}_BUILT": False, f"{library.name}_ERROR": reason}


@pytest.mark.parametrize(
    "gpus, wanted, code, ptx, words",
    [
        ("9.0\n9.0", "", ["90"], [], "for 9.0 (found here): about 1 min"),
        ("", "", ["75", "80", "90"], ["80"], "for 7.5, 8.0, 9.0 (no GPU here): about 3 min"),
        ("5.2", "", ["75", "80", "90"], ["80"], "(no GPU here)"),
        ("9.0", "8.0+PTX", ["80"], ["80"], "for 8.0 (as SE_KERNELS_CUDA_ARCHS says)"),
    ],
    ids=["a GPU", "none", "one too old", "chosen"],
)
def test_cuda_is_built_for_the_gpus_here(
    setup_py, monkeypatch, tmp_path, capsys, gpus, wanted, code, ptx, words
):
    for name, output in (("nvcc", "sm_75 sm_80 sm_90"), ("nvidia-smi", gpus)):
        (tmp_path / name).write_text(f"#!/bin/sh\nprintf '{output}'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SE_KERNELS_CUDA_ARCHS", wanted)
    monkeypatch.delenv("CUDACXX", raising=False)
    _, told = setup_py._prepare_cuda()
    assert told["CUDA_ARCHS"] == {"code": code, "ptx": ptx}
    said = capsys.readouterr().out
    assert words in said
    assert "SE_KERNELS_CUDA=OFF leaves them out" in said


def test_ccache_is_used_unless_another_launcher_is_named(setup_py, monkeypatch, tmp_path):
    ccache = tmp_path / "ccache"
    ccache.write_text("#!/bin/sh\n")
    ccache.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    cpu, cuda = setup_py.LIBRARIES
    for language in ("CXX", "CUDA"):
        monkeypatch.delenv(f"CMAKE_{language}_COMPILER_LAUNCHER", raising=False)
    assert setup_py._launcher(cpu) == [f"-DCMAKE_CXX_COMPILER_LAUNCHER={ccache}"]
    assert len(setup_py._launcher(cuda)) == 2
    monkeypatch.setenv("CMAKE_CXX_COMPILER_LAUNCHER", "sccache")
    assert setup_py._launcher(cpu) == []
    ccache.unlink()
    assert setup_py._launcher(cuda) == []


# --- builds that fail ---------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path):
    """A copy of what is built from, never built."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in ("pyproject.toml", "setup.py", "CMakeLists.txt", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, copy)
    (copy / "README.md").touch()
    shutil.copytree(ROOT / "csrc", copy / "csrc")
    built = shutil.ignore_patterns("_C*.so", "_cuda*.so", "_build_info.py", "__pycache__")
    shutil.copytree(ROOT / "se_kernels", copy / "se_kernels", ignore=built)
    return copy


@pytest.fixture
def install(checkout, tmp_path):
    """Installs the checkout into a folder with the given environment; no CUDA where not asked."""
    pytest.importorskip("setuptools", "77", reason="needs the build requirements")
    pytest.importorskip("pybind11", reason="needs the build requirements")
    if not all(shutil.which(name) for name in ("cmake", "ninja")):
        pytest.skip("needs cmake and ninja on PATH")
    target = tmp_path / "target"

    def build(**environment):
        environment = {"SE_KERNELS_CUDA": "OFF", **environment}
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation"]
        return target, run([*pip, "--target", str(target), str(checkout)], **environment)

    return build


ISOLATED = (  # an editable installation would lend its _C to the folder's package
    "import runpy, sys\n"
    "sys.meta_path = [f for f in sys.meta_path if '__editable__' not in f.__module__]\n"
    "sys.path.insert(0, sys.argv.pop(1))\n"
)


def run_installed(target, script):
    return run([sys.executable, "-c", ISOLATED + script, str(target)])


@pytest.mark.parametrize(
    "environment, reason",
    [
        ({"CXX": "/bin/false", "SE_KERNELS_CPU": "AUTO"}, "/bin/false"),
        ({"SE_KERNELS_CPU": "OFF"}, "switched off with SE_KERNELS_CPU=OFF"),
    ],
    ids=["no compiler", "switched off"],
)
def test_install_without_native_core_keeps_the_reason(install, tmp_path, environment, reason):
    target, result = install(**environment)
    assert result.returncode == 0, result.stderr
    assert list((target / "se_kernels").glob("_C*.so")) == []
    called = run_installed(
        target,
        "import torch, se_kernels\n"
        "x, w1, w2 = torch.ones(1, 4, 2, 2), torch.ones(2, 4), torch.ones(4, 2)\n"
        "se_kernels.squeeze_excite(x, w1, w2)\n"
        "print('automatic choice works in', se_kernels.__file__)\n"
        "se_kernels.squeeze_excite(x, w1, w2, backend='cpu')\n",
    )
    assert f"automatic choice works in {target}" in called.stdout, called.stderr
    assert called.returncode != 0
    assert "RuntimeError: backend 'cpu' is not available" in called.stderr
    assert reason in called.stderr
    shown = run_installed(target, "runpy.run_module('se_kernels', run_name='__main__')\n")
    assert shown.returncode == 0, shown.stderr
    assert reason in shown.stdout


def test_required_build_fails_loudly(install):
    target, result = install(CXX="/bin/false", SE_KERNELS_CPU="ON")
    assert result.returncode != 0
    assert "SE_KERNELS_CPU=ON" in result.stderr + result.stdout
    assert not target.exists()


@pytest.mark.parametrize(
    "environment, reason",
    [
        ({"SE_KERNELS_CUDA": "OFF"}, "switched off with SE_KERNELS_CUDA=OFF"),
        ({"CUDACXX": "/nowhere/nvcc"}, "nvcc was not found: CUDACXX=/nowhere/nvcc cannot be run"),
        ({"CUDACXX": "/bin/false"}, "/bin/false --list-gpu-code failed"),
    ],
    ids=["switched off", "no nvcc", "an nvcc that fails"],
)
def test_install_without_cuda_keeps_the_reason(install, environment, reason):
    target, result = install(**{"SE_KERNELS_CPU": "OFF", "SE_KERNELS_CUDA": "AUTO", **environment})
    assert result.returncode == 0, result.stderr
    assert list((target / "se_kernels").glob("_cuda*.so")) == []
    shown = run_installed(target, "runpy.run_module('se_kernels', run_name='__main__')\n")
    assert shown.returncode == 0, shown.stderr
    (line,) = (line for line in shown.stdout.splitlines() if line.startswith("cuda "))
    assert line.split(maxsplit=1)[1].startswith(f"missing: {reason}")
    assert "compiled for" not in shown.stdout


def test_required_cuda_fails_loudly(install):
    nowhere = dict(CUDACXX="/nowhere/nvcc")
    target, result = install(SE_KERNELS_CPU="OFF", SE_KERNELS_CUDA="ON", **nowhere)
    assert result.returncode != 0
    assert "SE_KERNELS_CUDA=ON, and nvcc was not found" in result.stderr + result.stdout
    assert not target.exists()


def test_bad_architectures_are_refused(install, tmp_path):
    """Even where CUDA's kernels may be missing; before anything is compiled."""
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho sm_80 sm_90\n")
    nvcc.chmod(0o755)
    options = dict(SE_KERNELS_CPU="OFF", SE_KERNELS_CUDA="AUTO", CUDACXX=str(nvcc))
    _, result = install(**options, SE_KERNELS_CUDA_ARCHS="8.0;10.0")
    assert result.returncode != 0
    expected = "SE_KERNELS_CUDA_ARCHS: expected some of 8.0, 9.0, .*got '10.0'"
    assert re.search(expected, result.stderr + result.stdout)


def test_a_source_distribution_holds_all_that_is_built_from(checkout, tmp_path):
    pytest.importorskip("setuptools", "77", reason="needs the build requirements")
    command = [sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", str(tmp_path / "dist")]
    result = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    (archive,) = (tmp_path / "dist").iterdir()
    with tarfile.open(archive) as file:
        packed = {name.partition("/")[2] for name in file.getnames()}
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*") if p.is_file()}
    assert {"csrc/cuda/CMakeLists.txt", "csrc/cuda/forward.cu", "csrc/cuda/sweep.cuh"} <= sources
    assert {*sources, "setup.py", "CMakeLists.txt", "se_kernels/py.typed"} <= packed
    assert "se_kernels/_build_info.py" not in packed


def test_unknown_switch_is_refused(install):
    _, result = install(SE_KERNELS_CPU="YES")
    assert result.returncode != 0
    assert "SE_KERNELS_CPU: expected AUTO, ON or OFF, got 'YES'" in result.stderr + result.stdout


def test_wheel_holds_the_library_only(install):
    target, result = install(SE_KERNELS_CPU="OFF")
    assert result.returncode == 0, result.stderr
    assert {path.name for path in target.iterdir() if path.suffix != ".dist-info"} == {"se_kernels"}
    assert (target / "se_kernels" / "py.typed").exists()
