"""Bad input: one error that names the argument, what was expected and what came; nothing is run."""

import importlib.util
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch import nn

import se_kernels
from se_kernels import SqueezeExcite, squeeze_excite
from se_kernels.backends.triton import installation

N, C, R, H, W = 2, 6, 3, 4, 5


def good():
    return {
        "x": torch.randn(N, C, H, W),
        "w1": torch.randn(R, C),
        "w2": torch.randn(C, R),
        "b1": torch.randn(R),
        "b2": torch.randn(C),
        "residual": torch.randn(N, C, H, W),
    }


@pytest.fixture(params=[None, *se_kernels.available_backends()])
def refuses(request, monkeypatch):
    """``refuses(error, *parts, **changed)``: the call raises ``error``, saying every part, and no
    backend, nor the definition, is reached."""

    def reached(*args, **kwargs):
        raise AssertionError("something was computed")

    monkeypatch.setattr(se_kernels.core.dispatch, "get", reached)
    monkeypatch.setattr(se_kernels.reference, "squeeze_excite", reached)
    arguments = {**good(), "backend": request.param}

    def check(error, *parts, **changed):
        with pytest.raises(error) as caught:
            squeeze_excite(**{**arguments, **changed})
        message = str(caught.value)
        argument = next(iter(changed))
        assert re.match(rf"{argument}\b.*: expected .*(, got|; got) ", message), message
        for part in parts:
            assert str(part) in message, message

    return check


def test_the_good_input_is_good():
    assert squeeze_excite(**good()).shape == (N, C, H, W)


@pytest.mark.parametrize("shape", [(), (C,), (N, C), (N, C, H), (1, N, C, H, W)])
def test_x_of_another_rank(refuses, shape):
    refuses(ValueError, "(N, C, H, W)", tuple(shape), x=torch.randn(shape))


def test_channels_that_do_not_match(refuses):
    x = torch.randn(N, C + 1, H, W)
    arguments = dict(x=x, residual=x)
    with pytest.raises(ValueError, match=r"^w1: expected shape \(R, C\).*\b7\b.*got \(3, 6\)$"):
        squeeze_excite(**{**good(), **arguments})
    refuses(ValueError, "(R, C)", f"(R, {C}[", (R, C + 1), w1=torch.randn(R, C + 1))
    refuses(ValueError, "(C, R)", f"({C}, {R}[", (C, R + 1), w2=torch.randn(C, R + 1))
    refuses(ValueError, "(C, R)", f"({C}, {R}[", (C + 1, R), w2=torch.randn(C + 1, R))


@pytest.mark.parametrize(
    "shape", [(), (C,), (R * C,), (C, R), (1, R, C), (R, C, 1), (R, C, 3, 3), (R, C, 1, 1, 1)]
)
def test_w1_that_is_no_matrix_of_r_by_c(refuses, shape):
    refuses(ValueError, "(R, C) or (R, C, 1, 1)", tuple(shape), w1=torch.randn(shape))


@pytest.mark.parametrize("shape", [(), (C,), (R, C), (C, R, 1), (C, R, 1, 3), (C, R, 1, 1, 1)])
def test_w2_that_is_no_matrix_of_c_by_r(refuses, shape):
    refuses(ValueError, "(C, R) or (C, R, 1, 1)", tuple(shape), w2=torch.randn(shape))


@pytest.mark.parametrize("shape", [(), (R + 1,), (1,), (R, 1), (1, R)])
def test_b1_of_another_shape(refuses, shape):
    refuses(ValueError, f"(R,) = ({R},)", tuple(shape), b1=torch.randn(shape))


@pytest.mark.parametrize("shape", [(), (C + 1,), (R,), (C, 1), (1, C, 1, 1)])
def test_b2_of_another_shape(refuses, shape):
    refuses(ValueError, f"(C,) = ({C},)", tuple(shape), b2=torch.randn(shape))


@pytest.mark.parametrize(
    "shape", [(N, C), (N, C, 1, 1), (1, C, H, W), (N, C, W, H), (N, C + 1, H, W)]
)
def test_residual_of_another_shape(refuses, shape):
    refuses(ValueError, "shape of x", (N, C, H, W), shape, residual=torch.randn(shape))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_residual_of_another_dtype(refuses, dtype):
    refuses(TypeError, torch.float32, dtype, residual=torch.randn(N, C, H, W).to(dtype))


