"""fuse, unfuse and register_family: what stays, what is noticed later, what a caller gets wrong."""

import copy
import io
import pickle
import pickletools
import warnings

import numpy
import pytest
import torch
import torch.nn.functional as F
from fused_twins import compare, draw, images, outcome, twins
from ops_called import OpsCalled
from torch import nn
from torch.nn.utils import parametrizations, prune

import se_kernels
from se_kernels import ExcitationSteps
from se_kernels.surgery import specs

CHANNELS = 12


class SEModule(nn.Module):
    """The eager block as timm has it."""

    def __init__(self, channels=CHANNELS, norm=False):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, 5, 1)
        self.bn = nn.BatchNorm2d(5) if norm else nn.Identity()
        self.act = nn.LeakyReLU(0.1)
        self.fc2 = nn.Conv2d(5, channels, 1)
        self.gate = nn.Sigmoid()
        self.add_maxpool = False

    def forward(self, x):
        z = x.mean((2, 3), keepdim=True)
        if self.add_maxpool:
            z = 0.5 * (z + x.amax((2, 3), keepdim=True))
        return x * self.gate(self.fc2(self.act(self.bn(self.fc1(z)))))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.se = SEModule()
        self.blocks = nn.Sequential(
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), SEModule(norm=True)
        )

    def forward(self, x):
        return self.blocks(self.se(self.conv(x)))


SE = "test_fuse.SEModule"


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network()


@pytest.fixture
def se():
    return draw(SEModule())


def ops_of(module, x=None):
    x = torch.randn(2, CHANNELS, 4, 5) if x is None else x
    with OpsCalled() as called, torch.no_grad():
        module(x)
    return called.names


@pytest.fixture
def native():
    reason = se_kernels.available_backends()["cpu"]
    if reason is not None:
        pytest.skip(f"backend cpu: {reason}")


# --- what stays ----------------------------------------------------------------------------------


def test_report(network):
    report = se_kernels.fuse(network)
    assert report.fused == {"se": SE, "blocks.1": SE}
    assert report.skipped == {}
    assert str(report) == f"Network: 2 SE modules fused, 0 skipped\n  2 x {SE}"
    assert str(se_kernels.fuse(network.se)) == f"SEModule: 1 SE module fused, 0 skipped\n  1 x {SE}"


def test_report_says_a_reason_once():
    model = nn.Sequential(*(SEModule() for _ in range(5)))
    for se in model:
        se.gate.register_forward_hook(lambda *_: None)
    assert str(se_kernels.fuse(model)).splitlines() == [
        "Sequential: 0 SE modules fused, 5 skipped",
        "  skipped 0, 1, 2 and 2 more: gate has hooks, or a forward of its own",
    ]


def test_nothing_to_fuse():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    report = se_kernels.fuse(model)
    assert report.fused == report.skipped == {}
    assert str(report) == "no SE module found in Sequential"
    assert se_kernels.unfuse(model) == []


def test_the_layer_of_the_library_is_left_alone():
    model = nn.Sequential(se_kernels.SqueezeExcite(CHANNELS))
    report = se_kernels.fuse(model)
    assert report.skipped == {"0": "is fused by itself"}
    assert type(model[0]) is se_kernels.SqueezeExcite


def test_the_model_may_be_the_module(se):
    unfused = copy.deepcopy(se)
    assert se_kernels.fuse(se).fused == {"": SE}
    compare(unfused, se, images(2, CHANNELS, 4, 5), torch.float64)
    assert se_kernels.unfuse(se) == [""]
    assert type(se) is SEModule


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_whole_network(network, dtype, training):
    unfused, fused = twins(network.train(training))
    compare(unfused, fused, images(4, 3, 6, 7), dtype)


def test_everything_stays_the_same_object(network):
    network.to(memory_format=torch.channels_last)
    calls = []
    network.se.register_forward_hook(lambda *_: calls.append("forward"))
    network.se.fc1.weight.requires_grad_(False)
    network.blocks[1].eval()
    modules = dict(network.named_modules())
    parameters, buffers = dict(network.named_parameters()), dict(network.named_buffers())
    modes = {name: m.training for name, m in modules.items()}
    strides = {name: p.stride() for name, p in parameters.items()}
    random = torch.get_rng_state()
    threads = torch.get_num_threads()
    values = copy.deepcopy(network.state_dict())

    def check():
        assert dict(network.named_modules()) == modules
        assert all(network.get_parameter(name) is p for name, p in parameters.items())
        assert all(network.get_buffer(name) is b for name, b in buffers.items())
        assert {name: m.training for name, m in network.named_modules()} == modes
        assert {name: p.stride() for name, p in network.named_parameters()} == strides
        assert [n for n, p in network.named_parameters() if not p.requires_grad] == [
            "se.fc1.weight"
        ]
        assert list(network.state_dict()) == list(values)
        assert all(torch.equal(value, values[n]) for n, value in network.state_dict().items())
        assert all(p.grad is None for p in network.parameters())

    se_kernels.fuse(network)
    check()
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_num_threads() == threads
    assert calls == []
    network(torch.randn(1, 3, 4, 4))
    assert calls == ["forward"]
    del values["blocks.1.bn.num_batches_tracked"]
    se_kernels.unfuse(network)
    assert type(network.se) is SEModule
    assert "se_kernels_plan" not in vars(network.se)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_fuse_under_any_grad_mode(network, context):
    with context():
        assert len(se_kernels.fuse(network).fused) == 2


