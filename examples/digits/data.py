"""Handwritten digits, as scikit-learn ships them, made the size of CIFAR's images."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

BACKGROUND = -1.0


class Images(NamedTuple):
    """pixels (N, 1, H, W) from -1, the background, to 1; labels (N,) from 0 to 9."""

    pixels: Tensor
    labels: Tensor


def load(size: int, dtype: torch.dtype) -> tuple[Images, Images]:
    """898 digits to train on and 899 to test on, upscaled from 8×8 to size × size."""
    digits = load_digits()
    pixels = torch.tensor(digits.images, dtype=dtype).unsqueeze(1) / 8 - 1
    pixels = F.interpolate(pixels, (size, size), mode="bilinear", align_corners=False)
    labels = torch.tensor(digits.target)
    halves = train_test_split(pixels, labels, test_size=0.5, random_state=0, stratify=labels)
    train_pixels, test_pixels, train_labels, test_labels = halves
    return Images(train_pixels, train_labels), Images(test_pixels, test_labels)


def steps_of(images: Images, batch: int) -> int:
    """Steps of an epoch; the images that do not fill a batch wait for another epoch."""
    return len(images.labels) // batch


def batches(images: Images, batch: int, seed: int, epoch: int) -> Iterator[Images]:
    """An epoch of training batches, in an order and with shifts that seed and epoch decide.

    Each image is shifted by up to an eighth of its size, as CIFAR's are: padded, then cropped.
    """
    generator = torch.Generator().manual_seed(1000 * seed + epoch)
    order = torch.randperm(len(images.labels), generator=generator)
    size = images.pixels.shape[-1]
    most = size // 8
    padded = F.pad(images.pixels, (most,) * 4, value=BACKGROUND)
    for rows in order[: steps_of(images, batch) * batch].split(batch):
        corners = torch.randint(2 * most + 1, (batch, 2), generator=generator).tolist()
        shifted = [
            padded[row, :, top : top + size, left : left + size]
            for row, (top, left) in zip(rows.tolist(), corners, strict=True)
        ]
        yield Images(torch.stack(shifted), images.labels[rows])
