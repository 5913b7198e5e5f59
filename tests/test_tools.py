"""What tools/ does for development: the settings of a build, and what CI runs."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


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
    assert made[:4] == ["make lint", "make test", "make sanitize", "make races"]
    assert made[4] == ("make cuda" if makes else "make cuda is left out: nvcc was not found")
