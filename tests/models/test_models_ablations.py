"""The ablations of section 6 and 7.1: what each computes, its figures, and fused against eager."""

import pytest
import torch
import torch.nn.functional as F
from networks import (
    assert_same_training_step,
    batch,
    count_parameters,
    giga_multiply_adds,
    on_meta,
    pictures,
    twins,
)

import se_kernels.modules.squeeze_excite
from se_kernels import models, reference
from se_kernels.models import SE, ResNet, Stage
from se_kernels.modules import norm_call

pytestmark = pytest.mark.usefixtures("one_thread")

BOTTLENECK = dict(stages=[Stage((8, 8, 32), 2, 1), Stage((16, 16, 64), 2, 2)], num_classes=10)
BASIC = dict(stages=[Stage((16, 16), 2, 1), Stage((24, 24), 2, 2)], num_classes=10)
PREACT = dict(BOTTLENECK, preactivation=True)
ABLATIONS = {
    "max": dict(squeeze="max"),
    "avgmax": dict(squeeze="avgmax"),
    "no squeeze": dict(squeeze=None),
    "tanh": dict(gate="tanh"),
    "relu": dict(gate="relu"),
    "silu, hardsigmoid": dict(act="silu", gate="hardsigmoid"),
    "bias": dict(bias=True),
    "one stage": dict(stages=(3,)),
    "pre": dict(integration="pre"),
    "post": dict(integration="post"),
    "identity": dict(integration="identity"),
    "identity, max, tanh": dict(integration="identity", squeeze="max", gate="tanh"),
}
CASES = {
    **{f"bottleneck, {name}": (BOTTLENECK, se) for name, se in ABLATIONS.items()},
    **{f"basic, {name}": (BASIC, se) for name, se in ABLATIONS.items()},
    "bottleneck, 3x3": (BOTTLENECK, dict(integration="3x3")),
    "preactivated": (PREACT, {}),
    "preactivated basic": (dict(BASIC, preactivation=True), {}),
    "preactivated, no squeeze": (PREACT, dict(squeeze=None)),
    "padded shortcuts": (dict(BASIC, projection="pad"), {}),
    "groups, 3x3 projections, deep stem": (
        dict(BOTTLENECK, groups=4, projection="3x3", stem="deep", pool="ceil", dropout=0.5),
        {},
    ),
}


def built(case, size=16, level="block"):
    """The eager network of a case and the fused one."""
    network, se = CASES[case]
    network = {"stem": "cifar", **network}
    return twins(
        lambda fused: ResNet(**network, se=SE(fused=fused and level, rd_ratio=1 / 2, **se)),
        pictures(4, size, seed=1),
    )


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case", CASES)
def test_fused_is_eager(case, training):
    eager, fused = built(case)
    assert list(fused.state_dict()) == list(eager.state_dict())
    images, labels = batch(size=16)
    assert_same_training_step(eager.train(training), fused.train(training), images, labels)


# --- Fig. 5 --------------------------------------------------------------------------------------


def branch(block, x, se_3x3):
    """The residual branch of a bottleneck or a basic block, from its convolutions and norms."""
    v = F.relu(block.bn1(block.conv1(x)))
    if not hasattr(block, "conv3"):
        return block.bn2(block.conv2(v))
    v = se_3x3(F.relu(block.bn2(block.conv2(v))))
    return block.bn3(block.conv3(v))


def fig_5(block, integration, se, x):
    def se_if(*integrations):
        return se if integration in integrations else lambda v: v

    v = se_if("standard")(branch(block, se_if("pre")(x), se_if("3x3")))
    shortcut = x if block.downsample is None else block.downsample(x)
    return se_if("post")(F.relu(v + se_if("identity")(shortcut)))


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "eager"])
@pytest.mark.parametrize("layer", ["layer1", "layer2"])
@pytest.mark.parametrize(
    "kind, integration",
    [
        *(("bottleneck", where) for where in ("standard", "pre", "post", "identity", "3x3")),
        *(("basic", where) for where in ("standard", "pre", "post", "identity")),
    ],
)
@torch.no_grad()
def test_integrations_are_those_of_fig_5(kind, integration, layer, fused):
    network = {"bottleneck": BOTTLENECK, "basic": BASIC}[kind]
    torch.manual_seed(0)
    se = SE(fused=fused, rd_ratio=1 / 4, integration=integration)
    model = ResNet(**network, stem="cifar", se=se).double().eval()
    for block in getattr(model, layer):  # the first of layer2 has a projection

        def squeeze_excite(v, block=block):
            return reference.squeeze_excite(v, block.se.fc1.weight, block.se.fc2.weight)

        x = torch.randn(2, block.conv1.in_channels, 5, 4, dtype=torch.float64)
        before = x.clone()
        expected = fig_5(block, integration, squeeze_excite, x)
        torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(x, before)