def test_fuse_under_autocast_and_a_default_device(network):
    with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        assert len(se_kernels.fuse(network).fused) == 2


def test_idempotent(network):
    first = se_kernels.fuse(network)
    classes = [type(m) for m in network.modules()]
    assert se_kernels.fuse(network) == first
    assert [type(m) for m in network.modules()] == classes
    assert se_kernels.unfuse(network) == ["se", "blocks.1"]
    assert se_kernels.unfuse(network) == []
    assert {type(network.se), type(network.blocks[1])} == {SEModule}


def test_fusing_again_reads_anew(network):
    se_kernels.fuse(network)
    network.se.act = nn.SiLU()
    assert ops_of(network.se) == []
    handle = network.blocks[1].bn.register_forward_hook(lambda *_: None)
    report = se_kernels.fuse(network)
    assert list(report.fused) == ["se"]
    assert report.skipped == {"blocks.1": "bn has hooks, or a forward of its own"}
    assert type(network.blocks[1]) is SEModule
    handle.remove()
    unfused = copy.deepcopy(network)
    se_kernels.unfuse(unfused)
    compare(unfused, network, images(4, 3, 6, 7), torch.float64)


def test_shared_module(se):
    model = nn.Sequential(se, nn.Conv2d(CHANNELS, CHANNELS, 1), se, nn.Sequential(se))
    unfused, fused = twins(model)
    assert len({id(m) for m in fused.modules() if isinstance(m, SEModule)}) == 1
    compare(unfused, fused, images(2, CHANNELS, 4, 5), torch.float64)
    assert list(se_kernels.fuse(fused).fused) == ["0", "2", "3.0"]
    assert se_kernels.unfuse(fused) == ["0", "2", "3.0"]


def test_shared_weights():
    a, b = SEModule(), SEModule()
    b.fc1.weight = a.fc1.weight
    b.fc2 = a.fc2
    unfused, fused = twins(draw(nn.Sequential(a, b)))
    assert fused[1].fc1.weight is fused[0].fc1.weight
    compare(unfused, fused, images(2, CHANNELS, 4, 5), torch.float64)


def test_optimizer_built_before(network):
    """Three steps of Adam; the fused run differs by roundings only."""
    unfused, fused = copy.deepcopy(network).double(), network.double()
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-2) for m in (unfused, fused)]
    se_kernels.fuse(fused)
    for seed in range(3):
        x = images(4, 3, 5, 6, seed=seed)
        for model, optimizer in zip((unfused, fused), optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    for (name, p), q in zip(fused.named_parameters(), unfused.parameters(), strict=True):
        if name not in ("blocks.1.fc1.bias"):  # its gradient is rounding alone, Adam scales it up
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("frozen", ["fc1.weight", "fc2.bias", "every parameter"])
def test_frozen_parameters(se, frozen):
    for name, p in se.named_parameters():
        p.requires_grad_(frozen not in (name, "every parameter"))
    unfused, fused = twins(se)
    compare(unfused, fused, images(2, CHANNELS, 4, 5), torch.float64)


def through_file(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m)), through_file],
    ids=["deepcopy", "copy", "pickle", "save and load"],
)
def test_copies_are_fused(network, copied, native):
    network.eval()
    se_kernels.fuse(network)
    with torch.no_grad():
        network(torch.randn(2, 3, 5, 5))
    twin = copied(network)
    assert type(twin.se) is type(network.se)
    assert ops_of(twin.se) == ["inference"]
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(twin(x), network(x))
    assert list(twin.state_dict()) == list(network.state_dict())
    if copied is not copy.copy:
        assert twin.se.fc1.weight.data_ptr() != network.se.fc1.weight.data_ptr()
        assert se_kernels.unfuse(twin) == ["se", "blocks.1"]
        assert type(twin.se) is SEModule


def test_state_dict_goes_both_ways(network):
    unfused, fused = twins(network)
    other = Network()
    fused.load_state_dict(other.state_dict(), strict=True)
    unfused.load_state_dict(fused.state_dict(), strict=True)
    compare(unfused, fused, images(2, 3, 5, 5), torch.float64)


