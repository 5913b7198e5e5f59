"""The residual networks: the paper's numbers, timm's networks, and fused against eager ones."""

import copy
from functools import partial

import pytest
import torch
from networks import (
    LAYOUTS,
    assert_same_training_step,
    batch,
    count_parameters,
    distance,
    giga_multiply_adds,
    logits_and_gradients,
    on_meta,
    pictures,
    settle,
    twins,
)

from se_kernels import models
from se_kernels.models import RESNET50, SE, ResNet, Stage, resnet50, se_resnet50

pytestmark = pytest.mark.usefixtures("one_thread")


# --- Section 4, Tables 1, 2 and 10 ---------------------------------------------------------------


def test_parameters_are_the_papers():
    assert f"{count_parameters(on_meta(resnet50)) / 1e6:.1f}" == "25.6"
    for fused in (True, False):
        assert f"{count_parameters(on_meta(se_resnet50, fused=fused)) / 1e6:.1f}" == "28.1"


def test_se_blocks_add_equation_5():
    added = count_parameters(on_meta(se_resnet50)) - count_parameters(on_meta(resnet50))
    assert added == 2 * sum(stage.blocks * stage.channels[-1] ** 2 for stage in RESNET50) // 16


@pytest.mark.parametrize("elementwise", [False, True])
def test_multiply_adds_of_resnet50_are_the_papers(elementwise):
    assert f"{giga_multiply_adds(on_meta(resnet50), elementwise):.2f}" == "3.86"


def test_multiply_adds_of_se_resnet50_are_the_papers():
    model = on_meta(se_resnet50, fused=False)  # the counter does not see into the fused operation
    assert f"{giga_multiply_adds(model, elementwise=True):.2f}" == "3.87"


def test_fcs_of_the_se_blocks_cost_their_parameters():
    plain = giga_multiply_adds(on_meta(resnet50), elementwise=False)
    with_se = giga_multiply_adds(on_meta(se_resnet50, fused=False), elementwise=False)
    added = count_parameters(on_meta(se_resnet50)) - count_parameters(on_meta(resnet50))
    assert with_se - plain == pytest.approx(added / 1e9, rel=1e-9)


def test_stride_in_3x3_costs_more_multiply_adds():
    model = on_meta(resnet50, stride_in_1x1=False)
    assert f"{giga_multiply_adds(model, elementwise=False):.2f}" == "4.09"
    assert model.layer2[0].conv1.stride == (1, 1)
    assert model.layer2[0].conv2.stride == (2, 2)
    assert count_parameters(model) == count_parameters(on_meta(resnet50))


@pytest.mark.parametrize("stride_in_1x1", [True, False])
@pytest.mark.parametrize("build", [resnet50, partial(se_resnet50, fused=False), se_resnet50])
def test_output_sizes_are_those_of_table_1(build, stride_in_1x1):
    model = on_meta(build, stride_in_1x1=stride_in_1x1)
    shapes = {}
    for name, module in model.named_children():
        module.register_forward_hook(
            lambda _, __, out, name=name: shapes.update({name: tuple(out.shape[1:])})
        )
    model(torch.empty(2, 3, 224, 224, device="meta"))
    assert shapes == {
        "conv1": (64, 112, 112),
        "bn1": (64, 112, 112),
        "maxpool": (64, 56, 56),
        "layer1": (256, 56, 56),
        "layer2": (512, 28, 28),
        "layer3": (1024, 14, 14),
        "layer4": (2048, 7, 7),
        "fc": (1000,),
    }
    assert [len(getattr(model, name)) for name in model.layers] == [3, 4, 6, 3]


def test_fcs_of_the_se_blocks_are_those_of_table_1():
    model = on_meta(se_resnet50)
    widths = [
        (getattr(model, name)[0].se.fc1.out_channels, getattr(model, name)[0].se.fc2.out_channels)
        for name in model.layers
    ]
    assert widths == [(16, 256), (32, 512), (64, 1024), (128, 2048)]


