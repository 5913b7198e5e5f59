"""What tools/ does without a GPU: `make gpu`'s stages and commands, the settings of a build."""

import importlib.util
import os
import re
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


# --- make gpu -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpu():
    return tool("gpu")


def all_steps():
    return [
        pytest.param(step, id=f"{name} {i}")
        for name, stage in tool("gpu").STAGES.items()
        for i, step in enumerate(stage.steps)
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without a GPU")
def test_without_a_gpu_it_says_so(gpu, capsys):
    assert gpu.main([]) == 1
    assert capsys.readouterr().err.startswith("make gpu needs a GPU: ")


def test_an_unknown_stage_is_refused(gpu, capsys):
    with pytest.raises(SystemExit) as raised:
        gpu.main(["test", "speed"])
    assert raised.value.code == 2
    expected = f"stages: expected some of {', '.join(gpu.STAGES)}, got speed"
    assert expected in capsys.readouterr().err


def test_it_ends_within_ten_minutes(gpu):
    assert sum(stage.seconds for stage in gpu.STAGES.values()) <= 600


def test_stages_are_described(gpu):
    assert re.findall(r"^(\w+) {2,}\w", gpu.__doc__, re.M) == [*gpu.STAGES]


@pytest.mark.parametrize("step", all_steps())
def test_commands_exist(step, monkeypatch):
    arguments = [*step.arguments]
    if arguments[:2] == ["-m", "benchmarks"]:
        pytest.importorskip("click")
        if any("timm/" in argument for argument in arguments):
            pytest.importorskip("timm")
        from benchmarks.cli import main

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        command = main.commands[arguments[2]]
        context = command.make_context(arguments[2], arguments[3:])  # raises on a bad option
        assert context.params["save"]
        assert context.params["device"].type == "cuda"
        return
    files = [argument for argument in arguments if argument.endswith(".py")]
    assert files
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_the_sanitizers_have_cases(gpu):
    """Of each way, forward and backward, in each layout, and one of float64."""
    step = gpu.STAGES["sanitize"].steps[0]
    command = [sys.executable, *step.arguments, "--collect-only"]
    listed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120).stdout
    chosen = [line for line in listed.splitlines() if "::" in line]
    for word in ("cluster", "two_sweeps", "nchw", "channels_last", "float64", "odd rows", "tail"):
        assert any(word in line for line in chosen), word
    assert len(chosen) < 30


def test_both_ways_are_measured(gpu):
    ways = [step.environment["SE_KERNELS_CUDA_WAY"] for step in gpu.STAGES["ways"].steps]
    assert ways == ["cluster", "two_sweeps"]


@pytest.fixture
def python(gpu, monkeypatch):
    """``python(code, ...)`` is a stage that runs each as a step."""

    def stage(*codes, seconds=60, **options):
        steps = [gpu.Step(("-c", code), **options) for code in codes]
        return gpu.Stage(seconds, steps, checks=True)

    return stage


def test_a_stage_passes_or_tells_what_failed(gpu, python):
    assert gpu.run(python("pass", "pass")) == "passed"
    assert gpu.run(python("raise SystemExit(3)", "pass")).endswith("exit code 3")
    settings = dict(environment={"A": "1"})
    assert gpu.run(python("import os; raise SystemExit(os.environ['A'] != '1')", **settings)) == (
        "passed"
    )
    slow = python("import time; time.sleep(30)", seconds=0.1)
    assert gpu.run(slow) == "failed: took longer than its 0.1 s"


def test_without_compute_sanitizer_its_stage_is_left_out(gpu, python, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "compute_sanitizer", lambda: None)
    result = gpu.run(python("raise SystemExit(1)", tool="memcheck"))
    assert result.startswith("left out: no compute-sanitizer")
    assert gpu.is_fine(result)
    # a program that says it found an error
    found = tmp_path / "compute-sanitizer"
    found.write_text("#!/bin/sh\nexit 99\n")
    found.chmod(0o755)
    monkeypatch.setattr(gpu, "compute_sanitizer", lambda: str(found))
    assert gpu.run(python("pass", tool="memcheck")) == "failed: memcheck, exit code 99"


@pytest.mark.parametrize("failing", ["build", "test", "sanitize"])
def test_nothing_is_measured_where_a_check_fails(gpu, monkeypatch, failing):
    ran = []

    def run(stage):
        (name,) = (name for name, other in gpu.STAGES.items() if other is stage)
        ran.append(name)
        return "failed: here" if name == failing else "passed"

    monkeypatch.setattr(gpu, "run", run)
    outcome = gpu.run_stages(["layer", failing, "network"])
    assert ran == [failing]
    assert outcome["layer"]["result"] == f"failed: left out, as {failing} failed"
    assert [*outcome] == [failing, "layer", "network"]


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
    assert made[:3] == ["make lint", "make test", "make sanitize"]
    assert made[3] == ("make cuda" if makes else "make cuda is left out: nvcc was not found")