def test_called_by_keyword(se, native):
    unfused, fused = twins(se)
    x = torch.randn(2, CHANNELS, 3, 4)
    with OpsCalled() as called, torch.no_grad():
        y = fused(x=x)
    assert called.names == ["inference"]
    torch.testing.assert_close(y, unfused(x))
    for arguments in ((), (x, x)):
        with pytest.raises(TypeError, match=r"forward\(\)"):
            fused(*arguments)
    with pytest.raises(TypeError, match=r"forward\(\)"):
        fused(y=x)


# --- dtypes, layouts, wrappers -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_dtypes(se, dtype):
    unfused, fused = twins(se)
    compare(unfused, fused, images(2, CHANNELS, 4, 5), dtype)


@pytest.mark.parametrize("norm", [False, True])
def test_autocast(norm):
    unfused, fused = twins(draw(SEModule(norm=norm)).eval())
    x = images(2, CHANNELS, 4, 5).float()
    for module in (unfused, fused):
        with torch.autocast("cpu", torch.bfloat16):
            results = outcome(module, x)
        assert {r.dtype for r in results.values() if r.is_floating_point()} == {torch.float32}
        # eager rounds the excitation to bfloat16, the fused one may not
        exact = outcome(copy.deepcopy(unfused).double(), x.double())
        for name in ("y", "dx", "dfc1.weight", "dfc2.weight", "dfc2.bias"):
            value = results[name]
            assert (value - exact[name]).norm() <= 0.03 * exact[name].norm(), name


@pytest.mark.parametrize("norm", [False, True])
def test_channels_last(norm):
    unfused, fused = twins(draw(SEModule(norm=norm)).to(memory_format=torch.channels_last))
    x = images(2, CHANNELS, 4, 5).contiguous(memory_format=torch.channels_last)
    assert outcome(copy.deepcopy(fused).double(), x)["y"].is_contiguous(
        memory_format=torch.channels_last
    )
    compare(unfused, fused, x, torch.float32)


def test_tensors_the_kernels_do_not_take(se):
    """They are the module's own business, errors too."""
    unfused, fused = twins(se)
    for x in (torch.randn(CHANNELS, 4, 5), torch.ones(1, CHANNELS, 2, 2, dtype=torch.int32)):
        with pytest.raises((RuntimeError, IndexError)) as expected:
            unfused(x)
        with pytest.raises(type(expected.value)):
            fused(x)


def test_replica_of_data_parallel(network, native):
    """DataParallel's replicas hold their weights as plain attributes."""
    se_kernels.fuse(network)
    x = torch.randn(2, CHANNELS, 3, 3)
    with torch.no_grad():
        network.se(x)  # what an inference remembers is not the replica's
    replica, doubled = network.se._replicate_for_data_parallel(), copy.deepcopy(network.se)
    for name, fc in network.se.named_children():
        copied = fc._replicate_for_data_parallel()
        for key, p in fc._parameters.items():
            setattr(copied, key, 2 * p.detach())
            doubled._modules[name]._parameters[key].data *= 2
        replica._modules[name] = copied
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(replica(x), doubled(x))
            assert not torch.equal(replica(x), network.se(x))
    assert torch.equal(replica(x), doubled(x))
    assert ops_of(replica, x) == ["inference"]


def test_under_transforms(se):
    unfused, fused = twins(se.double())
    x = images(3, 2, CHANNELS, 4, 5)
    results = [torch.func.vmap(module)(x) for module in (unfused, fused)]
    torch.testing.assert_close(*results)
    parameters = dict(unfused.named_parameters())
    for module in (unfused, fused):
        module.zero_grad()
    grads = [
        torch.func.grad(lambda p, m=m: torch.func.functional_call(m, p, (x[0],)).sum())(parameters)
        for m in (unfused, fused)
    ]
    torch.testing.assert_close(*grads)


# --- what is changed after fuse ------------------------------------------------------------------


