"""SqueezeExcite as a layer: signature, variants, state dicts of its relatives, life as a module."""

import copy
import functools
import importlib
import inspect
import io
import pickle
from fractions import Fraction
from functools import partial

import pytest
import torch
from operator_cases import act_module, gate_module
from ops_called import OpsCalled
from torch import nn
from torch.nn.utils import parametrizations, prune

import se_kernels
from se_kernels import SqueezeExcite
from se_kernels.core.variants import ACTS, GATES
from se_kernels.modules.squeeze_excite import reduced_channels

# float32 roundings of sums of few terms, in whatever order they are taken
assert_close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-6)


class TimmLayout(nn.Module):
    """The eager block with the parameter names, and the computation, of timm's ``SEModule``."""

    def __init__(
        self, channels, reduced, bias=True, norm=None, act="relu", gate="sigmoid", max_too=False
    ):
        super().__init__()
        self.max_too = max_too
        self.fc1 = nn.Conv2d(channels, reduced, 1, bias=bias)
        self.bn = nn.Identity() if norm is None else norm(reduced)
        self.act = act_module(act)
        self.fc2 = nn.Conv2d(reduced, channels, 1, bias=bias)
        self.gate = gate_module(gate)

    def forward(self, x):
        z = x.mean((2, 3), keepdim=True)
        if self.max_too:
            z = 0.5 * z + 0.5 * x.amax((2, 3), keepdim=True)
        return x * self.gate(self.fc2(self.act(self.bn(self.fc1(z)))))


class TorchvisionLayout(nn.Module):
    """The eager block with the parameter names of torchvision's ``SqueezeExcitation``."""

    def __init__(self, input_channels, squeeze_channels):
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(input_channels, squeeze_channels, 1)
        self.fc2 = nn.Conv2d(squeeze_channels, input_channels, 1)
        self.activation = nn.ReLU()
        self.scale_activation = nn.Sigmoid()

    def forward(self, x):
        h = self.activation(self.fc1(self.avgpool(x)))
        return x * self.scale_activation(self.fc2(h))


@functools.cache
def installed(path):
    """The class itself where it can be imported, else None."""
    module, name = path.rsplit(".", 1)
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError:
        return None


RELATIVES = {
    "timm's layout": lambda: partial(TimmLayout, bias=True),
    "torchvision's layout": lambda: TorchvisionLayout,
    "timm": lambda: installed("timm.layers.SEModule"),
    "torchvision": lambda: installed("torchvision.ops.SqueezeExcitation"),
}


@pytest.fixture(params=RELATIVES)
def relative(request):
    """A class of another library, or a stand-in: ``relative(channels, reduced)``."""
    cls = RELATIVES[request.param]()
    if cls is None:
        pytest.skip(f"{request.param} cannot be imported")
    if request.param == "timm":
        return lambda channels, reduced: cls(channels, rd_channels=reduced)
    return cls


# --- the constructor -----------------------------------------------------------------------------


def test_signature_is_timms_but_for_bias():
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(SqueezeExcite).parameters.items()
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    }
    assert list(defaults.items()) == [
        ("channels", inspect.Parameter.empty),
        ("rd_ratio", 1 / 16),
        ("rd_channels", None),
        ("rd_divisor", 8),
        ("add_maxpool", False),
        ("bias", False),  # section 6 of the paper; timm's is True
        ("act_layer", nn.ReLU),
        ("norm_layer", None),
        ("gate_layer", "sigmoid"),
    ]
    timm = installed("timm.layers.SEModule")
    if timm is not None:
        theirs = inspect.signature(timm).parameters
        assert list(theirs)[: len(defaults)] == list(defaults)
        assert {n: p.default for n, p in theirs.items() if n in defaults} == defaults | {
            "bias": True
        }


