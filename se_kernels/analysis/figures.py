"""Figs. 6 and 7 of the paper."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from se_kernels.gates import Moments

COLOURS = ("#1f6fb4", "#d95f02", "#2a9d5c", "#b0338c", "#8c6d1f", "#17a5b5", "#6b4fbb", "#c0392b")
COLUMNS = 3
DPI = 90


def draw_classes(
    gates: Mapping[str, Moments],
    path: str | Path,
    *,
    classes: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    channels: int = 50,
) -> None:
    """Fig. 6: the mean gate of each channel by class, and the mean over all classes, as a PNG.

    Args:
        gates: of ``gates_by_class``.
        path: of the PNG.
        classes: those with a line of their own; None: the first four.
        layers: one panel each; None: six at even distances, the last SE block among them.
        channels: so many of a block's, at even distances (the paper's fifty).

    Raises:
        ValueError: an unknown class or layer, or no channel.
    """
    classes = _chosen("classes", classes, list(gates)[:4], list(gates))
    layers = _layers(gates, layers)
    figure, panels = _figure(layers)
    for panel, layer in zip(panels, layers, strict=True):
        shown = _shown(gates[classes[0]].mean(layer), channels)
        for name, colour in zip(classes, _colours(classes), strict=True):
            panel.plot(shown, gates[name].mean(layer)[shown], color=colour, lw=1.2, label=name)
        over_all = torch.stack([moments.mean(layer) for moments in gates.values()]).mean(0)
        label = f"mean of all {len(gates)} classes"
        panel.plot(shown, over_all[shown], color="black", lw=1.2, ls="--", label=label)
    _finish(
        figure, panels, "Mean gate of each channel, by class", "gate s (mean over images)", path
    )


def draw_spread(
    gates: Mapping[str, Moments],
    path: str | Path,
    *,
    classes: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    channels: int = 50,
) -> None:
    """Fig. 7: mean and standard deviation of the gates of one class's images, as a PNG.

    Arguments and errors are those of ``draw_classes``; ``classes`` None: the first and the last.
    """
    ends = list(dict.fromkeys((next(iter(gates)), list(gates)[-1])))
    classes = _chosen("classes", classes, ends, list(gates))
    layers = _layers(gates, layers)
    figure, panels = _figure(layers)
    for panel, layer in zip(panels, layers, strict=True):
        shown = _shown(gates[classes[0]].mean(layer), channels)
        for name, colour in zip(classes, _colours(classes), strict=True):
            mean, spread = gates[name].mean(layer)[shown], gates[name].deviation(layer)[shown]
            panel.plot(shown, mean, color=colour, lw=1.2, label=name)
            panel.fill_between(shown, mean - spread, mean + spread, color=colour, alpha=0.2, lw=0)
    title = "Gates of the images of one class: mean ± standard deviation"
    _finish(figure, panels, title, "gate s", path)


def default_layers(names: Sequence[str]) -> list[str]:
    """Six at even distances that end with the last, or all of fewer."""
    count = min(6, len(names))
    return [names[math.ceil((i + 1) * len(names) / count) - 1] for i in range(count)]


def _layers(gates: Mapping[str, Moments], layers: Sequence[str] | None) -> list[str]:
    names = list(next(iter(gates.values())).names)
    return _chosen("layers", layers, default_layers(names), names)


def _chosen(
    argument: str, wanted: Sequence[str] | None, default: list[str], known: Iterable[str]
) -> list[str]:
    if wanted is None:
        return default
    wanted = list(wanted)
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        got = repr(unknown[0]) if unknown else "none"
        raise ValueError(f"{argument}: expected some of {', '.join(known)}; got {got}")
    return wanted


def _shown(means: Tensor, channels: int) -> Tensor:
    """Indices of so many channels, at even distances."""
    if channels < 1:
        raise ValueError(f"channels: expected at least 1, got {channels}")
    count = min(channels, len(means))
    return torch.arange(count) * len(means) // count


def _colours(classes: Sequence[str]) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(len(classes))]


def _figure(layers: Sequence[str]) -> tuple[Figure, list[Axes]]:
    columns = min(COLUMNS, len(layers))
    rows = math.ceil(len(layers) / columns)
    width, height = max(6.0, 3.7 * columns), 1.1 + 2.5 * rows
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten().tolist()
    for panel, layer in zip(panels, layers, strict=False):
        panel.set_title(layer, fontsize=10)
        panel.grid(alpha=0.25)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.margins(x=0.02)
        panel.set_axisbelow(True)
    for panel in panels[len(layers) :]:
        panel.remove()
    return figure, panels[: len(layers)]


def _finish(figure: Figure, panels: list[Axes], title: str, gate: str, path: str | Path) -> None:
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(5, len(labels)), frameon=False
    )
    figure.suptitle(title, fontsize=12)
    for panel in panels[-COLUMNS:]:
        panel.set_xlabel("channel", fontsize=9)
    figure.supylabel(gate, fontsize=10)
    figure.savefig(path, dpi=DPI, format="png", pil_kwargs={"optimize": True})
