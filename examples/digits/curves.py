"""What the runs came to: the figure like the paper's Fig. 4, and the table of final errors."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from matplotlib.figure import Figure
from rich.table import Table

from .training import Run

LOOKS = {  # label, colour
    "resnet": ("ResNet", "#7a7a7a"),
    "se_resnet_eager": ("SE-ResNet, eager", "#d98c3f"),
    "se_resnet_fused": ("SE-ResNet, fused", "#1f6fb4"),
}
LEAST = 0.1  # %, the lower end of a logarithmic axis that cannot show 0


def draw(runs: Sequence[Run], title: str, path: Path) -> None:
    """Error against epoch: the mean over the seeds, and a band from the least to the largest."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    names = {"train_error": "training error", "test_error": "test error"}
    for axis, (name, title_of) in zip(panels, names.items(), strict=True):
        for contender, group in _by_contender(runs).items():
            label, colour = LOOKS[contender]
            epochs = range(1, min(run.epoch for run in group) + 1)
            columns = [
                [max(getattr(run.curves, name)[i - 1], LEAST) for run in group] for i in epochs
            ]
            axis.plot(epochs, [mean(column) for column in columns], color=colour, label=label)
            axis.fill_between(
                epochs,
                [min(column) for column in columns],
                [max(column) for column in columns],
                color=colour,
                alpha=0.15,
                linewidth=0,
            )
        axis.set_yscale("log")
        axis.set(xlabel="epoch", title=title_of)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.25, which="both")
    panels[0].set_ylabel(f"error, % (less than {LEAST:g} drawn there)")
    panels[1].legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=110, format="png")


def table(runs: Sequence[Run]) -> Table:
    """Final errors in %: mean ± standard deviation over the seeds, and their range."""
    rows = Table("network", "parameters", "test error, %", "least to most", "training error, %")
    for contender, group in _by_contender(runs).items():
        tests = [run.curves.test_error[-1] for run in group]
        trains = [run.curves.train_error[-1] for run in group]
        rows.add_row(
            LOOKS[contender][0],
            f"{group[0].parameters:,}",
            _spread(tests),
            f"{min(tests):.2f} to {max(tests):.2f}",
            _spread(trains),
        )
    return rows


def _spread(numbers: Sequence[float]) -> str:
    spread = f" ± {stdev(numbers):.2f}" if len(numbers) > 1 else ""
    return f"{mean(numbers):.2f}{spread}"


def _by_contender(runs: Sequence[Run]) -> dict[str, list[Run]]:
    return {name: found for name in LOOKS if (found := [r for r in runs if r.contender == name])}
