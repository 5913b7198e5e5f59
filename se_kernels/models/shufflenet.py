"""ShuffleNet: Zhang et al., "ShuffleNet", figure 2 and table 1."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from se_kernels.models import in_place
from se_kernels.models.conv_norm import ConvNormReLU
from se_kernels.models.network import Network
from se_kernels.models.registry import register, with_se
from se_kernels.models.se import SE, check_se
from se_kernels.modules.recognition import is_traced


class Row(NamedTuple):
    """One stage: so many units, the first with stride 2, of so many output channels."""

    channels: int
    units: int


# Table 1 at g = 3. Before these rows: conv 3×3, 24, stride 2 and max pool 3×3, stride 2 (56×56).
SHUFFLENET_G3 = (
    Row(240, 4),  # 28×28, for images of 224×224
    Row(480, 8),  # 14×14
    Row(960, 4),  # 7×7
)
STEM_CHANNELS = 24


def shuffle(v: Tensor, groups: int) -> Tensor:
    """Channel c is the (c // groups)-th of group c % groups."""
    if is_traced(v):  # the older ONNX exporter does not know it
        v = v.unflatten(1, (groups, -1)).transpose(1, 2)
        return v.flatten(1, 2)
    return F.channel_shuffle(v, groups)


class Unit(nn.Module):
    """1×1 convolution in groups, shuffle, 3×3 convolution of each channel, 1×1 in groups.

    With stride 1 the input is added, with stride 2 its average pool is concatenated; then ReLU. The
    SE block acts on the branch of convolutions, before either.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, groups: int, groups1: int):
        super().__init__()
        reduced = channels // 4
        self.channels = channels if stride == 1 else channels - in_channels  # of the branch
        self.groups = groups
        self.conv1 = ConvNormReLU(in_channels, reduced, 1, groups=groups1)
        self.conv2 = ConvNormReLU(reduced, reduced, 3, stride, groups=reduced, relu=False)
        self.conv3 = ConvNormReLU(reduced, self.channels, 1, groups=groups, relu=False)
        self.pool = None if stride == 1 else nn.AvgPool2d(3, stride, padding=1)
        self.se: nn.Module | None = None

    def add_se(self, se: SE) -> None:
        self.se = se.block(self.channels, post="relu")

    def forward(self, x: Tensor) -> Tensor:
        """x is the output of a ReLU, and so then is the pool of it."""
        v: Tensor = shuffle(self.conv1(x), self.groups)
        v = self.conv3(self.conv2(v))
        if self.pool is not None:
            v = in_place.relu(v) if self.se is None else self.se(v)
            return torch.cat((self.pool(x), v), 1)
        if self.se is not None:
            v = self.se(v, x)
            return v
        return in_place.relu(in_place.add(v, x))


class ShuffleNet(Network):
    """ShuffleNet, an SE block in each unit.

    Args:
        stages: the rows of the table, as ``SHUFFLENET_G3``.
        num_classes: outputs of the classifier, at least 1.
        groups: of the 1×1 convolutions, but the first of all; divides 24 and a quarter of each
            stage's channels.
        se: the SE blocks, or None: none. The stages are numbered from 2, as in the table.
        in_channels: channels of the images.
        features_only: without classifier; returns the output of the max pool and of each stage:
            strides 4, 8, 16 and 32.
        dropout: the probability, before the classifier.

    ``forward`` takes images (N, in_channels, H, W) with H and W of at least 32 for three stages.

    Raises:
        ValueError: an argument, or the images, not as above.
    """

    def __init__(
        self,
        stages: Sequence[Row],
        num_classes: int = 1000,
        *,
        groups: int = 3,
        se: SE | None = None,
        in_channels: int = 3,
        features_only: bool = False,
        dropout: float = 0.0,
    ):
        if len(stages) < 1:
            raise ValueError("stages: expected at least one, got none")
        widths = [4 * STEM_CHANNELS, *(row.channels for row in stages)]
        if groups < 1 or any(width % (4 * groups) for width in widths):
            raise ValueError(f"groups: expected 4 * groups to divide {widths}, got {groups}")
        super().__init__(
            num_classes,
            in_channels=in_channels,
            features_only=features_only,
            min_size=4 * 2 ** len(stages),
        )
        numbers = tuple(range(2, len(stages) + 2))
        check_se(se, "ShuffleNet", stages=numbers)
        self.conv1 = ConvNormReLU(in_channels, STEM_CHANNELS, 3, 2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        width = STEM_CHANNELS
        for number, row in zip(numbers, stages, strict=True):
            stage = nn.Sequential()
            for i in range(row.units):
                groups1 = 1 if width == STEM_CHANNELS else groups  # 24 channels are few to divide
                unit = Unit(width, row.channels, 2 if i == 0 else 1, groups, groups1)
                if se is not None and se.is_in(number):
                    unit.add_se(se)
                stage.append(unit)
                width = row.channels
            self.add_module(f"stage{number}", stage)
        self.layers = ("pool", *(f"stage{number}" for number in numbers))
        self.finish((STEM_CHANNELS, *(row.channels for row in stages)), dropout)

    def stem(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return x


@register
def shufflenet(num_classes: int = 1000, *, se: SE | None = None, **options: Any) -> ShuffleNet:
    """ShuffleNet 1× (g=3): 1.8 M parameters and 140 M multiply-adds (Table 3).

    Options as of :class:`ShuffleNet`.
    """
    return ShuffleNet(SHUFFLENET_G3, num_classes, se=se, **options)


def se_shufflenet(
    num_classes: int = 1000, *, fused: bool | str = True, **options: Any
) -> ShuffleNet:
    """SE-ShuffleNet: 2.4 M parameters and 142 M multiply-adds (Table 3).

    ``fused=False`` has the same parameters under the same names. ``options`` are those of
    :class:`SE` and of ``shufflenet``.
    """
    return with_se(shufflenet, num_classes, fused, options)
