"""record_gates: s of every SE block as the block used it; the model as it was, then and after."""

import copy
import threading

import pytest
import torch
from fused_twins import draw
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_called import OpsCalled
from torch import nn

import se_kernels
from se_kernels import SqueezeExcite, record_gates
from se_kernels.core.activations import activate, open_gate
from se_kernels.core.variants import ACTS, GATES, SQUEEZES
from se_kernels.models import SE, ResNet, Stage

STAGES = (Stage((8, 8), 1, 1), Stage((16, 16), 2, 2))
CHANNELS = {"layer1.0.se": 8, "layer2.0.se": 16, "layer2.1.se": 16}
NAMES = list(CHANNELS)
DTYPES = {
    torch.float64: 1e-13,
    torch.float32: 1e-5,
    torch.bfloat16: 1e-5,
}  # s is not rounded to x's


def network(seed=0, **options):
    se = SE(rd_ratio=1 / 4, bias=True, **options)
    return draw(ResNet(STAGES, 4, se=se, in_channels=3, stem="cifar"), seed).eval()


def images(*shape, seed=1, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn((*shape[:2], 1, 1), generator=generator)
    return (means + torch.randn(shape, generator=generator)).to(dtype=dtype, device=device)


def exact_gates(module, x):
    """s (N, C) of a SqueezeExcite, by the paper's equations in float64."""
    twin = copy.deepcopy(module).double().eval()
    v = x.double()
    z = {"avg": v.mean((2, 3)), "max": v.amax((2, 3))}
    z["avgmax"] = (z["avg"] + z["max"]) / 2
    a = twin.bn(twin.fc1(z[twin.squeeze][:, :, None, None]))
    h = activate(a, twin.act, twin.act_slope)
    return open_gate(twin.fc2(h), twin.gate).flatten(1)


def recorded(module, *arguments):
    """(s, y) of one call in inference mode."""
    with torch.inference_mode(), record_gates(module) as gates:
        y = module(*arguments)
    return gates[""], y


# --- what is recorded ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": True, "squeeze": "max", "act_layer": "silu", "gate_layer": "hardsigmoid"},
        {"norm_layer": nn.BatchNorm2d, "squeeze": "avgmax", "gate_layer": "tanh"},
    ],
    ids=["plain", "variants", "norm"],
)
@pytest.mark.parametrize("which", ["kernel", "reference"])
def test_it_is_the_gate_of_equation_3(backend, device, which, options, dtype):
    backend = backend if which == "kernel" else "reference"
    module = draw(SqueezeExcite(16, 1 / 4, rd_divisor=1, backend=backend, **options)).to(device)
    module = module.to(torch.float64 if dtype == torch.float64 else torch.float32).eval()
    if "norm_layer" in options:
        module = module.to(dtype)  # the excitation runs in x's dtype
    x = images(3, 16, 5, 4, dtype=dtype, device=device)
    with torch.inference_mode():
        expected = module(x)
    s, y = recorded(module, x)
    assert torch.equal(y, expected)
    assert s.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tolerance = DTYPES[dtype]
    if "norm_layer" in options and dtype == torch.bfloat16:
        tolerance = 0.05  # a handful of roundings of 2^-8, gates of about 1
    torch.testing.assert_close(s.double(), exact_gates(module, x), rtol=0, atol=tolerance)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, n) for n in (4, 9, 5, 5)]),
    reduced=st.integers(1, 4),
    squeeze=st.sampled_from(SQUEEZES),
    act=st.sampled_from(ACTS),
    gate=st.sampled_from(GATES),
    post=st.sampled_from(["none", "relu"]),
    bias=st.booleans(),
)
def test_every_variant(shape, reduced, squeeze, act, gate, post, bias):
    module = SqueezeExcite(
        *(shape[1], 1, reduced, 1, False, bias, act),
        gate_layer=gate,
        squeeze=squeeze,
        post=post,
    )
    module = draw(module.double()).eval()
    x = images(*shape, dtype=torch.float64)
    s, y = recorded(module, x, -x)
    torch.testing.assert_close(s, exact_gates(module, x), rtol=1e-10, atol=1e-12)
    # and it is the s of equation 4
    expected = se_kernels.reference.scale(x, s, -x, post)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)


def test_networks_fused_eager_and_on_the_reference_have_the_same_gates():
    x = images(5, 3, 8, 8, dtype=torch.float64)
    found = []
    for options in ({}, {"fused": False}, {"backend": "reference"}):
        model = network(**options).double()
        with torch.inference_mode():
            expected = model(x)
            with record_gates(model) as gates:
                assert torch.equal(model(x), expected)
        assert list(gates) == NAMES
        found.append(dict(gates))
    for name in NAMES:
        assert found[0][name].shape == (5, CHANNELS[name])
        assert found[0][name].std() > 0.01
        torch.testing.assert_close(found[1][name], found[0][name], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found[2][name], found[0][name], rtol=1e-10, atol=1e-12)