# an SE block whose output is added to something is one call with it, and with the norm before it
@pytest.mark.parametrize(
    "case, pre, residual, post",
    [
        ("bottleneck, bias", "identity", True, "relu"),
        ("basic, identity", None, True, "relu"),
        ("preactivated", None, True, "none"),
        ("bottleneck, pre", None, False, "none"),
        ("bottleneck, post", None, False, "none"),
        ("bottleneck, 3x3", "relu", False, "none"),
    ],
)
def test_the_tail_is_one_call_where_the_order_allows(case, pre, residual, post, calls):
    _, fused = built(case)
    fused.eval()(pictures(1, 8))
    assert calls == [(pre, residual, post)] * 4


def test_the_norm_may_be_left_apart(calls):
    eager, fused = built("bottleneck, bias", level="layer")
    images, labels = batch(size=16)
    assert_same_training_step(eager, fused, images, labels)
    assert calls == [(None, True, "relu")] * 4


@pytest.fixture
def calls(monkeypatch):
    """Of SE blocks: pre, or None where the norm is apart; whether there is a residual; and post."""
    seen = []
    alone = se_kernels.modules.squeeze_excite.squeeze_excite
    with_norm = norm_call.batch_norm_squeeze_excite

    def apart(*args, residual, post, **options):
        seen.append((None, residual is not None, post))
        return alone(*args, residual=residual, post=post, **options)

    def together(*args, pre, residual, post, **options):
        seen.append((pre, residual is not None, post))
        return with_norm(*args, pre=pre, residual=residual, post=post, **options)

    monkeypatch.setattr(se_kernels.modules.squeeze_excite, "squeeze_excite", apart)
    monkeypatch.setattr(norm_call, "batch_norm_squeeze_excite", together)
    return seen


