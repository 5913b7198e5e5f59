"""Backends by name, from the environment, and where the extension cannot be loaded."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from host_gpu import is_on_host

import se_kernels
from se_kernels.__main__ import compiled_for, main

ROOT = Path(se_kernels.__file__).resolve().parent.parent

CALL = (
    "import torch, se_kernels\n"
    "x, w1, w2 = torch.ones(1, 4, 2, 2), torch.ones(2, 4), torch.ones(4, 2)\n"
)
AUTOMATIC = (
    CALL + "print(se_kernels.core.dispatch.choose(x), se_kernels.squeeze_excite(x, w1, w2).sum())"
)

# se_kernels._C cannot be loaded, for the reason given
WITHOUT_CORE = (
    "import importlib.abc, sys\n"
    "class Broken(importlib.abc.MetaPathFinder):\n"
    "    def find_spec(self, name, path, target=None):\n"
    "        if name == 'se_kernels._C':\n"
    "            raise ImportError('undefined symbol: simulated')\n"
    "sys.meta_path.insert(0, Broken())\n"
)


def start(*arguments, **environment):
    environment = {
        **{name: v for name, v in os.environ.items() if name != "SE_KERNELS_BACKEND"},
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        **environment,
    }
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=300
    )


def output(*arguments, **environment):
    result = start(*arguments, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_main_prints_versions_and_backends():
    lines = output("-m", "se_kernels").splitlines()
    assert lines[0].split() == ["se_kernels", se_kernels.__version__]
    assert any(line.split()[:2] == ["torch", f"{torch.__version__},"] for line in lines)
    for name, reason in se_kernels.available_backends().items():
        if is_on_host(name):  # in this process only
            continue
        (line,) = [line for line in lines if line.startswith(name)]
        status = "available" if reason is None else f"missing: {reason}"
        assert line.split(maxsplit=1)[1] == status


def test_main_names_the_instruction_set(backend, capsys):
    if backend != "cpu":
        pytest.skip("of the CPU backend")
    main()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "instruction set" in line]
    assert line.split()[-1] in ("avx512", "avx2", "baseline")


@pytest.mark.parametrize(
    "built, expected",
    [
        ({}, None),  # by an older setup.py
        ({"CUDA_BUILT": False}, None),
        (
            {"CUDA_BUILT": True, "CUDA_ARCHS": {"code": ["90"], "ptx": []}},
            "9.0 (nvcc 13.0.88)",
        ),
        (
            {"CUDA_BUILT": True, "CUDA_ARCHS": {"code": ["75", "120"], "ptx": ["90"]}},
            "7.5, 12.0, later ones by the PTX of 9.0 (nvcc 13.0.88)",
        ),
    ],
)
def test_the_gpus_that_cuda_is_compiled_for(monkeypatch, built, expected):
    information = SimpleNamespace(CUDA_COMPILER="nvcc 13.0.88", **built)
    monkeypatch.setitem(sys.modules, "se_kernels._build_info", information)
    assert compiled_for() == expected


# --- the environment variable --------------------------------------------------------------------


def test_environment_names_a_backend():
    assert output("-c", AUTOMATIC, SE_KERNELS_BACKEND="reference").startswith("reference tensor(")


def test_an_argument_goes_before_the_environment(installed_backend):
    script = CALL + f"print(se_kernels.core.dispatch.choose(x, {installed_backend!r}))"
    assert output("-c", script, SE_KERNELS_BACKEND="reference").strip() == installed_backend


def test_an_empty_name_is_the_automatic_choice():
    assert output("-c", AUTOMATIC, SE_KERNELS_BACKEND="") == output("-c", AUTOMATIC)


def test_a_bad_name_in_the_environment_raises():
    result = start("-c", AUTOMATIC, SE_KERNELS_BACKEND="fpga")
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    names = ", ".join(se_kernels.available_backends())
    assert last.startswith("ValueError: ")
    assert f"expected one of {names}; got 'fpga'" in last
    assert "SE_KERNELS_BACKEND" in last  # so that the reader knows where the name came from


# --- by name -------------------------------------------------------------------------------------


@pytest.fixture
def tensors():
    return torch.randn(2, 4, 3, 3), torch.randn(2, 4), torch.randn(4, 2)


def test_reference_serves_by_name(tensors):
    y = se_kernels.squeeze_excite(*tensors, backend="reference")
    assert torch.equal(y, se_kernels.reference.squeeze_excite(*tensors))


def test_a_bad_name_raises(tensors):
    with pytest.raises(ValueError, match=r"backend: expected one of .*reference; got 'CPU'"):
        se_kernels.squeeze_excite(*tensors, backend="CPU")


def test_a_backend_refuses_another_device(backend):
    x, w1, w2 = (torch.empty(s, device="meta") for s in ((2, 4, 3, 3), (2, 4), (4, 2)))
    with pytest.raises(ValueError, match=rf"backend '{backend}': expected x on .*got meta"):
        se_kernels.squeeze_excite(x, w1, w2, backend=backend)
    assert se_kernels.squeeze_excite(x, w1, w2).device.type == "meta"  # the definition serves it


# --- without the extension -----------------------------------------------------------------------


def test_a_missing_core_keeps_its_reason_and_falls_back():
    script = (
        WITHOUT_CORE
        + "import logging\n"
        + "logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)\n"
        + CALL
        + "print('reason:', se_kernels.available_backends()['cpu'])\n"
        + "print('chosen:', se_kernels.core.dispatch.choose(x))\n"
        + "y = se_kernels.squeeze_excite(x.requires_grad_(), w1, w2)\n"
        + "y.sum().backward()\n"
        + "print('gradient:', x.grad.shape)\n"
        + "for name in ('cpu', 'reference'):\n"
        + "    try:\n"
        + "        se_kernels.squeeze_excite(x, w1, w2, backend=name)\n"
        + "        print(name, 'served')\n"
        + "    except RuntimeError as error:\n"
        + "        print(name, 'raised', error)\n"
    )
    lines = output("-c", script).splitlines()

    def line(start):
        return next(line for line in lines if line.startswith(start))

    assert "undefined symbol: simulated" in line("reason:")
    assert line("chosen:") == "chosen: reference"
    assert line("gradient:") == "gradient: torch.Size([1, 4, 2, 2])"
    assert "undefined symbol: simulated" in line("DEBUG:se_kernels:backend cpu passed over: ")
    assert line("cpu raised ").startswith("cpu raised backend 'cpu' is not available: ")
    assert "undefined symbol: simulated" in line("cpu raised ")
    assert line("reference") == "reference served"


def test_main_tells_why_the_core_is_missing():
    script = WITHOUT_CORE + "import runpy\nrunpy.run_module('se_kernels', run_name='__main__')"
    shown = output("-c", script)
    (line,) = [line for line in shown.splitlines() if line.startswith("cpu ")]
    assert line.split()[1] == "missing:"
    assert "undefined symbol: simulated" in line
    assert "instruction set" not in shown


def test_a_missing_core_named_in_the_environment_raises():
    result = start("-c", WITHOUT_CORE + AUTOMATIC, SE_KERNELS_BACKEND="cpu")
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("RuntimeError: backend 'cpu' is not available: ")
    assert "undefined symbol: simulated" in last


def test_importing_brings_no_compiler():
    """torch's compiler takes a second to import: only a call that needs it does."""
    script = (
        "import sys, torch; before = set(sys.modules); import se_kernels; "
        "late = set(sys.modules) - before; "
        "print(sorted({'torch._dynamo', 'torch._inductor'} & late))"
    )
    assert output("-c", script).strip() == "[]"


