"""MobileNet: Howard et al., "MobileNets", table 1."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from se_kernels.models.conv_norm import ConvNormReLU
from se_kernels.models.network import Network
from se_kernels.models.registry import register, with_se
from se_kernels.models.se import SE, check_se

# Channels of the depthwise separable units of a stage; all stages but the first halve the size.
MOBILENET = (
    (64,),  # 112×112, for images of 224×224
    (128, 128),  # 56×56
    (256, 256),  # 28×28
    (512, 512, 512, 512, 512, 512),  # 14×14
    (1024, 1024),  # 7×7
)
STEM_CHANNELS = 32


def separable(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    """A 3×3 convolution of each channel, then a 1×1 convolution."""
    return nn.Sequential(
        ConvNormReLU(in_channels, in_channels, 3, stride, groups=in_channels),
        ConvNormReLU(in_channels, channels, 1),
    )


class MobileNet(Network):
    """Depthwise separable units, an SE block after the last ReLU of each.

    Args:
        stages: the channels of each stage's units, as ``MOBILENET``; at least two stages.
        num_classes: outputs of the classifier, at least 1.
        se: the SE blocks, or None: none. The stages are numbered from 1.
        in_channels: channels of the images.
        features_only: without classifier; returns the outputs of the stages from the second on:
            strides 4, 8, 16 and 32.
        dropout: the probability, before the classifier.

    ``forward`` takes images (N, in_channels, H, W) with H and W of at least 32 for five stages.

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
        dropout: float = 0.0,
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
        check_se(se, "MobileNet", stages=numbers)
        self.conv1 = ConvNormReLU(in_channels, STEM_CHANNELS, 3, 2)
        width = STEM_CHANNELS
        for number, row in zip(numbers, stages, strict=True):
            stage = nn.Sequential()
            for i, channels in enumerate(row):
                unit = separable(width, channels, 2 if i == 0 and number > 1 else 1)
                if se is not None and se.is_in(number):
                    last: Any = unit[-1]
                    last.add_se(se)
                stage.append(unit)
                width = channels
            self.add_module(f"stage{number}", stage)
        self.layers = tuple(f"stage{number}" for number in numbers[1:])
        self.finish(tuple(row[-1] for row in stages[1:]), dropout)

    def stem(self, x: Tensor) -> Tensor:
        x = self.get_submodule("stage1")(self.conv1(x))
        return x


@register
def mobilenet(num_classes: int = 1000, *, se: SE | None = None, **options: Any) -> MobileNet:
    """MobileNet 1.0-224: 4.2 M parameters and 569 M multiply-adds (Table 3).

    Options as of :class:`MobileNet`.
    """
    return MobileNet(MOBILENET, num_classes, se=se, **options)


def se_mobilenet(num_classes: int = 1000, *, fused: bool | str = True, **options: Any) -> MobileNet:
    """SE-MobileNet: 4.7 M parameters and 572 M multiply-adds (Table 3).

    ``fused=False`` has the same parameters under the same names. ``options`` are those of
    :class:`SE` and of ``mobilenet``.
    """
    return with_se(mobilenet, num_classes, fused, options)
