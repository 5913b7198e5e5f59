"""fuse(level="block") on the blocks of timm and torchvision, in every configuration."""

import copy
from functools import partial

import pytest
import torch
from fused_twins import compare, draw, images, outcome, twins
from ops_called import OpsCalled
from test_fuse_families import imported
from torch import nn

import se_kernels

CHANNELS = 8


def timm(path, *args, **options):
    return imported(f"timm.models.{path}")(*args, **options)


def timm_se(**options):
    return partial(imported("timm.models._efficientnet_blocks.SqueezeExcite"), **options)


def bottleneck(planes=2, **options):
    return timm("resnet.Bottleneck", CHANNELS, planes, attn_layer="se", **options)


def basic(planes=CHANNELS, **options):
    return timm("resnet.BasicBlock", CHANNELS, planes, attn_layer="se", **options)


def projected(channels, stride=2):
    return nn.Sequential(nn.Conv2d(CHANNELS, channels, 1, stride), nn.BatchNorm2d(channels))


def legacy(name, planes=2, groups=1, **options):
    return timm(f"senet.{name}", CHANNELS, planes, groups, 4, **options)


def inverted(name="InvertedResidual", out=CHANNELS, se=None, **options):
    se = timm_se(**(se or {}))
    return timm(f"_efficientnet_blocks.{name}", CHANNELS, out, se_layer=se, **options)


def regnet(**options):
    return timm("regnet.Bottleneck", CHANNELS, CHANNELS, group_size=4, **options)


def mobilenet(activation="HS", stride=1, expanded=16, out=CHANNELS):
    config = imported("torchvision.models.mobilenetv3.InvertedResidualConfig")
    config = config(CHANNELS, 5, expanded, out, True, activation, stride, 1, 1.0)
    return imported("torchvision.models.mobilenetv3.InvertedResidual")(config, nn.BatchNorm2d)


def mbconv(stride=1, ratio=4, drop=0.0):
    config = imported("torchvision.models.efficientnet.MBConvConfig")
    config = config(ratio, 3, stride, CHANNELS, CHANNELS, 1)
    return imported("torchvision.models.efficientnet.MBConv")(config, drop, nn.BatchNorm2d)


def torchvision_regnet(stride=1):
    block = imported("torchvision.models.regnet.ResBottleneckBlock")
    return block(CHANNELS, CHANNELS, stride, nn.BatchNorm2d, nn.ReLU, 4, 1.0, 0.25)


def drop_path(rate=0.5):
    return imported("timm.layers.DropPath")(rate)