@pytest.mark.parametrize("argument, beside", [("w2", "w1"), ("b1", "w1"), ("b2", "w1")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_several_dtypes(refuses, argument, beside, dtype):
    value = good()[argument].to(dtype)
    refuses(TypeError, f"dtype of {beside}", torch.float32, dtype, **{argument: value})


@pytest.mark.parametrize("argument", ["x", "w1", "w2", "b1", "b2", "residual"])
@pytest.mark.parametrize(
    "dtype",
    [torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn],
)
def test_dtypes_that_are_no_plain_float(refuses, argument, dtype):
    value = torch.ones(good()[argument].shape).to(dtype)
    expected = "float32, float64, bfloat16 or float16"
    refuses(TypeError, expected, dtype, **{argument: value})


@pytest.mark.parametrize("argument", ["x", "w1", "w2", "b1", "b2", "residual"])
def test_sparse_tensors(refuses, argument):
    value = good()[argument].to_sparse()
    refuses(TypeError, "strided", torch.sparse_coo, **{argument: value})


@pytest.mark.parametrize("argument", ["x", "w1", "w2", "b1", "b2", "residual"])
@pytest.mark.parametrize("value", [[[1.0]], 3.0, "x", nn.Conv2d(C, R, 1)], ids=lambda v: type(v))
def test_things_that_are_no_tensor(refuses, argument, value):
    refuses(TypeError, "torch.Tensor", type(value).__name__, **{argument: value})


@pytest.mark.parametrize("argument", ["x", "w1", "w2"])
def test_a_tensor_that_is_missing(refuses, argument):
    refuses(TypeError, "torch.Tensor", "NoneType", **{argument: None})


@pytest.mark.parametrize("argument", ["w1", "w2", "b1", "b2", "residual"])
def test_another_device(refuses, argument):
    refuses(ValueError, "device", "cpu", "meta", **{argument: good()[argument].to("meta")})


def test_x_alone_on_another_device(monkeypatch):
    with pytest.raises(ValueError, match=r"^w1: expected the device of x, meta, got cpu$"):
        squeeze_excite(**{**good(), "x": torch.empty(N, C, H, W, device="meta")})


@pytest.mark.parametrize(
    "argument, names",
    [
        ("squeeze", "avg, max, avgmax"),
        ("act", "relu, silu, gelu, gelu_tanh, hardswish, leaky_relu, identity"),
        ("gate", "sigmoid, hardsigmoid, tanh, relu"),
        ("post", "none, relu"),
    ],
)
@pytest.mark.parametrize("value", ["abacus", "", "ReLU", None, 1, ["avg"], torch.nn.ReLU])
def test_unknown_variants(refuses, argument, names, value):
    refuses(ValueError, names, repr(value), **{argument: value})


@pytest.mark.parametrize("value", ["0.1", None, torch.tensor([0.1])])
def test_act_slope_that_is_no_number(refuses, value):
    refuses(TypeError, "number", act_slope=value)


@pytest.mark.parametrize("squeeze", ["max", "avgmax"])
@pytest.mark.parametrize("shape", [(N, C, 0, W), (N, C, H, 0), (N, C, 0, 0)])
def test_a_maximum_of_no_pixels(refuses, squeeze, shape):
    refuses(
        ValueError, "at least 1", squeeze, shape, x=torch.empty(shape), squeeze=squeeze,
        residual=None,
    )  # fmt: skip


# --- backends ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["abacus", "", "CPU", 3])
def test_unknown_backend(name):
    names = ", ".join(se_kernels.available_backends())
    with pytest.raises(ValueError, match=r"^backend: expected one of") as caught:
        squeeze_excite(**good(), backend=name)
    assert names in str(caught.value)
    assert repr(name) in str(caught.value)


def test_a_named_backend_that_does_not_serve_the_device():
    arguments = {name: t.to("meta") for name, t in good().items()}
    with pytest.raises((ValueError, RuntimeError), match=r"^backend 'cpu'"):
        squeeze_excite(**arguments, backend="cpu")


def test_a_named_backend_that_was_not_built(monkeypatch):
    monkeypatch.setattr(se_kernels.backends.cpu.extension, "reason", "no compiler was found")
    with pytest.raises(RuntimeError, match=r"^backend 'cpu' .*: no compiler was found$"):
        squeeze_excite(**good(), backend="cpu")
    assert se_kernels.available_backends()["cpu"] == "no compiler was found"
    automatic = squeeze_excite(**good())
    assert automatic.shape == (N, C, H, W)


def test_the_automatic_choice_says_why_it_falls_back(caplog):
    with caplog.at_level("DEBUG", logger="se_kernels"):
        assert (
            se_kernels.core.dispatch.choose(torch.empty(1, 1, 1, 1, device="meta")) == "reference"
        )
    assert "cpu" in caplog.text
    assert "meta" in caplog.text or str(se_kernels.available_backends()["cpu"]) in caplog.text


@pytest.mark.parametrize(
    "interpreted, triton, numpy, told",
    [
        (True, "3.6.0", "2.4.6", "needs NumPy before 2.4, got Triton 3.6.0 and NumPy 2.4.6"),
        (True, "3.6.0", "2.3.9", None),
        (True, "3.7.1", "2.4.0rc1", None),
        (True, "3.10.0", "2.10", None),
        (True, "3.9.0", None, "needs numpy, which is not installed"),
        (False, "3.9.0", None, None),
        (False, "3.5.1", None, "expected Triton 3.6 or later, got 3.5.1"),
        (True, "2.3", "2.3.9", "expected Triton 3.6 or later, got 2.3"),
    ],
)
def test_a_triton_that_cannot_run(monkeypatch, interpreted, triton, numpy, told):
    def version(name):
        found = {"triton": triton, "numpy": numpy}[name]
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(installation, "INTERPRETED", interpreted)
    reason = installation.fault()
    assert reason is None if told is None else told in reason


@pytest.mark.parametrize(
    "compiler, on_path, told",
    [
        (None, ["gcc"], None),
        (None, ["clang"], None),
        (None, ["cc"], "expected gcc or clang on PATH, or its name in CC"),
        ("icx", ["icx"], None),
        ("icx", ["gcc"], "CC=icx cannot be run"),
        ("ccache gcc", ["ccache", "gcc"], "CC=ccache gcc cannot be run"),  # Triton calls it whole
    ],
)
def test_a_triton_that_cannot_build(monkeypatch, compiler, on_path, told):
    monkeypatch.delenv("CC", raising=False)
    if compiler is not None:
        monkeypatch.setenv("CC", compiler)
    monkeypatch.setattr(shutil, "which", lambda name: name if name in on_path else None)
    monkeypatch.setattr(Path, "exists", lambda path: path.name == "Python.h")
    reason = installation.build_fault()
    assert reason is None if told is None else told in reason


def test_a_triton_without_the_headers_of_python(monkeypatch):
    monkeypatch.setenv("CC", sys.executable)  # any program
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert "expected " in installation.build_fault()
    assert "Python.h" in installation.build_fault()


# --- the layer -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, argument, expected, came",
    [
        (dict(channels=0), "channels", "at least 1", "channels=0"),
        (dict(channels=-3), "channels", "at least 1", "channels=-3"),
        (dict(channels=8, rd_channels=0), "rd_channels", "at least 1", "rd_channels=0"),
        (dict(channels=8, squeeze="median"), "squeeze", "avg, max, avgmax", "'median'"),
        (dict(channels=8, add_maxpool=True, squeeze="avg"), "squeeze", "'avgmax'", "'avg'"),
        (dict(channels=8, post="silu"), "post", "none, relu", "'silu'"),
        (dict(channels=8, act_layer="abacus"), "act_layer", "nn.SiLU", "'abacus'"),
        (dict(channels=8, act_layer=nn.Softmax), "act_layer", "hardswish", "Softmax"),
        (dict(channels=8, act_layer=None), "act_layer", "hardswish", "None"),
        (dict(channels=8, gate_layer="softmax"), "gate_layer", "hardsigmoid", "'softmax'"),
        (dict(channels=8, gate_layer=nn.SiLU), "gate_layer", "nn.Sigmoid", "SiLU"),
        (dict(channels=8, gate_layer=nn.SiLU()), "gate_layer", "nn.Sigmoid", "SiLU"),
    ],
)
def test_a_layer_that_cannot_be(arguments, argument, expected, came):
    with pytest.raises(ValueError, match="expected") as caught:
        SqueezeExcite(**arguments)
    message = str(caught.value)
    assert message.split(":")[0].find(argument) >= 0, message
    assert expected in message
    assert came in message


def test_a_layer_refuses_what_the_function_refuses():
    block = SqueezeExcite(C)
    with pytest.raises(ValueError, match=r"^x: expected"):
        block(torch.randn(C, H, W))
    with pytest.raises(ValueError, match=r"^w1: expected shape"):
        block(torch.randn(N, C + 1, H, W))
    with pytest.raises(ValueError, match=r"^residual: expected"):
        block(torch.randn(N, C, H, W), torch.randn(N, C, 1, 1))
