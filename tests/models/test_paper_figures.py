"""`python -m benchmarks paper`: the paper's parameters and multiply-adds, and ours."""

import dataclasses

import pytest
from benchmark_commands import run

from benchmarks import paper
from benchmarks.paper import INCEPTION_RESNET, R8, ROUNDED, Figure, Spec, count, find
from se_kernels import models
from se_kernels.models.mobilenet import MOBILENET

FIGURES = paper.figures()
PRINTED = [f for figures in FIGURES.values() for f in figures if f.printed is not None]


@pytest.fixture(scope="module")
def result():
    return run("paper")


def test_the_figures_agree(result):
    assert result.exit_code == 0, result.output
    for where, figures in FIGURES.items():
        assert where in result.output
        for figure in figures:
            assert figure.what in result.output
    for reading in {figure.reading for figure in PRINTED}:
        assert f"{reading.name}: {reading.why[:30]}" in result.output


@pytest.mark.usefixtures("result")  # which counted all networks
@pytest.mark.parametrize("sign", [1, -1])
def test_a_figure_that_is_off_does_not_agree(sign):
    judged = [f for f in PRINTED if f.reading.ways is not None]
    assert len(judged) == len(PRINTED) - 3
    for figure in judged:
        digits = len(figure.printed.partition(".")[2])
        # beyond the last digit, and beyond what the norms take: 2.2 % in ShuffleNet
        step = max(2 / 10**digits, 0.03 * float(figure.printed))
        off = f"{float(figure.printed) + sign * step:.{digits}f}"
        assert find(dataclasses.replace(figure, printed=off)).agrees is False, figure


@pytest.mark.usefixtures("result")
def test_no_other_reading_is_named_where_ours_rounds_to_the_papers():
    others = [figure for figure in PRINTED if figure.reading is not ROUNDED]
    for figure in others:
        assert find(dataclasses.replace(figure, reading=ROUNDED)).agrees is False, figure
    # what no way of counting gives
    stated = [figure for figure in others if figure.reading.ways is None]
    assert [f.what for f in stated if f.reading is R8] == ["r = 8"]
    assert {f.network.name for f in stated if f.reading is INCEPTION_RESNET} == {
        "inception_resnet_v2"
    }


def test_the_command_fails_where_a_figure_is_off(monkeypatch):
    resnet50 = Spec("resnet50", None)
    figures = [
        Figure("ResNet-50", "parameters, M", "25.6", resnet50),
        Figure("ResNet-50 without a layer", "parameters, M", "25.5", resnet50),
    ]
    monkeypatch.setattr(paper, "figures", lambda: {"table 0": figures})
    result = run("paper")
    assert result.exit_code == 1
    assert "1 of 2 figures differ from the paper's" in result.output
    (row,) = [line for line in result.output.splitlines() if "without a layer" in line]
    assert row.split()[-4:] == ["25.5", "25.557", "+0.057", "NO"]


def test_se_blocks_add_their_fcs_and_one_multiplication_for_each_element():
    """Section 4, with the sizes of Table 1."""
    with_se, plain = count(Spec("resnet50")), count(Spec("resnet50", None))
    sizes = (56, 28, 14, 7)
    scaled = sum(
        row.blocks * row.channels[-1] * size**2
        for row, size in zip(models.RESNET50, sizes, strict=True)
    )
    added = with_se.multiply_adds - plain.multiply_adds
    assert added == paper.equation_5(16) + scaled
    assert with_se.parameters - plain.parameters == paper.equation_5(16)
    assert with_se.normalised == plain.normalised


def test_norms_are_counted():
    """In each unit of MobileNet one after the depthwise and one after the pointwise convolution."""
    width, size = 32, 112
    norms = [(width, size)]
    for number, stage in enumerate(MOBILENET, 1):
        for i, channels in enumerate(stage):
            size = size // 2 if i == 0 and number > 1 else size
            norms += [(width, size), (channels, size)]
            width = channels
    assert count(Spec("mobilenet", None)).normalised == sum(
        channels * size**2 for channels, size in norms
    )
