"""Charts of records as PNG files."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from .report import block_in_words, mode_in_words

COLORS = {
    "eager": "#8a8a8a",
    "compile": "#d98c3f",
    "plain": "#c9c9c9",
    "plain_compile": "#edc59a",
    "layer_cpu": "#8db8dc",
    "layer_cuda": "#93cfae",
    "layer_triton": "#bda6d8",
    "layer_reference": "#d9d69b",
    "cpu": "#1f6fb4",
    "cuda": "#2a9d5c",
    "triton": "#7b52ab",
    "reference": "#b5b04a",
    "clone": "#d8d8d8",
    "resnet50": "#b9b9b9",
    "se_eager": "#7a7a7a",
    "se_layer": "#8db8dc",
    "se_block": "#1f6fb4",
    "resnet50_compiled": "#edc59a",
    "se_eager_compiled": "#d98c3f",
    "se_layer_compiled": "#93cfae",
    "se_block_compiled": "#2a9d5c",
    "identity": "#b9b9b9",
    "unfused": "#7a7a7a",
    "layer": "#8db8dc",
    "block": "#1f6fb4",
    "identity_compiled": "#edc59a",
    "unfused_compiled": "#d98c3f",
    "layer_compiled": "#93cfae",
    "block_compiled": "#2a9d5c",
}
DPI = 130


def block(records: Sequence[dict], path: Path) -> None:
    """Bars per point: p50 of each contender over the time of a copy (or µs where none was timed),
    with p20 to p80 as error bars and the floor as a line; one panel per mode and dtype."""
    panels: dict[tuple, list[dict]] = {}
    for record in records:
        panels.setdefault((record["mode"], record["dtype"]), []).append(record)
    widest = max(len(p) for p in panels.values())
    figure, axes = plt.subplots(
        len(panels),
        1,
        figsize=(max(8, 2.2 + 1.1 * widest), 0.8 + 4.0 * len(panels)),
        squeeze=False,
        layout="constrained",
    )
    for axis, ((mode, dtype), group) in zip(axes.flat, panels.items(), strict=True):
        in_copies = all("copy" in r["contenders"] for r in group)
        names = list(dict.fromkeys(n for r in group for n in r["contenders"]))
        names = [n for n in names if n not in ("copy", "clone")] or names
        width = 0.84 / len(names)
        for i, name in enumerate(names):
            offset = (i - (len(names) - 1) / 2) * width
            at = [k for k, r in enumerate(group) if name in r["contenders"]]
            rows = [group[k]["contenders"][name] for k in at]
            units = [group[k]["contenders"]["copy"]["p50_us"] if in_copies else 1 for k in at]
            heights = [r["p50_us"] / u for r, u in zip(rows, units, strict=True)]
            below = [(r["p50_us"] - r["p20_us"]) / u for r, u in zip(rows, units, strict=True)]
            above = [(r["p80_us"] - r["p50_us"]) / u for r, u in zip(rows, units, strict=True)]
            bars = axis.bar(
                [k + offset for k in at],
                heights,
                width * 0.94,
                yerr=(below, above),
                color=COLORS.get(name, "#444444"),
                error_kw={"lw": 0.8, "alpha": 0.7},
                label=name,
            )
            ratios = [group[k]["ratios"].get("eager", {}).get(name) for k in at]
            texts = ["" if r is None or name == "compile" else f"{r:.1f}×" for r in ratios]
            axis.bar_label(bars, texts, padding=5, fontsize=8, color=COLORS.get(name, "#444444"))
        if in_copies:
            floor = group[0]["floor"]["copies"]
            axis.axhline(floor, color="#c0392b", lw=1, ls="--", label=f"floor: {floor:g}")
        axis.set_yscale("log")
        low, high = axis.get_ylim()
        axis.set_ylim(low, high * 1.5)
        axis.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda v, _: f"{v:g}"))
        axis.yaxis.set_minor_formatter(
            matplotlib.ticker.FuncFormatter(lambda v, _: f"{v:g}" if f"{v:e}"[0] in "235" else "")
        )
        axis.tick_params(axis="y", which="minor", labelsize=8)
        axis.set_ylabel("time / time to copy x (copies)" if in_copies else "time (µs)")
        axis.set_xticks(range(len(group)), [_block_label(r) for r in group], fontsize=8)
        axis.set_title(
            f"{block_in_words(group[0])}, {mode_in_words(mode)}, {dtype}", loc="left", fontsize=11
        )
        axis.grid(axis="y", alpha=0.25)
        axis.set_axisbelow(True)
        axis.legend(fontsize=8, ncols=len(names) + 1, loc="upper right", frameon=False)
    _finish(figure, records[0], "bars: p50; whiskers: p20 to p80; n×: eager's time over this one's")
    _save(figure, path)


def quick(blocks: Sequence[dict], networks: Sequence[dict], path: Path) -> None:
    """Left: one SE block's time over a copy of x. Right: SE-ResNet-50's training step over
    ResNet-50's. Shorter is better; p50."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    _bars(
        left,
        [
            (f"{_block_label(record).splitlines()[0]}: {name}", row["copies"], name)
            for record in blocks
            for name, row in record["contenders"].items()
            if name != "copy"
        ],
        "%.1f",
    )
    floor = blocks[0]["floor"]["copies"]
    left.axvline(floor, color="#c0392b", lw=1, ls="--", label=f"floor: {floor:g}")
    left.legend(fontsize=8, frameon=False)
    left.set_xlabel("time / time to copy x")
    left.set_title(f"One SE block, {mode_in_words(blocks[0]['mode'])}", loc="left", fontsize=11)
    step = networks[0]
    ratios = {name: step["ratios"].get(f"{name}/resnet50", 1) for name in step["contenders"]}
    labels = {
        "resnet50": "ResNet-50, no SE",
        "se_eager": "SE-ResNet-50, eager",
        "se_layer": "SE blocks fused",
        "se_block": "SE and norm fused",
    }
    _bars(right, [(labels[name], ratio, name) for name, ratio in ratios.items()], "%.2f")
    right.axvline(1, color="#555555", lw=0.8)
    right.set_xlabel("time / time of ResNet-50")
    right.set_title(f"A training step, N={step['batch']}", loc="left", fontsize=11)
    _finish(figure, step, "bars: p50, shorter is better")
    _save(figure, path)


