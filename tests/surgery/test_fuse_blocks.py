"""fuse(level="block"): what stays, what is noticed later, what is left to the level of layers."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from fused_twins import compare, draw, images, outcome, twins
from ops_called import OpsCalled
from torch import nn
from torch.utils.checkpoint import checkpoint

import se_kernels
from se_kernels.surgery import specs
from se_kernels.surgery.steps import BlockSpec

CHANNELS, INNER = 6, 12
SEQUENCE = "torch.nn.modules.container.Sequential"


class SEModule(nn.Module):
    """The eager block as timm has it."""

    def __init__(self, norm=False):
        super().__init__()
        self.fc1 = nn.Conv2d(INNER, 5, 1)
        self.bn = nn.BatchNorm2d(5) if norm else nn.Identity()
        self.act = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(5, INNER, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x):
        z = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.fc2(self.act(self.bn(self.fc1(z)))))


class Unit(nn.Module):
    """A residual block of no family, until ``family`` says which it is."""

    def __init__(self, post=None, drop=None):
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, INNER, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(INNER)
        self.se = SEModule()
        self.drop = nn.Identity() if drop is None else drop
        self.shortcut = nn.Conv2d(CHANNELS, INNER, 1)
        self.post = nn.ReLU(inplace=True) if post is None else post
        self.scale = 1.0

    def forward(self, x):
        y = self.drop(self.se(self.norm(self.conv(x))))
        return self.post(self.scale * (y + self.shortcut(x)))


UNIT = BlockSpec(
    before=("conv",),
    norm="norm",
    se="se",
    skip=True,
    drop="drop",
    shortcut="shortcut",
    post="post",
)


@pytest.fixture
def family(monkeypatch):
    monkeypatch.setitem(specs._BLOCKS, f"{__name__}.Unit", UNIT)


def inverted(act=nn.ReLU, **se):
    """The middle of torchvision's blocks: a sequence that begins and ends with convolutions."""
    return nn.Sequential(
        nn.Conv2d(CHANNELS, CHANNELS, 1),
        nn.Sequential(
            nn.Conv2d(CHANNELS, INNER, 3, padding=1, bias=False), nn.BatchNorm2d(INNER), act()
        ),
        SEModule(**se),
        nn.Conv2d(INNER, CHANNELS, 1),
    )


@pytest.fixture
def block():
    return draw(inverted())


@pytest.fixture
def x():
    return images(3, CHANNELS, 4, 5)


def ops_of(module):
    with OpsCalled() as called, torch.no_grad():
        module(torch.randn(3, CHANNELS, 4, 5, dtype=next(module.parameters()).dtype))
    return called.names


def is_whole(module):
    """Whether the norm is fused, and no SE module on its own."""
    names = ops_of(module)
    apart = {"inference", "forward", "squeeze", "scale"} & set(names)
    assert not (apart and any(n.startswith("norm_") for n in names))
    return any(n.startswith("norm_") for n in names)


# --- what stays ----------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("act", [nn.ReLU, nn.SiLU, nn.Hardswish, nn.Identity])
def test_a_sequence(act, dtype, training, x):
    unfused, fused = twins(draw(inverted(act)).train(training), "block")
    assert is_whole(fused)
    fused.load_state_dict(unfused.state_dict())
    compare(unfused, fused, x, dtype)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.usefixtures("family")
def test_a_tail(training, x):
    unfused, fused = twins(draw(Unit()).train(training), "block")
    compare(unfused, fused, x, torch.float64)
    with OpsCalled(larger_than=INNER * 20) as called, torch.no_grad():
        fused(x.float())
    assert not [name for name in called.others if "add" in name or "relu" in name]


def test_a_norm_and_an_activation_right_before(x):
    model = nn.Sequential(nn.Conv2d(CHANNELS, INNER, 1), nn.BatchNorm2d(INNER), SEModule())
    for act in ((), (nn.SiLU(),)):
        unfused, fused = twins(draw(nn.Sequential(*model[:2], *act, model[2])), "block")
        compare(unfused, fused, x, torch.float64)
        assert is_whole(fused)


