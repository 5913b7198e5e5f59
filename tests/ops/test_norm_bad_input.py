"""Bad input of ``batch_norm_squeeze_excite``: one error that names the argument, what was expected
and what came; nothing is computed, and the running statistics stay as they are."""

import re

import pytest
import torch
from torch import nn

import se_kernels
from se_kernels import batch_norm_squeeze_excite

N, C, R, H, W = 2, 6, 3, 4, 5
TENSORS = (
    "u", "bn_weight", "bn_bias", "running_mean", "running_var", "w1", "w2", "b1", "b2", "residual",
)  # fmt: skip
PER_CHANNEL = TENSORS[1:5]


def good(training=True):
    shapes = dict(
        zip(TENSORS, [(N, C, H, W), *[(C,)] * 4, (R, C), (C, R), (R,), (C,)], strict=False)
    )
    shapes["residual"] = N, C, H, W
    return {name: torch.rand(shape) for name, shape in shapes.items()} | dict(training=training)


@pytest.fixture(params=[None, *se_kernels.available_backends()])
def refuses(request, monkeypatch):
    """``refuses(error, *parts, **changed)``: in either mode the call raises ``error``, saying every
    part; no backend, nor the definition, is reached, and no running statistic moves."""

    def reached(*args, **kwargs):
        raise AssertionError("something was computed")

    monkeypatch.setattr(se_kernels.core.dispatch, "get", reached)
    for name in ("batch_norm_squeeze_excite", "normed", "squeeze_excite"):
        monkeypatch.setattr(se_kernels.reference, name, reached)

    def check(error, *parts, modes=(True, False), **changed):
        for training in modes:
            arguments = {**good(training), "backend": request.param, **changed}
            held = [t for t in arguments.values() if isinstance(t, torch.Tensor)]
            before = [(t._version, t.clone()) for t in held if not t.is_sparse and not t.is_meta]
            with pytest.raises(error) as caught:
                batch_norm_squeeze_excite(**arguments)
            message = str(caught.value)
            argument = next(iter(changed))
            assert re.match(rf"{argument}\b.*: expected .*(, got|; got) ", message), message
            for part in parts:
                assert str(part) in message, message
            held = [t for t in held if not t.is_sparse and not t.is_meta]
            for t, (version, value) in zip(held, before, strict=True):
                assert t._version == version
                assert torch.equal(t, value)

    return check


@pytest.mark.parametrize("training", [True, False])
def test_the_good_input_is_good(training):
    assert batch_norm_squeeze_excite(**good(training)).shape == (N, C, H, W)


@pytest.mark.parametrize("shape", [(), (C,), (N, C), (N, C, H), (1, N, C, H, W)])
def test_u_of_another_rank(refuses, shape):
    refuses(ValueError, "(N, C, H, W)", tuple(shape), u=torch.randn(shape))


@pytest.mark.parametrize("argument", PER_CHANNEL)
@pytest.mark.parametrize("shape", [(), (1,), (C + 1,), (C, 1), (1, C), (1, C, 1, 1)])
def test_numbers_of_a_channel_of_another_shape(refuses, argument, shape):
    refuses(ValueError, f"(C,) = ({C},)", tuple(shape), **{argument: torch.rand(shape)})


def test_channels_that_do_not_match(refuses):
    u = torch.randn(N, C + 1, H, W)
    with pytest.raises(ValueError, match=rf"^bn_weight: expected shape \(C,\) = \({C + 1},\), got"):
        batch_norm_squeeze_excite(**{**good(), "u": u, "residual": u})
    refuses(ValueError, "(R, C)", (R, C + 1), w1=torch.randn(R, C + 1))
    refuses(ValueError, "(C, R)", (C + 1, R), w2=torch.randn(C + 1, R))
    refuses(ValueError, f"(R,) = ({R},)", (C,), b1=torch.randn(C))
    refuses(ValueError, f"(C,) = ({C},)", (R,), b2=torch.randn(R))


@pytest.mark.parametrize("shape", [(N, C), (1, C, H, W), (N, C, W, H), (N, C + 1, H, W)])
def test_residual_of_another_shape(refuses, shape):
    refuses(ValueError, "shape of u", (N, C, H, W), shape, residual=torch.randn(shape))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_residual_of_another_dtype(refuses, dtype):
    value = torch.randn(N, C, H, W).to(dtype)
    refuses(TypeError, "dtype of u", torch.float32, dtype, residual=value)


@pytest.mark.parametrize("argument", ["w2", "b1", "b2"])
def test_weights_of_several_dtypes(refuses, argument):
    value = good()[argument].to(torch.bfloat16)
    refuses(TypeError, "dtype of w1", torch.float32, torch.bfloat16, **{argument: value})