def _bars(axis, rows: Sequence[tuple[str, float, str]], form: str) -> None:
    """Horizontal bars from the top down, of (label, length, contender)."""
    labels, lengths, names = zip(*rows, strict=True)
    places = range(len(rows))
    bars = axis.barh(places, lengths, color=[COLORS[name] for name in names])
    axis.bar_label(bars, fmt=form, padding=3, fontsize=9)
    axis.set_yticks(places, labels, fontsize=9)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.spines[["top", "right"]].set_visible(False)


def network(records: Sequence[dict], path: Path) -> None:
    """Left: milliseconds per image of each network. Right: SE-ResNet-50 over ResNet-50, with the
    paper's two ratios as lines."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(max(11, 5 + 2.6 * len(records)), 5.0), layout="constrained"
    )
    _network_times(left, records)

    pairs = [p for p in records[0]["ratios"] if p.split("/")[1].startswith("resnet50")]
    width = 0.84 / len(pairs)
    for i, pair in enumerate(pairs):
        over = pair.split("/")[0]
        bars = right.bar(
            [k + (i - (len(pairs) - 1) / 2) * width for k in range(len(records))],
            [r["ratios"][pair] for r in records],
            width * 0.94,
            color=COLORS.get(over, "#444444"),
            label=over.replace("_", " "),
        )
        right.bar_label(bars, fmt="%.3f", padding=2, fontsize=8)
    for row, style in zip(records[0]["paper"], ("--", ":"), strict=True):
        right.axhline(
            row["ratio"],
            color="#c0392b",
            lw=1,
            ls=style,
            label=f"paper: {row['what']}, {row['ratio']:.3f}",
        )
    ratios = [r["ratios"][p] for r in records for p in pairs] + [1.10]
    low, high = min(0.95, *ratios), max(ratios)
    right.set_ylim(low - 0.02, high + (high - low) * 0.55)
    right.axhline(1, color="#555555", lw=0.8)
    right.set_ylabel("time of SE-ResNet-50 / ResNet-50")
    right.set_title("What the SE blocks cost (medians of paired ratios)", loc="left", fontsize=11)
    for axis in (left, right):
        _network_axis(axis, records)
    _finish(figure, records[0], "")
    _save(figure, path)


def models(records: Sequence[dict], path: Path) -> None:
    """Left: milliseconds per image of each contender. Right: SE's share of the time, unfused and
    fused, with its 95 % interval."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(max(11, 5 + 2.6 * len(records)), 5.0), layout="constrained"
    )
    _network_times(left, records)
    bars: dict[str, list[tuple[int, dict]]] = {}  # contender → (place of its record, share)
    for k, record in enumerate(records):
        for form, share in record["shares"].items():
            unfused = "unfused_compiled" if form.endswith("_compiled") else "unfused"
            if (k, share["before"]) not in bars.setdefault(unfused, []):
                bars[unfused].append((k, share["before"]))
            if "after" in share:
                bars.setdefault(form, []).append((k, share["after"]))
    width = 0.84 / len(bars)
    for i, (name, found) in enumerate(bars.items()):
        drawn = right.bar(
            [k + (i - (len(bars) - 1) / 2) * width for k, _ in found],
            [100 * share["p50"] for _, share in found],
            width * 0.94,
            yerr=[[_whisker(share, end) for _, share in found] for end in ("low", "high")],
            error_kw={"lw": 0.8, "alpha": 0.7},
            color=COLORS[name],
            label=name.replace("_", " "),
        )
        right.bar_label(drawn, fmt="%.1f", padding=2, fontsize=8)
    right.axhline(0, color="#555555", lw=0.8)
    right.set_ylabel("(time - time with identity) / unfused time, %")
    title = "SE's share (medians of paired shares; whiskers: their 95 % interval)"
    right.set_title(title, loc="left", fontsize=11)
    for axis in (left, right):
        _network_axis(axis, records)
    _finish(figure, records[0], "")
    _save(figure, path)


