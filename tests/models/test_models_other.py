"""The networks without residual tails and those for CIFAR: the tables of their own papers, timm's
and torchvision's networks, fused against eager, and Shake-Shake's random mixing."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from networks import (
    LAYOUTS,
    assert_same_training_step,
    batch,
    count_parameters,
    distance,
    on_meta,
    pictures,
    settle,
    twins,
)
from torch import nn

from se_kernels import SqueezeExcite, models
from se_kernels.models import (
    SE,
    VGG,
    BNInception,
    InceptionResNet,
    MobileNet,
    ResNet,
    ShakeNet,
    ShuffleNet,
    Stage,
)
from se_kernels.models.bn_inception import Row as InceptionRow
from se_kernels.models.cifar import DESIGN
from se_kernels.models.mobilenet import MOBILENET
from se_kernels.models.residual import Design, PreActBasicBlock, PreActBottleneck
from se_kernels.models.shake import Mix, Shortcut
from se_kernels.models.shufflenet import Row as ShuffleRow
from se_kernels.models.vgg import VGG16

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGENET = ("vgg16", "bn_inception", "inception_resnet_v2", "mobilenet", "shufflenet")
CIFAR = ("resnet110", "resnet164", "wrn_16_8", "shake_shake_26_2x96d", "shake_even_29_2x4x64d")


def se_blocks(model):
    return [module for module in model.modules() if isinstance(module, SqueezeExcite)]


# --- the tables of the papers ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, classes, millions",
    [
        ("vgg16", 1000, "138"),
        ("mobilenet", 1000, "4.2"),
        ("resnet110", 10, "1.7"),
        ("resnet164", 10, "1.7"),
        ("wrn_16_8", 10, "11.0"),
        ("shake_shake_26_2x96d", 10, "26.2"),
        ("shake_even_29_2x4x64d", 10, "34.4"),
    ],
)
def test_parameters_are_those_of_the_networks_own_papers(name, classes, millions):
    digits = len(millions.partition(".")[2])
    count = count_parameters(on_meta(models.create, name, classes, se=None))
    assert f"{count / 1e6:.{digits}f}" == millions


SE_CHANNELS = {
    "vgg16": [channels for stage in VGG16 for channels in stage],
    "bn_inception": [256, 320, 576, 576, 576, 608, 608, 1056, 1024, 1024],
    "inception_resnet_v2": [320] * 11 + [1088] * 21 + [2080] * 11,
    "mobilenet": [channels for stage in MOBILENET for channels in stage],
    # the first of each stage is concatenated with a pool of 24, 240 or 480 channels
    "shufflenet": [216, *[240] * 3, 240, *[480] * 7, 480, *[960] * 3],
    "resnet110": [16] * 18 + [32] * 18 + [64] * 18,
    "resnet164": [64] * 18 + [128] * 18 + [256] * 18,
    "wrn_16_8": [128, 128, 256, 256, 512, 512],
    "shake_shake_26_2x96d": [96] * 4 + [192] * 4 + [384] * 4,
    "shake_even_29_2x4x64d": [256] * 3 + [512] * 3 + [1024] * 3,
}


@pytest.mark.parametrize("name", SE_CHANNELS)
def test_where_the_se_blocks_are_and_their_options(name):
    model = on_meta(models.create, name, rd_ratio=1 / 8, squeeze="max", gate="tanh", bias=True)
    blocks = se_blocks(model)
    assert [block.fc1.in_channels for block in blocks] == SE_CHANNELS[name]
    for block in blocks:
        assert block.fc1.out_channels == round(block.fc1.in_channels / 8)
        assert (block.squeeze, block.gate) == ("max", "tanh")
        assert block.fc1.bias is not None


@pytest.mark.parametrize(
    "name, shapes",
    [
        ("vgg16", [(256, 56), (512, 28), (512, 14), (512, 7)]),
        ("bn_inception", [(192, 56), (320, 28), (608, 14), (1024, 7)]),
        ("mobilenet", [(128, 56), (256, 28), (512, 14), (1024, 7)]),
        ("shufflenet", [(24, 56), (240, 28), (480, 14), (960, 7)]),
    ],
)
def test_feature_maps(name, shapes):
    model = on_meta(models.create, name, features_only=True)
    maps = model(torch.empty(1, 3, 224, 224, device="meta"))
    assert [tuple(m.shape) for m in maps] == [(1, c, size, size) for c, size in shapes]
    assert model.feature_channels == tuple(channels for channels, _ in shapes)


def test_feature_maps_of_inception_resnet():
    """Not padded: 71, 35, 17 and 8 of 299 pixels, as in its own paper."""
    model = on_meta(models.create, "inception_resnet_v2", features_only=True)
    maps = model(torch.empty(1, 3, 299, 299, device="meta"))
    shapes = [(192, 71), (320, 35), (1088, 17), (1536, 8)]
    assert [tuple(m.shape) for m in maps] == [(1, c, size, size) for c, size in shapes]


@pytest.mark.parametrize("name", CIFAR)
def test_networks_for_cifar_are_no_backbones(name):
    with pytest.raises(ValueError, match=f"features_only: expected False in {name}"):
        on_meta(models.create, name, features_only=True)


# --- networks of timm and torchvision -------------------------------------------------------------


def load_in_order(theirs, ours):
    """Ours of another name but in the same order, into theirs, built on the meta device."""
    names = list(theirs.state_dict())
    values = list(ours.state_dict().values())
    theirs.load_state_dict(dict(zip(names, values, strict=True)), assign=True)


@torch.no_grad()
def test_inception_resnet_is_timms():
    timm = pytest.importorskip("timm")
    theirs = on_meta(timm.create_model, "inception_resnet_v2", num_classes=3)
    torch.manual_seed(0)
    ours = models.create("inception_resnet_v2", 3, se=None)
    ours = settle(ours, pictures(2, 107).float()).eval()
    renamed = {
        "stage5.1.": "mixed_5b.",
        "stage6.0.": "mixed_6a.",
        "stage7.0.": "mixed_7a.",
        "stage7.10.": "block8.",
        "stage7.11.": "conv2d_7b.",
        "fc.": "classif.",
        **{f"stage5.{i + 2}.": f"repeat.{i}." for i in range(10)},
        **{f"stage6.{i + 1}.": f"repeat_1.{i}." for i in range(20)},
        **{f"stage7.{i + 1}.": f"repeat_2.{i}." for i in range(9)},
    }

    def timms_name(name):
        for prefix, timms in renamed.items():
            if name.startswith(prefix):
                return timms + name.removeprefix(prefix)
        return name

    weights = {timms_name(name): tensor for name, tensor in ours.state_dict().items()}
    theirs.load_state_dict(weights, assign=True)
    images = pictures(1, 107, seed=8)
    # float64 rounding, 1e-16, through a depth of 150 convolutions
    assert distance(ours.double()(images), theirs.double()(images)) < 1e-10


@torch.no_grad()
def test_convolutions_of_vgg_are_torchvisions():
    theirs = on_meta(pytest.importorskip("torchvision").models.vgg16_bn).features
    torch.manual_seed(0)
    ours = models.create("vgg16", se=None, features_only=True)
    ours = settle(ours, pictures(4, 32).float()).eval()
    # torchvision's convolutions have biases, which the norms after them take away
    for layer in theirs:
        if isinstance(layer, nn.Conv2d):
            layer.register_parameter("bias", None)
    load_in_order(theirs, ours)
    images = pictures(2, 64, seed=8)
    # float64 rounding, 1e-16, through 13 convolutions
    assert distance(ours.double()(images)[-1], theirs.double()(images)) < 1e-12


@torch.no_grad()
def test_mobilenet_is_timms():
    timm = pytest.importorskip("timm")
    # ReLU, as in its paper; timm's own choice is ReLU6
    theirs = on_meta(timm.create_model, "mobilenetv1_100", num_classes=3, act_layer="relu")
    torch.manual_seed(0)
    ours = models.create("mobilenet", 3, se=None)
    ours = settle(ours, pictures(4, 64).float()).eval()
    load_in_order(theirs, ours)
    images = pictures(2, 64, seed=8)
    # float64 rounding, 1e-16, through 27 convolutions
    assert distance(ours.double()(images), theirs.double()(images)) < 1e-12


@pytest.mark.parametrize("in_channels, stride", [(64, 1), (16, 1), (32, 2)])
@pytest.mark.parametrize("kind", ["bottleneck", "basic"])
@torch.no_grad()
def test_pre_activated_blocks_are_timms(kind, in_channels, stride):
    """The blocks of ResNet-164 and of WRN-16-8."""
    pytest.importorskip("timm")
    from timm.layers import BatchNormAct2d, create_conv2d
    from timm.models import resnetv2

    design = Design(stride_in_1x1=False)  # where timm has it
    if kind == "bottleneck":
        ours = PreActBottleneck(in_channels, (16, 16, 64), stride, design)
        theirs = resnetv2.PreActBottleneck
    else:
        ours = PreActBasicBlock(in_channels, (64, 64), stride, design)
        theirs = resnetv2.PreActBasic
    theirs = theirs(
        in_channels,
        64,
        stride=stride,
        conv_layer=create_conv2d,
        norm_layer=BatchNormAct2d,
        proj_layer=None if ours.downsample is None else resnetv2.DownsampleConv,
    )
    ours = settle(ours.double(), pictures(4, 8, in_channels)).eval()
    load_in_order(theirs, ours)
    x = pictures(2, 9, in_channels, seed=8)
    # float64 rounding, 1e-16, through 3 convolutions
    assert distance(ours(x), theirs.eval()(x)) < 1e-13


# --- fused against eager --------------------------------------------------------------------------

# A few layers of each kind.
SMALL = {
    "vgg": partial(VGG, ((8, 8), (16,), (16,)), hidden=24),
    "bn_inception": partial(
        BNInception,
        {
            "3a": InceptionRow(16, (8, 16), (8, 16), "avg", 16),
            "3c": InceptionRow(None, (8, 16), (8, 16), "max", None, 2),
            "5b": InceptionRow(16, (8, 16), (8, 16), "max", 16),
        },
    ),
    "inception_resnet": partial(InceptionResNet, (1, 1, 1)),
    "mobilenet": partial(MobileNet, ((16,), (32, 32), (64,))),
    "shufflenet": partial(ShuffleNet, (ShuffleRow(48, 2), ShuffleRow(96, 2))),
    "pre_activated": partial(ResNet, (Stage((16, 16, 64), 2, 1), Stage((32, 32), 2, 2)), **DESIGN),
    "shake": partial(ShakeNet, (Stage((16, 16), 2, 1), Stage((32, 32, 32), 1, 2)), groups=2),
}
SIZES = {"inception_resnet": 75}


def small(name, fused, **options):
    # a quarter: with one or two channels between the FCs the ReLU there may close all
    return SMALL[name](num_classes=10, se=SE(fused=fused, rd_ratio=1 / 4), **options)


@pytest.mark.parametrize(
    "training, layout", [(True, "nchw"), (True, "channels_last"), (False, "nchw")]
)
@pytest.mark.parametrize("name", SMALL)
def test_fused_is_eager_in_float64(name, training, layout):
    size = SIZES.get(name, 32)
    eager, fused = twins(partial(small, name), pictures(4, size, seed=1))
    for model in (eager, fused):
        model.train(training).to(memory_format=LAYOUTS[layout])
    # a shift of a channel, which the norm after the next convolution takes away
    null = ("conv2.bn.bias",) if training and name == "shufflenet" else ()
    assert_same_training_step(eager, fused, *batch(layout, size), null)


@pytest.mark.parametrize("name", SMALL)
def test_one_seed_gives_one_network(name):
    states = []
    for fused in (True, False):
        torch.manual_seed(0)
        states.append(small(name, fused).state_dict())
    assert list(states[0]) == list(states[1])
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key


@pytest.mark.parametrize("name", ["vgg", "bn_inception", "mobilenet", "shufflenet"])
def test_what_the_se_blocks_see(name):
    """What a ReLU gave, where layers are stacked; a branch before the sum is linear."""
    model = small(name, fused=True)
    seen = []
    for block in se_blocks(model):
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0].min()))
    with torch.no_grad():
        model(pictures(2, 32).float())
    assert len(seen) == len(se_blocks(model)) > 2
    assert all((lowest < 0) == (name == "shufflenet") for lowest in seen)


def test_residual_and_relu_are_in_the_block_where_the_order_allows_it():
    posts = {
        name: [block.post for block in se_blocks(small(name, fused=True))]
        for name in ("inception_resnet", "shufflenet", "pre_activated", "shake")
    }
    # an Inception module and a residual block a stage; the last block has no ReLU
    assert posts["inception_resnet"] == ["none", "relu", "none", "relu", "none", "none"]
    assert posts["shufflenet"] == ["relu"] * 4
    assert posts["pre_activated"] == ["none"] * 4
    assert posts["shake"] == ["none"] * 3


# --- stages and sizes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, stages",
    [
        ("vgg16", (1, 2, 3, 4, 5)),
        ("bn_inception", (3, 4, 5)),
        ("inception_resnet_v2", (5, 6, 7)),
        ("mobilenet", (1, 2, 3, 4, 5)),
        ("shufflenet", (2, 3, 4)),
        ("shake_shake_26_2x96d", (2, 3, 4)),
    ],
)
def test_se_in_chosen_stages(name, stages):
    channels = [
        block.fc1.in_channels
        for stage in stages
        for block in se_blocks(on_meta(models.create, name, stages=(stage,)))
    ]
    assert channels == SE_CHANNELS[name]
    for chosen in ((stages[-1] + 1,), (stages[0] - 1, stages[0])):
        with pytest.raises(ValueError, match="stages: expected some of"):
            on_meta(models.create, name, stages=chosen)


@pytest.mark.parametrize("name", [*IMAGENET, *CIFAR])
def test_se_goes_nowhere_else(name):
    with pytest.raises(ValueError, match="integration: expected one of standard in"):
        on_meta(models.create, name, integration="post")


@pytest.mark.parametrize(
    "name, size",
    [
        ("vgg16", 32),
        ("bn_inception", 32),
        ("inception_resnet_v2", 75),
        ("mobilenet", 32),
        ("shufflenet", 32),
        ("resnet110", 4),
        ("resnet164", 4),
        ("wrn_16_8", 4),
        ("shake_shake_26_2x96d", 4),
        ("shake_even_29_2x4x64d", 4),
    ],
)
def test_odd_and_small_images(name, size):
    model = on_meta(models.create, name, 3, in_channels=2, se="eager")
    for shape in ((size, size), (size + 1, size + 10), (size + 15, size + 4)):
        assert model(torch.empty(1, 2, *shape, device="meta")).shape == (1, 3)
    with pytest.raises(ValueError, match=rf"\(N, 2, H, W\) with H and W >= {size}, got shape"):
        model(torch.empty(1, 2, size + 5, size - 1, device="meta"))


@pytest.mark.parametrize(
    "build, message",
    [
        (partial(VGG, ((8,),)), "stages: expected at least two"),
        (partial(MobileNet, ((8,),)), "stages: expected at least two"),
        (partial(ShuffleNet, ()), "stages: expected at least one"),
        (partial(ShakeNet, ()), "stages: expected at least one"),
        (partial(InceptionResNet, (1, 0, 1)), r"blocks: expected three .* got \(1, 0, 1\)"),
        (partial(models.shufflenet, groups=7), r"groups: expected 4 \* groups to divide .*got 7"),
        (partial(models.shake_shake_26_2x96d, forward="keep"), "forward: expected one of shake"),
        (partial(models.shake_shake_26_2x96d, backward="odd"), "backward: .*even, keep; got 'odd'"),
    ],
)
def test_arguments_that_do_not_fit(build, message):
    with pytest.raises(ValueError, match=message):
        on_meta(build)


# --- Shake-Shake ----------------------------------------------------------------------------------


def mixed(forward, backward, seed=0):
    """The weights of 64 images that a forward pass and its backward pass used: alpha, beta."""
    a, b = (pictures(64, 3, seed=seed).requires_grad_() for seed in (1, 2))
    mix = Mix(forward, backward)
    torch.manual_seed(seed)
    y = mix(a, b)
    dy = pictures(64, 3, seed=3)
    y.backward(dy)
    alpha = ((y - b) / (a - b)).detach()
    beta = a.grad / dy
    torch.testing.assert_close(b.grad / dy, 1 - beta)
    for weight in (alpha, beta):  # one weight for all of an image
        torch.testing.assert_close(weight, weight[:, :1, :1, :1].expand_as(weight))
    return alpha[:, 0, 0, 0], beta[:, 0, 0, 0]


@pytest.mark.parametrize("backward", ["shake", "even", "keep"])
@pytest.mark.parametrize("forward", ["shake", "even"])
def test_weights_of_the_branches(forward, backward):
    alpha, beta = mixed(forward, backward)
    for how, weight in ((forward, alpha), (backward, beta)):
        if how == "shake":
            # of 64 uniform numbers, none lies in a given quarter once in 10^8 draws
            assert weight.histc(4, 0, 1).min() > 0
            assert weight.min() >= 0
            assert weight.max() <= 1
        elif how == "even":
            torch.testing.assert_close(weight, torch.full_like(weight, 0.5))
    if backward == "keep":
        torch.testing.assert_close(alpha, beta)
    if (forward, backward) == ("shake", "shake"):
        assert (alpha - beta).abs().min() > 0


def test_a_seed_gives_the_same_weights():
    first, again, other = (
        mixed("shake", "shake"),
        mixed("shake", "shake"),
        mixed("shake", "shake", 1),
    )
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(first, other, strict=True))


def test_the_two_networks_shake_as_their_names_say():
    for name, how in (
        ("shake_shake_26_2x96d", ("shake", "shake")),
        ("shake_even_29_2x4x64d", ("shake", "even")),
    ):
        mixes = [m for m in on_meta(models.create, name).modules() if isinstance(m, Mix)]
        assert {mix.how for mix in mixes} == {how}
        assert len(mixes) == len(SE_CHANNELS[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eval_takes_the_mean(dtype):
    a, b = (pictures(2, 3, seed=seed).to(dtype).requires_grad_() for seed in (1, 2))
    mix = Mix().eval()
    state = torch.get_rng_state()
    y = mix(a, b)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(y, (a + b) / 2)
    y.sum().backward()
    assert torch.equal(a.grad, torch.full_like(a, 0.5))
    assert torch.equal(b.grad, torch.full_like(b, 0.5))
    assert Mix()(a, b).dtype == dtype


def test_gradients_of_the_mixture():
    """With the weights of forward kept it is an ordinary function."""
    mix = Mix(backward="keep")

    def run(a, b):
        torch.manual_seed(0)
        return mix(a, b)

    pair = tuple(pictures(2, 2, 2, seed=seed).requires_grad_() for seed in (1, 2))
    torch.autograd.gradcheck(run, pair)
    torch.autograd.gradgradcheck(run, pair)


def test_a_recomputed_block_has_the_same_gradients():
    torch.manual_seed(0)
    block = small("shake", fused=True).layer1[1].double()
    x = pictures(2, 6, 16).requires_grad_()

    def gradients(run):
        torch.manual_seed(3)
        return torch.autograd.grad(run(x).square().sum(), [x, *block.parameters()])

    plain = gradients(block)
    again = gradients(partial(torch.utils.checkpoint.checkpoint, block, use_reentrant=False))
    assert all(torch.equal(g, h) for g, h in zip(plain, again, strict=True))


@pytest.mark.parametrize("size", [6, 7])
def test_shortcut_takes_every_second_pixel_twice(size):
    torch.manual_seed(0)
    shortcut = Shortcut(4, 7, 2).double().eval()
    a = pictures(2, size, 4)
    rest = F.pad(a, (0, size % 2, 0, size % 2))[:, :, 1::2, 1::2]
    flows = shortcut.conv1(a[:, :, ::2, ::2]), shortcut.conv2(rest)
    torch.testing.assert_close(shortcut(a), shortcut.bn(torch.cat(flows, 1)))
