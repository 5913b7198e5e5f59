"""prune_by_gate: removes what is saturated, tells exact from approximate, and can be trusted."""

import copy

import pytest
import torch
from fused_twins import draw
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import se_kernels
from se_kernels import ConstantGate, prune_by_gate, record_gates
from se_kernels.models import SE, ResNet, Stage

STAGES = (Stage((8, 8), 1, 1), Stage((16, 16), 2, 2), Stage((8, 8, 32), 1, 1))
NAMES = ["layer1.0.se", "layer2.0.se", "layer2.1.se", "layer3.0.se"]
SATURATED = {"layer2.1.se": 20.0, "layer3.0.se": 4.0}  # biases before the sigmoid


def network(saturated=SATURATED, **options):
    """Four SE blocks; those with a large bias in the second FC have gates near one."""
    options = dict(rd_ratio=1 / 4, bias=True) | options
    model = ResNet(STAGES, 4, se=SE(**options), in_channels=3, stem="cifar")
    draw(model)
    with torch.no_grad():
        for name, bias in saturated.items():
            model.get_submodule(name).fc2.bias.fill_(bias)
    return model.eval()


def images(count=20, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, 8, 8, generator=generator)
    return (x + torch.randn(count, 3, 1, 1, generator=generator)).to(dtype)


def logits(model, x):
    with torch.no_grad():
        return model(x)