# one call with the shortcut and the ReLU
TAILS = {
    "bottleneck": bottleneck,
    "bottleneck, projected": lambda: bottleneck(3, stride=2, downsample=projected(12)),
    "bottleneck, groups": lambda: bottleneck(16, cardinality=2, base_width=8,
                                             downsample=projected(64, 1)),
    "bottleneck, anti-aliased": lambda: bottleneck(
        2, stride=2, aa_layer=imported("timm.layers.BlurPool2d"), downsample=projected(CHANNELS)
    ),
    "bottleneck, drop path of 0": lambda: bottleneck(drop_path=drop_path(0.0)),
    "basic": basic,
    "basic, projected": lambda: basic(12, stride=2, downsample=projected(12)),
    "basic, drop block": lambda: basic(drop_block=imported("timm.layers.DropBlock2d")),
    "legacy resnet": lambda: legacy("SEResNetBottleneck"),
    "legacy resnet, basic": lambda: legacy("SEResNetBlock", CHANNELS),
    "legacy resnext": lambda: legacy("SEResNeXtBottleneck", 64, 2, downsample=projected(256, 1)),
    "legacy senet": lambda: legacy("SEBottleneck", 4, 2, stride=2, downsample=projected(16)),
}  # fmt: skip
# one call with the norm, and the activation, before
MIDDLES = {
    "bottleneck, silu": lambda: bottleneck(act_layer=nn.SiLU),
    "inverted residual": inverted,
    "inverted residual, silu": lambda: inverted(act_layer=nn.SiLU),
    "inverted residual, hardswish": lambda: inverted(
        act_layer=nn.Hardswish, se=dict(gate_layer="hard_sigmoid", force_act_layer=nn.ReLU)
    ),
    "inverted residual, expanded": lambda: inverted(exp_ratio=3, dw_kernel_size=5),
    "inverted residual, stride 2": lambda: inverted(out=6, stride=2, pad_type="same"),
    "inverted residual, no skip": lambda: inverted(noskip=True),
    "inverted residual, space to depth": lambda: inverted(out=6, s2d=1),
    "inverted residual, drop path": lambda: inverted(drop_path_rate=0.5),
    "depthwise": lambda: inverted("DepthwiseSeparableConv"),
    "depthwise, activation after": lambda: inverted("DepthwiseSeparableConv", pw_act=True),
    "edge residual": lambda: inverted("EdgeResidual", exp_ratio=2),
    "timm regnet": regnet,
    "timm regnet, silu, stride 2": lambda: regnet(act_layer=nn.SiLU, stride=2),
    "timm regnet, drop path": lambda: regnet(drop_path_rate=0.5),
    "timm regnet, no shortcut": lambda: regnet(downsample=None),
    "timm regnet, linear": lambda: regnet(linear_out=True),
    "torchvision mobilenet": mobilenet,
    "torchvision mobilenet, relu": lambda: mobilenet("RE", 2, out=6),
    "torchvision mobilenet, no expansion": lambda: mobilenet(expanded=CHANNELS),
    "torchvision efficientnet": mbconv,
    "torchvision efficientnet, stride 2": lambda: mbconv(2, 1),
    "torchvision efficientnet, stochastic depth": lambda: mbconv(drop=0.5),
    "torchvision regnet": torchvision_regnet,
    "torchvision regnet, stride 2": lambda: torchvision_regnet(2),
    "bottleneck, drop path": lambda: bottleneck(drop_path=drop_path()),
}
# of the SE module alone, and why
APART = {
    "a norm inside the SE module": (
        lambda: timm("resnet.BasicBlock", CHANNELS, CHANNELS, attn_layer=partial(
            imported("timm.layers.SEModule"), norm_layer=nn.BatchNorm2d, rd_channels=4)),
        "se: expected two FCs on the average",
    ),
    "a maximum": (
        lambda: timm("resnet.BasicBlock", CHANNELS, CHANNELS, attn_layer=partial(
            imported("timm.layers.SEModule"), add_maxpool=True, rd_channels=4)),
        "se: expected two FCs on the average",
    ),
    "group norm": (
        lambda: basic(norm_layer=lambda channels, **_: nn.GroupNorm(2, channels)),
        "bn2: expected a batch norm, got torch.nn.modules.normalization.GroupNorm",
    ),
    "another activation": (
        lambda: inverted(act_layer=nn.GELU),
        "bn2.act: expected one of identity, relu, silu, hardswish between the norm and",
    ),
    "anti-aliased": (
        lambda: inverted(stride=2, aa_layer=imported("timm.layers.BlurPool2d")),
        "aa: expected nothing between the norm and the SE module",
    ),
    "routed convolutions": (
        lambda: timm("_efficientnet_blocks.CondConvResidual", CHANNELS, CHANNELS,
                     se_layer=timm_se(), num_experts=2),
        "CondConvResidual has another forward than InvertedResidual",
    ),
}  # fmt: skip


def ops_of(module, x):
    with OpsCalled() as called, torch.no_grad():
        module(x)
    return called.names


@pytest.mark.parametrize("name", [*TAILS, *MIDDLES])
def test_a_block_is_what_it_was(name):
    make = TAILS.get(name) or MIDDLES[name]
    torch.manual_seed(0)
    unfused, fused = twins(draw(make()), "block")
    x = images(3, CHANNELS, 6, 5)
    for training in (True, False):
        for dtype in (torch.float32, torch.float64):
            compare(unfused.train(training), fused.train(training), x, dtype)
    assert ops_of(fused, x.float()) == ["norm_inference"]
    before = [(n, type(m)) for n, m in unfused.named_modules()]
    assert len(se_kernels.unfuse(fused)) == 2
    assert [(n, type(m)) for n, m in fused.named_modules()] == before


