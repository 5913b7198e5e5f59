"""The short way of an inference with a batch norm, and modules that infer again as they did."""

import copy
import gc
import sys
import weakref

import norm_cases
import pytest
import torch
from operator_cases import LAYOUTS
from ops_called import OpsCalled
from torch import nn

import se_kernels
from se_kernels.core import fast_path
from se_kernels.core.variants import PRES

pytestmark = [
    pytest.mark.native,
    pytest.mark.usefixtures("poisoned_outputs"),
    pytest.mark.skipif(
        se_kernels.available_backends()["cpu"] is not None, reason="the cpu backend was not built"
    ),
]


@pytest.fixture
def taken(monkeypatch):
    """Of each call that tried the short way, whether it went there."""
    calls, run = [], fast_path.run_norm

    def watched(*arguments):
        y = run(*arguments)
        calls.append(y is not None)
        return y

    monkeypatch.setattr(fast_path, "run_norm", watched)
    return calls


def both_ways(**arguments):
    """y the way the library goes by itself, and y the long way."""
    with torch.no_grad():
        y = se_kernels.batch_norm_squeeze_excite(**arguments)
    with OpsCalled() as called, torch.no_grad():
        long = se_kernels.batch_norm_squeeze_excite(**arguments)
    assert called.names == ["norm_inference"]
    return y, long