def parameters_of(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("options", [{}, {"fused": False}, {"backend": "reference"}], ids=str)
def test_saturated_blocks_go_and_the_numbers_are_right(options):
    model, x = network(**options), images()
    original = copy.deepcopy(model)
    report = prune_by_gate(model, x, 1)

    assert set(report.removed) == set(SATURATED)
    assert list(report.distances)[:2] == ["layer2.1.se", "layer3.0.se"]  # the nearest first
    with torch.no_grad(), record_gates(original) as gates:
        original(x)
    for name, distance in report.distances.items():
        expected = (gates[name].double() - 1).square().mean().sqrt().item()
        assert distance == pytest.approx(expected, rel=1e-6, abs=1e-9)
        torch.testing.assert_close(report.mean_gates[name], gates[name].mean(0))

    kept = [name for name in NAMES if name not in report.removed]
    assert {n for n, m in model.named_modules() if hasattr(m, "fc1")} == set(kept)
    for name in report.removed:
        assert isinstance(model.get_submodule(name), ConstantGate)
    before, after = report.parameters
    assert (before, after) == (parameters_of(original), parameters_of(model))
    assert before - after == (2 * 16 * 4 + 4 + 16) + (2 * 32 * 8 + 8 + 32)
    assert set(model.state_dict()) < set(original.state_dict())

    assert report.exact == 0  # 1 * x is x
    difference = logits(model, x) - logits(original, x)
    assert report.approximate == difference.abs().max().item() > 0
    assert report.largest == logits(original, x).abs().max().item()
    changed = logits(model, x).argmax(1) != logits(original, x).argmax(1)
    assert report.changed == changed.sum().item()


@pytest.mark.parametrize("constant", ["one", "mean"])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("integration", ["pre", "post", "identity", "3x3"])
def test_wherever_the_blocks_are(integration, fused, constant):
    stages = (Stage((8, 8, 16), 2, 1),)
    se = SE(integration=integration, fused=fused, bias=True)
    model = draw(ResNet(stages, 4, se=se, in_channels=3, stem="cifar")).double()
    original = copy.deepcopy(model)
    report = prune_by_gate(model, images(dtype=torch.float64), 1, constant=constant, tolerance=1)
    assert len(report.removed) == 2
    assert not any("se.fc" in name for name in model.state_dict())
    assert report.exact <= 1e-12 * report.largest
    x = images(dtype=torch.float64)
    difference = (logits(model.eval(), x) - logits(original.eval(), x)).abs().max().item()
    assert report.approximate == difference > 0


def test_the_removed_network_is_the_one_whose_gates_are_held_at_one():
    """Independently: relu(v + 1 * shortcut) of a network without these SE blocks."""
    model = network().double()
    original = copy.deepcopy(model)
    report = prune_by_gate(model, images(dtype=torch.float64), 1)
    x = images(seed=2, dtype=torch.float64)
    for name in report.removed:
        fc2 = original.get_submodule(name).fc2
        nn.init.zeros_(fc2.weight)
        nn.init.constant_(fc2.bias, 50)  # sigmoid(50) rounds to 1
    torch.testing.assert_close(logits(model, x), logits(original, x), rtol=1e-12, atol=1e-12)


def test_a_gate_that_is_one_exactly_changes_nothing():
    model = network({"layer2.1.se": 40.0}, gate="hardsigmoid")
    report = prune_by_gate(model, images(), 1)
    assert report.removed == ("layer2.1.se",)
    assert report.distances["layer2.1.se"] == 0
    # the shortcut is added in another order than the fused block does, if at all
    assert report.approximate <= 1e-6 * report.largest
    assert report.changed == 0


@pytest.mark.parametrize("fraction, count", [(0.25, 1), (0.49, 1), (0.5, 2), (1, 4)])
def test_fraction_is_of_the_blocks_and_the_most(fraction, count):
    report = prune_by_gate(network(), images(), fraction, tolerance=1)
    assert report.removed == tuple(report.distances)[:count]


def test_nothing_is_saturated():
    model = network({})
    original = copy.deepcopy(model)
    report = prune_by_gate(model, images(), 1)
    assert report.removed == ()
    assert report.parameters[0] == report.parameters[1]
    assert torch.equal(logits(model, images()), logits(original, images()))
    assert "0 of 4 SE blocks removed" in str(report)


def test_held_at_their_means():
    model, x = network({}, rd_ratio=1 / 8).double(), images(dtype=torch.float64)
    with torch.no_grad():  # the gates of two blocks hardly move, at whatever height
        for name in SATURATED:
            model.get_submodule(name).fc2.weight.mul_(1e-3)
    original = copy.deepcopy(model)
    report = prune_by_gate(model, x, 0.5, constant="mean", tolerance=0.05)
    assert set(report.removed) == set(SATURATED)
    with torch.no_grad(), record_gates(original) as gates:
        original(x)
    for name in report.removed:
        mean = gates[name].mean(0)
        torch.testing.assert_close(model.get_submodule(name).s, mean)
        spread = (gates[name] - mean).square().mean().sqrt().item()
        assert report.distances[name] == pytest.approx(spread, rel=1e-6)
        assert abs(mean.mean() - 1) > 0.1
    assert report.exact < 1e-12 < report.approximate < 1e-2 * report.largest
    # a number for each channel stays
    saved = (2 * 16 * 2 + 2 + 16 - 16) + (2 * 32 * 4 + 4 + 32 - 32)
    assert report.parameters[0] - report.parameters[1] == saved
    assert str(report).count("their means") == 2


def test_fused_modules_of_another_library():
    layers = pytest.importorskip("timm.layers", exc_type=(ImportError, RuntimeError))

    class Nhwc(nn.Module):
        def __init__(self):
            super().__init__()
            self.se = layers.squeeze_excite.SqueezeExciteCl(16, 1 / 4, rd_divisor=1)

        def forward(self, x):
            return self.se(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def model():
        net = nn.Sequential(
            *(nn.Conv2d(3, 16, 3), layers.SEModule(16, 1 / 4, rd_divisor=1)),
            *(nn.ReLU(), Nhwc(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
        draw(net)
        with torch.no_grad():
            net[1].fc2.bias.fill_(5)
            net[3].se.fc2.bias.fill_(6)
        se_kernels.fuse(net)
        return net.eval()

    for constant in ("one", "mean"):
        report = prune_by_gate(model(), images(), 1, constant=constant)
        assert set(report.removed) == {"1", "3.se"}
        assert report.exact <= 1e-6 * report.largest
        assert 0 < report.approximate < 0.3 * report.largest


def test_the_model_can_train_on():
    model = network().train()
    model.layer1.eval()  # as someone froze it
    with torch.inference_mode():
        report = prune_by_gate(model, images(), 1)
    assert report.removed
    assert model.training
    assert not model.layer1.training
    assert model.layer2[1].se.training
    assert model.bn1.num_batches_tracked == 0
    model.train()(images()).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    twin = copy.deepcopy(model).eval()
    assert torch.equal(logits(twin, images()), logits(model.eval(), images()))


def test_a_block_with_two_names_is_replaced_at_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = se_kernels.SqueezeExcite(3, rd_channels=2, bias=True)
            self.second = self.first

        def forward(self, x):
            return self.second(self.first(x)).mean((2, 3))

    model = Twice()
    nn.init.constant_(model.first.fc2.bias, 20)
    report = prune_by_gate(model, images(), 1)
    assert report.removed == ("first",)
    assert isinstance(model.first, ConstantGate)
    assert model.second is model.first
    assert report.parameters == (2 * 3 * 2 + 2 + 3, 0)


def batches_of(kind, x):
    labels = torch.zeros(len(x))
    return {
        "tensor": x,
        "list": [x[:7], x[7:]],
        "pairs": [(x[:7], labels[:7]), (x[7:], labels[7:])],
        "loader": DataLoader(TensorDataset(x, labels), batch_size=6),
    }[kind]


@pytest.mark.parametrize("kind", ["tensor", "list", "pairs", "loader"])
def test_images_come_as(kind):
    x = images(150)
    expected = prune_by_gate(network(), [x], 1)
    report = prune_by_gate(network(), batches_of(kind, x), 1)
    assert report.images == 150
    assert report.removed == expected.removed
    for name, distance in expected.distances.items():
        assert report.distances[name] == pytest.approx(distance, rel=1e-5, abs=1e-7)
    assert report.changed == expected.changed


def test_feature_maps_are_compared_too():
    model = draw(
        ResNet(STAGES, 4, se=SE(bias=True), in_channels=3, stem="cifar", features_only=True)
    )
    nn.init.constant_(model.layer2[1].se.fc2.bias, 30)
    report = prune_by_gate(model, images(), 1)
    assert report.removed == ("layer2.1.se",)
    assert report.changed is None
    assert report.exact == 0
    assert report.largest > 0


def test_the_report_tells_all():
    model = network()
    report = prune_by_gate(model, images(), 0.5)
    text = str(report)
    before, after = report.parameters
    assert f"2 of 4 SE blocks removed, {before - after:,} of {before:,} parameters saved" in text
    for name in NAMES:
        (line,) = [line for line in text.splitlines() if name in line]
        assert f"{report.distances[name]:.4f}" in line
        assert ("removed" in line) == (name in report.removed)
    assert "exact: 0 " in text
    assert f"approximate: {report.approximate:.2g}" in text


def test_a_wrong_replacement_is_undone(monkeypatch):
    model = network()
    original = copy.deepcopy(model)
    forward = ConstantGate.forward
    monkeypatch.setattr(ConstantGate, "forward", lambda *args: 1.1 * forward(*args))
    with pytest.raises(RuntimeError, match="expected the outputs of the model with constant gates"):
        prune_by_gate(model, images(), 1)
    assert list(model.state_dict()) == list(original.state_dict())
    assert torch.equal(logits(model, images()), logits(original, images()))


def test_outputs_that_are_no_numbers_are_no_proof():
    model = network()
    nn.init.constant_(model.fc.bias, float("nan"))
    with pytest.raises(RuntimeError, match="got a difference of nan; the model is as it was"):
        prune_by_gate(model, images(), 1)
    assert not any(isinstance(m, ConstantGate) for m in model.modules())


def test_an_error_of_the_model_leaves_it_as_it_was():
    model = network().train()
    with pytest.raises(ValueError, match="expected images"):
        prune_by_gate(model, [images(), images()[:, :2]], 1)
    assert model.training
    assert not any(isinstance(m, ConstantGate) for m in model.modules())


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"model": nn.Linear(2, 2)}, ValueError, "found none in Linear"),
        ({"model": 3}, TypeError, "model: expected a torch.nn.Module, got int"),
        ({"model": se_kernels.SqueezeExcite(3)}, ValueError, "expected a model around SE blocks"),
        ({"images": 3}, TypeError, "images: expected a tensor, or batches .* got int"),
        ({"images": iter([images()])}, TypeError, "gone through twice"),
        ({"images": [{"x": images()}]}, TypeError, "images: expected batches that are tensors"),
        ({"images": []}, ValueError, "images: expected at least one, got none"),
        ({"images": images(0)}, ValueError, "images: expected at least one, got none"),
        ({"images": images()[0]}, ValueError, r"images: expected \(N, C, H, W\), got \(3, 8, 8\)"),
        ({"fraction": 0}, ValueError, "fraction: expected more than 0, at most 1, got 0"),
        ({"fraction": 25}, ValueError, "fraction: expected more than 0, at most 1, got 25"),
        ({"fraction": 0.2}, ValueError, "fraction: expected at least 0.25, one of 4 SE blocks"),
        ({"constant": "zero"}, ValueError, "constant: expected one of one, mean; got 'zero'"),
        ({"tolerance": -1}, ValueError, "tolerance: expected 0 or more, got -1"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"model": network(), "images": images(), "fraction": 1} | change
    with pytest.raises(error, match=message):
        prune_by_gate(**arguments)