@pytest.mark.parametrize("divisor", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("ratio", [1 / 16, 1 / 8, 1 / 4, 1 / 3, 0.2, 0.5, 1.0])
def test_reduced_channels(ratio, divisor):
    """The nearest multiple of the divisor, a tie going up, and never below the divisor."""
    for channels in [
        *range(1, 130),
        144,
        192,
        240,
        256,
        384,
        480,
        512,
        672,
        960,
        1152,
        2048,
        10444,
    ]:
        wanted = Fraction(channels * ratio)
        candidates = range(0, 2 * channels + 2 * divisor + 1, divisor)
        nearest = min(candidates, key=lambda multiple: (abs(multiple - wanted), -multiple))
        assert reduced_channels(channels, ratio, divisor) == max(nearest, divisor), channels


@pytest.mark.parametrize(
    "channels, ratio, reduced",
    [
        (64, 1 / 16, 8),  # 4, raised to the divisor
        (256, 1 / 16, 16),
        (512, 1 / 16, 32),
        (1024, 1 / 16, 64),
        (2048, 1 / 16, 128),
        (72, 1 / 4, 16),  # 18
        (80, 1 / 4, 24),  # 20, a tie
        (120, 1 / 4, 32),  # 30
        (10444, 1 / 4, 2608),  # 2611
    ],
)
def test_reduced_channels_of_real_networks(channels, ratio, reduced):
    se = SqueezeExcite(channels, ratio)
    assert se.fc1.weight.shape == (reduced, channels, 1, 1)
    assert se.fc2.weight.shape == (channels, reduced, 1, 1)
    timm = installed("timm.layers.SEModule")
    if timm is not None:
        assert timm(channels, ratio).fc1.out_channels == reduced


def test_rd_channels_overrides_the_ratio():
    assert SqueezeExcite(64, 1 / 2, rd_channels=5).fc1.out_channels == 5


def test_parameters():
    shapes = {name: tuple(p.shape) for name, p in SqueezeExcite(32, bias=True).named_parameters()}
    assert shapes == {
        "fc1.weight": (8, 32, 1, 1),
        "fc1.bias": (8,),
        "fc2.weight": (32, 8, 1, 1),
        "fc2.bias": (32,),
    }
    assert {*SqueezeExcite(32).state_dict()} == {"fc1.weight", "fc2.weight"}


def test_initialisation_is_that_of_convolutions():
    torch.manual_seed(5)
    expected = nn.Conv2d(64, 8, 1, bias=False), nn.Conv2d(8, 64, 1, bias=False)
    torch.manual_seed(5)
    se = SqueezeExcite(64)
    assert torch.equal(se.fc1.weight, expected[0].weight)
    assert torch.equal(se.fc2.weight, expected[1].weight)


def output(se, x):
    with torch.no_grad():
        return se(x)


def check_variant(se, act, gate, slope=0.01):
    torch.manual_seed(0)
    x = torch.randn(2, 16, 4, 3) * 2
    with torch.no_grad():
        se.fc1.weight.normal_()
        se.fc2.weight.normal_()
        e = se.fc2(act_module(act, slope)(se.fc1(x.mean((2, 3), keepdim=True))))
        expected = x * gate_module(gate)(e)
    assert_close(output(se, x), expected)


@pytest.mark.parametrize(
    "layer, act, slope",
    [
        *((name, name, 0.01) for name in ACTS),
        ("swish", "silu", 0.01),
        ("hard_swish", "hardswish", 0.01),
        (nn.ReLU, "relu", 0.01),
        (nn.SiLU, "silu", 0.01),
        (nn.GELU, "gelu", 0.01),
        (nn.Hardswish, "hardswish", 0.01),
        (nn.LeakyReLU, "leaky_relu", 0.01),
        (nn.Identity, "identity", 0.01),
        (partial(nn.ReLU, inplace=True), "relu", 0.01),
        (partial(nn.GELU, approximate="tanh"), "gelu_tanh", 0.01),
        (partial(nn.LeakyReLU, 0.3, inplace=True), "leaky_relu", 0.3),
        (nn.ReLU(inplace=True), "relu", 0.01),
        (nn.SiLU(), "silu", 0.01),
        (nn.GELU("none"), "gelu", 0.01),
        (nn.GELU("tanh"), "gelu_tanh", 0.01),
        (nn.LeakyReLU(-0.5), "leaky_relu", -0.5),
    ],
    ids=str,
)
def test_act_layer(layer, act, slope):
    se = SqueezeExcite(16, rd_channels=6, act_layer=layer)
    check_variant(se, act, "sigmoid", slope)


@pytest.mark.parametrize(
    "layer, gate",
    [
        *((name, name) for name in GATES),
        ("hard_sigmoid", "hardsigmoid"),
        (nn.Sigmoid, "sigmoid"),
        (nn.Hardsigmoid, "hardsigmoid"),
        (nn.Tanh, "tanh"),
        (nn.ReLU, "relu"),
        (partial(nn.Hardsigmoid, inplace=True), "hardsigmoid"),
        (nn.Sigmoid(), "sigmoid"),
        (nn.ReLU(inplace=True), "relu"),
    ],
    ids=str,
)
def test_gate_layer(layer, gate):
    check_variant(SqueezeExcite(16, rd_channels=6, gate_layer=layer), "relu", gate)


@pytest.mark.parametrize(
    "arguments, squeeze",
    [
        ({}, "avg"),
        ({"add_maxpool": True}, "avgmax"),
        ({"squeeze": "max"}, "max"),
        ({"squeeze": "avgmax"}, "avgmax"),
        ({"squeeze": "avgmax", "add_maxpool": True}, "avgmax"),
    ],
)
def test_squeeze(arguments, squeeze):
    se = SqueezeExcite(8, bias=True, **arguments)
    x = torch.randn(2, 8, 3, 4)
    expected = se_kernels.squeeze_excite(
        x, se.fc1.weight, se.fc2.weight, se.fc1.bias, se.fc2.bias, squeeze=squeeze
    )
    assert torch.equal(se(x), expected)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"squeeze": "min"}, "squeeze: expected one of avg, max, avgmax; got 'min'"),
        ({"squeeze": "max", "add_maxpool": True}, "squeeze: expected 'avgmax' with add_maxpool"),
        ({"post": "silu"}, "post: expected one of none, relu; got 'silu'"),
        ({"act_layer": "elu"}, "act_layer: expected one of relu, .*got 'elu'"),
        ({"act_layer": nn.PReLU}, r"act_layer: expected .*nn.LeakyReLU, .*got .*PReLU"),
        ({"act_layer": torch.relu}, r"act_layer: expected .*got <built-in"),
        ({"act_layer": None}, r"act_layer: expected .*got None"),
        ({"act_layer": nn.Sigmoid}, r"act_layer: expected .*got .*Sigmoid"),
        ({"act_layer": nn.Threshold}, r"act_layer: expected .*Threshold"),
        ({"gate_layer": "softmax"}, "gate_layer: expected one of sigmoid, .*got 'softmax'"),
        ({"gate_layer": nn.Softmax}, r"gate_layer: expected .*got .*Softmax"),
        ({"channels": 0}, "channels, rd_channels: expected at least 1, got channels=0"),
        ({"rd_channels": 0}, "channels, rd_channels: expected at least 1, .*rd_channels=0"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        SqueezeExcite(**{"channels": 8, **arguments})


def test_backend_is_checked_at_the_call():
    with pytest.raises(ValueError, match=r"backend: expected one of .*; got 'fpga'"):
        SqueezeExcite(8, backend="fpga")(torch.randn(1, 8, 2, 2))


# --- beside the eager block ----------------------------------------------------------------------


def trained(block, x, dy, *more):
    """y and the gradients of x, of ``more`` and of the parameters after a forward and backward."""
    tensors = [t.detach().requires_grad_() for t in (x, *more)]
    block.zero_grad()
    y = block(*tensors)
    y.backward(dy)
    grads = {name: p.grad.clone() for name, p in block.named_parameters()}
    return {"y": y.detach(), **{f"d{i}": t.grad for i, t in enumerate(tensors)}, **grads}


def compare(block, eager, *tensors):
    x = tensors[0]
    torch.manual_seed(1)
    dy = torch.randn_like(x)
    results, expected = trained(block, x, dy, *tensors[1:]), trained(eager, x, dy, *tensors[1:])
    assert results.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(results[name], value, msg=partial("{}: {}".format, name))


def test_state_dict_goes_both_ways(relative):
    torch.manual_seed(0)
    theirs, ours = relative(24, 6), SqueezeExcite(24, rd_channels=6, bias=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(3, 24, 5, 4)
    compare(ours, theirs, x)
    with torch.no_grad():
        ours.fc1.weight.mul_(-2)
        ours.fc2.bias.add_(1)
    assert not torch.allclose(ours(x), theirs(x), atol=1e-3)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    compare(ours, theirs, x)


def test_state_dict_without_bias():
    theirs, ours = TimmLayout(24, 6, bias=False), SqueezeExcite(24, rd_channels=6)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    compare(ours, theirs, torch.randn(3, 24, 5, 4))
    with pytest.raises(RuntimeError, match="Unexpected key"):
        ours.load_state_dict(TimmLayout(24, 6, bias=True).state_dict())


@pytest.mark.parametrize("max_too", [False, True])
@pytest.mark.parametrize("act, gate", [("silu", "sigmoid"), ("relu", "hardsigmoid")])
def test_norm_layer(act, gate, max_too):
    """With a norm between the FCs the excitation is eager's, batch statistics and buffers included.

    In float64: a batch norm cancels the bias before it, whose gradient is rounding alone.
    """
    torch.manual_seed(0)
    theirs = TimmLayout(24, 6, norm=nn.BatchNorm2d, act=act, gate=gate, max_too=max_too)
    ours = SqueezeExcite(
        24,
        rd_channels=6,
        bias=True,
        act_layer=act,
        norm_layer=nn.BatchNorm2d,
        gate_layer=gate,
        add_maxpool=max_too,
    )
    nn.init.normal_(theirs.bn.weight)
    nn.init.normal_(theirs.bn.bias)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(5, 24, 4, 3, dtype=torch.float64)
    ours.double()
    theirs.double()
    compare(ours, theirs, x)
    assert_close(ours.bn.running_var, theirs.bn.running_var)
    assert ours.bn.num_batches_tracked == 1
    compare(ours.eval(), theirs.eval(), x)
    assert ours.bn.num_batches_tracked == 1


class Tail(nn.Module):
    def __init__(self, se):
        super().__init__()
        self.fc1, self.bn, self.fc2, self.se = se.fc1, se.bn, se.fc2, [se]

    def forward(self, x, residual):
        return torch.relu(self.se[0](x) + residual)


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d])
def test_residual_and_post(norm):
    torch.manual_seed(0)
    theirs = TimmLayout(24, 6, norm=norm).double()
    ours = SqueezeExcite(24, rd_channels=6, bias=True, norm_layer=norm, post="relu").double()
    ours.load_state_dict(theirs.state_dict())
    x, residual = torch.randn(2, 3, 24, 5, 4, dtype=torch.float64)
    compare(ours, Tail(theirs), x, residual)