class Adapted(nn.Module):
    """An FC with a low-rank correction beside it."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = nn.Conv2d(base.in_channels, 2, 1, bias=False)
        self.up = nn.Conv2d(2, base.out_channels, 1, bias=False)

    def forward(self, z):
        return self.base(z) + self.up(self.down(z))


def adapt(se):
    se.fc1 = Adapted(se.fc1)


def grouped(se):
    se.fc1, se.fc2 = nn.Conv2d(CHANNELS, 4, 1, groups=2), nn.Conv2d(4, CHANNELS, 1)


def subclass(se):
    class Doubled(nn.Conv2d):
        def forward(self, z):
            return 2 * super().forward(z)

    fc = Doubled(CHANNELS, 5, 1)
    fc.load_state_dict(se.fc1.state_dict())
    se.fc1 = fc


def patch(se):
    forward = se.fc2.forward
    se.fc2.forward = lambda z: 2 * forward(z)


CHANGES = {
    "hook on an FC": lambda se: se.fc1.register_forward_hook(lambda m, args, a: 2 * a),
    "pre-hook on an FC": lambda se: se.fc2.register_forward_pre_hook(lambda m, args: 2 * args[0]),
    "hook on the activation": lambda se: se.act.register_forward_hook(lambda m, args, a: 2 * a),
    "backward hook": lambda se: se.gate.register_full_backward_hook(
        lambda m, into, out: (2 * into[0],)
    ),
    "another activation": lambda se: setattr(se, "act", nn.SiLU()),
    "a larger kernel": lambda se: setattr(se, "fc1", nn.Conv2d(CHANNELS, 5, 3, padding=1)),
    "groups": grouped,
    "another gate": lambda se: setattr(se, "gate", nn.Tanh()),
    "a norm": lambda se: setattr(se, "bn", nn.GroupNorm(1, 5)),
    "adapter": adapt,
    "subclass": subclass,
    "forward replaced": patch,
    "weight norm": lambda se: parametrizations.weight_norm(se.fc1),
    "bias parametrised": lambda se: torch.nn.utils.parametrize.register_parametrization(
        se.fc1, "bias", nn.Tanh()
    ),
    "pruned": lambda se: prune.l1_unstructured(se.fc2, "weight", amount=0.5),
    "a setting of the module": lambda se: setattr(se, "add_maxpool", True),
    "a setting of the activation": lambda se: setattr(se.act, "negative_slope", 0.5),
}


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_after_fuse(se, change, used):
    unfused, fused = twins(se)
    x = images(2, CHANNELS, 4, 5)
    if used:
        with torch.no_grad():
            fused(x.float())
    for module in (unfused, fused):
        torch.manual_seed(0)
        CHANGES[change](module)
        module.double()
    with torch.no_grad():
        assert torch.equal(fused(x), unfused(x))
    for _ in range(2):
        results, expected = outcome(fused, x), outcome(unfused, x)
        assert list(results) == list(expected)
        for name, value in expected.items():
            assert torch.equal(results[name], value), name  # the very forward of its class
    assert ops_of(fused, x) == []


def test_another_weight_after_an_inference(se):
    """An inference remembers which modules there are, not what they hold."""
    unfused, fused = twins(se)
    x = torch.randn(2, CHANNELS, 4, 5)
    with torch.no_grad():
        before = fused(x)
        for module in (unfused, fused):
            module.fc1.weight = nn.Parameter(2 * module.fc1.weight)
        torch.testing.assert_close(fused(x), unfused(x))
        assert not torch.allclose(fused(x), before)
        for module in (unfused, fused):
            module.load_state_dict(draw(SEModule(), seed=1).state_dict())
        torch.testing.assert_close(fused(x), unfused(x))
        for module in (unfused, fused):
            module.fc2.bias = None
        torch.testing.assert_close(fused(x), unfused(x))


def test_hook_for_every_module(se, native):
    fused = twins(se)[1]
    with torch.no_grad():
        fused(torch.randn(2, CHANNELS, 4, 5))
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m)))
    try:
        with torch.no_grad():
            fused(torch.randn(2, CHANNELS, 4, 5))
        assert seen.count(nn.Conv2d) == 2
        assert ops_of(fused) == []
    finally:
        handle.remove()
    assert nn.Conv2d in seen
    assert ops_of(fused) == ["inference"]


def test_weights_that_are_no_plain_tensors(se):
    class Logged(torch.Tensor):
        pass

    fused = twins(se)[1]
    fused.fc1.weight = nn.Parameter(fused.fc1.weight.detach().as_subclass(Logged))
    assert ops_of(fused) == []
    assert se_kernels.fuse(fused).skipped == {"": "fc1.weight is a Logged, not a plain tensor"}


def test_class_changed_once_more(se, native):
    """As parametrising or sharding the module itself does."""
    unfused, fused = twins(se.eval())
    fused.extra = nn.Parameter(torch.ones(2))
    parametrizations.weight_norm(fused, "extra")
    x = torch.randn(2, CHANNELS, 3, 3)
    assert ops_of(fused, x) == ["inference"]
    assert se_kernels.unfuse(fused) == [""]
    assert ops_of(fused, x) == []
    assert torch.equal(fused(x), unfused(x))


def test_a_plain_tensor_in_the_place_of_a_parameter(se, native):
    """Fast weights, hypernetworks."""
    unfused, fused = twins(se)
    x = torch.randn(2, CHANNELS, 4, 5)
    with torch.no_grad():
        fused(x)
        for module in (unfused, fused):
            weight = module.fc1.weight.detach() * 0.9
            del module.fc1.weight
            module.fc1.weight = weight
        torch.testing.assert_close(fused(x), unfused(x))
    assert ops_of(fused, x) == ["inference"]


def test_a_forward_patched_for_a_time(monkeypatch):
    """Neither the patch nor what was there before it is remembered."""
    x, a, b = torch.randn(2, CHANNELS, 4, 5), draw(SEModule()), draw(SEModule())
    se_kernels.fuse(a)
    y, own = a(x), SEModule.forward
    with monkeypatch.context() as patch:
        patch.setattr(SEModule, "forward", lambda self, x: 2 * own(self, x))
        torch.testing.assert_close(a(x), 2 * y)
        assert "computes something else" in se_kernels.fuse(b).skipped[""]
        copied = pickle.loads(pickle.dumps(a))
        torch.testing.assert_close(copied(x), 2 * y)
    se_kernels.fuse(b)
    b.fc1.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(b(x), y)


def test_a_patched_function_of_torch_is_a_reason(se, monkeypatch):
    own = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: own(self, x))
    assert se_kernels.fuse(se).skipped == {"": "Conv2d.forward is patched"}


@pytest.mark.parametrize(
    "space, name",
    [
        (F, "conv2d"),
        (F, "batch_norm"),
        (F, "relu"),
        (F, "leaky_relu"),
        (torch, "relu"),
        (torch, "sigmoid"),
        (torch.Tensor, "mean"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_function_of_torch_that_is_patched_for_a_time(space, name, monkeypatch):
    """What is compiled goes by the functions of when it was."""
    model = nn.Sequential(nn.BatchNorm2d(CHANNELS), nn.ReLU(), SEModule()).eval()
    unfused, fused = twins(draw(model), "block")
    x, own = images(2, CHANNELS, 4, 5).float(), getattr(space, name)
    for patched in (False, True, False):
        with monkeypatch.context() as patch:
            if patched:
                patch.setattr(space, name, lambda *args, **how: 2 * own(*args, **how))
            torch.testing.assert_close(fused(x), unfused(x))
            assert any("norm_" in op for op in ops_of(fused, x)) is not patched


@pytest.mark.parametrize("cast", ["both weights", "fc2"])
def test_fcs_of_several_dtypes_as_autocast_takes_them(se, cast):
    for fc in (se.fc1, se.fc2):
        if cast == "fc2":
            se.fc2.bfloat16()
        else:
            fc.weight.data = fc.weight.data.bfloat16()
    unfused, fused = twins(se)
    x = images(2, CHANNELS, 4, 5).float()
    exact = outcome(copy.deepcopy(unfused).double(), x.double())
    with torch.autocast("cpu"):
        results, baseline = outcome(fused, x), outcome(unfused, x)
    for name, value in exact.items():
        assert results[name].dtype == baseline[name].dtype, name
        # eager rounds the excitation to bfloat16, the fused one may not
        assert (results[name] - value).norm() <= 0.03 * value.norm(), name
    for module in (unfused, fused):
        with pytest.raises(RuntimeError):
            module(x)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization", "ignore:torch.quantize_per_tensor")
def test_a_quantised_family_is_skipped(registry):
    se_kernels.register_family(Functional, ADAPTERS[Functional])
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(Functional()), {nn.Linear})
    reason = se_kernels.fuse(model).skipped["0"]
    assert reason.startswith("down is quantised: torch.ao.")


def test_no_hook_on_all_modules_is_called_by_fuse(network):
    torch_module = nn.modules.module
    seen = []
    handles = [
        torch_module.register_module_forward_hook(lambda *_: seen.append(1)),
        torch_module.register_module_forward_pre_hook(lambda *_: seen.append(1)),
        torch_module.register_module_full_backward_hook(lambda *_: seen.append(1)),
    ]
    try:
        assert len(se_kernels.fuse(network, level="block").fused) == 2
        assert seen == []
        network(torch.randn(2, 3, 4, 4))
        assert seen
    finally:
        for handle in handles:
            handle.remove()


def test_fuse_under_a_fake_tensor_mode(network):
    with torch._subclasses.FakeTensorMode():
        assert len(se_kernels.fuse(network).fused) == 2
        assert len(se_kernels.fuse(Network()).fused) == 2


def test_load_of_weights_only(network):
    se_kernels.fuse(network.eval())
    classes = {*map(type, network.modules()), *se_kernels.surgery.SAFE_GLOBALS, SEModule}
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    with torch.serialization.safe_globals([*classes]):
        twin = torch.load(file, weights_only=True)
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(twin(x), network(x))
    assert pickle.loads(pickle.dumps(type(network.se))) is type(network.se)


def test_prints_on_an_ascii_terminal(network):
    report = se_kernels.fuse(network, level="block")
    assert f"{report}{network}".isascii()


# --- compilers and exporters ---------------------------------------------------------------------


@pytest.fixture
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("training", [True, False])
def test_compile(network, training):
    unfused, fused = twins(network.train(training))
    x = images(2, 3, 5, 6).float()
    expected = outcome(unfused, x)
    fused.compile(fullgraph=True)
    results = outcome(fused, x)
    for name, value in expected.items():
        result = results[name]
        torch.testing.assert_close(result, value, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("strict", [False, True])
def test_export_keeps_the_fused_ops(network, strict, native):
    network.eval()
    se_kernels.fuse(network)
    x = torch.randn(2, 3, 5, 6)
    with torch.no_grad():
        program = torch.export.export(network, (x,), strict=strict)
        targets = [str(node.target) for node in program.graph.nodes]
        assert [t.split(".")[1] for t in targets if t.startswith("se_kernels.")] == [
            "inference",
            "squeeze",
            "scale",
        ]
        assert torch.equal(program.module()(x), network(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx_holds_standard_operators_only(network, dynamo, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    network.eval()
    unfused, fused = twins(network)
    x = torch.randn(2, 3, 5, 6)
    path = tmp_path / "network.onnx"
    torch.onnx.export(fused, (x,), path, dynamo=dynamo, verbose=False)
    model = onnx.load(path)
    assert {node.domain for node in model.graph.node} == {""}
    onnx.checker.check_model(model)
    name = model.graph.input[0].name
    (y,) = onnx.reference.ReferenceEvaluator(model).run(None, {name: x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(y), unfused(x), rtol=1e-4, atol=1e-5)
    assert se_kernels.unfuse(fused) == ["se", "blocks.1"]  # it was, and is, fused


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("how", ["trace", "script", "fx"])
def test_tracers_see_the_definition(network, how):
    network.eval()
    unfused, fused = twins(network)
    x = torch.randn(2, 3, 5, 6)
    if how == "trace":
        traced = torch.jit.trace(fused, (x,))
        assert "se_kernels::" not in str(traced.inlined_graph)
    elif how == "script":
        traced = torch.jit.script(fused)
        assert "se_kernels::" not in str(traced.inlined_graph)
    else:
        traced = torch.fx.symbolic_trace(fused)
        assert "se_fc1" in {node.name for node in traced.graph.nodes}
    torch.testing.assert_close(traced(x), unfused(x))
    assert len(se_kernels.unfuse(fused)) == 2


# --- register_family -----------------------------------------------------------------------------


class Functional(nn.Module):
    """A user's class: linear FCs, functions between them."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Linear(CHANNELS, 4), nn.Linear(4, CHANNELS, bias=False)

    def forward(self, x):
        s = torch.sigmoid(self.up(F.silu(self.down(x.amax((2, 3))))))
        return x * s[:, :, None, None]


