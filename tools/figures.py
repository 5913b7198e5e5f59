"""Draws docs/figures/ from benchmarks/results/ and from counted passes over x; `make docs` runs it.

Every bar of a time is of a committed record, but for those of `predicted`, which are hatched.
"""

import importlib.util
import json
import math
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

matplotlib.rcParams.update({"svg.hashsalt": "se_kernels", "font.size": 10, "svg.fonttype": "path"})

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks
RESULTS = ROOT / "benchmarks" / "results"
FIGURES = ROOT / "docs" / "figures"
DARK, GREY, BLUE, ORANGE, RED = "#555555", "#8f8f8f", "#1f6fb4", "#c9772b", "#b03a2e"
STAGES = ("conv2", "conv3", "conv4", "conv5")


def records(name: str, **wanted) -> list[dict]:
    """Those of benchmarks/results/<name>-amd-epyc.jsonl whose fields have these values."""
    lines = (RESULTS / f"{name}-amd-epyc.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if all(r[key] == v for key, v in wanted.items())]


def machine(record: dict) -> str:
    return f"{record['device']}, {record['threads']} threads, torch {record['torch'].split('+')[0]}"


def network() -> plt.Figure:
    """The training step of SE-ResNet-50 over that of ResNet-50."""
    (record,) = records("network", mode="train", layout="nchw", schema=2)
    ratios = record["ratios"]
    rows = [
        ("ResNet-50, no SE", 1.0, GREY),
        ("SE-ResNet-50, eager PyTorch", ratios["se_eager/resnet50"], DARK),
        ("SE blocks fused", ratios["se_layer/resnet50"], "#4f8fc4"),
        ("SE blocks and their norms fused", ratios["se_block/resnet50"], BLUE),
    ]
    labels, lengths, colors = zip(*rows, strict=True)
    figure, axis = plt.subplots(figsize=(7.6, 2.5), layout="constrained")
    bars = axis.barh(range(len(rows)), lengths, color=colors)
    axis.bar_label(bars, fmt="%.2f", label_type="center", color="white", weight="bold")
    axis.axvline(1, color="#555555", lw=0.8)
    axis.set_yticks(range(len(rows)), labels)
    axis.invert_yaxis()
    axis.set_xlim(0, max(lengths) * 1.12)
    axis.set_xlabel(
        f"time of a training step, N={record['batch']}, over ResNet-50's; {machine(record)}",
        fontsize=8,
    )
    axis.spines[["top", "right"]].set_visible(False)
    return figure


# passes over x: (what, eager, fused), docs/kernels.md and docs/batch_norm.md
PASSES = (
    ("SE, forward", 3, 2),
    ("SE, backward", 9, 3),
    ("norm + SE + residual + ReLU,\ntraining, forward", 11, 4 + 1 / 16),
    ("the same, backward", 17, 6 + 1 / 16),
)


def in_sixteenths(passes: float) -> str:
    return f"{int(passes)}" if passes == int(passes) else f"{int(passes)} 1/16"


def passes() -> plt.Figure:
    """Reads and writes of a tensor of x's size."""
    figure, axis = plt.subplots(figsize=(7.6, 3.2), layout="constrained")
    places = range(len(PASSES))
    for offset, column, color, label in ((-0.2, 1, GREY, "eager"), (0.2, 2, BLUE, "fused")):
        bars = axis.barh(
            [place + offset for place in places],
            [row[column] for row in PASSES],
            0.36,
            color=color,
            label=label,
        )
        axis.bar_label(bars, fmt=in_sixteenths, padding=4)
    axis.set_yticks(places, [row[0] for row in PASSES])
    axis.invert_yaxis()
    axis.set_xlim(0, 19)
    axis.set_xlabel(
        "reads and writes of a tensor of x's size (counted; 16-bit, mask 1/16)", fontsize=8
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="center right")
    return figure


def sweeps() -> plt.Figure:
    """reduce, solve, apply: what each reads and writes, in both schedules."""
    figure, axis = plt.subplots(figsize=(7.6, 4.6), layout="constrained")
    axis.set_axis_off()
    axis.set_xlim(0, 100)
    axis.set_ylim(0, 62)

    def box(x, y, width, height, text, color):
        style = "round,pad=0.4,rounding_size=1"
        axis.add_patch(
            FancyBboxPatch((x, y), width, height, boxstyle=style, fc=color, ec="#333333")
        )
        axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9)

    def arrow(start, end):
        axis.add_patch(
            FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color="#333333")
        )

    axis.text(0, 60, "image by image (no norm, or a norm in evaluation mode)", weight="bold")
    for i, group in enumerate(("images 0 … k", "images k … 2k")):
        y = 48 - 11 * i
        axis.text(0, y + 3, group, va="center", fontsize=9)
        box(22, y, 16, 6, "reduce\nread x", "#cfe2f3")
        box(46, y, 16, 6, "solve\nN×C numbers", "#f2f2f2")
        box(70, y, 26, 6, "apply\nread x from cache, write y", "#d9ead3")
        arrow((39, y + 3), (45, y + 3))
        arrow((63, y + 3), (69, y + 3))
    axis.text(0, 28, "the whole batch (a norm in training mode)", weight="bold")
    box(22, 8, 16, 15, "reduce\nevery image,\nfirst to last", "#cfe2f3")
    box(46, 8, 16, 15, "solve\nstatistics,\nnorm and gate", "#f2f2f2")
    box(70, 8, 26, 15, "apply\nevery image,\nlast to first", "#d9ead3")
    arrow((39, 15.5), (45, 15.5))
    arrow((63, 15.5), (69, 15.5))
    axis.text(
        0,
        1,
        "forward: y = post(s·v + residual);  backward: the same with dy, and dx = κ·g + λ·x + ν",
        fontsize=9,
    )
    return figure