def assert_same(y, long):
    assert (y.dtype, y.stride()) == (long.dtype, long.stride())
    torch.testing.assert_close(y, long, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_every_pre_goes_the_short_way(taken, dtype, layout):
    for pre in PRES:
        for full in (False, True):
            case = norm_cases.Case(
                dtype=dtype,
                weight_dtype=torch.float64 if dtype == torch.float64 else torch.float32,
                norm_dtype=torch.float64 if dtype == torch.float64 else torch.float32,
                training=False,
                affine=("bn_weight", "bn_bias") if full else (),
                pre=pre,
                post="relu" if full else "none",
                residual=full,
                layout=layout,
            )
            inputs, _ = norm_cases.make(case)
            assert_same(*both_ways(**inputs, **case.variant))
            assert taken == [True]
            taken.clear()


@pytest.mark.parametrize(
    "changed",
    [
        {"running_mean": torch.zeros(10)[::2]},
        {"running_var": torch.ones(5, dtype=torch.float64)},
        {"bn_weight": torch.ones(5, dtype=torch.bfloat16)},
        {"bn_bias": torch._neg_view(torch.ones(5))},
        {"squeeze": "max"},
        {"eps": 1},
    ],
    ids=lambda changed: "-".join(changed),
)
def test_what_goes_the_long_way(taken, changed):
    case = norm_cases.Case(training=False)
    inputs, _ = norm_cases.make(case)
    arguments = inputs | case.variant | changed
    with torch.no_grad():
        y = se_kernels.batch_norm_squeeze_excite(**arguments)
        exact = se_kernels.batch_norm_squeeze_excite(**arguments, backend="reference")
    assert taken == [False]
    torch.testing.assert_close(y, exact)


def test_bad_input_is_told_as_with_gradients(taken):
    case = norm_cases.Case(training=False)
    inputs, _ = norm_cases.make(case)
    for changed in ({"running_mean": None}, {"bn_weight": torch.ones(4)}, {"pre": "gelu"}):
        told = []
        for enabled in (True, False):
            with torch.set_grad_enabled(enabled), pytest.raises((TypeError, ValueError)) as error:
                se_kernels.batch_norm_squeeze_excite(**inputs | case.variant | changed)
            told.append((error.type, str(error.value)))
        assert told[0] == told[1]
    assert taken == [False] * 3


@pytest.fixture
def layer():
    torch.manual_seed(0)
    layer = se_kernels.BatchNormSqueezeExcite(16, pre="silu", bias=True).eval()
    nn.init.normal_(layer.bn.running_mean)
    return layer


U = torch.randn(2, 16, 3, 3, generator=torch.Generator().manual_seed(1))


def definition(layer, u=U):
    v = torch.nn.functional.silu(layer.bn(u))
    return se_kernels.reference.squeeze_excite(v, *layer.se.fcs(), gate=layer.se.gate)


def _scaled(layer):
    layer.se.fc1.weight = nn.Parameter(3 * layer.se.fc1.weight)


def _filled(layer):
    with torch.no_grad():
        layer.se.fc2.bias.fill_(2.0)


def _other_norm(layer):
    layer.bn = copy.deepcopy(layer.bn)
    layer.bn.running_mean.add_(1)


CHANGES = {
    "a parameter put in its place": _scaled,
    "a parameter changed in place": _filled,
    "statistics changed in place": lambda layer: layer.bn.running_mean.add_(1),
    "statistics put in their place": lambda layer: layer.bn.register_buffer(
        "running_mean", torch.ones(16)
    ),
    "eps": lambda layer: setattr(layer.bn, "eps", 0.5),
    "gate": lambda layer: setattr(layer.se, "gate", "tanh"),
    "another norm": _other_norm,
}


@pytest.mark.parametrize("name", CHANGES)
def test_modules_infer_as_they_are(taken, layer, name):
    with torch.no_grad():
        layer(U)
        CHANGES[name](layer)
        y = layer(U)
        assert taken == [True, True]
        torch.testing.assert_close(y, definition(layer))


def test_a_hook_is_called(taken, layer):
    calls = []
    with torch.no_grad():
        layer(U)
        for module in (layer.bn, layer.se, layer.se.fc1):
            handle = module.register_forward_hook(lambda *_: calls.append(1))
            layer(U)
            handle.remove()
    assert len(calls) == 3


def test_a_forward_put_in_place_is_called(layer):
    for module in (layer.bn, layer.se):
        with torch.no_grad():
            layer(U)
            module.forward = lambda x, *_: torch.zeros_like(x)
            assert layer(U).abs().sum() == 0
            del module.forward


def test_a_norm_that_trains_again_takes_statistics_of_the_batch(layer):
    with torch.no_grad():
        layer(U)
        before = layer.bn.running_mean.clone()
        layer.train()
        layer(U)
        assert not torch.equal(layer.bn.running_mean, before)


def test_a_copy_is_its_own(taken, layer):
    with torch.no_grad():
        layer(U)
        other = copy.deepcopy(layer)
        other.se.fc2.bias.fill_(2.0)
        torch.testing.assert_close(other(U), definition(other))
        assert taken == [True, True]


def test_a_call_keeps_nothing(layer):
    freed = weakref.ref(layer.bn)
    with torch.no_grad():
        layer(U)
        layer(U)
    references = sys.getrefcount(layer.bn)
    layer.bn = copy.deepcopy(layer.bn)
    assert references == 2
    assert freed() is None  # by its count of references alone


def test_a_hook_that_refers_to_the_network_keeps_nothing(layer):
    network = nn.Sequential(copy.deepcopy(layer))
    with torch.no_grad():
        network(U)
        network(U)
    network[0].se.register_forward_hook(lambda *_, network=network: None)  # as Grad-CAM's do
    freed = weakref.ref(network)
    del network
    gc.collect()
    assert freed() is None


def test_a_fused_block_goes_the_short_way_until_it_is_changed(taken):
    ops = pytest.importorskip("torchvision").ops
    block = nn.Sequential(nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.ReLU())
    block.append(ops.SqueezeExcitation(16, 4)).append(nn.Conv2d(16, 5, 1)).eval()
    fused = copy.deepcopy(block)
    assert se_kernels.fuse(fused, "block").blocks
    x, heard = torch.randn(2, 3, 6, 5), []

    def compare(expected_ways):
        taken.clear()
        with torch.no_grad():
            torch.testing.assert_close(fused(x), block(x))
        assert taken == expected_ways

    compare([True])
    hook = fused[3].register_forward_hook(lambda module, args, y: heard.append(y))
    compare([])
    assert len(heard) == 1
    hook.remove()
    compare([True])
    for twin in (block, fused):
        twin[1].train()
    compare([])
    torch.testing.assert_close(fused[1].state_dict(), block[1].state_dict())
    for twin in (block, fused):
        twin.eval()[3].fc1 = nn.Sequential(twin[3].fc1)
    compare([])
