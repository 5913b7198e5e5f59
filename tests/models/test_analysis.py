"""se_kernels.analysis: images by class, their gates, and Figs. 6 and 7 drawn from the numbers."""

import importlib
import os
import re
from pathlib import Path

import pytest
import torch
from fused_twins import draw
from hypothesis import given, settings
from hypothesis import strategies as st

from se_kernels.gates import Moments, record_gates
from se_kernels.models import SE, ResNet, Stage

for module in ("click", "matplotlib", "PIL", "rich"):
    pytest.importorskip(module)

analysis = importlib.import_module("se_kernels.analysis")
command = importlib.import_module("se_kernels.analysis.__main__")
figures = importlib.import_module("se_kernels.analysis.figures")
Image = importlib.import_module("PIL.Image")
CliRunner = importlib.import_module("click.testing").CliRunner

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "analysis.md"
CLASSES = ("ant", "bee", "cat")
LAYERS = ["layer1.0.se", "layer2.0.se", "layer2.1.se"]
SIZE = 8


def network(seed=0, channels=3):
    stages = (Stage((8, 8), 1, 1), Stage((16, 16), 2, 2))
    se = SE(rd_ratio=1 / 4, bias=True)
    return draw(ResNet(stages, 4, se=se, in_channels=channels, stem="cifar"), seed).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four images of each class, of noise whose brightness differs by class; and other files."""
    root = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for place, name in enumerate(CLASSES):
        (root / name).mkdir()
        for i in range(4):
            pixels = torch.randint(100, (SIZE, SIZE, 3), generator=generator) + 70 * place
            Image.fromarray(pixels.byte().numpy()).save(root / name / f"{i}.png")
    (root / "empty").mkdir()
    (root / "ant" / "notes.txt").write_text("no image")
    (root / "notes.txt").write_text("no class")
    return root


@pytest.fixture(scope="module")
def gates(folder):
    return analysis.gates_by_class(network(), images_of(folder).batches(3))


def images_of(folder, **options):
    return analysis.ImageFolder(folder, **(dict(size=SIZE, resize=SIZE) | options))


# --- images -------------------------------------------------------------------------------------


def test_images_by_class(folder):
    found = images_of(folder, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    assert found.classes == CLASSES
    assert len(found) == 12
    batches = list(found.batches(3))
    assert [(name, len(x)) for name, x in batches] == [(c, n) for c in CLASSES for n in (3, 1)]
    with Image.open(folder / "bee" / "3.png") as file:
        pixels = torch.tensor(
            [[file.getpixel((column, row)) for column in range(SIZE)] for row in range(SIZE)]
        )
    expected = (pixels / 255 - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.1, 0.2, 0.3])
    torch.testing.assert_close(batches[3][1][0], expected.permute(2, 0, 1))


def test_images_are_resized_by_the_shorter_side_and_cropped(tmp_path):
    (tmp_path / "ramp").mkdir()
    ramp = torch.arange(96).expand(48, 96).byte()  # brightness is the column
    Image.fromarray(ramp.numpy()).save(tmp_path / "ramp" / "wide.png")
    found = analysis.ImageFolder(tmp_path, size=12, resize=24, mean=(0.0,), std=(1 / 255,))
    ((_, x),) = found.batches()
    assert x.shape == (1, 1, 12, 12)
    # half the size: column c of 48 shows 2 c + 0.5; the middle 12 of 48 begin at 18
    expected = 2.0 * torch.arange(18, 30) + 0.5
    assert (x[0, 0] - expected).abs().max() <= 1  # rounded to whole brightness
    assert analysis.ImageFolder(tmp_path).resize == 256


def test_grey_images_and_the_first_of_each_class(folder):
    found = images_of(folder, mean=(0.5,), std=(0.5,), most=2)
    assert len(found) == 6
    assert [x.shape for _, x in found.batches(5)] == [(2, 1, SIZE, SIZE)] * 3


# --- numbers ------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 20), max_size=3).map(sorted),
    channels=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_moments_do_not_depend_on_the_batches(cuts, channels, seed):
    s = torch.rand(20, channels, generator=torch.Generator().manual_seed(seed))
    moments = Moments()
    for part in torch.tensor_split(s, cuts):
        moments.add({"se": part})
    exact = s.double()
    close = dict(rtol=1e-9, atol=1e-12)
    assert moments.count("se") == 20
    torch.testing.assert_close(moments.mean("se"), exact.mean(0), **close)
    torch.testing.assert_close(moments.deviation("se"), exact.std(0, correction=0), **close)
    for constant, centre in ((None, exact.mean(0)), (1.0, 1.0)):
        expected = (exact - centre).square().mean().sqrt().item()
        assert moments.distance("se", constant) == pytest.approx(expected, rel=1e-9)


def test_gates_by_class_are_those_of_its_images(folder, gates):
    assert tuple(gates) == CLASSES
    model, everything = network(), {}
    for name, x in images_of(folder).batches(4):
        with torch.no_grad(), record_gates(model) as found:
            model(x)
        everything[name] = dict(found)
    for name in CLASSES:
        assert list(gates[name].names) == LAYERS
        for layer in LAYERS:
            s = everything[name][layer].double()
            # a convolution may sum a batch of another size in another order
            torch.testing.assert_close(gates[name].mean(layer), s.mean(0), rtol=1e-5, atol=1e-6)
            spread = s.std(0, correction=0)
            torch.testing.assert_close(gates[name].deviation(layer), spread, rtol=1e-3, atol=1e-6)
    rows = analysis.layer_statistics(gates)
    assert [row.layer for row in rows] == LAYERS
    for row in rows:
        s = torch.stack([everything[name][row.layer].double() for name in CLASSES])  # (K, N, C)
        means = s.mean(1)
        between = (means - means.mean(0)).square().mean().sqrt().item()
        within = (s - means[:, None]).square().mean().sqrt().item()
        from_one = (s - 1).square().mean().sqrt().item()
        assert row.channels == s.shape[2]
        assert row.mean == pytest.approx(s.mean().item(), rel=1e-5)
        assert row.between == pytest.approx(between, rel=1e-3)
        assert row.within == pytest.approx(within, rel=1e-3)
        assert row.from_one == pytest.approx(from_one, rel=1e-5)


# --- figures ------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    found = []
    save = figures.Figure.savefig

    def keep(figure, *arguments, **options):
        found.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(figures.Figure, "savefig", keep)
    return found


def panels_of(figure):
    return {panel.get_title(): panel for panel in figure.axes}


def lines_of(panel):
    return {line.get_label(): torch.tensor(line.get_ydata()) for line in panel.lines}


def assert_legible(figure, path):
    figure.canvas.draw()
    assert path.read_bytes().startswith(b"\x89PNG")
    inside = figure.bbox.padded(1)
    pieces = [*figure.texts, figure.legends[0]]  # title, label of the gates, legend
    assert len(pieces) == 3
    boxes = [piece.get_window_extent() for piece in pieces]
    boxes += [panel.get_tightbbox() for panel in figure.axes]  # with its labels
    for place, box in enumerate(boxes):
        assert inside.contains(*box.min)
        assert inside.contains(*box.max)
        assert not any(box.overlaps(other) for other in boxes[:place])


def test_figure_6_shows_the_means_of_classes_and_of_all(gates, drawn, tmp_path):
    path = tmp_path / "classes.png"
    analysis.draw_classes(gates, path, classes=["cat", "ant"], channels=5)
    (figure,) = drawn
    assert list(panels_of(figure)) == LAYERS
    for layer, panel in panels_of(figure).items():
        channels = len(gates["ant"].mean(layer))
        shown = torch.tensor([i * channels // 5 for i in range(5)])
        lines = lines_of(panel)
        assert list(lines) == ["cat", "ant", "mean of all 3 classes"]
        assert panel.lines[0].get_xdata().tolist() == shown.tolist()
        for name in ("cat", "ant"):
            torch.testing.assert_close(lines[name], gates[name].mean(layer)[shown])
        over_all = sum(gates[name].mean(layer) for name in CLASSES) / 3
        torch.testing.assert_close(lines["mean of all 3 classes"], over_all[shown])
        assert panel.get_xlabel() == "channel"
    assert "gate" in figure.get_supylabel()
    assert_legible(figure, path)


def test_figure_7_shows_the_spread_within_a_class(gates, drawn, tmp_path):
    path = tmp_path / "spread.png"
    analysis.draw_spread(gates, path, layers=["layer2.1.se"])
    (figure,) = drawn
    (panel,) = figure.axes
    assert list(lines_of(panel)) == ["ant", "cat"]
    for name, band in zip(("ant", "cat"), panel.collections, strict=True):
        mean, spread = gates[name].mean("layer2.1.se"), gates[name].deviation("layer2.1.se")
        torch.testing.assert_close(lines_of(panel)[name], mean)
        corners = torch.tensor(band.get_paths()[0].vertices)
        for channel in range(16):
            heights = corners[corners[:, 0] == channel, 1]
            extent = torch.stack([heights.min(), heights.max()])
            wanted = torch.stack([mean - spread, mean + spread])[:, channel]
            torch.testing.assert_close(extent, wanted)
    assert_legible(figure, path)


def test_six_layers_and_four_classes_unless_told(drawn, tmp_path):
    assert figures.default_layers(["a", "b"]) == ["a", "b"]
    names = [f"se{i}" for i in range(16)]
    assert figures.default_layers(names) == ["se2", "se5", "se7", "se10", "se13", "se15"]
    gates = {f"class {i}": Moments() for i in range(5)}
    for moments in gates.values():
        moments.add({name: torch.rand(2, 300) for name in names})
    analysis.draw_classes(gates, tmp_path / "classes.png")
    assert [panel.get_title() for panel in drawn[0].axes] == figures.default_layers(names)
    for panel in drawn[0].axes:
        assert len(panel.lines) == 4 + 1
        assert len(panel.lines[0].get_xdata()) == 50
    assert_legible(drawn[0], tmp_path / "classes.png")


def test_a_network_of_one_block_of_one_channel(tmp_path, drawn):
    moments = Moments()
    moments.add({"se": torch.ones(1, 1)})
    analysis.draw_classes({"only": moments}, tmp_path / "classes.png")
    analysis.draw_spread({"only": moments}, tmp_path / "spread.png")
    assert len(drawn) == 2


# --- docs/analysis.md ---------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1])
def test_the_guide_runs_as_it_stands(place):
    blocks = re.findall("^```python\n(.+?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    torch.manual_seed(0)
    exec(compile(blocks[place], str(GUIDE), "exec"), {"__name__": "analysis"})


# --- the command --------------------------------------------------------------------------------


def run(folder, output, *arguments):
    options = ("--model", "test_analysis:network", "--size", SIZE, "--resize", SIZE)
    options += ("--output", output, *arguments)
    return CliRunner().invoke(command.main, [str(a) for a in (folder, *options)])


def test_the_command_draws_both_and_prints_a_table(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    torch.save({"model": network(seed=1).state_dict()}, tmp_path / "weights.pt")
    options = ("--class", "bee", "--layer", "layer2.0.se", "--weights", tmp_path / "weights.pt")
    result = run(folder, tmp_path / "out", *options, "--argument", "seed=5")
    assert result.exit_code == 0, result.output
    assert sorted(os.listdir(tmp_path / "out")) == ["classes.png", "spread.png"]
    expected = analysis.gates_by_class(network(seed=1), images_of(folder).batches())
    for row in analysis.layer_statistics(expected):
        (line,) = [line for line in result.output.splitlines() if row.layer in line]
        numbers = [float(number) for number in re.findall(r"\d+\.\d{3}", line)]
        assert numbers == pytest.approx(list(row[2:]), abs=1e-3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--class", "dog"), "--class: expected some of ant, bee, cat; got 'dog'"),
        (("--layer", "layer9"), "--layer: expected some of layer1.0.se, layer2.0.se, layer2.1.se"),
        (("--model", "network"), "--model: expected MODULE:FUNCTION, got 'network'"),
        (("--model", "no_such_module:f"), "--model: expected a function that exists"),
        (("--model", "test_analysis:no_such"), "--model: expected a function that exists"),
        (("--model", "os:getcwd"), "--model: expected a function that returns a module, got str"),
        (("--model", "torch.nn:ReLU"), "model: expected SE blocks"),
        (("--device", "abacus"), "expected a device of this machine, got 'abacus'"),
        (("--argument", "seed"), "expected NAME=VALUE, got 'seed'"),
        (("--argument", "colour=1"), "unexpected keyword argument 'colour'"),
        (("--mean", "a,b"), "expected numbers like 0.5,0.5,0.5, got 'a,b'"),
        (("--mean", "0.5"), "mean, std: expected 1 or 3 numbers each"),
        (("--size", 99), "size: expected 1 to resize=8, got 99"),
        (("--argument", "channels=1"), "expected images (N, 1, H, W)"),
    ],
)
def test_bad_arguments(folder, tmp_path, arguments, message):
    result = run(folder, tmp_path / "out", *arguments)
    assert result.exit_code == 2, result.output
    assert message in " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.output).split())
    assert not (tmp_path / "out").exists()


def test_weights_of_another_network(folder, tmp_path):
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "weights.pt")
    result = run(folder, tmp_path / "out", "--weights", tmp_path / "weights.pt")
    assert result.exit_code == 2
    assert "--weights: Error(s) in loading state_dict" in result.output
    (tmp_path / "weights.pt").write_text("nothing")
    result = run(folder, tmp_path / "out", "--weights", tmp_path / "weights.pt")
    assert result.exit_code == 2
    assert "--weights: " in result.output


def test_bad_folders(folder, tmp_path):
    with pytest.raises(ValueError, match="root: expected a folder with a folder for each class"):
        analysis.ImageFolder(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"root: .* has none"):
        analysis.ImageFolder(folder / "ant")
    with pytest.raises(ValueError, match="most: expected at least 1, got 0"):
        images_of(folder, most=0)
    with pytest.raises(ValueError, match="batches: expected at least one, got none"):
        analysis.gates_by_class(network(), [])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "image.png").write_text("nothing")
    with pytest.raises(ValueError, match=r"root: expected an image, got .*image\.png"):
        next(images_of(tmp_path).batches())


def test_bad_choices(gates, tmp_path):
    for draw_figure in (analysis.draw_classes, analysis.draw_spread):
        with pytest.raises(ValueError, match="classes: expected some of ant, bee, cat; got 'dog'"):
            draw_figure(gates, tmp_path / "x.png", classes=["dog"])
        with pytest.raises(ValueError, match=r"layers: expected some of .*; got none"):
            draw_figure(gates, tmp_path / "x.png", layers=[])
        with pytest.raises(ValueError, match="channels: expected at least 1, got 0"):
            draw_figure(gates, tmp_path / "x.png", channels=0)
    assert not (tmp_path / "x.png").exists()