def roof() -> plt.Figure:
    """The share of the machine's copy bandwidth that each contender reaches, one SE block."""
    found = records("layer", batch=32, layout="nchw", dtype="float32", variables={})
    figure, axes = plt.subplots(1, 2, figsize=(7.6, 3.2), sharey=True, layout="constrained")
    for axis, mode in zip(axes, ("inference", "train"), strict=True):
        by_stage = {r["shape"]["name"]: r for r in found if r["mode"] == mode}
        for i, (name, color) in enumerate((("eager", GREY), ("compile", ORANGE), ("cpu", BLUE))):
            shares = [
                100 * by_stage[s]["floor"]["copies"] / by_stage[s]["contenders"][name]["copies"]
                for s in STAGES
            ]
            places = [k + (i - 1) * 0.27 for k in range(len(STAGES))]
            label = {"eager": "eager", "compile": "torch.compile", "cpu": "se_kernels"}[name]
            axis.bar(places, shares, 0.25, color=color, label=label)
        axis.axhline(100, color=RED, lw=1, ls="--")
        axis.set_xticks(range(len(STAGES)), STAGES)
        title = "forward" if mode == "inference" else "forward and backward"
        axis.set_title(title, loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("% of the memory roof (a copy = 100)")
    keys = axes[1].get_legend_handles_labels()
    figure.legend(*keys, frameon=False, fontsize=9, loc="outside upper left", ncols=3)
    figure.supxlabel(f"measured, N=32, float32, NCHW; {machine(found[0])}", fontsize=8)
    return figure


def predicted() -> plt.Figure:
    """The share of an H100's memory roof that each kernel is predicted to reach."""
    from benchmarks.gpus import GPUS
    from benchmarks.predict import predict

    found = {
        (p.operation, p.layout, p.stage): p
        for p in predict(GPUS["h100"], 256)
        if p.operation in ("forward", "backward")
    }
    figure, axes = plt.subplots(1, 2, figsize=(7.6, 3.2), sharey=True, layout="constrained")
    for axis, operation in zip(axes, ("forward", "backward"), strict=True):
        at = [found[operation, "nchw", stage] for stage in STAGES]
        bars: list[tuple[str, str, list[float]]] = [
            ("eager, predicted", GREY, [p.eager or math.nan for p in at]),
            ("CUDA, predicted", BLUE, [p.time for p in at]),
        ]
        for i, (label, color, times) in enumerate(bars):
            shares = [100 * p.floor / time for p, time in zip(at, times, strict=True)]
            places = [k + (i - 0.5) * 0.38 for k in range(len(STAGES))]
            axis.bar(places, shares, 0.36, color=color, label=label, hatch="//", ec="white")
        axis.axhline(100, color=RED, lw=1, ls="--")
        axis.set_xticks(range(len(STAGES)), STAGES)
        axis.set_title(operation, loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("% of the memory roof")
    keys = axes[1].get_legend_handles_labels()
    figure.legend(*keys, frameon=False, fontsize=9, loc="outside upper left", ncols=2)
    words = "PREDICTED from counted instructions, not measured: H100, N=256, bfloat16, NCHW"
    figure.supxlabel(words, fontsize=8)
    return figure


DRAWINGS = {"network": network, "passes": passes, "sweeps": sweeps, "roof": roof}
if importlib.util.find_spec("benchmarks.predict"):
    DRAWINGS["predicted"] = predicted


def main() -> None:
    FIGURES.mkdir(exist_ok=True)
    for name, draw in DRAWINGS.items():
        figure = draw()
        figure.savefig(FIGURES / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    main()