class Convolved(nn.Module):
    """A user's class: a convolution over the channels."""

    def __init__(self):
        super().__init__()
        self.over_channels = nn.Conv1d(1, 1, 3, padding=1)

    def excite(self, z):
        return torch.sigmoid(self.over_channels(z.flatten(2).mT)).mT[..., None]

    def forward(self, x):
        return self.excite(x.mean((2, 3), keepdim=True)) * x


class Nested(nn.Module):
    """A user's class: any children, in a container, on (N, H, W, C)."""

    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleDict(
            {
                "excite": nn.Sequential(
                    nn.Linear(CHANNELS, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, CHANNELS)
                )
            }
        )

    def forward(self, x):
        return x * F.hardsigmoid(self.inner["excite"](x.mean((1, 2), keepdim=True)))


ADAPTERS = {
    Functional: lambda _: ExcitationSteps(("down", "silu", "up", "sigmoid"), squeeze="max"),
    Convolved: lambda _: ExcitationSteps(("excite",), channels=7),
    Nested: lambda _: ExcitationSteps(
        (*(f"inner.excite.{i}" for i in range(4)), "hardsigmoid"), layout="nhwc"
    ),
}


@pytest.fixture
def registry():
    """Forgets afterwards what a test registers."""
    before = dict(specs._registered)
    yield specs._registered
    specs._registered.clear()
    specs._registered.update(before)