def test_report(block):
    model = nn.ModuleDict(dict(a=block, b=inverted(nn.GELU), c=SEModule()))
    report = se_kernels.fuse(model, level="block")
    se = f"{__name__}.SEModule"
    assert report.fused == {"a.2": se, "b.2": se, "c": se}
    assert report.blocks == {"a": SEQUENCE}
    reason = (
        "1.2: expected one of identity, relu, silu, hardswish between the norm and the SE module, "
        "got torch.nn.modules.activation.GELU"
    )
    assert report.apart == {"b": reason}
    assert str(report).splitlines() == [
        "ModuleDict: 3 SE modules fused, 0 skipped",
        f"  3 x {se}",
        f"  with what is around: 1 x {SEQUENCE}",
        f"  not with what is around b: {reason}",
    ]
    assert se_kernels.fuse(model, level="block") == report
    assert se_kernels.fuse(model).blocks == {}
    assert type(model["a"]) is nn.Sequential


def test_unfuse_makes_all_what_it_was(block):
    before = {name: type(m) for name, m in block.named_modules()}
    se_kernels.fuse(block, level="block")
    assert isinstance(block, nn.Sequential)
    assert se_kernels.unfuse(block) == ["", "2"]
    assert {name: type(m) for name, m in block.named_modules()} == before
    assert not [key for m in block.modules() for key in vars(m) if "se_kernels" in key]