# Table 2 counts 0.01 to 0.02 G more for the deep ones than their convolutions and classifier take.
@pytest.mark.parametrize(
    "name, giga, millions",
    [
        ("resnet101", 7.58, 44.5),
        ("resnet152", 11.30, 60.2),
        ("resnext50_32x4d", 4.24, 25.0),
        ("resnext101_32x4d", 7.99, 44.2),
    ],
)
def test_deep_and_grouped_networks_are_the_papers(name, giga, millions):
    """GFLOPs of Table 2; parameters of the networks' own papers."""
    plain, eager = (on_meta(models.create, name, se=se) for se in (None, "eager"))
    assert giga_multiply_adds(plain, elementwise=False) == pytest.approx(giga, abs=0.025)
    assert f"{count_parameters(plain) / 1e6:.1f}" == str(millions)
    added = sum(
        2 * len(getattr(plain, layer)) * channels**2 // 16
        for layer, channels in zip(plain.layers, plain.feature_channels, strict=True)
    )
    assert count_parameters(eager) - count_parameters(plain) == added  # eq. 5


# --- timm's networks: the same parameters by name, and the same logits ----------------------------

# timm's name → (ours, options that its weights need)
LEGACY = dict(bias=True, pool="ceil")
TIMM = {
    "seresnet50": ("resnet50", dict(bias=True, stride_in_1x1=False)),
    "legacy_seresnet50": ("resnet50", LEGACY),
    "legacy_seresnet101": ("resnet101", LEGACY),
    "legacy_seresnet152": ("resnet152", LEGACY),
    "legacy_seresnext50_32x4d": ("resnext50_32x4d", LEGACY),
    "legacy_seresnext101_32x4d": ("resnext101_32x4d", LEGACY),
    "legacy_senet154": ("senet154", {}),
}
SENET154_STEM = {"conv1.0": "conv1", "conv1.1": "bn1", "conv1.3": "conv2", "conv1.4": "bn2"}
SENET154_STEM |= {"conv1.6": "conv3", "bn1": "bn3"}


def timms_name(name, model):
    """timm's name of our parameter or buffer ``name``."""
    if not model.startswith("legacy"):
        return name
    module, _, leaf = name.rpartition(".")
    if module == "fc":
        return f"last_linear.{leaf}"
    if module.startswith("layer"):
        return name.replace(".se.", ".se_module.")
    return f"layer0.{SENET154_STEM[module] if model == 'legacy_senet154' else module}.{leaf}"


def ours_and_timms(model, classes):
    timm = pytest.importorskip("timm")
    name, options = TIMM[model]
    with torch.device("meta"):
        theirs = timm.create_model(model, num_classes=classes).eval()
    return partial(models.create, name, classes, **options), theirs


@pytest.mark.parametrize("model", TIMM)
def test_parameters_and_buffers_are_timms(model):
    build, theirs = ours_and_timms(model, 1000)
    ours = on_meta(build).state_dict()
    shapes = {timms_name(name, model): tensor.shape for name, tensor in ours.items()}
    assert shapes == {name: tensor.shape for name, tensor in theirs.state_dict().items()}


# the others are the same builder with other numbers of blocks, which the state dicts show
@pytest.mark.parametrize(
    "model",
    ["seresnet50", "legacy_seresnet50", "legacy_seresnext50_32x4d", "legacy_senet154"],
)
@torch.no_grad()
def test_logits_are_timms(model):
    build, theirs = ours_and_timms(model, 3)
    torch.manual_seed(0)
    # 66 pixels: the max pools, padded or rounding up, cut 33 differently
    ours = settle(build(), pictures(2, 66).float()).eval().double()
    weights = {timms_name(name, model): t for name, t in ours.state_dict().items()}
    theirs.load_state_dict(weights, assign=True)
    images = pictures(1, 66, seed=8)
    # float64 rounding, 1e-16, through 154 layers whose norms divide by the spread of 2 images
    assert distance(ours(images), theirs(images)) < 1e-10


# --- fused against eager -------------------------------------------------------------------------