@pytest.mark.parametrize("norm", [None, nn.Identity, nn.BatchNorm2d])
def test_only_a_real_norm_parts_the_kernels(backend, device, norm):
    se = SqueezeExcite(16, norm_layer=norm, backend=backend).to(device)
    x = torch.randn(2, 16, 2, 2, device=device).requires_grad_()
    with OpsCalled() as called:
        se(x).sum().backward()
    parted = ["squeeze", "scale", "scale_backward", "squeeze_backward"]
    assert called.names == (parted if norm is nn.BatchNorm2d else ["forward", "backward"])


# --- life as a module ----------------------------------------------------------------------------


@pytest.fixture
def se():
    torch.manual_seed(0)
    return SqueezeExcite(
        16, rd_channels=4, bias=True, act_layer=nn.LeakyReLU(0.3), gate_layer="tanh", post="relu"
    )


def through_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, copy.copy, lambda se: pickle.loads(pickle.dumps(se)), through_file],
    ids=["deepcopy", "copy", "pickle", "save and load"],
)
@pytest.mark.parametrize("used", [False, True])
def test_copies(se, copied, used):
    x = torch.randn(2, 16, 3, 3)
    if used:
        se(x).sum().backward()
    twin = copied(se)
    assert torch.equal(twin(x), se(x))
    assert repr(twin) == repr(se)
    if copied is not copy.copy:
        assert {p.data_ptr() for p in twin.parameters()}.isdisjoint(
            p.data_ptr() for p in se.parameters()
        )