def test_everything_stays_the_same_object(block):
    calls = []
    block.register_forward_hook(lambda *_: calls.append("block"))
    block[0].register_forward_hook(lambda *_: calls.append("convolution"))
    block[1].eval()
    modules = dict(block.named_modules())
    parameters, values = dict(block.named_parameters()), copy.deepcopy(block.state_dict())
    modes = {name: m.training for name, m in modules.items()}
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    se_kernels.fuse(block, level="block")
    assert dict(block.named_modules()) == modules
    assert all(block.get_parameter(name) is p for name, p in parameters.items())
    assert {name: m.training for name, m in block.named_modules()} == modes
    torch.testing.assert_close(block.state_dict(), values, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_num_threads() == threads
    assert calls == []
    assert is_whole(block)
    assert calls == ["convolution", "block"]


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_are_fused(block, copied):
    se_kernels.fuse(block.eval(), level="block")
    twin = copied(block)
    assert type(twin) is type(block)
    assert is_whole(twin)
    x = torch.randn(3, CHANNELS, 4, 5)
    assert torch.equal(twin(x), block(x))
    assert se_kernels.unfuse(twin) == ["", "2"]
    assert type(twin) is nn.Sequential


def test_a_slice_of_a_sequence_is_another_sequence(block, x):
    unfused, fused = twins(block.double(), "block")
    torch.testing.assert_close(fused[:3](x), unfused[:3](x))
    assert len(fused) == 4


def test_on_the_meta_device():
    with torch.device("meta"):
        model = inverted()
    assert list(se_kernels.fuse(model, level="block").blocks) == [""]


@pytest.mark.parametrize("level", ["blocks", None, 1])
def test_refuses_another_level(block, level):
    with pytest.raises(ValueError, match=r"^level: expected one of layer, block; got "):
        se_kernels.fuse(block, level=level)


# --- what is changed after fuse ------------------------------------------------------------------

CHANGES = {
    "a layer at the end": lambda b: b.append(nn.Tanh()),
    "no layer at the end": lambda b: b.pop(-1),
    "hook on the norm": lambda b: b[1][1].register_forward_hook(lambda m, args, v: 2 * v),
    "hook on the activation": lambda b: b[1][2].register_forward_hook(lambda m, args, v: 2 * v),
    "hook on the SE module": lambda b: b[2].register_forward_hook(lambda m, args, y: 2 * y),
    "hook on a nested sequence": lambda b: b[1].register_forward_hook(lambda m, args, v: 2 * v),
    "one layer more": lambda b: b[1].append(nn.Softplus()),
    "another norm": lambda b: b[1].__setitem__(1, nn.GroupNorm(3, INNER)),
    "another activation": lambda b: b[1].__setitem__(2, nn.SiLU()),
    "another SE module": lambda b: b.__setitem__(2, nn.Softplus()),
    "another FC": lambda b: setattr(b[2], "fc1", nn.Conv2d(INNER, 5, 3, padding=1)),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_after_fuse(block, change, training, x):
    unfused, fused = twins(block.train(training), "block")
    for module in (unfused, fused):
        torch.manual_seed(0)
        CHANGES[change](module)
    compare(unfused, fused, x, torch.float64)
    assert not is_whole(fused)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_what_may_change(block, training, x):
    """The convolutions are called as ever; the norm may be frozen, converted, of another eps."""
    unfused, fused = twins(block.train(training), "block")
    for module in (unfused, fused):
        torch.manual_seed(0)
        module[0] = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.Tanh())
        module[3].register_forward_hook(lambda m, args, y: 2 * y)
        module[1][1].eps, module[1][1].momentum = 0.1, None
    fused = nn.SyncBatchNorm.convert_sync_batchnorm(fused)
    compare(unfused, fused, x, torch.float64)
    for module in (unfused, fused):
        module[1][1].eval()
    compare(unfused, fused, x, torch.float64)
    assert is_whole(fused)


def test_a_hook_taken_off(block):
    se_kernels.fuse(block, level="block")
    handle = block[1][1].register_forward_hook(lambda *_: None)
    assert not is_whole(block)
    handle.remove()
    assert is_whole(block)


@pytest.mark.usefixtures("family")
def test_a_setting_of_the_block(x):
    unfused, fused = twins(draw(Unit()), "block")
    for module in (unfused, fused):
        module.scale = 2.0
    compare(unfused, fused, x, torch.float64)
    assert not is_whole(fused)


@pytest.mark.usefixtures("family")
def test_a_hook_on_what_ends_the_block(x):
    unfused, fused = twins(draw(Unit()), "block")
    for module in (unfused, fused):
        module.post.register_forward_hook(lambda m, args, y: 2 * y)
        module.shortcut.register_forward_hook(lambda m, args, y: 2 * y)
    compare(unfused, fused, x, torch.float64)
    assert is_whole(fused)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.usefixtures("family")
def test_what_drops_branches_is_called(training, x):
    unfused, fused = twins(draw(Unit(drop=nn.Dropout2d(0.5), post=nn.SiLU())), "block")
    compare(unfused.train(training), fused.train(training), x, torch.float64)
    assert is_whole(fused)


@pytest.mark.usefixtures("family")
def test_a_shortcut_of_another_dtype(x):
    unfused, fused = twins(draw(Unit()).eval(), "block")
    for module in (unfused, fused):
        module.shortcut.register_forward_hook(lambda m, args, y: y.double())
        with torch.no_grad():
            assert module(x.float()).dtype == torch.float64
    torch.testing.assert_close(fused(x.float()), unfused(x.float()), rtol=1e-4, atol=1e-5)


def test_convolutions_that_give_what_the_kernels_do_not_take(block, x):
    class Logged(torch.Tensor):
        pass

    unfused, fused = twins(block.eval(), "block")
    for module in (unfused, fused):
        module[1][0].register_forward_hook(lambda m, args, u: u.as_subclass(Logged))
    y = fused(x.float())
    assert type(y) is Logged
    torch.testing.assert_close(y, unfused(x.float()))


# --- what is left to the level of layers ---------------------------------------------------------


def in_the_middle(module):
    return nn.Sequential(nn.Conv2d(CHANNELS, INNER, 1), module, SEModule())


def hooked():
    model = inverted()
    model[1].register_forward_hook(lambda *_: None)
    return model


def parametrised():
    model = inverted()
    nn.utils.parametrize.register_parametrization(model[1][1], "weight", nn.Tanh())
    return model


APART = {
    "1 has hooks, or a forward of its own": hooked,
    "1.1 is parametrised": parametrised,
    "2: expected two FCs on the average of (N, C, H, W), got squeeze=avg, fc1 -> bn -> act -> fc2 "
    "-> gate": lambda: inverted(norm=True),
    "1.2: expected one of identity, relu, silu, hardswish between the norm and the SE module, got "
    "torch.nn.modules.activation.LeakyReLU": lambda: inverted(nn.LeakyReLU),
}


@pytest.mark.parametrize("reason", APART)
def test_left_apart_with_the_reason(reason, x):
    model = draw(APART[reason]())
    unfused = copy.deepcopy(model)
    report = se_kernels.fuse(model, level="block")
    assert list(report.fused) == ["2"]
    assert report.apart == {"": reason}
    assert not report.blocks
    compare(unfused, model, x, torch.float64)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpoint_counts_and_moves_statistics_as_eager(use_reentrant, x):
    unfused, fused = twins(draw(inverted()[:3]), "block")
    for module in (unfused.double(), fused.double()):
        inputs = x.clone().requires_grad_()
        checkpoint(module, inputs, use_reentrant=use_reentrant).sum().backward()
    assert fused[1][1].num_batches_tracked == 2
    torch.testing.assert_close(fused.state_dict(), unfused.state_dict())


@pytest.mark.parametrize("fc", ["fc1", "fc2"])
def test_fusing_again_goes_by_no_plan_of_before(fc):
    model = inverted()
    assert se_kernels.fuse(model, level="block").blocks
    setattr(model[2], fc, None)
    report = se_kernels.fuse(model, level="block")
    assert report.skipped["2"].startswith(f"{fc}: expected an nn.Conv2d or nn.Linear")
    assert report.apart == {"": "2 is not fused itself"}
    assert se_kernels.unfuse(model) == []


@pytest.mark.parametrize(
    "module",
    [
        nn.Identity(),
        nn.GroupNorm(2, INNER),
        nn.InstanceNorm2d(INNER),
        nn.Conv2d(INNER, INNER, 1),
        None,
        nn.Sequential(nn.BatchNorm2d(INNER), None),
    ],
    ids=lambda module: type(module).__name__,
)
def test_no_batch_norm_is_no_block(module):
    report = se_kernels.fuse(in_the_middle(module), level="block")
    assert list(report.fused) == ["2"]
    assert not report.blocks
    assert not report.apart


def test_layers_that_are_not_initialised_yet():
    model = inverted()
    model[0] = nn.LazyConv2d(CHANNELS, 1)
    report = se_kernels.fuse(model, level="block")
    assert report.apart == {"": "0.weight is not initialised yet"}


@pytest.mark.usefixtures("family")
def test_a_wrong_description_is_noticed(monkeypatch):
    class Halved(Unit):
        def forward(self, x):
            return super().forward(x) / 2

    report = se_kernels.fuse(Halved(), level="block")
    assert report.apart == {"": "Halved has another forward than Unit"}

    with monkeypatch.context() as patch:
        patch.setattr(Unit, "forward", lambda self, x: self.se(self.norm(self.conv(x))))
        report = se_kernels.fuse(Unit(), level="block")
    assert report.apart == {"": "computes something else than its block: y differs"}


@pytest.mark.usefixtures("family")
def test_blocks_of_other_parameters_are_judged_apart(monkeypatch):
    def forward(self, x):
        y = self.post(self.drop(self.se(self.norm(self.conv(x)))) + self.shortcut(x))
        return y if self.factor is None else self.factor * y

    monkeypatch.setattr(Unit, "forward", forward)
    model = nn.Sequential(Unit(), Unit())
    for unit, factor in zip(model, (None, nn.Parameter(torch.ones(1))), strict=True):
        unit.register_parameter("factor", factor)
    report = se_kernels.fuse(model, level="block")
    assert list(report.blocks) == ["0"]
    assert report.apart == {"1": "computes something else than its block: y differs"}


@pytest.mark.usefixtures("family")
@pytest.mark.parametrize("where", ["norm", "gradient", "statistics"])
def test_a_difference_in_training_only_is_noticed(where, monkeypatch):
    def forward(self, x):
        u = self.conv(x)
        if self.training and where == "norm":
            u = 2 * u + 1  # undone by the norm, but for eps and the statistics
        if where == "gradient":
            u = u + (u - u.detach())
        v = self.norm(u)
        if where == "statistics" and self.training:
            self.norm(u + 1)
        return self.post(self.drop(self.se(v)) + self.shortcut(x))

    monkeypatch.setattr(Unit, "forward", forward)
    report = se_kernels.fuse(Unit(), level="block")
    assert report.apart[""].startswith("computes something else than its block: ")


# --- with everything else ------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_gates_are_recorded_and_nothing_changes(block, training, x):
    unfused, fused = twins(block.double().train(training), "block")
    v = unfused[1](unfused[0](x))
    s = F.relu(unfused[2].fc1(v.mean((2, 3), keepdim=True)))
    s = torch.sigmoid(unfused[2].fc2(s)).flatten(1)
    with torch.no_grad():
        expected = copy.deepcopy(fused)(x)
        with se_kernels.record_gates(fused) as gates:
            assert is_whole(fused)
            gates.clear()
            assert torch.equal(fused(x), expected) or training
    assert list(gates) == ["2"]
    torch.testing.assert_close(gates["2"], s)


def test_pruned(block, x):
    unfused, fused = twins(block.double().eval(), "block")
    model = nn.Sequential(fused)
    with torch.no_grad():
        for m in (unfused, fused):
            m[2].fc2.bias.fill_(100)
    report = se_kernels.prune_by_gate(model, x, 1)
    assert report.removed == ("0.2",)
    torch.testing.assert_close(model(x), unfused(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compile(block, training, x):
    torch.compiler.reset()
    unfused, fused = twins(block.train(training), "block")
    fused.compile(fullgraph=True)
    results, expected = outcome(fused, x.float()), outcome(unfused, x.float())
    assert list(results) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(results[name], value, rtol=1e-4, atol=1e-4, msg=name)
    torch.compiler.reset()


def test_export_keeps_the_fused_op(block):
    unfused, fused = twins(block.eval(), "block")
    x = torch.randn(3, CHANNELS, 4, 5)
    with torch.no_grad():
        program = torch.export.export(fused, (x,))
        targets = [str(node.target) for node in program.graph.nodes]
        assert [t for t in targets if "se_kernels" in t] == ["se_kernels.norm_inference.default"]
        torch.testing.assert_close(program.module()(x), unfused(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("how", ["trace", "script", "fx"])
def test_tracers_see_the_definition(block, how):
    unfused, fused = twins(block.eval(), "block")
    x = torch.randn(3, CHANNELS, 4, 5)
    if how == "trace":
        traced = torch.jit.trace(fused, (x,))
        assert "se_kernels::" not in str(traced.inlined_graph)
    elif how == "script":
        traced = torch.jit.script(fused)
        assert "se_kernels::" not in str(traced.inlined_graph)
    else:
        traced = torch.fx.symbolic_trace(fused)
        assert "se_kernels" not in str(traced.graph)
    torch.testing.assert_close(traced(x), unfused(x))
    assert se_kernels.unfuse(fused) == ["", "2"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx_holds_standard_operators_only(block, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    se_kernels.fuse(block.eval(), level="block")
    path = tmp_path / "block.onnx"
    torch.onnx.export(block, (torch.randn(3, CHANNELS, 4, 5),), path, dynamo=True, verbose=False)
    assert {node.domain for node in onnx.load(path).graph.node} == {""}


@pytest.mark.usefixtures("family")
def test_autocast_and_channels_last(x):
    """In bfloat16 convolutions; y of the same dtype and layout, no further from float64."""
    unfused, fused = twins(draw(Unit()).to(memory_format=torch.channels_last), "block")
    x = x.float().contiguous(memory_format=torch.channels_last)
    exact = outcome(copy.deepcopy(unfused).double(), x.double())
    with torch.autocast("cpu", torch.bfloat16):
        baseline, results = outcome(unfused, x), outcome(fused, x)
        assert fused(x).is_contiguous(memory_format=torch.channels_last)
        assert is_whole(fused)
    assert results["y"].dtype == baseline["y"].dtype == torch.bfloat16
    for name, value in exact.items():
        error, allowed = ((r[name].double() - value).norm() for r in (results, baseline))
        scale = max(value.double().norm(), exact["y"].norm())
        assert error <= 2 * allowed + torch.finfo(torch.bfloat16).eps * scale, name
