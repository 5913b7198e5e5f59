"""fuse on the models people have: all SE modules of timm, whole models of each family."""

import copy
import importlib
from collections import Counter
from pathlib import Path

import pytest
import torch
from fused_twins import compare, draw, images, outcome, twins
from torch import nn

import se_kernels
from se_kernels.surgery import verify
from se_kernels.surgery.swap import plan_of

NAMES = [
    line.split()
    for line in (Path(__file__).parent / "timm_models_with_se.txt").read_text().splitlines()
    if not line.startswith("#")
]
OF_EACH_CONFIGURATION = [name for name, *star in NAMES if star]
ALL = [name for name, *_ in NAMES]


def timm_classes():
    blocks = importlib.import_module("timm.models._efficientnet_blocks")
    layers = importlib.import_module("timm.layers.squeeze_excite")
    senet = importlib.import_module("timm.models.senet")
    return (
        layers.SEModule,
        layers.EffectiveSEModule,
        layers.SqueezeExciteCl,
        blocks.SqueezeExcite,
        senet.SEModule,
    )


def configuration(se) -> str:
    """All that tells one SE module from another, but for its sizes."""
    parts = [f"{type(se).__module__}.{type(se).__name__} {getattr(se, 'add_maxpool', None)}"]
    for name, piece in se.named_children():
        sized = isinstance(piece, (nn.Conv2d, nn.Linear, nn.BatchNorm2d))
        biased = getattr(piece, "bias", None) is not None
        text = f"bias={biased}" if sized else repr(piece)
        parts.append(f"{name}: {type(piece).__module__}.{type(piece).__name__} {text}")
    return "; ".join(parts)


@pytest.fixture
def _probed_once(monkeypatch):
    """Modules of one configuration and one size are judged together."""
    known = {}
    why_not = verify.why_not

    def cached(module, forward, plan, channels):
        sizes = [tuple(p.shape) for p in module.parameters()]
        key = str((forward, plan, sizes, configuration(module)))
        if key not in known:
            known[key] = why_not(module, forward, plan, channels)
        return known[key]

    monkeypatch.setattr(verify, "why_not", cached)


@pytest.fixture
def _not_initialised(monkeypatch):
    """Half of the time to build a model on the meta device."""
    for name, function in vars(nn.init).items():
        if name.endswith("_") and not name.startswith("_") and callable(function):
            monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)


@pytest.mark.parametrize(
    "names", [OF_EACH_CONFIGURATION, pytest.param(ALL, marks=pytest.mark.slow)], ids=["some", "all"]
)
@pytest.mark.usefixtures("_probed_once", "_not_initialised")
def test_every_se_module_of_timm(names):
    """Each is fused, on the meta device; one of each configuration, the smallest, is compared."""
    timm = pytest.importorskip("timm")
    classes, counts, smallest = timm_classes(), Counter(), {}
    for name in names:
        with torch.device("meta"):
            model = timm.create_model(name)
        present = {n: m for n, m in model.named_modules() if isinstance(m, classes)}
        configurations = {n: configuration(m) for n, m in present.items()}
        report = se_kernels.fuse(model)
        assert set(report.fused) >= set(present), f"{name}: {report}"
        assert not report.skipped, f"{name}: {report}"
        counts[name] = len(present)
        for module_name, module in present.items():
            key = configurations[module_name]
            size = sum(p.numel() for p in module.parameters())
            if key not in smallest or size < smallest[key][0]:
                smallest[key] = size, module
    assert all(counts.values())
    if timm.__version__ == "1.0.31":
        assert len(smallest) == 12
        assert names is not ALL or (len(counts), counts.total()) == (350, 6958)
    for _, module in smallest.values():
        fused = draw(module.to_empty(device="cpu"))
        unfused = copy.deepcopy(fused)
        assert se_kernels.unfuse(unfused) == [""]
        channels = next(fused.parameters()).shape[1]
        for training in (True, False):
            for dtype in (torch.float32, torch.float64):
                x = images(3, channels, 4, 5)
                compare(unfused.train(training), fused.train(training), x, dtype)


# --- whole models --------------------------------------------------------------------------------


def timm_model(name):
    return pytest.importorskip("timm").create_model(name, num_classes=7)


def torchvision_model(name):
    models = pytest.importorskip("torchvision").models
    return getattr(models, name)(weights=None, num_classes=7)


def transformers_regnet():
    transformers = pytest.importorskip("transformers")
    config = transformers.RegNetConfig(
        embedding_size=8, hidden_sizes=[16, 24], depths=[1, 2], groups_width=8, num_labels=7
    )
    return transformers.RegNetForImageClassification(config)


def transformers_efficientnet():
    transformers = pytest.importorskip("transformers")
    config = transformers.EfficientNetConfig(
        width_coefficient=0.5, depth_coefficient=0.5, hidden_dim=640, num_labels=7
    )
    return transformers.EfficientNetForImageClassification(config)


MODELS = {
    **{
        f"timm {name}": lambda name=name: timm_model(name)
        for name in (
            "seresnet18",  # SEModule
            "legacy_seresnet18",  # senet.SEModule
            "efficientnet_b0",  # SqueezeExcite, SiLU
            "mobilenetv3_small_050",  # SqueezeExcite, hard sigmoid
            "regnety_002",  # SEModule
            "ese_vovnet19b_dw",  # EffectiveSEModule
            "rexnet_100",  # SEModule with a batch norm
            "ghostnet_050",
        )
    },
    **{
        f"torchvision {name}": lambda name=name: torchvision_model(name)
        for name in ("efficientnet_b0", "mobilenet_v3_small", "regnet_y_400mf")
    },
    "transformers regnet": transformers_regnet,
    "transformers efficientnet": transformers_efficientnet,
}


@pytest.mark.parametrize("name", MODELS)
def test_whole_model(name):
    """In float64, a training step and inference: roundings of two correct runs stay far below."""
    torch.manual_seed(0)
    model = MODELS[name]().double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # some start at zero, and hide their branch
                module.weight.fill_(1)
    unfused, fused = twins(model)
    assert any(plan_of(m) is not None for m in fused.modules())
    assert list(fused.state_dict()) == list(unfused.state_dict())
    x = torch.randn(3, 3, 48, 48, dtype=torch.float64)
    for training in (True, False):
        expected = outcome(unfused.train(training), x)
        results = outcome(fused.train(training), x)
        largest = max(v.norm() for name, v in expected.items() if name.startswith("d"))
        assert list(results) == list(expected)
        for name, value in expected.items():
            # a running mean may be nothing but roundings of numbers of size 1
            scale = largest if name.startswith("d") else value.double().norm().clamp(min=1)
            # the hard sigmoid's own backward takes 1/6 in float32
            assert (results[name] - value).double().norm() <= 1e-6 * scale, name


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", ["timm efficientnet_b0", "torchvision mobilenet_v3_small"])
def test_whole_model_in_float32(name, layout):
    torch.manual_seed(0)
    unfused, fused = twins(MODELS[name]().eval().to(memory_format=layout))
    x = torch.randn(2, 3, 64, 64).contiguous(memory_format=layout)
    with torch.no_grad():
        exact = copy.deepcopy(unfused).double()(x.double())
        error, baseline = ((m(x) - exact).norm() for m in (fused, unfused))
    assert error <= 2 * baseline + 16 * torch.finfo(torch.float32).eps * exact.norm()
