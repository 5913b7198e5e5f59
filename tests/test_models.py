"""ResNet-50 and SE-ResNet-50 against the paper's numbers, and fused against eager networks."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from se_kernels.models import RESNET50, SE, ResNet, Stage, resnet50, se_resnet50

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.fixture(autouse=True)
def one_thread():
    """These images are small, and threads of one test wait long for each other beside others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def count_parameters(model):
    return sum(p.numel() for p in model.parameters())


def on_meta(build, **arguments):
    with torch.device("meta"):
        return build(**arguments).eval()


# --- Section 4, Tables 1, 2 and 10 ---------------------------------------------------------------


def test_parameters_are_the_papers():
    assert f"{count_parameters(on_meta(resnet50)) / 1e6:.1f}" == "25.6"
    for fused in (True, False):
        assert f"{count_parameters(on_meta(se_resnet50, fused=fused)) / 1e6:.1f}" == "28.1"


# Table 10. The rows of r = 4, 8 and 32 lie up to 0.11 M above what eq. 5 gives: hence 0.15 M.
@pytest.mark.parametrize("r, millions", [(2, 45.7), (4, 35.7), (8, 30.7), (16, 28.1), (32, 26.9)])
def test_se_blocks_add_equation_5(r, millions):
    plain = count_parameters(on_meta(resnet50))
    with_se = count_parameters(on_meta(se_resnet50, rd_ratio=1 / r))
    rows = [(stage.blocks, stage.channels[-1]) for stage in RESNET50]
    assert with_se - plain == 2 * sum(n * c**2 for n, c in rows) // r
    assert with_se / 1e6 == pytest.approx(millions, abs=0.15)


def squeezed_elements(x_shape, *_, **__):
    return 2 * torch.Size(x_shape).numel()


def scaled_elements(*_, out_shape=None, **__):
    return 2 * torch.Size(out_shape).numel()


def giga_multiply_adds(model, elementwise):
    """torch's counter takes convolutions and matrix products, the classifier included, as 2 flops a
    multiply-add; with ``elementwise`` each pooled and each scaled element is one as well."""
    aten = torch.ops.aten
    mapping = {aten.mean: squeezed_elements, aten.mul: scaled_elements} if elementwise else None
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        model(torch.empty(1, 3, 224, 224, device="meta"))
    return counter.get_total_flops() / 2e9


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


def twins(network, seed=0):
    """The eager network and a fused one that has its state dict, in float64, with running
    statistics of real activations, so that eval mode does not blow up."""
    torch.manual_seed(seed)
    eager = NETWORKS[network](fused=False).double()
    norms = [m for m in eager.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # statistics become those of the batches below
    with torch.no_grad():
        eager(torch.randn(4, 3, 64, 64, dtype=torch.float64))
    for norm in norms:
        norm.momentum = 0.1
    torch.manual_seed(seed + 1)  # other initial values: only the state dict can make them equal
    fused = NETWORKS[network](fused=True).double()
    fused.load_state_dict(eager.state_dict(), strict=True)
    return eager, fused


def logits_and_gradients(model, images, labels):
    model.zero_grad()
    logits = model(images)
    nn.functional.cross_entropy(logits.double(), labels).backward()
    gradients = {name: p.grad.double() for name, p in model.named_parameters()}
    return logits.detach().double(), gradients


def distance(a, b):
    """Relative to the norm of ``b``, so that no tensor is small enough to pass unseen."""
    return ((a - b).norm() / b.norm()).item()


def total(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


def batch(dtype, layout):
    torch.manual_seed(7)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    return images.to(dtype).contiguous(memory_format=layout), torch.tensor([3, 8])


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
    eager, fused = twins(network)
    layout = LAYOUTS[layout]
    images, labels = batch(torch.float64, layout)
    for model in (eager, fused):
        model.train(training).to(memory_format=layout)
    logits, gradients = logits_and_gradients(eager, images, labels)
    fused_logits, fused_gradients = logits_and_gradients(fused, images, labels)
    # float64 rounding, 1e-16, grown by 50 layers with batch norm over 2 images of down to 2×2.
    assert distance(fused_logits, logits) < 1e-11
    assert gradients.keys() == fused_gradients.keys()
    for name, gradient in gradients.items():
        assert gradient.norm() > 0, name
        assert distance(fused_gradients[name], gradient) < 1e-9, name
    for (name, a), b in zip(eager.named_buffers(), fused.buffers(), strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=1e-11, atol=1e-13), name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_fused_is_as_exact_as_eager_in_float32(training, layout):
    eager, fused = twins("se_resnet50")
    layout = LAYOUTS[layout]
    images, labels = batch(torch.float64, layout)
    eager.train(training)
    exact_logits, exact = logits_and_gradients(copy.deepcopy(eager), images, labels)
    results = []
    for model in (eager, fused):
        model.float().train(training).to(memory_format=layout)
        results.append(logits_and_gradients(model, images.float(), labels))
    (eager_logits, eager_gradients), (fused_logits, fused_gradients) = results
    # Both differ from float64 by rounding alone, 1e-5 after 50 layers. They sum in different
    # orders, so either may be the closer one; the fused may be at most twice as far off.
    assert distance(eager_logits, exact_logits) < 1e-4
    assert distance(fused_logits, exact_logits) < 2 * distance(eager_logits, exact_logits)
    # A gradient jumps where a ReLU's input within rounding of 0 falls on the other side; over 2
    # images one such unit is up to 2 % of it, in eager too. The next test is the tight one.
    for gradients in (eager_gradients, fused_gradients):
        assert distance(total(gradients), total(exact)) < 0.1


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("network", ["bottleneck", "basic"])
def test_block_is_as_exact_as_eager_in_float32(network, training, layout):
    """One block: few enough units that none of this seed lies within rounding of a ReLU's edge."""
    models = twins(network)
    eager, fused = (model.layer2[1].train(training) for model in models)
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
    eager, fused = twins("basic")
    other = NETWORKS["basic"](fused=False).double()
    other.load_state_dict(fused.state_dict(), strict=True)
    images, _ = batch(torch.float64, torch.contiguous_format)
    assert torch.equal(other.eval()(images), eager.eval()(images))


def test_reference_backend_can_be_named():
    _, fused = twins("bottleneck")
    named = ResNet(num_classes=10, se=SE(backend="reference"), **SMALL["bottleneck"]).double()
    named.load_state_dict(fused.state_dict())
    images, _ = batch(torch.float64, torch.contiguous_format)
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
