"""``python -m se_kernels.analysis``: see ``--help``."""

import ast
import importlib
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn

from se_kernels.analysis.figures import draw_classes, draw_spread
from se_kernels.analysis.folder import IMAGENET_MEAN, IMAGENET_STD, ImageFolder
from se_kernels.analysis.gates import gates_by_class, layer_statistics
from se_kernels.gates import Moments, se_layers
from se_kernels.surgery import fuse

POSITIVE = click.IntRange(min=1)


def _numbers(_context: object, _parameter: object, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"expected numbers like 0.5,0.5,0.5, got {text!r}") from None


def _device(_context: object, _parameter: object, name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise click.BadParameter(
            f"expected a device of this machine, got {name!r}: {reason}"
        ) from None
    return device


def _arguments(_context: object, _parameter: object, pairs: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (name.isidentifier() and equals):
            raise click.BadParameter(f"expected NAME=VALUE, got {pair!r}")
        try:
            found[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[name] = text
    return found


@click.command(context_settings={"show_default": True, "max_content_width": 100})
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--model", "function", required=True, help="MODULE:FUNCTION that makes the network.")
@click.option(
    "--argument",
    "arguments",
    multiple=True,
    callback=_arguments,
    help="NAME=VALUE for that function. Repeatable.",
)
@click.option(
    "--weights",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A state dict, or a checkpoint that has one as 'model' or 'state_dict'.",
)
@click.option("--layer", "layers", multiple=True, help="SE block to draw. Repeatable.")
@click.option("--class", "classes", multiple=True, help="Class to draw. Repeatable.")
@click.option("--channels", default=50, type=POSITIVE, help="Channels of a block to draw.")
@click.option("--most", default=50, type=POSITIVE, help="Images of a class to look at.")
@click.option("--size", default=224, type=POSITIVE, help="Pixels of an image's side.")
@click.option("--resize", type=POSITIVE, help="Shorter side before the crop. [default: size/0.875]")
@click.option("--mean", default=",".join(map(str, IMAGENET_MEAN)), callback=_numbers)
@click.option("--std", default=",".join(map(str, IMAGENET_STD)), callback=_numbers)
@click.option("--batch", default=32, type=POSITIVE, help="Images of one call.")
@click.option("--device", default="cpu", callback=_device, help="Where the network runs.")
@click.option(
    "--output",
    default=".",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for classes.png and spread.png.",
)
def main(
    folder: Path,
    function: str,
    arguments: dict[str, Any],
    weights: Path | None,
    layers: tuple[str, ...],
    classes: tuple[str, ...],
    channels: int,
    output: Path,
    batch: int,
    device: torch.device,
    **images: Any,
) -> None:
    """Draw the gates of a network by class, from FOLDER/class/image.png.

    classes.png is the paper's Fig. 6: the mean gate of each channel by class, and over all classes.
    spread.png is Fig. 7: mean and standard deviation within a class. One number as --mean and --std
    makes the images grey. The SE blocks of timm, torchvision and transformers are fused first.

    python -m se_kernels.analysis photos --model timm:create_model --argument
    model_name=seresnet50 --argument pretrained=True
    """
    try:
        found = ImageFolder(folder, **images)
        _check_known("--class", classes, found.classes)
        model = _model(function, arguments, weights).to(device).eval()
        fuse(model)
        _check_known("--layer", layers, se_layers(model))
        gates = _gates(model, found, batch, device)
        output.mkdir(parents=True, exist_ok=True)
        chosen: dict[str, Any] = dict(
            classes=classes or None, layers=layers or None, channels=channels
        )
        draw_classes(gates, output / "classes.png", **chosen)
        draw_spread(gates, output / "spread.png", **{**chosen, "classes": classes[:2] or None})
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    console = Console()
    console.print(_table(gates))
    console.print(f"{output / 'classes.png'} and {output / 'spread.png'}", soft_wrap=True)


def _model(function: str, arguments: dict[str, Any], weights: Path | None) -> nn.Module:
    module, colon, name = function.partition(":")
    if not (module and colon and name):
        raise ValueError(f"--model: expected MODULE:FUNCTION, got {function!r}")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"--model: expected a function that exists, got {function!r}: {error}"
        ) from None
    try:
        model = make(**arguments)
    except TypeError as error:
        raise ValueError(f"--argument: {error}") from None
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"--model: expected a function that returns a module, got {type(model).__name__}"
        )
    if weights is not None:
        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)
            model.load_state_dict(state.get("model", state.get("state_dict", state)))
        except (AttributeError, RuntimeError, pickle.UnpicklingError) as error:
            raise ValueError(f"--weights: {error}") from None
    return model


def _check_known(option: str, chosen: Iterable[str], known: Iterable[str]) -> None:
    for name in chosen:
        if name not in known:
            raise ValueError(f"{option}: expected some of {', '.join(known)}; got {name!r}")


def _gates(
    model: nn.Module, images: ImageFolder, batch: int, device: torch.device
) -> dict[str, Moments]:
    """One pass over the images, with a bar on standard error."""
    columns = (
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=len(images))

        def batches() -> Iterator[tuple[str, Tensor]]:
            for name, pixels in images.batches(batch):
                bar.update(task, description=name)
                yield name, pixels.to(device)
                bar.advance(task, len(pixels))

        return gates_by_class(model, batches())


def _table(gates: dict[str, Moments]) -> Table:
    """Section 7.2 in numbers: how far apart classes and images are, and how far from one."""
    rows = Table("SE block", "channels", "mean gate", "between classes", "within a class", "from 1")
    for row in layer_statistics(gates):
        rows.add_row(row.layer, str(row.channels), *(f"{number:.3f}" for number in row[2:]))
    return rows


if __name__ == "__main__":
    main()
