"""BatchNormSqueezeExcite against nn.BatchNorm2d, an activation and the block in turn."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fused_twins import compare, draw, images, outcome
from ops_called import OpsCalled
from torch import nn
from torch.nn.utils import parametrize

import se_kernels
from se_kernels import BatchNormSqueezeExcite, SqueezeExcite, record_gates
from se_kernels.backends import cpu
from se_kernels.models.se import EagerSqueezeExcite

CHANNELS, REDUCED = 12, 5
ACTS = {"identity": lambda t: t, "relu": F.relu, "silu": F.silu, "hardswish": F.hardswish}
NORMS = {
    "plain": {},
    "momentum None": dict(momentum=None),
    "momentum 0.3, eps 0.1": dict(momentum=0.3, eps=0.1),
    "no parameters": dict(affine=False),
    "no statistics": dict(track_running_stats=False),
    "neither": dict(affine=False, track_running_stats=False),
}


class Pair(nn.Module):
    """The layers that the module stands for."""

    def __init__(self, pre="identity", post="none", **norm):
        super().__init__()
        self.pre = pre
        self.bn = nn.BatchNorm2d(CHANNELS, **norm)
        self.se = EagerSqueezeExcite(CHANNELS, REDUCED, bias=True, act="silu", post=post)

    def forward(self, u, residual=None):
        return self.se(ACTS[self.pre](self.bn(u)), residual)


def twins(pre="identity", post="none", **norm):
    """The pair, and the module with its state dict."""
    pair = draw(Pair(pre, post, **norm))
    options = dict(rd_channels=REDUCED, bias=True, act_layer="silu", post=post)
    fused = BatchNormSqueezeExcite(CHANNELS, pre=pre, **options, **norm)
    fused.load_state_dict(pair.state_dict(), strict=True)
    return pair, fused


def with_residual(module):
    """A module of u alone: the residual is another linear function of it."""

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, u):
            return self.inner(u, u.flip(3))

    return Around()


def ops_of(module):
    u = torch.randn(3, CHANNELS, 4, 5, dtype=module.se.fc1.weight.dtype)
    with OpsCalled() as called, torch.no_grad():
        module(u)
    return called.names


def is_fused(module):
    return any(name.startswith("norm_") for name in ops_of(module))


@pytest.fixture
def u():
    return images(3, CHANNELS, 4, 5)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("pre", ACTS)
def test_it_is_the_layers_one_after_the_other(pre, norm, training, u):
    pair, fused = twins(pre, **NORMS[norm])
    for _ in range(2):  # momentum None: the second batch counts half
        compare(pair.train(training), fused.train(training), u, torch.float64)
        for module in (pair, fused):
            module.double()(u)
    with torch.no_grad():
        torch.testing.assert_close(fused(u), pair(u))
    torch.testing.assert_close(fused.state_dict(), pair.state_dict())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_tail_of_a_residual_block(dtype, training, u):
    pair, fused = (with_residual(m).train(training) for m in twins(post="relu"))
    compare(pair, fused, u, dtype)


def test_channels_last(u):
    pair, fused = twins("silu")
    u = u.contiguous(memory_format=torch.channels_last)
    compare(pair, fused, u, torch.float32)
    assert fused.double()(u).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_leaves_it_alone(half, u):
    """u in half precision, parameters in float32, as convolutions give it."""
    pair, fused = twins("relu")
    x = u.to(half)
    exact = outcome(copy.deepcopy(pair).double(), x.double())
    with torch.autocast("cpu", torch.bfloat16):
        results = outcome(fused, x)
    assert results["y"].dtype == half
    eps = torch.finfo(half).eps
    for name, value in exact.items():
        scale = value.double().norm()
        # y and dx are rounded once; sums of them by the chance of each rounding, not more
        error = (results[name].double() - value).norm()
        assert error <= 2 * eps * max(scale, exact["y"].norm() if name[0] == "d" else scale), name


def test_a_frozen_norm_in_a_model_that_trains(u):
    """Its statistics are constants, its parameters learn."""
    pair, fused = twins("relu")
    for module in (pair, fused):
        module.train()
        module.bn.eval()
    before = copy.deepcopy(dict(fused.named_buffers()))
    compare(pair, fused, u, torch.float64)
    assert is_fused(fused)
    torch.testing.assert_close(dict(fused.named_buffers()), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["bn.weight", "bn.bias", "se.fc1.weight", "all"])
def test_frozen_parameters(name, u):
    pair, fused = twins("silu")
    for module in (pair, fused):
        for n, p in module.named_parameters():
            p.requires_grad_(name not in (n, "all"))
    compare(pair, fused, u, torch.float64)


def test_one_value_a_channel_is_torchs_error():
    pair, fused = twins()
    u = torch.randn(1, CHANNELS, 1, 1)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel") as expected:
        pair(u)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel") as got:
        fused(u)
    assert str(got.value) == str(expected.value)
    assert fused.eval()(u).shape == u.shape


def test_a_synchronised_norm_alone(u):
    """Without other processes it is a plain one, in torch too."""
    pair, fused = twins("relu")
    fused = nn.SyncBatchNorm.convert_sync_batchnorm(fused)
    assert type(fused.bn) is nn.SyncBatchNorm
    compare(pair, fused, u, torch.float64)
    assert is_fused(fused)


# --- whatever is not plain is called -------------------------------------------------------------


def group_norm(module):
    module.bn = nn.GroupNorm(3, CHANNELS)


def lazy(module):
    bn = nn.LazyBatchNorm2d()
    bn.train(module.bn.training)
    module.bn = bn


class Doubled(nn.Module):
    def forward(self, w):
        return 2 * w


CHANGES = {
    "hook on the norm": lambda m: m.bn.register_forward_hook(lambda m, args, v: 2 * v),
    "pre-hook on the norm": lambda m: m.bn.register_forward_pre_hook(lambda m, args: 2 * args[0]),
    "hook on the block": lambda m: m.se.register_forward_hook(lambda m, args, y: 2 * y),
    "backward hook": lambda m: m.se.register_full_backward_hook(
        lambda m, into, _: (2 * into[0], None)
    ),
    "hook on an FC": lambda m: m.se.fc1.register_forward_hook(lambda m, args, a: 2 * a),
    "parametrised": lambda m: parametrize.register_parametrization(m.bn, "weight", Doubled()),
    "another norm": group_norm,
    "not initialised": lazy,
    "no norm": lambda m: setattr(m, "bn", nn.Identity()),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("change", CHANGES)
def test_changed(change, training, u):
    pair, fused = (m.train(training) for m in twins("relu"))
    for module in (pair, fused):
        CHANGES[change](module)
        if change == "not initialised":
            module(u.float())
    compare(pair, fused, u, torch.float64)
    if change != "not initialised":  # which becomes a plain one with its first call
        assert not is_fused(fused)


def test_a_forward_put_in_place(u):
    _, fused = twins("relu")
    fused.double().bn.forward = torch.neg
    torch.testing.assert_close(fused(u), fused.se(F.relu(-u)))


@pytest.mark.parametrize(
    "options", [dict(squeeze="max"), dict(norm_layer=nn.BatchNorm2d)], ids=["max", "norm inside"]
)
def test_blocks_that_need_v(options, u):
    fused = draw(BatchNormSqueezeExcite(CHANNELS, pre="silu", rd_channels=REDUCED, **options))
    fused.double()
    apart = copy.deepcopy(fused)
    expected = apart.se(F.silu(apart.bn(u)))
    torch.testing.assert_close(fused(u), expected)
    torch.testing.assert_close(fused.state_dict(), apart.state_dict())
    assert not is_fused(fused)


def test_hooks_on_all_modules_see_the_two(u):
    _, fused = twins("relu")
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(m))
    try:
        fused.double()(u)
    finally:
        handle.remove()
    se = fused.se
    assert seen == [fused.bn, se.fc1, se.bn, se.fc2, se, fused]
    assert is_fused(fused.float())


# --- what a user does with a layer ---------------------------------------------------------------


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies(copied, u):
    _, fused = twins("hardswish")
    twin = copied(fused)
    assert twin.bn.weight is not fused.bn.weight
    torch.testing.assert_close(outcome(twin, u.float()), outcome(fused, u.float()))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compile(training, u):
    torch.compiler.reset()
    pair, fused = (m.train(training) for m in twins("silu"))
    fused.compile(fullgraph=True)
    results, expected = outcome(fused, u.float()), outcome(pair, u.float())
    assert list(results) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(results[name], value, rtol=1e-4, atol=1e-4, msg=name)
    torch.compiler.reset()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_gates_are_recorded_and_nothing_changes(training, u):
    pair, fused = (m.double().train(training) for m in twins("relu"))
    with torch.no_grad():
        expected = copy.deepcopy(fused)(u)
        with record_gates(fused) as gates:
            assert torch.equal(fused(u), expected)
        v = F.relu(pair.bn(u))
        torch.testing.assert_close(gates["se"], pair.se.excite(v).flatten(1))


def test_gates_on_the_reference(u):
    pair, fused = (m.double().eval() for m in twins("relu"))
    fused.se.backend = "reference"
    with torch.no_grad(), record_gates(fused) as gates:
        fused(u)
        torch.testing.assert_close(gates["se"], pair.se.excite(F.relu(pair.bn(u))).flatten(1))


def test_names_and_description():
    fused = BatchNormSqueezeExcite(CHANNELS, pre="relu", rd_channels=REDUCED)
    assert [name for name, _ in fused.named_children()] == ["bn", "se"]
    assert type(fused.bn) is nn.BatchNorm2d
    assert type(fused.se) is SqueezeExcite
    assert "pre='relu'" in repr(fused)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(pre="gelu"), "pre: expected one of identity, relu, silu, hardswish; got 'gelu'"),
        (dict(squeeze="sum"), "squeeze: expected one of avg, max, avgmax; got 'sum'"),
        (dict(post="silu"), "post: expected one of none, relu; got 'silu'"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        BatchNormSqueezeExcite(CHANNELS, **options)
    with pytest.raises(ValueError, match=r"^channels, rd_channels: expected at least 1"):
        BatchNormSqueezeExcite(0)


@pytest.mark.skipif(cpu.why_not() is not None, reason=f"no native core: {cpu.why_not()}")
@pytest.mark.parametrize("pre", ["identity", "silu"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_training_step_on_the_cpu_makes_few_operations(layout, pre):
    """Two native calls, what they allocate, and the running statistics: each operation of torch
    that a block makes is some microseconds, and a network has dozens of blocks."""
    block = BatchNormSqueezeExcite(16, rd_channels=4, pre=pre, post="relu")
    u, residual, dy = (torch.randn(2, 16, 6, 5).contiguous(memory_format=layout) for _ in range(3))
    block(u.requires_grad_(), residual.requires_grad_()).backward(dy)
    block.zero_grad()
    u.grad = residual.grad = None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        block(u, residual).backward(dy)
    counts = {event.key: event.count for event in profile.key_averages()}
    of_torch = {k: n for k, n in counts.items() if k.startswith(("aten::", "se_kernels::"))}
    assert of_torch["se_kernels::norm_forward"] == of_torch["se_kernels::norm_backward"] == 1
    assert sum(of_torch.values()) < 30, of_torch


@pytest.mark.parametrize("value", [torch.tensor(0.1), np.float32(0.1)], ids=["tensor", "numpy"])
def test_momentum_and_eps_of_other_types(value, u):
    norm, layer = nn.BatchNorm2d(CHANNELS), se_kernels.BatchNormSqueezeExcite(CHANNELS)
    norm.momentum = layer.bn.momentum = norm.eps = layer.bn.eps = value
    norm(u.float())
    layer(u.float())
    torch.testing.assert_close(layer.bn.state_dict(), norm.state_dict())
    torch.testing.assert_close(layer.eval()(u.float()), layer.se(norm.eval()(u.float())))


def test_found_by_the_name_of_its_class():
    """As code that initialises or freezes every "BatchNorm" does."""
    layer = se_kernels.BatchNormSqueezeExcite(CHANNELS)
    assert "BatchNorm" in type(layer).__name__
    nn.init.constant_(layer.weight, 2)
    nn.init.constant_(layer.bias, 3)
    assert layer.bn.weight.eq(2).all()
    assert layer.bn.bias.eq(3).all()
    assert "weight" not in layer.state_dict()


def test_device_and_dtype():
    layer = se_kernels.BatchNormSqueezeExcite(CHANNELS, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.float64)}


def test_gradients_are_laid_as_the_parameters_are(u):
    """Of weights in channels_last too: DistributedDataParallel copies, and warns of, any other."""
    layer = se_kernels.BatchNormSqueezeExcite(CHANNELS).to(memory_format=torch.channels_last)
    layer(u.float()).sum().backward()
    assert [p.grad.stride() for p in layer.parameters()] == [p.stride() for p in layer.parameters()]


@pytest.mark.parametrize("how", ["layer", "block"])
def test_an_exported_training_program_has_the_norm_of_torch(how, u):
    """torchao quantises it with the convolution before it, and moves it to evaluation."""
    layer = se_kernels.BatchNormSqueezeExcite(CHANNELS)
    if how == "block":
        layer = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), layer.bn, layer.se)
        assert se_kernels.fuse(layer, "block").blocks
    exported = torch.export.export(copy.deepcopy(layer), (u.float(),)).module()
    called = {str(node.target) for node in exported.graph.nodes}
    assert "aten.batch_norm.default" in called
    assert not any("se_kernels.norm" in name for name in called)
    torch.testing.assert_close(exported(u.float()), layer(u.float()))
    torch.testing.assert_close(dict(exported.named_buffers()), dict(layer.named_buffers()))


@pytest.mark.parametrize("cls", [SqueezeExcite, se_kernels.BatchNormSqueezeExcite])
def test_compiled_with_its_own_input_as_residual(cls, u):
    layer = draw(cls(CHANNELS, post="relu")).double()
    compiled = torch.compile(copy.deepcopy(layer), backend="eager", fullgraph=True)
    x, expected = u.clone().requires_grad_(), u.clone().requires_grad_()
    compiled(x, x).square().sum().backward()
    layer(expected, expected).square().sum().backward()
    torch.testing.assert_close(x.grad, expected.grad)
    torch.compiler.reset()