# --- where a check failed -------------------------------------------------------------------------


def test_a_backend_is_skipped_on_gpus_where_its_check_failed(monkeypatch, caplog):
    gpu = SimpleNamespace(major=9, minor=0)
    x = SimpleNamespace(device=SimpleNamespace(type="cuda", index=0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    dispatch = se_kernels.core.dispatch
    for name in ("cuda", "triton"):
        monkeypatch.setattr(dispatch.BACKENDS[name], "why_not", lambda: None)
        monkeypatch.setattr(dispatch.BACKENDS[name], "why_not_for", lambda x: None)
    monkeypatch.setattr(dispatch, "DEFAULT", None)
    assert dispatch.choose(x) == "cuda"
    monkeypatch.setattr(dispatch, "SKIPPED", (("cuda", "9.0", "dx of two sweeps is wrong"),))
    with caplog.at_level("DEBUG", "se_kernels"):
        assert dispatch.choose(x) == "triton"
    reason = "not chosen by itself on 9.0: dx of two sweeps is wrong; backend='cuda' takes it"
    assert f"backend cuda passed over: {reason}" in caplog.text
    assert dispatch.choose(x, "cuda") == "cuda"  # named, so that it can be checked
    gpu.major = 10
    assert dispatch.choose(x) == "cuda"


def test_amd_gpus_get_the_definition_until_one_has_run_the_kernels(monkeypatch):
    x = SimpleNamespace(device=SimpleNamespace(type="cuda", index=0))
    dispatch = se_kernels.core.dispatch
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(dispatch.BACKENDS["cuda"], "why_not_for", lambda x: "not built")
    monkeypatch.setattr(dispatch.BACKENDS["triton"], "why_not", lambda: None)
    monkeypatch.setattr(dispatch.BACKENDS["triton"], "why_not_for", lambda x: None)
    monkeypatch.setattr(dispatch, "DEFAULT", None)
    assert dispatch.choose(x) == "reference"
    assert dispatch.choose(x, "triton") == "triton"


def test_nothing_is_skipped_on_a_cpu(installed_backend, monkeypatch):
    if installed_backend != "cpu":
        pytest.skip("of the CPU backend")
    monkeypatch.setattr(se_kernels.core.dispatch, "DEFAULT", None)
    monkeypatch.setattr(se_kernels.core.dispatch, "SKIPPED", (("cpu", "9.0", "wrong"),))
    assert se_kernels.core.dispatch.choose(torch.ones(1, 1, 1, 1)) == "cpu"