# Every kind of block: with and without projection, bottleneck and basic, both stems.
SMALL = {
    "bottleneck": dict(stages=[Stage((16, 16, 64), 2, 1), Stage((32, 32, 128), 2, 2)]),
    "basic": dict(stages=[Stage((16, 16), 2, 1), Stage((24, 24), 2, 2)], stem="cifar"),
}
NETWORKS = {
    "se_resnet50": lambda fused: se_resnet50(10, fused=fused),
    "bottleneck": lambda fused: ResNet(num_classes=10, se=SE(fused=fused), **SMALL["bottleneck"]),
    "basic": lambda fused: ResNet(
        num_classes=10, se=SE(fused=fused, rd_ratio=1 / 4), **SMALL["basic"]
    ),
}


def built(network):
    return twins(NETWORKS[network], pictures(4, 64, seed=1))


@pytest.mark.parametrize("network", NETWORKS)
def test_one_seed_gives_one_network(network):
    states = []
    for fused in (False, True):
        torch.manual_seed(0)
        states.append(NETWORKS[network](fused).state_dict())
    assert list(states[0]) == list(states[1])
    for name in states[0]:
        assert torch.equal(states[0][name], states[1][name]), name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("network", NETWORKS)
def test_fused_is_eager_in_float64(network, training, layout):
    eager, fused = built(network)
    for model in (eager, fused):
        model.train(training).to(memory_format=LAYOUTS[layout])
    assert_same_training_step(eager, fused, *batch(layout))


@pytest.mark.parametrize("training, layout", [(True, "nchw"), (False, "channels_last")])
def test_fused_is_as_exact_as_eager_in_float32(training, layout):
    eager, fused = built("se_resnet50")
    images, labels = batch(layout)
    eager.train(training)
    exact_logits, exact = logits_and_gradients(copy.deepcopy(eager), images, labels)
    results = []
    for model in (eager, fused):
        model.float().train(training).to(memory_format=LAYOUTS[layout])
        results.append(logits_and_gradients(model, images.float(), labels))
    (eager_logits, eager_gradients), (fused_logits, fused_gradients) = results
    # Both differ from float64 by rounding alone, 1e-5 after 50 layers. They sum in different
    # orders, so either may be the closer one; the fused may be at most twice as far off.
    assert distance(eager_logits, exact_logits) < 1e-4
    assert distance(fused_logits, exact_logits) < 2 * distance(eager_logits, exact_logits)
    # A gradient jumps where a ReLU's input within rounding of 0 falls on the other side: over 2
    # images one such unit is up to 2 % of it, in eager too. The next test is the tight one.
    for gradients in (eager_gradients, fused_gradients):
        assert distance(total(gradients), total(exact)) < 0.1