def test_a_network_without_squeeze_has_no_gates_of_a_channel():
    with pytest.raises(ValueError, match="found none"):
        record_gates(network(squeeze=None)).__enter__()


def of_other_libraries():
    """(name, fused module, layout) of timm's and torchvision's."""
    timm_layers = pytest.importorskip("timm.layers", exc_type=(ImportError, RuntimeError))
    ops = pytest.importorskip("torchvision.ops", exc_type=(ImportError, RuntimeError))
    squeeze_excite = timm_layers.squeeze_excite
    yield squeeze_excite.SEModule(16, 1 / 4, rd_divisor=1), "nchw"
    yield squeeze_excite.SEModule(16, 1 / 4, rd_divisor=1, norm_layer=nn.BatchNorm2d), "nchw"
    yield squeeze_excite.SqueezeExciteCl(16, 1 / 4, rd_divisor=1), "nhwc"
    yield squeeze_excite.EffectiveSEModule(16), "nchw"
    yield ops.SqueezeExcitation(16, 4), "nchw"


@pytest.mark.parametrize("reference", [False, True])
def test_fused_modules_of_other_libraries(reference, monkeypatch):
    if reference:
        monkeypatch.setattr(se_kernels.core.dispatch, "DEFAULT", "reference")
    for module, layout in of_other_libraries():
        module = draw(module.double()).eval()
        x = images(3, 16, 5, 4, dtype=torch.float64)
        x = x if layout == "nchw" else x.permute(0, 2, 3, 1)
        expected = module(x)
        assert se_kernels.fuse(module).fused
        s, y = recorded(module, x)
        torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
        s = s[:, :, None, None] if layout == "nchw" else s[:, None, None, :]
        torch.testing.assert_close(s * x, expected, rtol=1e-10, atol=1e-12)


def test_batches_follow_each_other_until_cleared():
    model, x = network(), images(7, 3, 8, 8)
    with torch.no_grad(), record_gates(model) as gates:
        assert list(gates) == []
        model(x[:3])
        first = gates["layer2.1.se"].clone()
        model(x[3:])
        torch.testing.assert_close(gates["layer2.1.se"][:3], first)
        assert all(len(s) == 7 for s in gates.values())
        gates.clear()
        assert len(gates) == 0
        model(x[:2])
    assert gates["layer2.1.se"].shape == (2, 16)
    with torch.no_grad():
        model(x)
    assert gates["layer2.1.se"].shape == (2, 16)


def test_gates_of_inference_mode_can_be_learned_from():
    model = network()
    with torch.inference_mode(), record_gates(model) as gates:
        model(images(2, 3, 8, 8))
    weight = torch.ones(16, requires_grad=True)
    (gates["layer2.1.se"] @ weight).sum().backward()
    torch.testing.assert_close(weight.grad, gates["layer2.1.se"].sum(0))


def test_chosen_layers_only():
    model = network()
    with torch.no_grad(), record_gates(model, ["layer2.0.se"]) as gates:
        model(images(2, 3, 8, 8))
    assert gates.layers == tuple(gates) == ("layer2.0.se",)
    with pytest.raises(KeyError, match=r"expected one of layer2\.0\.se; got 'layer1"):
        gates["layer1.0.se"]


def test_x_is_not_read_again():
    module = SqueezeExcite(16)
    x = images(2, 16, 4, 4)
    called = OpsCalled(larger_than=x.numel() - 1)
    with torch.no_grad(), called, record_gates(module) as gates:
        module(x)
    assert gates[""].shape == (2, 16)
    assert called.names == ["forward"]
    assert called.others == []