@pytest.mark.parametrize("cls", ADAPTERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_own_class(registry, native, cls, dtype):
    module = draw(cls())
    assert se_kernels.fuse(module).fused == {}
    se_kernels.register_family(cls, ADAPTERS[cls])
    unfused, fused = twins(module)
    shape = (2, 4, 5, CHANNELS) if cls is Nested else (2, CHANNELS, 4, 5)
    compare(unfused, fused, images(*shape), dtype)
    expected = ["inference"] if cls is Functional else ["squeeze", "scale"]
    assert ops_of(fused, images(*shape).float()) == expected
    assert ops_of(pickle.loads(pickle.dumps(fused)), images(*shape).float()) == expected


def test_subclass_of_own_class(registry):
    class Named(Functional):
        pass

    class Other(Functional):
        def forward(self, x):
            return 1 + super().forward(x)

    se_kernels.register_family(Functional, ADAPTERS[Functional])
    assert list(se_kernels.fuse(nn.ModuleList([Named(), Functional()])).fused) == ["0", "1"]
    assert se_kernels.fuse(Other()).skipped == {"": "Other has another forward than Functional"}


@pytest.mark.parametrize(
    "adapter, message",
    [
        (
            lambda m: ExcitationSteps(("down", "relu", "up", "sigmoid"), "max"),
            "something else .*: y differs",
        ),
        (
            lambda m: ExcitationSteps(("down", "silu", "up", "sigmoid")),
            "something else .*: y differs",
        ),
        (
            lambda m: ExcitationSteps(("up", "silu", "down", "sigmoid"), "max"),
            "its forward fails on x",
        ),
        (
            lambda m: ExcitationSteps(("down", "silu", "down", "sigmoid"), "max"),
            "down: expected weights",
        ),
        (
            lambda m: ExcitationSteps(("fc1", "silu", "fc2", "sigmoid"), "max"),
            "excitation: .* got 'fc1'",
        ),
        (lambda m: ExcitationSteps(("training",), "max"), "excitation: expected something to call"),
        (
            lambda m: ExcitationSteps(("down", "silu", "up", "sigmoid"), "max", pool="p"),
            "pool: .* got 'p'",
        ),
        (
            lambda m: ExcitationSteps(("down", "silu", "up", "sigmoid"), "max", layout="nhwc"),
            "its forward",
        ),
        (
            lambda m: {"fc1": "down"},
            r"expected a se_kernels.ExcitationSteps, got \{'fc1': 'down'\}",
        ),
        (lambda m: m.fc1, "raised AttributeError: .*'fc1'"),
        (
            lambda m: ExcitationSteps(("down",), squeeze="min"),
            "raised ValueError: squeeze: expected one of",
        ),
        (
            lambda m: ExcitationSteps("down"),
            "raised TypeError: excitation: expected a tuple of names",
        ),
    ],
)
def test_wrong_adapter_fails_at_fuse(registry, adapter, message):
    se_kernels.register_family(Functional, adapter)
    model = nn.ModuleDict({"first": SEModule(), "own": Functional()})
    message = f"(?s)adapter of test_fuse.Functional 'own': .*{message}"
    with pytest.raises(ValueError, match=message):
        se_kernels.fuse(model)
    assert type(model["first"]) is SEModule  # nothing was fused


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn], ids=str)
def test_a_dtype_that_no_kernel_takes_is_left_with_the_reason(dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "complex modules are a new feature"
        module = SEModule().to(dtype)
    assert se_kernels.fuse(module).skipped == {"": f"fc1.weight has dtype {dtype}"}


def test_dropout_drops_what_it_would():
    """Of one without effect nothing is left to run; another one is run."""
    for p in (0.0, 0.5):
        own, fused = SEModule().double(), SEModule().double()
        own.bn, fused.bn = nn.Dropout(p), nn.Dropout(p)
        fused.load_state_dict(own.state_dict())
        assert se_kernels.fuse(fused).fused
        x = torch.randn(2, CHANNELS, 5, 4, dtype=torch.float64)
        for module in (own, fused):
            torch.manual_seed(0)
            module.y = module(x)
        # an image's mean is summed in another order: an ulp or so of numbers of some units
        torch.testing.assert_close(fused.y, own.y, rtol=1e-13, atol=1e-13)


def test_hooks_in_an_own_class_only_skip_it(registry):
    se_kernels.register_family(Functional, ADAPTERS[Functional])
    module = Functional()
    module.up.register_forward_hook(lambda *_: None)
    assert "up has hooks" in se_kernels.fuse(module).skipped[""]


@pytest.mark.parametrize(
    "cls, adapter, error, message",
    [
        (Functional(), len, TypeError, "class of nn.Module, got an instance of Functional"),
        (int, len, TypeError, "cls: expected a class of nn.Module"),
        (nn.ModuleDict, len, ValueError, "cls: expected a class with a forward, got ModuleDict"),
        (Functional, "avg", TypeError, "adapter: expected a function of a module, got 'avg'"),
        (Functional, lambda: None, TypeError, "adapter: expected a function of one argument"),
        (Functional, lambda a, b: None, TypeError, "adapter: expected a function of one argument"),
    ],
)
def test_bad_registration(registry, cls, adapter, error, message):
    with pytest.raises(error, match=message):
        se_kernels.register_family(cls, adapter)
    assert Functional not in registry


def test_registered_twice(registry):
    adapter = ADAPTERS[Functional]
    se_kernels.register_family(Functional, adapter)
    se_kernels.register_family(Functional, adapter)
    with pytest.raises(ValueError, match="Functional has one"):
        se_kernels.register_family(Functional, lambda m: adapter(m))


@pytest.mark.parametrize("function", [se_kernels.fuse, se_kernels.unfuse])
def test_not_a_model(function):
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got dict"):
        function({})


def test_bad_blocks():
    with pytest.raises(ValueError, match="at least one step"):
        ExcitationSteps(())
    with pytest.raises(ValueError, match="layout: expected one of nchw, nhwc; got 'nlc'"):
        ExcitationSteps(("fc",), layout="nlc")
    with pytest.raises(ValueError, match="channels: expected an integer of at least 1, got 0"):
        ExcitationSteps(("fc",), channels=0)
    with pytest.raises(TypeError, match="excitation: expected a tuple of names, got None"):
        ExcitationSteps(None)
    with pytest.raises(TypeError, match="pool: expected the name of a child or None, got 1"):
        ExcitationSteps(("fc",), pool=1)


@pytest.mark.parametrize("slope", [numpy.float32(0.25), torch.tensor(0.25)])
def test_slopes_as_torch_takes_them(slope):
    """A tensor may change: the activation is called."""
    se = SEModule(CHANNELS)
    se.act = nn.LeakyReLU(slope)
    unfused, fused = twins(se)
    compare(unfused, fused, images(2, CHANNELS, 4, 5), torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(
            fused.double()(images(1, CHANNELS, 2, 2)), unfused.double()(images(1, CHANNELS, 2, 2))
        )


@pytest.mark.parametrize("level", ["layer", "block"])
def test_pickles_name_what_stays(level):
    """A module of the library may move; what a pickle names may not."""
    model = nn.Sequential(nn.BatchNorm2d(CHANNELS), nn.ReLU(), SEModule(CHANNELS))
    assert se_kernels.fuse(model, level).fused
    named = {
        argument.partition(" ")[0]
        for opcode, argument, _ in pickletools.genops(pickle.dumps(model, 2))
        if opcode.name == "GLOBAL"
    }
    assert {n for n in named if n.startswith("se_kernels")} == {"se_kernels.pickles"}


EARLIER = {
    "before se_kernels.pickles": {
        "plan": "se_kernels.fusion.run.Plan", "tail": "se_kernels.fusion.tail.Tail"
    },
    "plans of two kinds": {"plan": "se_kernels.pickles.Plan", "tail": "se_kernels.pickles.Tail"},
}  # fmt: skip


@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("version", EARLIER)
@pytest.mark.parametrize("level", ["layer", "block"])
def test_a_pickle_of_an_earlier_version_is_read_anew(level, version, weights_only):
    """It has names of modules that are gone, and plans of other fields."""
    names = EARLIER[version]

    def global_(name):
        module, _, name = name.rpartition(".")
        text = f"c{module}\n{name}\n.".encode()
        if not weights_only:
            return pickle.loads(text)
        with torch.serialization.safe_globals([*se_kernels.surgery.SAFE_GLOBALS]):
            return torch._weights_only_unpickler.load(io.BytesIO(text))

    model = nn.Sequential(nn.BatchNorm2d(CHANNELS), nn.ReLU(), SEModule(CHANNELS))
    unfused = copy.deepcopy(model)
    se_kernels.fuse(model, level)
    restore = global_("se_kernels.fusion.swap.restore")
    loaded = {}
    for module, way in ((model[2], "plan"), (model, "tail")):
        if "se_kernels_plan" in vars(module):
            twin = restore(se_kernels.surgery.swap.original_class(module), way)
            old = global_(names[way])(1, "fields", "of then")
            state = dict(vars(module))
            plan = state.pop("se_kernels_plan")
            twin.__setstate__(state | {f"se_kernels_{way}": old})
            assert twin.se_kernels_plan == plan
            loaded[way] = twin
    twin = loaded.get("tail", nn.Sequential(*unfused[:2], loaded["plan"]))
    compare(unfused, twin, images(2, CHANNELS, 4, 5), torch.float64)
    assert global_("se_kernels.module.SqueezeExcite") is se_kernels.SqueezeExcite
    assert global_("se_kernels.norm.module.BatchNormSqueezeExcite") is (
        se_kernels.BatchNormSqueezeExcite
    )
