"""What all networks share: names, SE options, feature maps, images, initial values."""

import re
from pathlib import Path

import pytest
import torch
from networks import on_meta, pictures
from torch import nn

from se_kernels import SqueezeExcite, models
from se_kernels.models import SE, ResNet, Stage
from se_kernels.models.network import check_images, initialise
from se_kernels.models.se import EagerSqueezeExcite

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
STAGES = [Stage((8, 8, 32), 1, 1), Stage((16, 16, 64), 2, 2)]


def se_blocks(model):
    return [m for m in model.modules() if isinstance(m, (SqueezeExcite, EagerSqueezeExcite))]


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", models.names())
def test_every_name_builds_with_and_without_se(name):
    networks = {se: on_meta(models.create, name, 7, se=se) for se in ("fused", "eager", None)}
    for model in networks.values():
        shape = (2, 3, model.min_size, model.min_size)
        assert model(torch.empty(shape, device="meta")).shape == (2, 7)
    shapes = {
        se: {key: tensor.shape for key, tensor in model.state_dict().items()}
        for se, model in networks.items()
    }
    assert list(shapes["fused"]) == list(shapes["eager"])
    assert shapes["fused"] == shapes["eager"]
    assert shapes[None].items() <= shapes["eager"].items()
    assert {type(block) for block in se_blocks(networks["fused"])} == {SqueezeExcite}
    assert {type(block) for block in se_blocks(networks["eager"])} == {EagerSqueezeExcite}
    assert not se_blocks(networks[None])
    for model in networks.values():
        model.apply(initialise_by_class_name)


def initialise_by_class_name(module):
    """As DCGAN's tutorial does."""
    name = type(module).__name__
    if "Conv" in name:
        nn.init.normal_(module.weight, 0, 0.02)
    elif "BatchNorm" in name:
        nn.init.normal_(module.weight, 1, 0.02)
        nn.init.zeros_(module.bias)


def test_create_is_the_networks_own_function():
    created = on_meta(models.create, "resnet50", 5, se="eager", in_channels=1, rd_ratio=1 / 8)
    own = on_meta(models.se_resnet50, 5, fused=False, in_channels=1, rd_ratio=1 / 8)
    assert str(created) == str(own)
    assert created.conv1.in_channels == 1
    assert created.layer1[0].se.fc1.out_channels == 32


def test_create_gives_fused_blocks_of_the_named_backend():
    model = on_meta(models.create, "resnet50", backend="reference", gate="tanh")
    assert {(block.backend, block.gate) for block in se_blocks(model)} == {("reference", "tanh")}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(name="resnet51"), r"name: expected one of .*got 'resnet51' \(did you mean 'resnet5"),
        (dict(name=""), "name: expected one of .*resnet50.*got ''$"),
        (dict(se="fast"), "se: expected one of fused, layer, eager, None; got 'fast'"),
        (dict(se=None, rd_ratio=1 / 8), r"rd_ratio: expected none without SE blocks \(se=None\)"),
        (dict(num_classes=0), "num_classes: expected an integer of at least 1, got 0"),
        (dict(num_classes=2.5), "num_classes: expected an integer of at least 1, got 2.5"),
        (dict(in_channels=0), "in_channels: expected an integer of at least 1, got 0"),
    ],
)
def test_create_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        on_meta(models.create, **{"name": "resnet50", **arguments})


def test_an_unknown_option_is_named():
    with pytest.raises(TypeError, match="'depth'"):
        on_meta(models.create, "resnet50", depth=3)


def test_se_of_a_constructor_is_an_se():
    with pytest.raises(ValueError, match=r"se: expected a models.SE or None, got 'fused'"):
        on_meta(models.resnet50, se="fused")


def test_the_guide_has_every_name():
    rows = [line for line in GUIDE.read_text().splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall("`([^`]+)`", row.split("|")[1])}
    assert set(models.names()) <= named