def test_autocast_records_the_gates_of_its_own_call():
    module = draw(SqueezeExcite(16, bias=True))
    x = images(2, 16, 4, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        s, y = recorded(module, x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(s.double(), exact_gates(module, x), rtol=0, atol=1e-5)


# --- with gradients -----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"fused": False}], ids=["fused", "eager"])
def test_gradients_flow_as_ever(options):
    x = images(4, 3, 8, 8, dtype=torch.float64)
    plain, heard = (network(**options).double().train() for _ in range(2))
    plain(x).square().sum().backward()
    with record_gates(heard) as gates:
        heard(x).square().sum().backward()
    assert list(gates) == NAMES
    assert not any(s.requires_grad for s in gates.values())
    for p, q in zip(plain.parameters(), heard.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    for p, q in zip(plain.buffers(), heard.buffers(), strict=True):
        assert torch.equal(p, q)


def test_a_norm_in_training_mode_counts_one_batch():
    module = draw(SqueezeExcite(16, norm_layer=nn.BatchNorm2d)).train()
    with record_gates(module) as gates:
        module(images(4, 16, 3, 3))
    assert module.bn.num_batches_tracked == 1
    assert gates[""].shape == (4, 16)
    module.backend = "reference"
    with record_gates(module), pytest.raises(RuntimeError, match="expected eval mode"):
        module(images(4, 16, 3, 3))


# --- the model is as it was ---------------------------------------------------------------------


def state_of(model):
    return [
        (
            type(module),
            sorted(vars(module)),
            *(len(hooks) for name, hooks in sorted(vars(module).items()) if "_hooks" in name),
        )
        for module in model.modules()
    ]


def test_nothing_stays_behind():
    model = network()
    before = state_of(model)
    with torch.no_grad():
        with record_gates(model):
            assert state_of(model) != before
            model(images(2, 3, 8, 8))
        assert state_of(model) == before
        with pytest.raises(ValueError, match="expected images"), record_gates(model):
            model(images(2, 5, 8, 8))
        assert state_of(model) == before


def test_after_an_error_inside_a_block_recording_goes_on():
    module, x = SqueezeExcite(16), images(2, 16, 4, 4)
    with torch.no_grad(), record_gates(module) as gates:
        with pytest.raises(ValueError, match="x: expected"):
            module(x[0])
        with OpsCalled() as called:  # the observer of the failed call is gone
            module(x)
        assert called.names == ["forward"]
    assert gates[""].shape == (2, 16)


def test_contexts_nest():
    model, x = network(), images(3, 3, 8, 8)
    with torch.no_grad(), record_gates(model) as outer:
        model(x)
        with record_gates(model, ["layer2.0.se"]) as inner:
            model(x[:2])
        model(x[:1])
        with record_gates(model) as later:
            pass
    assert len(later) == 0
    assert inner["layer2.0.se"].shape == (2, 16)
    assert all(len(s) == 3 + 2 + 1 for s in outer.values())
    torch.testing.assert_close(outer["layer2.0.se"][3:5], inner["layer2.0.se"])


def test_other_threads_run_unrecorded():
    model, x = network(), images(4, 3, 8, 8)
    results = []

    def infer():
        with torch.no_grad():
            results.append(model(x[:1]))

    with torch.no_grad():
        expected = model(x[:1])
        with record_gates(model) as gates:
            other = threading.Thread(target=infer)
            other.start()
            for _ in range(5):
                model(x)
            other.join()
    assert torch.equal(results[0], expected)
    assert all(len(s) == 20 for s in gates.values())


def test_a_copy_made_meanwhile_is_silent_afterwards():
    module, x = SqueezeExcite(16), images(2, 16, 4, 4)
    with torch.no_grad():
        with record_gates(module) as gates:
            twin = copy.deepcopy(module)
        module(x)
        assert torch.equal(twin(x), module(x))
    assert len(gates) == 0


# --- bad input ----------------------------------------------------------------------------------


def enter(*arguments):
    with record_gates(*arguments):
        pass


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got int"):
        enter(3)
    with pytest.raises(ValueError, match=r"model: expected SE blocks .* found none in Linear"):
        enter(nn.Linear(2, 2))
    model = network()
    with pytest.raises(TypeError, match="layers: expected several names, got the string 'a'"):
        enter(model, "a")
    with pytest.raises(ValueError, match=r"layers: expected some of layer1\.0\.se, .*; got 'a'"):
        enter(model, ["layer2.0.se", "a"])
    for compiled in (torch.compile(model), nn.Sequential(torch.compile(model))):
        with pytest.raises(ValueError, match="model: expected one that is not compiled"):
            enter(compiled)
    model.compile()
    with pytest.raises(ValueError, match="model: expected one that is not compiled"):
        enter(model)


def test_a_layer_that_was_not_called():
    with record_gates(network()) as gates, pytest.raises(KeyError, match="was not called yet"):
        gates["layer1.0.se"]


def test_calls_that_cannot_be_recorded():
    module, x = SqueezeExcite(16).requires_grad_(False), images(2, 16, 4, 4)
    with record_gates(module):
        with pytest.raises(RuntimeError, match=r"expected no torch\.func transform"):
            torch.func.vmap(module)(x[None])
        with pytest.raises(RuntimeError, match="expected a plain call"):
            torch.jit.trace(module, x)
        module(x)


def test_a_fused_module_that_was_changed():
    ops = pytest.importorskip("torchvision.ops", exc_type=(ImportError, RuntimeError))
    module = ops.SqueezeExcitation(16, 4)
    se_kernels.fuse(module)
    module.fc1.register_forward_hook(lambda *_: None)
    with torch.no_grad(), record_gates(module), pytest.raises(RuntimeError, match="since then"):
        module(images(2, 16, 4, 4))
