"""fuse on every class it knows, in every configuration, against the class itself."""

import copy
import importlib
import re

import pytest
import torch
from fused_twins import compare, draw, images, outcome, twins
from ops_called import OpsCalled
from torch import nn

import se_kernels

CHANNELS = 12


def timm_se(**options):
    return imported("timm.layers.SEModule")(CHANNELS, rd_channels=5, **options)


def timm_ese(**options):
    return imported("timm.layers.EffectiveSEModule")(CHANNELS, **options)


def timm_cl(**options):
    return imported("timm.layers.squeeze_excite.SqueezeExciteCl")(
        CHANNELS, rd_channels=5, **options
    )


def timm_efficientnet(**options):
    cls = imported("timm.models._efficientnet_blocks.SqueezeExcite")
    return cls(CHANNELS, rd_channels=5, **options)


def timm_legacy():
    return imported("timm.models.senet.SEModule")(CHANNELS, 3)


def timm_hgnet():
    return imported("timm.models.hgnet.EseModule")(CHANNELS)


def torchvision(**options):
    return imported("torchvision.ops.SqueezeExcitation")(CHANNELS, 5, **options)


def regnet():
    return imported("transformers.models.regnet.modeling_regnet.RegNetSELayer")(CHANNELS, 5)


def efficientnet(model="efficientnet", prefix="EfficientNet", **options):
    package = f"transformers.models.{model}"
    config = imported(f"{package}.configuration_{model}.{prefix}Config")
    layer = imported(f"{package}.modeling_{model}.{prefix}SqueezeExciteLayer")
    return layer(config(**options), CHANNELS, CHANNELS)


def pp_lcnet(version=""):
    model = f"pp_lcnet{version and '_' + version}"
    name = f"PPLCNet{version.upper()}SqueezeExcitationModule"
    return imported(f"transformers.models.{model}.modeling_{model}.{name}")(CHANNELS)


def imported(path):
    module, name = path.rsplit(".", 1)
    pytest.importorskip(module.split(".")[0])
    return getattr(importlib.import_module(module), name)


TWO_FCS = {
    "timm": timm_se,
    "timm, no bias": lambda: timm_se(bias=False),
    "timm, avg and max": lambda: timm_se(add_maxpool=True),
    **{
        f"timm, {act}": lambda act=act: timm_se(act_layer=act)
        for act in ("silu", "swish", "gelu", "gelu_tanh", "hard_swish", "leaky_relu", "identity")
    },
    "timm, nn.GELU": lambda: timm_se(act_layer=nn.GELU),
    "timm, hard_sigmoid": lambda: timm_se(gate_layer="hard_sigmoid"),
    "timm, tanh": lambda: timm_se(gate_layer="tanh"),
    "timm, relu": lambda: timm_se(gate_layer="relu"),
    "timm, channels last": timm_cl,
    "timm, channels last, silu": lambda: timm_cl(act_layer=nn.SiLU, bias=False),
    "efficientnet_blocks": timm_efficientnet,
    "efficientnet_blocks, silu": lambda: timm_efficientnet(act_layer=nn.SiLU),
    "efficientnet_blocks, mobilenetv3": lambda: timm_efficientnet(
        act_layer=nn.Hardswish, gate_layer="hard_sigmoid"
    ),
    "senet": timm_legacy,
    "torchvision": torchvision,
    "torchvision, efficientnet": lambda: torchvision(activation=nn.SiLU),
    "torchvision, mobilenetv3": lambda: torchvision(scale_activation=nn.Hardsigmoid),
    "transformers regnet": regnet,
    "transformers efficientnet": efficientnet,
    "transformers align": lambda: efficientnet("align", "AlignVision"),
    "transformers pp_lcnet": pp_lcnet,
    "transformers pp_lcnet_v3": lambda: pp_lcnet("v3"),
    "transformers pp_lcnet_v4": lambda: pp_lcnet("v4"),
}
ANY_EXCITATION = {
    "timm, norm": lambda: timm_se(norm_layer=nn.BatchNorm2d),
    "timm, norm, avg and max": lambda: timm_se(norm_layer=nn.BatchNorm2d, add_maxpool=True),
    "timm, mish": lambda: timm_se(act_layer="mish"),
    "timm, prelu": lambda: timm_se(act_layer="prelu"),
    "timm, relu6": lambda: timm_se(act_layer="relu6", gate_layer="hard_mish"),
    "timm, channels last, mish": lambda: timm_cl(act_layer="mish"),
    "timm, effective": timm_ese,
    "timm, effective, avg and max": lambda: timm_ese(add_maxpool=True),
    "timm, effective, sigmoid": lambda: timm_ese(gate_layer="sigmoid"),
    "hgnet": timm_hgnet,
    "transformers efficientnet, gelu_new": lambda: efficientnet(hidden_act="gelu_new"),
}
FAMILIES = TWO_FCS | ANY_EXCITATION


