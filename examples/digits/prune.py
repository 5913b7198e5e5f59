"""What pruning by gate does to the trained networks of ``python -m examples.digits``."""

from pathlib import Path

import click
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

import se_kernels
from se_kernels.gates.prune import CONSTANTS

from .data import Images, load
from .network import network
from .training import DTYPES


@click.command(context_settings={"show_default": True})
@click.option(
    "--output",
    default="digits",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The folder that examples.digits wrote to.",
)
@click.option("--contender", default="se_resnet_fused", help="Whose checkpoints.")
@click.option("--constant", default="mean", type=click.Choice(CONSTANTS))
@click.option(
    "--tolerance",
    "tolerances",
    default=[0.03, 0.05, 0.1],
    multiple=True,
    help="Largest distance of a block that is removed. Repeatable.",
)
def main(output, contender, constant, tolerances):
    """Prune every network, as far as the gates on the training images allow, and test it."""
    torch.set_num_threads(1)
    paths = sorted((output / "checkpoints").glob(f"{contender}-*.pt"))
    if not paths:
        raise click.UsageError(f"--output: expected checkpoints of {contender} in {output}")
    rows = Table("network", "tolerance", "blocks removed", "parameters saved", "test error, %")
    for path in track(paths, console=Console(stderr=True), transient=True):
        state = torch.load(path, map_location="cpu", weights_only=True)
        settings = state["settings"]
        dtype = DTYPES[settings["dtype"]]
        train_images, test_images = load(settings["size"], dtype)
        for tolerance in tolerances:
            model = network(contender, settings["blocks"], settings["width"], dtype=dtype)
            model.load_state_dict(state["model"])
            before = _error(model, test_images)
            report = se_kernels.prune_by_gate(
                model, train_images.pixels, 1, constant=constant, tolerance=tolerance
            )
            saved = report.parameters[0] - report.parameters[1]
            rows.add_row(
                path.stem,
                f"{tolerance:g}",
                f"{len(report.removed)} of {len(report.distances)}",
                f"{saved:,}",
                f"{before:.2f} → {_error(model, test_images):.2f}",
            )
    Console().print(rows)


@torch.inference_mode()
def _error(model: nn.Module, images: Images) -> float:
    model.eval()
    logits = torch.cat([model(part) for part in images.pixels.split(256)])
    return 100 * (logits.argmax(1) != images.labels).double().mean().item()


if __name__ == "__main__":
    main()
