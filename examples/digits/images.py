"""The test digits as PNG files by class, for ``python -m se_kernels.analysis``."""

from pathlib import Path

import click
import torch
from PIL import Image

from .data import load


@click.command(context_settings={"show_default": True})
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--size", default=32, type=click.IntRange(min=8), help="Pixels of an image's side.")
def main(folder, size):
    """Write the test digits to FOLDER/0/000.png and so on, white for 1 and black for -1."""
    _, test_images = load(size, torch.float32)
    for index, (pixels, label) in enumerate(zip(*test_images, strict=True)):
        path = folder / str(label.item()) / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = ((pixels[0] + 1) * 127.5).round().byte()
        Image.frombytes("L", (size, size), bytes(grey.flatten().tolist())).save(path)
    click.echo(f"{len(test_images.labels)} images in {folder}")


if __name__ == "__main__":
    main()