def total(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("network", ["bottleneck", "basic"])
def test_block_is_as_exact_as_eager_in_float32(network, training, layout):
    """One block: few enough units that none of this seed lies within rounding of a ReLU's edge."""
    eager, fused = (model.layer2[1].train(training) for model in built(network))
    width = eager.conv1.in_channels
    torch.manual_seed(3)
    x = torch.randn(2, width, 9, 7, dtype=torch.float64)
    dy = torch.randn_like(x)

    def output_and_gradients(block):
        dtype = block.conv1.weight.dtype
        block_input = x.to(dtype).clone(memory_format=LAYOUTS[layout]).requires_grad_()
        block.zero_grad()
        y = block(block_input)
        y.backward(dy.to(dtype))
        gradients = {name: p.grad.double() for name, p in block.named_parameters()}
        return {"y": y.detach().double(), "x": block_input.grad.double(), **gradients}

    exact = output_and_gradients(copy.deepcopy(eager))
    eager32, fused32 = (
        output_and_gradients(block.float().to(memory_format=LAYOUTS[layout]))
        for block in (eager, fused)
    )
    for name, value in exact.items():
        assert value.norm() > 0, name
        # 1e-6: some 10 roundings, for a tensor that the eager block happens to get closer.
        limit = 2 * distance(eager32[name], value) + 1e-6
        assert distance(fused32[name], value) < limit < 1e-4, name


def test_state_dict_loads_back_into_eager():
    eager, fused = built("basic")
    other = NETWORKS["basic"](fused=False).double()
    other.load_state_dict(fused.state_dict(), strict=True)
    images, _ = batch()
    assert torch.equal(other.eval()(images), eager.eval()(images))


def test_reference_backend_can_be_named():
    _, fused = built("bottleneck")
    named = ResNet(num_classes=10, se=SE(backend="reference"), **SMALL["bottleneck"]).double()
    named.load_state_dict(fused.state_dict())
    images, _ = batch()
    assert distance(named.eval()(images), fused.eval()(images)) < 1e-12


def test_input_is_left_alone():
    """The tail works in place on the residual branch, never on the images or the shortcut."""
    for fused in (False, True):
        model = NETWORKS["basic"](fused)
        images = torch.randn(2, 3, 16, 16)
        block_input = torch.randn(2, 16, 16, 16)
        before = images.clone(), block_input.clone()
        model(images)
        model.layer1[0](block_input)
        assert torch.equal(images, before[0])
        assert torch.equal(block_input, before[1])


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "images, message",
    [
        (torch.zeros(3, 64, 64), r"\(N, 3, H, W\).*got shape \(3, 64, 64\)"),
        (torch.zeros(1, 1, 64, 64), r"\(N, 3, H, W\).*got shape \(1, 1, 64, 64\)"),
        (torch.zeros(1, 64, 64, 3), r"\(N, 3, H, W\).*got shape \(1, 64, 64, 3\)"),
        (torch.zeros(1, 3, 31, 64), r"H and W >= 32, got shape \(1, 3, 31, 64\)"),
        (torch.zeros(1, 3, 64, 0), r"H and W >= 32, got shape \(1, 3, 64, 0\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "floating-point numbers, got torch.uint8"),
    ],
)
@pytest.mark.parametrize("build", [resnet50, se_resnet50])
def test_images_that_do_not_fit(build, images, message):
    model = on_meta(build)
    with pytest.raises(ValueError, match=message):
        model(images.to("meta"))


def test_smallest_images():
    images = torch.empty(1, 3, 32, 32, device="meta")
    assert on_meta(se_resnet50, fused=False)(images).shape == (1, 1000)
    small = NETWORKS["basic"](fused=True)
    assert small.min_size == 2
    assert small.eval()(torch.zeros(1, 3, 2, 2)).shape == (1, 10)
    with pytest.raises(ValueError, match=r"H and W >= 2, got shape \(1, 3, 1, 2\)"):
        small(torch.zeros(1, 3, 1, 2))


def test_empty_batch():
    assert NETWORKS["basic"](fused=True).eval()(torch.zeros(0, 3, 8, 8)).shape == (0, 10)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(num_classes=0), "num_classes: expected an integer of at least 1, got 0"),
        (dict(in_channels=-1), "in_channels: expected an integer of at least 1, got -1"),
        (dict(stem="mnist"), "stem: expected one of .*got 'mnist'"),
        (dict(pool="max"), "pool: expected one of padded, ceil; got 'max'"),
        (dict(projection="2x2"), "projection: expected one of 1x1, 3x3, pad; got '2x2'"),
        (dict(projection="pad", stem_channels=32), "projection: 'pad' only adds channels"),
        (dict(stages=[]), "stages: expected at least one Stage, got none"),
        (dict(stages=[Stage((8, 8, 8, 8), 1, 1)]), "stages: expected 2 or 3 channels"),
        (dict(stages=[Stage((8, 8), 0, 1)]), "stages: .*blocks=0"),
        (dict(stages=[Stage((8, 8), 1, 0)]), "stages: .*stride=0"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    arguments = {"stages": SMALL["basic"]["stages"], **arguments}
    with pytest.raises(ValueError, match=message):
        ResNet(**arguments)


@pytest.mark.parametrize("build", [resnet50, se_resnet50])
def test_no_classes(build):
    with pytest.raises(ValueError, match="num_classes: expected an integer of at least 1, got 0"):
        build(0)