@torch.no_grad()
def test_preactivated_block_is_the_papers():
    """He et al., "Identity Mappings": SE acts on the branch, nothing follows the summation."""
    _, model = built("preactivated")
    model.eval()
    for block in (*model.layer1, *model.layer2):
        x = torch.randn(2, block.conv1.in_channels, 5, 4, dtype=torch.float64)
        a = F.relu(block.bn1(x))
        v = block.conv2(F.relu(block.bn2(block.conv1(a))))
        v = block.conv3(F.relu(block.bn3(v)))
        v = reference.squeeze_excite(v, block.se.fc1.weight, block.se.fc2.weight)
        shortcut = x if block.downsample is None else block.downsample(a)
        torch.testing.assert_close(block(x), v + shortcut, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_padded_shortcut():
    x = torch.randn(2, 3, 5, 4)
    y = models.residual.Pad(2, stride=2)(x)
    assert torch.equal(y[:, :3], x[:, :, ::2, ::2])
    assert y.shape == (2, 5, 3, 2)
    assert not y[:, 3:].any()


@torch.no_grad()
def test_without_squeeze_every_pixel_has_its_gate():
    """Section 7.1: the FCs as 1×1 convolutions, with the parameters of the FCs."""
    block = SE(squeeze=None, rd_ratio=1 / 4).block(16).double()
    assert {n: p.shape for n, p in block.named_parameters()} == {
        n: p.shape for n, p in SE(rd_ratio=1 / 4).block(16).named_parameters()
    }
    x = torch.randn(2, 16, 3, 5, dtype=torch.float64)
    pixels = x.permute(0, 2, 3, 1)  # (N, H, W, C)
    h = F.relu(pixels @ block.fc1.weight.flatten(1).T)
    s = torch.sigmoid(h @ block.fc2.weight.flatten(1).T)
    torch.testing.assert_close(block(x), (pixels * s).permute(0, 3, 1, 2), rtol=1e-12, atol=1e-12)


# --- Tables 10 to 16 -----------------------------------------------------------------------------


def se_resnet50(**ablation):
    return on_meta(models.se_resnet50, fused=False, **ablation)


# The tables add what the SE blocks have to ResNet-50's 25.557 M already rounded to 25.6. So does
# Table 10, but for r = 8: 25.6 and 5.03 would be 30.6.
@pytest.mark.parametrize(
    "ablation, millions",
    [
        (dict(rd_ratio=1 / 2), 45.7),
        (dict(rd_ratio=1 / 4), 35.7),
        (dict(rd_ratio=1 / 8), 30.6),
        ({}, 28.1),
        (dict(rd_ratio=1 / 32), 26.9),
        (dict(stages=(2,)), 25.6),
        (dict(stages=(3,)), 25.7),
        (dict(stages=(4,)), 26.4),
        (dict(integration="3x3"), 25.8),
        (dict(squeeze=None), 28.1),
    ],
    ids=str,
)
def test_parameters_of_tables_10_13_15_and_16(ablation, millions):
    added = count_parameters(se_resnet50(**ablation)) - count_parameters(on_meta(models.resnet50))
    assert f"{25.6 + added / 1e6:.1f}" == str(millions)


@pytest.mark.parametrize(
    "ablation, giga",
    [
        (dict(stages=(2,)), 3.86),
        (dict(stages=(3,)), 3.86),
        (dict(stages=(4,)), 3.86),
        ({}, 3.87),
        (dict(integration="3x3"), 3.86),
        (dict(squeeze=None), 4.27),
    ],
    ids=str,
)
def test_multiply_adds_of_tables_13_15_and_16(ablation, giga):
    assert f"{giga_multiply_adds(se_resnet50(**ablation), elementwise=True):.2f}" == str(giga)


@pytest.mark.parametrize("integration", ["post", "identity"])
def test_moved_blocks_keep_their_parameters(integration):
    assert count_parameters(se_resnet50(integration=integration)) == count_parameters(se_resnet50())


def test_stages_have_se_where_chosen():
    model = on_meta(models.se_resnet50, stages=(3, 5))
    with_se = [all(b.se is not None for b in getattr(model, name)) for name in model.layers]
    assert with_se == [False, True, False, True]


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ablation, message",
    [
        (dict(squeeze="mean"), "squeeze: expected one of avg, max, avgmax, None; got 'mean'"),
        (dict(act="mish"), "act: expected one of relu.*got 'mish'"),
        (dict(gate="softmax"), "gate: expected one of sigmoid.*got 'softmax'"),
        (dict(integration="after"), "integration: expected one of standard.*got 'after'"),
        (dict(rd_ratio=0), "rd_ratio: expected a number above 0, got 0"),
        (dict(rd_ratio="1/16"), "rd_ratio: expected a number above 0, got '1/16'"),
        (dict(rd_ratio=float("inf")), "rd_ratio: expected a number above 0, got inf"),
        (dict(rd_ratio=float("nan")), "rd_ratio: expected a number above 0, got nan"),
        (dict(stages=3), "stages: expected a tuple of numbers or None, got 3"),
        (dict(stages=(1,)), r"stages: expected some of 2, 3, 4, 5 in Bottleneck; got \(1,\)"),
        (dict(stages=()), r"stages: expected some of 2, 3, 4, 5 in Bottleneck; got \(\)"),
    ],
)
@pytest.mark.parametrize("fused", [True, False])
def test_unknown_ablations(fused, ablation, message):
    with pytest.raises(ValueError, match=message):
        on_meta(models.se_resnet50, fused=fused, **ablation)


@pytest.mark.parametrize(
    "network, integration, message",
    [
        (BASIC, "3x3", "expected one of standard, pre, post, identity in BasicBlock; got '3x3'"),
        (PREACT, "post", "expected one of standard in PreActBottleneck; got 'post'"),
    ],
)
def test_ablations_that_do_not_fit_the_block(network, integration, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**network, se=SE(integration=integration))