def batch(name, images_in_batch=4):
    if "channels last" in name:
        return images(images_in_batch, 5, 6, CHANNELS)
    return images(images_in_batch, CHANNELS, 5, 6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", FAMILIES)
def test_same_as_unfused(name, training, dtype):
    unfused, fused = twins(draw(FAMILIES[name]()).train(training))
    compare(unfused, fused, batch(name), dtype)


@pytest.mark.parametrize("name", FAMILIES)
def test_state_dict_keys_and_repr(name):
    unfused, fused = twins(FAMILIES[name]())
    assert list(fused.state_dict()) == list(unfused.state_dict())
    assert isinstance(fused, type(unfused))
    assert repr(fused).startswith(f"Fused{type(unfused).__name__}(")


@pytest.mark.parametrize("name", FAMILIES)
def test_ops(name):
    """The passes over x are the library's own, in inference and in training."""
    if se_kernels.available_backends()["cpu"] is not None:
        pytest.skip("the cpu backend is not built")
    unfused, fused = twins(draw(FAMILIES[name]()).eval())
    x = batch(name).float()
    with OpsCalled() as called:
        outcome(unfused, x)
    assert called.names == []
    with OpsCalled() as called, torch.no_grad():
        fused(x)
    assert called.names == (["inference"] if name in TWO_FCS else ["squeeze", "scale"])
    with OpsCalled() as called:
        outcome(fused, x)
    if name in TWO_FCS:
        assert called.names == ["forward", "backward"]
    else:
        assert called.names[:2] == ["squeeze", "scale"]
        assert len(called.names) == 4, called.names  # and one backward of each


@pytest.mark.parametrize("name", ["timm", "timm, norm", "torchvision", "transformers regnet"])
def test_on_the_meta_device(name):
    with torch.device("meta"):
        module = FAMILIES[name]()
    assert not se_kernels.fuse(module).skipped
    module = draw(module.to_empty(device="cpu")).eval()
    unfused = copy.deepcopy(module)
    assert se_kernels.unfuse(unfused) == [""]
    compare(unfused, module, batch(name), torch.float64)


# --- what only looks like it ---------------------------------------------------------------------


def look_alike(forward):
    """A class that has timm's name and children, and another forward."""

    class SEModule(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_maxpool = False
            self.fc1 = nn.Conv2d(CHANNELS, 5, 1)
            self.bn = nn.Identity()
            self.act = nn.ReLU()
            self.fc2 = nn.Conv2d(5, CHANNELS, 1)
            self.gate = nn.Sigmoid()

        def excite(self, z):
            return self.gate(self.fc2(self.act(self.bn(self.fc1(z)))))

    SEModule.forward = forward
    return SEModule()


def mean(x):
    return x.mean((2, 3), keepdim=True)


LOOK_ALIKES = {
    "adds x": lambda self, x: x + x * self.excite(mean(x)),
    "returns the gates": lambda self, x: self.excite(mean(x)),
    "returns a pair": lambda self, x: (x * self.excite(mean(x)), None),
    "maximum": lambda self, x: x * self.excite(x.amax((2, 3), keepdim=True)),
    "second moment": lambda self, x: x * self.excite(mean(x * x)),
    "sum": lambda self, x: x * self.excite(x.sum((2, 3), keepdim=True)),
    "gates doubled": lambda self, x: 2 * x * self.excite(mean(x)),
    "another order": lambda self, x: x * self.fc2(self.gate(self.act(self.fc1(mean(x))))),
    "no gradient to z": lambda self, x: x * self.excite(mean(x).detach()),
    "no gradient to the FCs": lambda self, x: x * self.excite(mean(x)).detach(),
    "drop-out in training": lambda self, x: (
        x * nn.functional.dropout(self.excite(mean(x)), 0.5, self.training)
    ),
    "mean over the batch": lambda self, x: x * self.excite(x.mean((0, 2, 3), keepdim=True)),
}


@pytest.mark.parametrize("name", LOOK_ALIKES)
@pytest.mark.parametrize("zero", [False, True])
def test_look_alikes_are_left_alone(name, zero):
    module = look_alike(LOOK_ALIKES[name])
    if zero:  # as a residual branch starts: the gates are then 0.5 whatever z is
        nn.init.zeros_(module.fc2.weight)
        nn.init.zeros_(module.fc2.bias)
    cls, x = type(module), torch.randn(2, CHANNELS, 3, 3)
    torch.manual_seed(0)
    before = module(x)
    report = se_kernels.fuse(module)
    assert not report.fused
    (reason,) = report.skipped.values()
    assert "computes something else" in reason or "expected a tensor" in reason
    assert type(module) is cls
    torch.manual_seed(0)
    assert torch.equal(before[0], module(x)[0])


def test_the_true_one_of_that_name_is_fused():
    module = look_alike(lambda self, x: x * self.excite(mean(x)))
    assert len(se_kernels.fuse(module).fused) == 1


def test_only_the_name_is_the_same():
    class SqueezeExcitation(nn.Module):
        def __init__(self):
            super().__init__()
            self.reduce = nn.Conv3d(8, 2, 1)

    model = nn.ModuleDict({"se": SqueezeExcitation()})
    (reason,) = se_kernels.fuse(model).skipped.values()
    assert "expected the children activation, avgpool, fc1, fc2, scale_activation" in reason
    assert reason.endswith("got reduce")


def with_child(child, replacement):
    module = timm_se()
    setattr(module, child, replacement)
    return module


def sloped(module):
    torch.nn.utils.parametrizations.weight_norm(module.fc1)
    return module


def subclassed():
    class Mine(imported("timm.layers.SEModule")):
        def forward(self, x):
            return super().forward(x)

    return Mine(CHANNELS)


def integers(module):
    module.fc1.weight = nn.Parameter(torch.zeros(5, CHANNELS, 1, 1).int(), requires_grad=False)
    return module


def hooked(module, child="act"):
    module.get_submodule(child).register_forward_hook(lambda *_: None)
    return module


def scripted(module):
    module.gate = torch.jit.script(nn.Sigmoid())
    return module


SKIPPED = {
    "a larger kernel": (
        lambda: with_child("fc1", nn.Conv2d(CHANNELS, 5, 3, padding=1)),
        "fc1: expected a kernel size of 1",
    ),
    "groups": (lambda: with_child("fc1", nn.Conv2d(CHANNELS, 6, 1, groups=2)), "groups=1"),
    "padding": (lambda: with_child("fc2", nn.Conv2d(5, CHANNELS, 1, padding=1)), "no padding"),
    "another width": (lambda: with_child("fc2", nn.Conv2d(6, CHANNELS, 1)), "R=5 to C=12"),
    "an adapter": (
        lambda: with_child("fc1", nn.Sequential(nn.Conv2d(CHANNELS, 5, 1))),
        "fc1: expected an nn.Conv2d or nn.Linear, got torch.nn.modules.container.Sequential",
    ),
    "quantised": (
        lambda: with_child("fc2", torch.ao.nn.quantized.Conv2d(5, CHANNELS, 1)),
        "fc2: expected an nn.Conv2d or nn.Linear, got .*quantized",
    ),
    "parametrised": (lambda: sloped(timm_se()), "fc1 is parametrised|fc1: expected"),
    "integers": (lambda: integers(timm_se()), "fc1.weight has dtype torch.int32"),
    "hooked": (lambda: hooked(timm_se()), "act has hooks"),
    "hooked pool": (lambda: hooked(torchvision(), "avgpool"), "avgpool has hooks"),
    "hooked container": (lambda: hooked(regnet(), "attention"), "attention has hooks"),
    "scripted": (lambda: scripted(timm_se()), "gate is scripted"),
    "another forward": (subclassed, "Mine has another forward than SEModule"),
    "another child": (
        lambda: with_child("more", nn.Identity()),
        "got act, bn, fc1, fc2, gate, more",
    ),
    "pool to 2×2": (
        lambda: setattr(module := torchvision(), "avgpool", nn.AdaptiveAvgPool2d(2)) or module,
        "avgpool: expected a pooling to 1x1",
    ),
    "maximum": (
        lambda: setattr(module := torchvision(), "avgpool", nn.AdaptiveMaxPool2d(1)) or module,
        "avgpool: expected squeeze='max'",
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", SKIPPED)
def test_skipped_with_the_reason(name):
    make, reason = SKIPPED[name]
    module = make()
    cls = type(module)
    model = nn.Sequential(nn.Identity(), module)
    report = se_kernels.fuse(model)
    assert not report.fused
    assert list(report.skipped) == ["1"]
    assert re.search(reason, report.skipped["1"]), report.skipped["1"]
    assert f"skipped 1: {report.skipped['1']}" in str(report)
    assert type(module) is cls


def test_quantizable_torchvision_is_left_alone():
    cls = imported("torchvision.models.quantization.mobilenetv3.QuantizableSqueezeExcitation")
    (reason,) = se_kernels.fuse(cls(CHANNELS, 5)).skipped.values()
    assert "another forward than SqueezeExcitation" in reason
