"""What looks at, rewrites or spreads a model: tracers, exporters, counters, hooks and DTensor, on
the library's own layers and networks. They see the definition."""

import copy
import io
import itertools

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from fused_twins import draw
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import se_kernels
from se_kernels import BatchNormSqueezeExcite, SqueezeExcite, models
from se_kernels.models import SE, ResNet, Stage

STAGES = [Stage((8, 8, 32), 1, 1), Stage((16, 16, 64), 2, 2)]
LAYERS = {
    "SE": lambda: SqueezeExcite(16, act_layer="silu", gate_layer="hardsigmoid", bias=True),
    "SE with ReLU after it": lambda: SqueezeExcite(16, squeeze="avgmax", post="relu"),
    "SE with a norm": lambda: SqueezeExcite(16, norm_layer=nn.BatchNorm2d),
    "norm and SE": lambda: BatchNormSqueezeExcite(16, pre="relu", post="relu"),
    "norm without parameters": lambda: BatchNormSqueezeExcite(16, affine=False),
}
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning"
)


def layer_of(name):
    return draw(LAYERS[name]()).double()


def tensors(count=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 16, 5, 3, generator=generator, dtype=dtype) for _ in range(count)]


def network(se=True, **options):
    torch.manual_seed(0)
    return ResNet(STAGES, 7, se=SE() if se else None, **options).eval()


def pictures(model=None):
    size = 8 if model is None else max(model.min_size, 8)
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def outcome(module, *xs):
    xs = [x.clone().requires_grad_() for x in xs]
    y = module(*xs)
    y.square().sum().backward()
    gradients = [x.grad for x in xs] + [p.grad for p in module.parameters()]
    return [y.detach(), *gradients, *(b.clone() for b in module.buffers())]


# --- tracers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("how", ["fx", "script", "trace"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_traced_as_their_definition(name, how, residual, training):
    layer = layer_of(name).train(training)
    expected = outcome(copy.deepcopy(layer), *tensors(1 + residual))
    if how == "trace":
        traced = torch.jit.trace(layer, tuple(tensors(1 + residual)), check_trace=False)
        layer.load_state_dict(layer_of(name).state_dict())  # the trace moved its statistics
    else:
        traced = (torch.fx.symbolic_trace if how == "fx" else torch.jit.script)(layer)
    graph = traced.graph if how == "fx" else traced.inlined_graph
    assert "se_kernels::" not in str(graph)
    assert "ops.se_kernels" not in str(graph)
    torch.testing.assert_close(outcome(traced, *tensors(1 + residual)), expected)


def test_a_scripted_layer_is_saved():
    layer, (x,) = layer_of("norm and SE").eval(), tensors(1)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(layer), file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(x), layer(x))


@pytest.mark.parametrize("se", ["fused", None])
@pytest.mark.parametrize("name", models.names())
def test_every_network_is_traced_by_fx(name, se):
    with torch.device("meta"):
        model = models.create(name, 7, se=se).train(se is None)
    assert torch.fx.symbolic_trace(model).state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("how", ["fx", "script", "trace"])