@pytest.mark.parametrize("name", TAILS)
def test_a_tail_is_one_call(name):
    """Neither the sum nor the last ReLU is an operation of its own."""
    torch.manual_seed(0)
    unfused, fused = twins(draw(TAILS[name]()).eval(), "block")
    x, relus = torch.randn(3, CHANNELS, 6, 5), []
    for module in (unfused, fused):
        with OpsCalled(larger_than=0) as called, torch.no_grad():
            module(x)
        relus.append(called.others.count("aten::relu_"))
        sums = [op for op in called.others if op in ("aten::add.Tensor", "aten::add_.Tensor")]
    assert relus[1] < relus[0]
    assert not sums


@pytest.mark.parametrize("name", APART)
def test_the_se_module_alone(name):
    make, reason = APART[name]
    torch.manual_seed(0)
    unfused = draw(make())
    fused = copy.deepcopy(unfused)
    report = se_kernels.fuse(fused, level="block")
    assert list(report.fused) == ["se"]
    assert list(report.apart) == [""]
    assert report.apart[""].startswith(reason)
    compare(unfused, fused, images(3, CHANNELS, 6, 5), torch.float64)
    assert not [op for op in ops_of(fused, torch.randn(3, CHANNELS, 6, 5)) if "norm" in op]


@pytest.mark.parametrize("make", [bottleneck, inverted, regnet, mobilenet])
def test_blocks_without_an_se_module(make):
    block = make()
    for module in (block, *block.modules()):
        for name in ("se", "2"):
            if name in module._modules:
                module._modules[name] = nn.Identity()
    report = se_kernels.fuse(block, level="block")
    assert not report.fused
    assert not report.blocks
    assert not report.apart


def test_timms_synchronised_norm():
    """Of another class of timm's, with the activation in it too."""
    layers = pytest.importorskip("timm.layers")
    unfused, fused = twins(draw(inverted()), "block")
    fused = layers.convert_sync_batchnorm(fused)
    x = images(3, CHANNELS, 6, 5)
    compare(unfused.eval(), fused.eval(), x, torch.float64)
    compare(unfused.train(), fused.train(), x, torch.float64)
    assert ops_of(fused.eval(), x.float()) == ["norm_inference"]


MODELS = {
    "timm seresnet18": 8,
    "timm mobilenetv3_small_050": 9,
    "timm regnety_002": 13,
    "torchvision mobilenet_v3_small": 9,
}


@pytest.mark.parametrize("name", MODELS)
def test_whole_models(name):
    library, model = name.split()
    torch.manual_seed(0)
    if library == "timm":
        unfused = pytest.importorskip("timm").create_model(model, num_classes=5, drop_rate=0.1)
    else:
        unfused = getattr(pytest.importorskip("torchvision").models, model)(num_classes=5)
    for module in unfused.modules():  # zeros and ones at first, where a difference may not show
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.1)
            nn.init.normal_(module.bias, 0, 0.1)
    unfused, fused = twins(unfused.double(), "block")
    report = se_kernels.fuse(fused, level="block")
    assert len(report.blocks) == len(report.fused) == MODELS[name]
    assert list(fused.state_dict()) == list(unfused.state_dict())
    x = images(4, 3, 64, 64)
    results, expected = outcome(fused, x), outcome(unfused, x)
    # float64, grown by norms over 4 images of 2×2; hardswish has a float32 step in its backward
    gradients = {"dx", *(f"d{n}" for n, _ in fused.named_parameters())}
    largest = max(v.norm() for n, v in expected.items() if n in gradients)
    for key, value in expected.items():
        scale = largest if key in gradients else value.double().norm()
        assert (results[key] - value).double().norm() <= 1e-6 * scale, key
    fused.eval(), unfused.eval()
    with torch.no_grad():
        torch.testing.assert_close(fused(x), unfused(x), rtol=1e-8, atol=1e-8)
