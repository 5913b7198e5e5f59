"""What tools/ does for development: the settings of a build, and what CI runs."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def tool(name):
    spec = importlib.util.spec_from_file_location(f"tool_{name}", ROOT / "tools" / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- the settings of a build ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def dev_env():
    return tool("dev_env")


@pytest.mark.parametrize(
    "gpus, given, expected",
    [
        ([], {}, ("ON", "OFF", "")),
        (["9.0"], {}, ("ON", "AUTO", "9.0")),
        (["8.6", "9.0"], {}, ("ON", "AUTO", "8.6;9.0")),
        ([], {"SE_KERNELS_CUDA": "ON"}, ("ON", "ON", "")),
        (["9.0"], {"SE_KERNELS_CUDA": "OFF"}, ("ON", "OFF", "9.0")),
        (["9.0"], {"SE_KERNELS_CPU": "AUTO", "SE_KERNELS_CUDA_ARCHS": "8.0"}, ("AUTO",) * 2),
    ],
)
def test_settings_follow_the_gpus_unless_given(dev_env, monkeypatch, gpus, given, expected):
    monkeypatch.setattr(dev_env, "capabilities", lambda: gpus)
    names = ("SE_KERNELS_CPU", "SE_KERNELS_CUDA", "SE_KERNELS_CUDA_ARCHS")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = dev_env.settings()
    assert [*settings] == [*names]
    assert tuple(settings.values())[: len(expected)] == expected
    assert all(settings[name] == value for name, value in given.items())


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without a GPU")
def test_without_a_driver_there_are_no_gpus(dev_env):
    assert dev_env.capabilities() == []


def test_a_build_keeps_its_settings(dev_env, tmp_path):
    info = tmp_path / "_build_info.py"
    info.write_text("CPU_BUILT = True\nSETTINGS = {'SE_KERNELS_CPU': 'ON'}\n")
    assert dev_env.built_with(info) == {"SE_KERNELS_CPU": "ON"}
    info.write_text("CPU_BUILT = True\n")
    assert dev_env.built_with(info) == {}


@pytest.mark.parametrize(
    "printed, expected", [("9.0\n9.0\n8.6\n", ["8.6", "9.0"]), ("No devices were found\n", [])]
)
def test_gpus_are_those_of_the_driver(dev_env, monkeypatch, tmp_path, printed, expected):
    put_program(tmp_path, "nvidia-smi", f"printf '{printed}'")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert dev_env.capabilities() == expected


def test_the_benchmark_needs_no_linter_and_no_library_of_models(dev_env):
    groups = dev_env.groups()
    assert [*groups] == ["torch", "build", "bench", "test", "lint", "docs", "wheels"]
    needed = {name for group in ("torch", "build", "bench") for name in groups[group]}
    assert needed == {
        *("torch", "cmake", "ninja", "pybind11", "setuptools", "setuptools-scm"),
        *("click", "matplotlib", "numpy", "rich"),
    }


def test_make_asks_for_groups_that_exist(dev_env):
    makefile = (ROOT / "Makefile").read_text()
    asked = re.findall(r"\$\(call (?:need|build),([a-z ]+)\)", makefile)
    asked += re.findall(r"^TEST_GROUPS := (.*)$", makefile, re.M)
    assert len(asked) >= 5
    assert {group for groups in asked for group in groups.split()} <= {*dev_env.groups()}


@pytest.mark.parametrize(
    "output, advice",
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("NewConnectionError: Failed to establish a new connection", "connect to the network"),
        ("ERROR: Could not find a version that satisfies x (from versions: none)", "the network"),
        ("c++: fatal error: Killed signal terminated program cc1plus", "MAX_JOBS=1"),
        ('The C++ compiler\n  "/bin/false"\nis not able to compile a simple test program.', "CXX"),
        ("The CMAKE_CXX_COMPILER:\n\n  g+++\n\nis not a full path and was not found", "CXX"),
        ("Could NOT find Python (missing: Development.Module)", "python3-dev"),
        ("a\nx.cpp:1:2: error: expected ';'\nb", "x.cpp:1:2: error: expected ';'"),
        ("ERROR: No matching distribution found for x==9", "No matching distribution found"),
        ("", "pip failed"),
    ],
)
def test_a_failure_is_one_line_of_advice(dev_env, output, advice):
    line = dev_env.why(output)
    assert advice in line
    assert "\n" not in line


def test_a_failing_pip_ends_with_its_advice_and_its_log(dev_env, monkeypatch, tmp_path):
    pip = put_program(tmp_path, "python", "echo 'No space left on device'; exit 1")
    monkeypatch.setattr(sys, "executable", str(pip))
    monkeypatch.setattr(dev_env, "LOGS", tmp_path / "logs")
    with pytest.raises(SystemExit, match=r"the disk is full.*packages\.log"):
        dev_env.pip("install", "x")


def test_a_full_disk_is_told_before_anything_is_installed(dev_env, monkeypatch):
    monkeypatch.setattr(
        dev_env.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1)
    )
    monkeypatch.setattr(dev_env, "pip", lambda *arguments: pytest.fail("was called"))
    with pytest.raises(SystemExit, match=r"no room in .*: 0\.0 GB are free and 3 GB are needed"):
        dev_env.install(["torch==2.13.0"])


def test_an_old_torch_is_refused_before_anything_is_installed(dev_env, monkeypatch):
    monkeypatch.setattr(dev_env, "installed", lambda name: "2.9.1+cpu")
    monkeypatch.setattr(dev_env, "is_own_environment", lambda: False)
    with pytest.raises(SystemExit, match=r"torch 2\.11 or later is needed, .* has 2\.9\.1\+cpu"):
        dev_env.refuse_old_torch()
    monkeypatch.setattr(dev_env, "installed", lambda name: "2.14.1")
    dev_env.refuse_old_torch()


def test_an_old_python_is_refused_before_an_environment_is_made(tmp_path):
    old = put_program(tmp_path, "python3", "exit 1")  # as of the question for its version
    shutil.copy(ROOT / "Makefile", tmp_path)
    environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "MAKEFLAGS")}
    command = ["make", "-C", str(tmp_path), "bench", f"PYTHON={old}"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert result.returncode != 0
    assert "install Python 3.10 or later" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("version, sign", [((3, 10, 9), "<="), ((3, 14, 0), "==")])
def test_an_old_python_gets_what_still_runs_on_it(dev_env, monkeypatch, version, sign):
    monkeypatch.setattr(dev_env.sys, "version_info", version)
    assert dev_env.requirement("numpy", "2.4.6") == f"numpy{sign}2.4.6"


def put_program(folder, name, script):
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


# --- .ci/run --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "environment, makes",
    [
        ({"CUDACXX": "/nowhere/nvcc"}, False),
        ({"CUDACXX": "/bin/sh"}, True),
    ],
)
def test_ci_makes_cuda_where_nvcc_is(tmp_path, environment, makes):
    make = tmp_path / "make"
    make.write_text('#!/bin/sh\necho "make $@"\n')
    make.chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    bash = shutil.which("bash")
    result = subprocess.run(
        [bash, str(ROOT / ".ci" / "run")],
        capture_output=True,
        text=True,
        env={"PATH": path, **environment},
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    made = [line for line in result.stdout.splitlines() if line.startswith("make ")]
    assert made[:5] == ["make lint", "make docs", "make test", "make sanitize", "make races"]
    assert made[5] == ("make cuda" if makes else "make cuda is left out: nvcc was not found")