@pytest.mark.parametrize("argument", TENSORS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_dtypes_that_are_no_plain_float(refuses, argument, dtype):
    value = torch.ones(good()[argument].shape).to(dtype)
    expected = "float32, float64, bfloat16 or float16"
    refuses(TypeError, expected, dtype, **{argument: value})


@pytest.mark.parametrize("argument", TENSORS)
def test_sparse_tensors(refuses, argument):
    value = good()[argument].to_sparse()
    refuses(TypeError, "strided", torch.sparse_coo, **{argument: value})


@pytest.mark.parametrize("argument", TENSORS)
@pytest.mark.parametrize("value", [[[1.0]], 3.0, "u", nn.BatchNorm2d(C)], ids=lambda v: type(v))
def test_things_that_are_no_tensor(refuses, argument, value):
    refuses(TypeError, "torch.Tensor", type(value).__name__, **{argument: value})


@pytest.mark.parametrize("argument", ["u", "w1", "w2"])
def test_a_tensor_that_is_missing(refuses, argument):
    refuses(TypeError, "torch.Tensor", "NoneType", **{argument: None})


@pytest.mark.parametrize("argument", TENSORS[1:])
def test_another_device(refuses, argument):
    value = good()[argument].to("meta")
    refuses(ValueError, "device of u", "cpu", "meta", **{argument: value})


@pytest.mark.parametrize("argument", ["running_mean", "running_var"])
def test_one_running_statistic_without_the_other(refuses, argument):
    refuses(ValueError, "both running statistics or neither", **{argument: None})


def test_evaluation_without_running_statistics(refuses):
    statistics = dict(running_mean=None, running_var=None)
    refuses(ValueError, "training=False", modes=(False,), **statistics)


@pytest.mark.parametrize("value", [None, 1, 0, "yes", torch.tensor(True)])
def test_training_that_is_no_bool(refuses, value):
    refuses(TypeError, "a bool", repr(value), training=value)


@pytest.mark.parametrize("argument", ["momentum", "eps"])
@pytest.mark.parametrize("value", [None, "0.1", True, torch.tensor(0.1)])
def test_numbers_that_are_none(refuses, argument, value):
    refuses(TypeError, "a number", repr(value), **{argument: value})


@pytest.mark.parametrize("value", [0, 0.0, -1e-5, float("nan")])
def test_eps_that_torch_refuses_in_training(refuses, value):
    refuses(ValueError, "above 0", "training=True", value, modes=(True,), eps=value)


@pytest.mark.parametrize(
    "argument, names",
    [
        ("pre", "identity, relu, silu, hardswish"),
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


@pytest.mark.parametrize("shape", [(N, C, 0, W), (N, C, H, 0)])
def test_a_maximum_of_no_pixels(refuses, shape):
    u = torch.empty(shape)
    refuses(ValueError, "at least 1", "max", shape, u=u, squeeze="max", residual=None)


# --- one value per channel -----------------------------------------------------------------------


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("backend", [None, *se_kernels.available_backends()])
def test_one_value_per_channel_in_torchs_words(backend, requires_grad):
    arguments = {**good(), "u": torch.randn(1, C, 1, 1), "residual": None, "backend": backend}
    arguments["w1"].requires_grad_(requires_grad)
    statistics = [arguments[name].clone() for name in ("running_mean", "running_var")]
    with pytest.raises(ValueError, match="Expected more than 1 value per channel") as of_torch:
        nn.BatchNorm2d(C)(arguments["u"])
    with pytest.raises(ValueError, match="Expected more than 1 value per channel") as ours:
        batch_norm_squeeze_excite(**arguments)
    assert str(ours.value) == str(of_torch.value)
    assert torch.equal(arguments["running_mean"], statistics[0])
    assert torch.equal(arguments["running_var"], statistics[1])


def test_one_value_per_channel_is_enough_for_a_frozen_norm(norm_kernel):
    arguments = {**good(False), "u": torch.randn(1, C, 1, 1), "residual": None}
    expected = batch_norm_squeeze_excite(**arguments, backend="reference")
    torch.testing.assert_close(norm_kernel(**arguments), expected)


# --- backends ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["abacus", "", "CPU", 3])
def test_unknown_backend(name):
    arguments = good()
    before = arguments["running_mean"].clone()
    with pytest.raises(ValueError, match=r"^backend: expected one of"):
        batch_norm_squeeze_excite(**arguments, backend=name)
    assert torch.equal(arguments["running_mean"], before)


def test_a_named_backend_that_does_not_serve_the_device():
    arguments = {n: t.to("meta") if isinstance(t, torch.Tensor) else t for n, t in good().items()}
    with pytest.raises((ValueError, RuntimeError), match=r"^backend 'cpu'"):
        batch_norm_squeeze_excite(**arguments, backend="cpu")


def test_on_meta_the_definition_tells_the_shape():
    arguments = {n: t.to("meta") if isinstance(t, torch.Tensor) else t for n, t in good().items()}
    y = batch_norm_squeeze_excite(**arguments)
    assert (y.shape, y.device.type) == ((N, C, H, W), "meta")