@pytest.mark.parametrize("make", [network, lambda: models.create("shufflenet", 7).eval()])
def test_a_traced_network_is_the_same(make, how):
    model = make()
    x = pictures(model)
    hows = {"fx": torch.fx.symbolic_trace, "script": torch.jit.script}
    traced = torch.jit.trace(model, x) if how == "trace" else hows[how](model)
    with torch.no_grad():
        torch.testing.assert_close(traced(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_network_is_scripted_inside_another_module():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.head = network(), nn.Linear(7, 2)

        def forward(self, x):
            return self.head(self.backbone(x))

    around = Around().eval()
    expected = around(pictures())
    torch.testing.assert_close(torch.jit.script(around)(pictures()), expected)


def test_scripted_feature_maps():
    model = network(features_only=True)
    for result, expected in zip(
        torch.jit.script(model)(pictures()), model(pictures()), strict=True
    ):
        torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("of", ["torchvision", "timm"])
@pytest.mark.parametrize("se", [True, False])
def test_feature_extraction(se, of):
    pytest.importorskip(of)
    if of == "timm":
        from timm.models._features_fx import create_feature_extractor
    else:
        from torchvision.models.feature_extraction import create_feature_extractor
    model = network(se)
    extractor = create_feature_extractor(model, ["layer1", "layer2"]).eval()
    expected = network(se, features_only=True)
    expected.load_state_dict(model.state_dict(), strict=False)
    maps = extractor(pictures())
    maps = list(maps.values()) if isinstance(maps, dict) else maps
    torch.testing.assert_close(maps, expected(pictures()))


@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx_of_a_network_holds_standard_operators_only(dynamo, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    # every layer with a residual and ReLU, one of its own after them
    model = nn.Sequential(network(features_only=True).layer1, SqueezeExcite(32, gate_layer="tanh"))
    model = draw(nn.Sequential(nn.Conv2d(3, 8, 3), *model)).eval()
    path = tmp_path / "network.onnx"
    torch.onnx.export(model, (pictures(),), path, dynamo=dynamo, verbose=False)
    exported = onnx.load(path)
    assert {node.domain for node in exported.graph.node} == {""}
    onnx.checker.check_model(exported)
    name = exported.graph.input[0].name
    (y,) = onnx.reference.ReferenceEvaluator(exported).run(None, {name: pictures().numpy()})
    torch.testing.assert_close(
        torch.from_numpy(y), model(pictures()).detach(), rtol=1e-4, atol=1e-5
    )


# --- counters and hooks ---------------------------------------------------------------------------


def flops(function):
    with FlopCounterMode(display=False) as counted:
        function()
    return counted.get_total_flops()


class Separate(nn.Module):
    """A norm, a ReLU and an SE block of torch's own operations."""

    def __init__(self, layer):
        super().__init__()
        self.bn, self.se = layer.bn, layer.se

    def forward(self, u):
        v = F.relu(self.bn(u))
        s = torch.sigmoid(self.se.fc2(F.relu(self.se.fc1(v.mean((2, 3), keepdim=True)))))
        return F.relu(v * s)


@pytest.mark.parametrize("norm", [False, True])
def test_flops_are_those_of_the_definition(norm):
    """Forward and backward, whatever is differentiated."""
    layer, (x,) = layer_of("norm and SE"), tensors(1)
    fcs = layer.se.fc1.weight, layer.se.fc2.weight
    if norm:
        statistics = layer.bn.running_mean, layer.bn.running_var
        arguments = (layer.bn.weight, layer.bn.bias, *statistics, *fcs)
        separate = Separate(layer)

        def fused(x):
            options = dict(training=layer.bn.training, pre="relu", post="relu")
            return se_kernels.batch_norm_squeeze_excite(x, *arguments, **options)
    else:

        def separate(x):
            z = x.mean((2, 3), keepdim=True)
            return x * torch.sigmoid(layer.se.fc2(F.relu(layer.se.fc1(z))))

        def fused(x):
            return se_kernels.squeeze_excite(x, *fcs)

    with torch.no_grad():
        assert flops(lambda: fused(x)) == flops(lambda: separate(x)) == 2 * 2 * 4 * 16 * 8
    for training, *needs in itertools.product([True, False], repeat=4):
        layer.train(training)
        if any(needs):
            for tensor, need in zip((x, *fcs), needs, strict=True):
                tensor.requires_grad_(need)
            counts = [flops(lambda f=f: f(x).sum().backward()) for f in (fused, separate)]
            assert counts[0] == counts[1] > 0, (training, needs)


def test_flops_of_a_network():
    fused, eager = (ResNet(STAGES, 7, se=SE(fused=fused)) for fused in (True, False))
    counts = [flops(lambda m=m: m(pictures()).sum().backward()) for m in (fused, eager)]
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("target", ["", "bn", "se", "se.fc1", "se.fc2"])
@pytest.mark.parametrize("training", [True, False])
def test_hooks_as_of_grad_cam(target, training):
    """What a module gave, and the gradient of that, as of separate modules; the gradients stay."""
    fused = layer_of("norm and SE").train(training)
    separate = Separate(copy.deepcopy(fused))
    expected, results = {}, {}
    for module, seen in ((separate, expected), (fused, results)):
        hooked = module.get_submodule(target)
        if target != "se":  # Separate calls none
            hooked.register_forward_hook(
                lambda m, args, y, seen=seen: seen.update(y=y.detach().clone())
            )
            hooked.register_full_backward_hook(
                lambda m, dx, dy, seen=seen: seen.update(dy=dy[0].clone())
            )
        seen["all"] = outcome(module, *tensors(1))
    torch.testing.assert_close(results, expected)


@pytest.mark.parametrize("se", [SE(), SE(fused=False), None], ids=["fused", "eager", "none"])
def test_any_module_of_a_network_takes_backward_hooks(se):
    """torch forbids to write to what such a module gives, as a ReLU in place would."""
    model = ResNet(STAGES, 7, se=se, stem="deep").double()
    expected = outcome(copy.deepcopy(model), pictures().double())
    for target in model.modules():
        target.register_full_backward_hook(lambda module, dx, dy: None)
    torch.testing.assert_close(outcome(model, pictures().double()), expected)


# --- DTensor --------------------------------------------------------------------------------------


def run_process(rank, meeting_point):
    from torch.distributed.tensor import (
        Partial,
        Replicate,
        Shard,
        distribute_module,
        distribute_tensor,
        init_device_mesh,
    )

    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{meeting_point}", rank=rank, world_size=2)
    try:
        mesh = init_device_mesh("cpu", (2,))
        for name, training in itertools.product(("SE with ReLU after it", "norm and SE"), (0, 1)):
            layer = layer_of(name).train(bool(training))
            spread = distribute_module(copy.deepcopy(layer), mesh)
            xs = [distribute_tensor(x, mesh, [Shard(0)]).requires_grad_() for x in tensors()]
            y = spread(*xs)
            assert y.placements == (Shard(0),)
            y.square().sum().backward()
            of_batch = training and name == "norm and SE"  # torch has u whole on every process
            for parameter in spread.parameters():
                assert parameter.grad.placements == (Replicate() if of_batch else Partial(),)
            results = [y.detach(), *(x.grad for x in xs), *(p.grad for p in spread.parameters())]
            results = [t.full_tensor() for t in (*results, *spread.buffers())]
            torch.testing.assert_close(results, outcome(layer, *tensors()))
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch was built without gloo"
)
def test_dtensors_sharded_by_image(tmp_path, monkeypatch):
    """SE and a norm in evaluation mode stay sharded; a norm that trains is that of all images."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")  # no name of this machine to be resolved
    mp.spawn(run_process, (str(tmp_path / "meeting point"),), nprocs=2)