def _whisker(share: dict, end: str) -> float:
    """From p50 to an end of its interval, in %; none of few rounds."""
    return 0 if share[end] is None else 100 * abs(share[end] - share["p50"])


def _network_times(axis, records: Sequence[dict]) -> None:
    """Milliseconds per image of each network."""
    names = list(dict.fromkeys(n for r in records for n in r["contenders"]))
    width = 0.84 / len(names)
    for i, name in enumerate(names):
        at = [k + (i - (len(names) - 1) / 2) * width for k in range(len(records))]
        rows = [r["contenders"][name] for r in records]
        unit = [1e3 * r["batch"] for r in records]
        axis.bar(
            at,
            [row["p50_us"] / u for row, u in zip(rows, unit, strict=True)],
            width * 0.94,
            yerr=(
                [(row["p50_us"] - row["p20_us"]) / u for row, u in zip(rows, unit, strict=True)],
                [(row["p80_us"] - row["p50_us"]) / u for row, u in zip(rows, unit, strict=True)],
            ),
            error_kw={"lw": 0.8, "alpha": 0.7},
            color=COLORS.get(name, "#444444"),
            label=name.replace("_", " "),
        )
    axis.set_ylabel("time per image (ms)")
    axis.set_title("Networks (p50; whiskers p20 to p80)", loc="left", fontsize=11)


def _network_axis(axis, records: Sequence[dict]) -> None:
    axis.set_xticks(range(len(records)), [_network_label(r) for r in records], fontsize=8)
    axis.grid(axis="y", alpha=0.25)
    axis.set_axisbelow(True)
    axis.legend(fontsize=8, loc="upper left", frameon=False)
    axis.margins(y=0.25)


def _block_label(record: dict) -> str:
    shape = record["shape"]
    size = "{channels}×{height}×{width}".format(**shape)
    name = shape["name"]
    return f"{size if 'x' in name else name}\nN={record['batch']}\n{record['layout']}"


def _network_label(record: dict) -> str:
    model = record.get("model", "").replace("/", "/\n")
    return (
        f"{model}\n{mode_in_words(record['mode'], 'training step')}\n{record['batch']} × "
        f"{record['image_size']}²\n{record['dtype']}\n{record['layout']}"
    ).lstrip("\n")


def _finish(figure, record: dict, note: str) -> None:
    machine = record["device"]
    if record["device_type"] == "cpu":
        machine += f", {record['threads']} threads"
    versions = f"torch {record['torch']}, se_kernels {record['se_kernels']}"
    figure.supxlabel("; ".join(filter(None, (machine, versions, note))), fontsize=8)


def _save(figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
