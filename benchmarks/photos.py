"""Two photographs through SE-ResNet-50: the fused network says what the eager one says."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .environment import Environment
from .inputs import DTYPES, MEMORY_FORMATS
from .network import Point, Settings, contenders, judged
from .records import SCHEMA
from .resnet_vs_se import ResNetVsSE
from .verify import EAGER_FACTOR, Check, floors, norms, refuse

RESIZED, CROPPED = 256, 224  # pixels: shorter side, then the middle
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's channels


def load() -> Tensor:
    """The photographs that scikit-learn ships, (2, 3, 224, 224), float32, normalised."""
    from sklearn.datasets import load_sample_images

    return torch.cat([prepare(image) for image in load_sample_images().images])


def prepare(image: np.ndarray) -> Tensor:
    """(H, W, 3) of 0 to 255 → (1, 3, 224, 224): resized, cropped to the middle, normalised."""
    x = torch.tensor(image, dtype=torch.float32).permute(2, 0, 1)[None] / 255
    height, width = x.shape[2:]
    scale = RESIZED / min(height, width)
    size = (round(height * scale), round(width * scale))
    x = F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
    top, left = (size[0] - CROPPED) // 2, (size[1] - CROPPED) // 2
    x = x[:, :, top : top + CROPPED, left : left + CROPPED]
    mean, std = (torch.tensor(v)[None, :, None, None] for v in (MEAN, STD))
    return (x - mean) / std


def compare(
    subject: ResNetVsSE, settings: Settings, dtype: str, layout: str, environment: Environment
) -> dict:
    """Eager and fused logits of one state dict; returns the record of one JSON line.

    The two may differ by eager's own rounding and the fused one's, which is held to twice eager's
    plus the floor of ``verify``: three times eager's largest error against float64, plus that.

    Raises:
        VerificationError: they differ by more, or the photographs are told apart by less.
    """
    photos = load().contiguous(memory_format=MEMORY_FORMATS[layout]).to(settings.device)
    point = Point(photos.shape[0], CROPPED, dtype, layout, "inference")
    networks = contenders(subject.se_resnets(settings, photos, layout), point, compiled=())
    photos = photos.to(DTYPES[dtype])
    with torch.no_grad():
        exact = judged(networks["se_eager"]).logits(photos.double())
        eager, fused = (networks[n].logits(photos).double() for n in ("se_eager", "se_block"))
    own_error = norms(eager - exact)["max"]
    tolerance = (1 + EAGER_FACTOR) * own_error + floors(norms(exact), DTYPES[dtype])["max"]
    difference = norms(fused - eager)["max"]
    between = norms(exact[0] - exact[1])["max"]
    refuse(
        [
            Check("se_block on photographs", "logits", "max", difference, tolerance),
            Check("tolerance on photographs", "their difference", "max", tolerance, between / 10),
        ]
    )
    return {
        "schema": SCHEMA,
        "kind": "photos",
        **environment.as_dict(),
        "batch": photos.shape[0],
        "image_size": CROPPED,
        "dtype": dtype,
        "layout": layout,
        "seed": settings.seed,
        "backend": settings.backend,
        "largest_difference": difference,
        "tolerance": tolerance,
        "largest_logit": norms(exact)["max"],
        "between_photos": between,
    }