def test_state_dict_through_a_file(se, tmp_path):
    torch.save(se.state_dict(), tmp_path / "se.pt")
    twin = SqueezeExcite(
        16, rd_channels=4, bias=True, act_layer=nn.LeakyReLU(0.3), gate_layer="tanh", post="relu"
    )
    twin.load_state_dict(torch.load(tmp_path / "se.pt", weights_only=True))
    x = torch.randn(2, 16, 3, 3)
    assert torch.equal(twin(x), se(x))


def test_repr(se):
    text = repr(se)
    for part in (
        "squeeze='avg'",
        "act='leaky_relu'",
        "gate='tanh'",
        "post='relu'",
        "(fc1): Conv2d",
    ):
        assert part in text
    assert "backend" not in text
    assert "post" not in repr(SqueezeExcite(8))
    assert "backend='reference'" in repr(SqueezeExcite(8, backend="reference"))


def test_train_and_eval_are_the_same(se):
    x = torch.randn(2, 16, 3, 3)
    in_training = se.train()(x)
    assert torch.equal(se.eval()(x), in_training)
    assert not se.fc1.training


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_conversion(se, dtype):
    x, residual = torch.randn(2, 2, 16, 5, 4).to(dtype).double()
    exact = copy.deepcopy(se).to(dtype).double()(x, residual)
    y = se.to(dtype)(x.to(dtype), residual.to(dtype))
    assert y.dtype == dtype
    # the one rounding of y; sums are in float32, or float64 for float64
    torch.testing.assert_close(y.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_channels_last_module(se):
    """to(memory_format) lays the (R, C, 1, 1) weights out anew; the images decide y's layout."""
    x = torch.randn(2, 16, 5, 4)
    dy = torch.randn_like(x)
    expected = trained(se, x, dy)
    se.to(memory_format=torch.channels_last)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        results = trained(
            se,
            x.contiguous(memory_format=memory_format),
            dy.contiguous(memory_format=memory_format),
        )
        assert results["y"].is_contiguous(memory_format=memory_format)
        for name, value in expected.items():
            assert_close(results[name], value, msg=partial("{}: {}".format, name))


def test_meta_device_and_to_empty():
    with torch.device("meta"):
        se = SqueezeExcite(16)
    se = se.to_empty(device="cpu")
    nn.init.ones_(se.fc1.weight)
    nn.init.zeros_(se.fc2.weight)
    x = torch.randn(1, 16, 2, 2)
    assert torch.equal(se(x), 0.5 * x)


def test_hooks_on_the_module(se):
    seen = []
    x = torch.randn(2, 16, 3, 3, requires_grad=True)
    se.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    se.register_forward_hook(lambda module, args, y: seen.append(args[0]) or 3 * y)
    se.register_full_backward_hook(lambda module, into, out: seen.append(out[0]))
    y = se(x)
    y.sum().backward()
    assert torch.equal(seen[0], 2 * x)
    assert torch.equal(seen[1], torch.ones_like(x))
    assert torch.equal(y, 3 * se.forward(2 * x))


# --- weights that something else computes --------------------------------------------------------


@pytest.mark.parametrize(
    "parametrize", [parametrizations.weight_norm, parametrizations.spectral_norm]
)
def test_parametrized_weights(parametrize):
    theirs, ours = TimmLayout(24, 6), SqueezeExcite(24, rd_channels=6, bias=True)
    ours.load_state_dict(theirs.state_dict())
    for block in (theirs, ours):
        torch.manual_seed(0)  # spectral_norm draws
        parametrize(block.fc1)
    for _ in range(2):  # spectral_norm takes a step at every look at a weight: one look a forward
        compare(ours, theirs, torch.randn(3, 24, 5, 4))
    for block in (theirs, ours):
        with torch.no_grad():
            for p in block.fc1.parameters():
                p.mul_(1.5).add_(0.1)
    compare(ours, theirs, torch.randn(3, 24, 5, 4))


def test_pruned_weights():
    """Pruning computes the weight in a hook before each call of the FC."""
    torch.manual_seed(0)
    theirs, ours = TimmLayout(24, 6), SqueezeExcite(24, rd_channels=6, bias=True)
    ours.load_state_dict(theirs.state_dict())
    for block in (theirs, ours):
        prune.l1_unstructured(block.fc1, "weight", amount=0.5)
    for _ in range(2):
        compare(ours, theirs, torch.randn(3, 24, 5, 4))
        with torch.no_grad():
            for block in (theirs, ours):
                block.fc1.weight_orig.add_(0.1)


class Adapted(nn.Module):
    """An FC with a low-rank correction beside it, as adapters replace one."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = nn.Conv2d(base.in_channels, 2, 1, bias=False)
        self.up = nn.Conv2d(2, base.out_channels, 1, bias=False)

    @property
    def weight(self):
        return self.base.weight

    @property
    def bias(self):
        return self.base.bias

    def forward(self, z):
        return self.base(z) + self.up(self.down(z))


def test_replaced_fc():
    torch.manual_seed(0)
    theirs, ours = TimmLayout(24, 6), SqueezeExcite(24, rd_channels=6, bias=True)
    for block in (theirs, ours):
        block.fc1 = Adapted(block.fc1)
    ours.load_state_dict(theirs.state_dict())
    compare(ours, theirs, torch.randn(3, 24, 5, 4))


def test_hooks_on_an_fc_run():
    se = SqueezeExcite(24, rd_channels=6)
    seen = []
    se.fc2.register_forward_hook(lambda module, args, e: seen.append(e.shape))
    se(torch.randn(3, 24, 5, 4))
    assert seen == [(3, 24, 1, 1)]


def test_a_norm_put_between_the_fcs_later():
    layer = se_kernels.SqueezeExcite(8).eval()
    layer.bn = nn.GroupNorm(2, 8)
    x = torch.randn(2, 8, 3, 3)
    z = x.mean((2, 3), keepdim=True)
    expected = x * torch.sigmoid(layer.fc2(torch.relu(layer.bn(layer.fc1(z)))))
    torch.testing.assert_close(layer(x), expected)


def test_device_and_dtype_of_every_part():
    made = dict(device="meta", dtype=torch.float64)
    layer = se_kernels.SqueezeExcite(8, norm_layer=nn.BatchNorm2d, **made)
    floating = [p for p in layer.parameters() if p.is_floating_point()]
    assert {(p.device.type, p.dtype) for p in floating} == {("meta", torch.float64)}
