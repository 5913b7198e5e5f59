"""Images by class: root/class/image.png."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageFolder:
    """A folder with one folder of images for each class, as torchvision's ``ImageFolder`` has it.

    Args:
        root: the folder.
        size: H and W of the images in pixels, cut from the middle.
        resize: the shorter side before that; None: size / 0.875 (256 for 224).
        mean, std: of each channel, in units of full brightness; one number: a grey image.
        most: images of a class, the first in the order of their names; None: all.

    ``classes`` are the names of the folders that hold images, sorted; ``len`` is the number of
    images.

    Raises:
        ValueError: no folder, no class or no image there; a number not as above.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        size: int = 224,
        resize: int | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        most: int | None = None,
    ):
        self.size = size
        self.resize = round(size / 0.875) if resize is None else resize
        if not 1 <= self.size <= self.resize:
            raise ValueError(f"size: expected 1 to resize={self.resize}, got {size}")
        if len(mean) not in (1, 3) or len(std) != len(mean) or min(std) <= 0:
            raise ValueError(
                "mean, std: expected 1 or 3 numbers each, those of std above 0, "
                f"got {tuple(mean)} and {tuple(std)}"
            )
        if most is not None and most < 1:
            raise ValueError(f"most: expected at least 1, got {most}")
        self.mean, self.std = (torch.tensor(v)[:, None, None] for v in (mean, std))
        root = Path(root)
        if not root.is_dir():
            raise ValueError(f"root: expected a folder with a folder for each class, got {root}")
        found = {path.name: _images(path)[:most] for path in sorted(root.iterdir())}
        self._paths = {name: paths for name, paths in found.items() if paths}
        if not self._paths:
            raise ValueError(
                f"root: expected a folder with a folder of images for each class, {root} has none"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self._paths)

    def __len__(self) -> int:
        return sum(map(len, self._paths.values()))

    def batches(self, batch: int = 32) -> Iterator[tuple[str, Tensor]]:
        """(class, images (n, 1 or 3, size, size) float32) with n up to batch, class by class.

        Raises ValueError for a file that is no image.
        """
        for name, paths in self._paths.items():
            for start in range(0, len(paths), batch):
                yield name, torch.stack([self._read(path) for path in paths[start : start + batch]])

    def _read(self, path: Path) -> Tensor:
        try:
            with Image.open(path) as file:
                image = file.convert("L" if len(self.mean) == 1 else "RGB")
        except OSError as error:
            raise ValueError(f"root: expected an image, got {path}: {error}") from None
        if min(image.size) != self.resize:
            scale = self.resize / min(image.size)
            size = [max(self.resize, round(side * scale)) for side in image.size]
            image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = ((side - self.size) // 2 for side in image.size)
        image = image.crop((left, top, left + self.size, top + self.size))
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        pixels = pixels.view(self.size, self.size, -1).permute(2, 0, 1)
        return (pixels / 255 - self.mean) / self.std


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