def test_the_guides_example_runs():
    (example,) = re.findall("```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    exec(compile(example, str(GUIDE), "exec"), {})


# --- SE -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels, rd_ratio, expected", [(64, 1 / 16, 4), (24, 1 / 16, 2)])
@pytest.mark.parametrize("fused", [True, False])
def test_reduced_channels(channels, rd_ratio, expected, fused):
    block = SE(fused=fused, rd_ratio=rd_ratio).block(channels)
    assert block.fc1.weight.shape == (expected, channels, 1, 1)
    assert SE(fused=fused).block(1).fc1.out_channels == 1  # never none


@pytest.mark.parametrize("post", ["none", "relu"])
@pytest.mark.parametrize("with_residual", [True, False])
def test_eager_block_leaves_its_arguments_alone(post, with_residual):
    block = SE(fused=False).block(16, post)
    x, residual = pictures(2, 4, channels=16).float(), pictures(2, 4, channels=16, seed=1).float()
    before = x.clone(), residual.clone()
    block(x, residual if with_residual else None)
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])


# --- feature maps ---------------------------------------------------------------------------------


@pytest.mark.parametrize("se", ["fused", None])
def test_feature_maps_are_those_of_the_classifier(se):
    arguments = dict(stages=STAGES, se=se and SE(rd_ratio=1 / 4))
    torch.manual_seed(0)
    classifier = ResNet(**arguments).eval()
    backbone = ResNet(**arguments, features_only=True).eval()
    assert not hasattr(backbone, "fc")
    left_out = classifier.load_state_dict(backbone.state_dict(), strict=False)
    assert left_out.missing_keys == ["fc.weight", "fc.bias"]
    assert not left_out.unexpected_keys
    with torch.no_grad():
        maps = backbone(pictures(2, 32).float())
        logits = classifier(pictures(2, 32).float())
    assert [tuple(m.shape) for m in maps] == [(2, 32, 8, 8), (2, 64, 4, 4)]
    assert backbone.feature_channels == (32, 64)
    torch.testing.assert_close(classifier.fc(maps[-1].mean((2, 3))), logits)


@pytest.mark.parametrize("integration", ["standard", "pre", "post", "identity", "3x3"])
def test_a_later_stage_leaves_the_feature_maps_alone(integration):
    """What follows may not work in place on what was handed out."""
    torch.manual_seed(0)
    kept = []
    for fused in (True, False):
        se = SE(fused=fused, rd_ratio=1 / 4, integration=integration)
        model = ResNet(STAGES, se=se, features_only=True).eval()
        model.layer1.register_forward_hook(lambda *call: kept.append(call[-1].clone()))
        with torch.no_grad():
            maps = model(pictures(1, 32).float())
        assert torch.equal(maps[0], kept[-1])
    assert len(kept) == 2


def test_features_of_a_resnet_are_c2_to_c5():
    model = on_meta(models.create, "resnet50", features_only=True)
    maps = model(torch.empty(1, 3, 224, 224, device="meta"))
    shapes = [(256, 56), (512, 28), (1024, 14), (2048, 7)]
    assert [tuple(m.shape) for m in maps] == [(1, c, size, size) for c, size in shapes]


# --- images and initial values --------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape, dtype, message",
    [
        ((3, 8, 8), torch.float32, r"\(N, 3, H, W\) with H and W >= 8, got shape \(3, 8, 8\)"),
        ((1, 4, 8, 8), torch.float32, r"got shape \(1, 4, 8, 8\)"),
        ((1, 3, 7, 8), torch.float32, r"got shape \(1, 3, 7, 8\)"),
        ((1, 3, 8, 7), torch.float32, r"got shape \(1, 3, 8, 7\)"),
        ((1, 3, 8, 8), torch.int64, "of floating-point numbers, got torch.int64"),
    ],
)
def test_images_are_checked(shape, dtype, message):
    with pytest.raises(ValueError, match=message):
        check_images(torch.zeros(shape, dtype=dtype), 3, 8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_images_that_fit(dtype):
    check_images(torch.zeros(0, 3, 8, 9, dtype=dtype), 3, 8)


@pytest.mark.parametrize("groups", [1, 32, 64])
def test_initial_values_keep_the_size_of_gradients(groups):
    """Variance 2 / fan-out, where fan-out counts the outputs of the input's own group."""
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 128, 3, groups=groups)
    initialise(layer)
    expected = (2 / (9 * 128 / groups)) ** 0.5
    # the spread of n normal numbers is known to 1 / sqrt(2 n), here below 3 %; four times that
    assert layer.weight.std().item() == pytest.approx(expected, rel=0.12)
    assert not layer.bias.any()
