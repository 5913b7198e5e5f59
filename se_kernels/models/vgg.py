"""VGG-16 with batch norm: Simonyan and Zisserman's configuration D, as section 5.1 trains it."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from se_kernels.models import in_place
from se_kernels.models.conv_norm import ConvNormReLU
from se_kernels.models.network import Network
from se_kernels.models.registry import register, with_se
from se_kernels.models.se import SE, check_se

# Channels of the convolutions of a stage, all 3×3; 2×2 max pool, stride 2, after each stage.
VGG16 = (
    (64, 64),  # 224×224
    (128, 128),  # 112×112
    (256, 256, 256),  # 56×56
    (512, 512, 512),  # 28×28
    (512, 512, 512),  # 14×14; pooled 7×7
)
POOLED = 7  # height and width before the FCs


class VGG(Network):
    """Convolutions of 3×3 with batch norm, an SE block after the ReLU of each (section 3.3).

    Args:
        stages: the channels of each stage's convolutions, as ``VGG16``; at least two stages.
        num_classes: outputs of the classifier, at least 1.
        se: the SE blocks, or None: none. The stages are numbered from 1.
        in_channels: channels of the images.
        features_only: without classifier; returns the outputs of the stages from the third on,
            before their pools, and the last pool's: strides 4, 8, 16 and 32.
        hidden: outputs of the first two FCs.
        dropout: the probability, after these two.

    ``forward`` takes images (N, in_channels, H, W) with H and W of at least 32 for five stages.
    What comes before the FCs is pooled to 7×7, which it has already for images of 224×224.

    Raises:
        ValueError: an argument, or the images, not as above.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[int]],
        num_classes: int = 1000,
        *,
        se: SE | None = None,
        in_channels: int = 3,
        features_only: bool = False,
        hidden: int = 4096,
        dropout: float = 0.5,
    ):
        if len(stages) < 2:
            raise ValueError(f"stages: expected at least two, got {stages}")
        super().__init__(
            num_classes,
            in_channels=in_channels,
            features_only=features_only,
            min_size=2 ** len(stages),
        )
        numbers = tuple(range(1, len(stages) + 1))
        check_se(se, "VGG", stages=numbers)
        self.hidden = hidden
        width = in_channels
        for number, row in zip(numbers, stages, strict=True):
            stage = nn.Sequential()
            if number > 1:
                stage.append(nn.MaxPool2d(2))
            for channels in row:
                layer = ConvNormReLU(width, channels, 3)
                if se is not None and se.is_in(number):
                    layer.add_se(se)
                stage.append(layer)
                width = channels
            self.add_module(f"stage{number}", stage)
        self.pool = nn.MaxPool2d(2)
        self.layers = (*(f"stage{number}" for number in numbers[2:]), "pool")
        self.finish((*(row[-1] for row in stages[2:]), width), dropout)

    def stem(self, x: Tensor) -> Tensor:
        for stage in self.get_submodule("stage1"), self.get_submodule("stage2"):
            x = stage(x)
        return x

    def add_head(self, dropout: float) -> None:
        self.fc1 = nn.Linear(self.feature_channels[-1] * POOLED**2, self.hidden)
        self.fc2 = nn.Linear(self.hidden, self.hidden)
        self.fc = nn.Linear(self.hidden, self.num_classes)
        self.dropout = nn.Dropout(dropout)

    def head(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, POOLED).flatten(1)  # (N, C * 49)
        drop = self.get_submodule("dropout")
        x = drop(in_place.relu(self.fc1(x)))
        x = drop(in_place.relu(self.fc2(x)))
        x = self.fc(x)
        return x


@register
def vgg16(num_classes: int = 1000, *, se: SE | None = None, **options: Any) -> VGG:
    """VGG-16 with batch norm: 15.47 G multiply-adds (Table 2). Options as of :class:`VGG`."""
    return VGG(VGG16, num_classes, se=se, **options)


def se_vgg16(num_classes: int = 1000, *, fused: bool | str = True, **options: Any) -> VGG:
    """SE-VGG-16: 15.48 G multiply-adds (Table 2).

    ``fused=False`` has the same parameters under the same names. ``options`` are those of
    :class:`SE` and of ``vgg16``.
    """
    return with_se(vgg16, num_classes, fused, options)
