"""Train ResNet and SE-ResNet, eager and fused, on handwritten digits; see ``--help``."""

import json
import sys
from itertools import product
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import se_kernels

from . import curves, data, processes
from .network import CONTENDERS
from .training import DTYPES, Run, Settings

# Eager and fused differ by rounding, which training amplifies tenfold a step, as a ReLU whose input
# is within rounding of 0 falls on the other side on a whole stretch of background. The loss of the
# second step, the first to feel a gradient, differs by up to 3e-6 in float32, over six seeds;
# without the gradient through the squeeze by 3e-5 at least, over three.
EARLY_STEPS = 2
MOST_EARLY_DIFFERENCE = {"float32": 1e-5, "float64": 1e-12}
POSITIVE = click.IntRange(min=1)


def usable_backend(_context, _parameter, name):
    backends = se_kernels.available_backends()
    if name is not None and name not in backends:
        raise click.BadParameter(f"expected one of {', '.join(backends)}; got {name!r}")
    if name is not None and backends[name] is not None:
        raise click.BadParameter(f"{name} cannot be used here: {backends[name]}")
    return name


@click.command(context_settings={"show_default": True})
@click.option(
    "--output",
    default="digits",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for curves.png, runs.jsonl and the checkpoints.",
)
@click.option(
    "--contender",
    "contenders",
    type=click.Choice(list(CONTENDERS)),
    default=list(CONTENDERS),
    multiple=True,
    help="Repeatable.",
)
@click.option("--seeds", default=6, type=POSITIVE, help="Runs of each contender.")
@click.option("--epochs", default=24, type=POSITIVE, help="Passes over the images.")
@click.option("--batch", default=64, type=POSITIVE, help="Images of a step, over all processes.")
@click.option("--size", default=32, type=click.IntRange(min=8), help="Pixels of an image's side.")
@click.option("--blocks", default=3, type=POSITIVE, help="Residual blocks of a stage.")
@click.option("--width", default=16, type=POSITIVE, help="Channels of the first stage.")
@click.option("--dtype", default="float32", type=click.Choice(list(DTYPES)))
@click.option(
    "--backend",
    callback=usable_backend,
    help="Of the fused SE blocks.",
    show_default="automatic",
)
@click.option(
    "--stop-after",
    type=POSITIVE,
    help="End every run at this epoch; the same command without it goes on from there.",
)
def main(output, contenders, seeds, stop_after, **settings):
    """Train ResNet-20 and SE-ResNet-20, eager and fused, on handwritten digits.

    Draws training and test error against epoch (OUTPUT/curves.png), prints the final errors with
    their spread over the seeds, and fails where the eager and the fused network of one seed part in
    the first steps. A run that was interrupted is taken up from its last epoch by the same command.
    Under torchrun several processes share each batch.
    """
    settings = Settings(**settings)
    torch.set_num_threads(1)  # images this small gain little from more
    train_images, test_images = data.load(settings.size, DTYPES[settings.dtype])
    if settings.batch > len(train_images.labels):
        raise click.BadParameter(
            f"expected at most the {len(train_images.labels)} images, got {settings.batch}",
            param_hint="--batch",
        )
    last = min(settings.epochs, stop_after or settings.epochs)
    failures = []
    with processes.started() as group:
        if settings.batch % group.number:
            raise click.BadParameter(
                f"expected a multiple of the {group.number} processes, got {settings.batch}",
                param_hint="--batch",
            )
        steps = data.steps_of(train_images, settings.batch)
        runs = _runs(contenders, seeds, steps, settings, output / "checkpoints", group)
        console = Console(quiet=group.rank > 0)
        with _progress(console) as bars:
            total = bars.add_task("", total=len(runs) * last * steps)
            for run in runs:
                name = f"{run.contender}, seed {run.seed}"
                bars.update(total, advance=min(run.epoch, last) * steps)
                while run.epoch < last:
                    bars.update(total, description=f"{name}, epoch {run.epoch + 1}/{last}")
                    run.train(train_images, lambda: bars.advance(total))
                    run.test(test_images)
                    run.save()
        if group.rank == 0:
            failures = _report(runs, settings, output, console)
    sys.exit(1 if failures else 0)


def _runs(contenders, seeds, steps, settings, folder, group) -> list[Run]:
    """Seed by seed, so that the contenders are taken in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return [
            Run(contender, seed, steps, settings, folder, group)
            for seed, contender in product(range(seeds), dict.fromkeys(contenders))
        ]
    except ValueError as error:
        raise click.UsageError(f"{error}; choose another --output or remove it") from None


def _progress(console: Console) -> Progress:
    return Progress(
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
    )


def _report(runs, settings, output, console) -> list[str]:
    """Writes and prints what came out; returns what must not be."""
    seeds = 1 + max(run.seed for run in runs)
    depth = 2 + 6 * settings.blocks
    images = f"{settings.size}×{settings.size} digits"
    title = f"ResNet-{depth} on {images}: mean of {seeds} seeds, least to most"
    curves.draw(runs, title, output / "curves.png")
    lines = [json.dumps(run.record()) + "\n" for run in runs]
    (output / "runs.jsonl").write_text("".join(lines))
    console.print(curves.table(runs))
    console.print(f"curves in {output / 'curves.png'}, numbers in {output / 'runs.jsonl'}")
    failures = []
    for early, largest, seed in _differences(runs):
        console.print(
            f"seed {seed}: eager and fused losses differ by at most {early:.1e} in the first "
            f"{EARLY_STEPS} steps, {largest:.1e} in all"
        )
        if not early <= MOST_EARLY_DIFFERENCE[settings.dtype]:
            failures.append(
                f"seed {seed}: expected a difference of at most "
                f"{MOST_EARLY_DIFFERENCE[settings.dtype]} in the first {EARLY_STEPS} steps"
            )
    for failure in failures:
        console.print(f"[red]{failure}[/red]")
    return failures


def _differences(runs):
    """(in the first steps, in all, seed): between the losses of eager and fused."""
    losses = {
        (run.contender, run.seed): torch.tensor(run.curves.loss, dtype=torch.float64)
        for run in runs
    }
    for (contender, seed), eager in losses.items():
        fused = losses.get(("se_resnet_fused", seed))
        if contender == "se_resnet_eager" and fused is not None:
            difference = (fused - eager).abs()
            yield difference[:EARLY_STEPS].max().item(), difference.max().item(), seed


if __name__ == "__main__":
    main()
