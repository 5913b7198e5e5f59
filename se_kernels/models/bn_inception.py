"""BN-Inception: Ioffe and Szegedy, "Batch Normalization", figure 5 of its appendix."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from se_kernels.models.conv_norm import ConvNormReLU
from se_kernels.models.network import Network
from se_kernels.models.registry import register, with_se
from se_kernels.models.se import SE, check_se


class Row(NamedTuple):
    """Output channels in one Inception module. A pair is a 1×1 and the 3×3 after it.

    ``pool`` is "avg" or "max", of 3×3, and ``pool_1x1`` the convolution after it. A module with
    stride 2 has neither this nor the 1×1 branch.
    """

    conv1x1: int | None
    conv3x3: tuple[int, int]
    double3x3: tuple[int, int]
    pool: str
    pool_1x1: int | None
    stride: int = 1


# fmt: off
BN_INCEPTION = {
    #           1×1   3×3         double 3×3   pool               output, at 224×224
    "3a": Row(   64, ( 64,  64), ( 64,  96), "avg",   32),     #  256, 28×28
    "3b": Row(   64, ( 64,  96), ( 64,  96), "avg",   64),     #  320
    "3c": Row( None, (128, 160), ( 64,  96), "max", None, 2),  #  576, 14×14
    "4a": Row(  224, ( 64,  96), ( 96, 128), "avg",  128),     #  576
    "4b": Row(  192, ( 96, 128), ( 96, 128), "avg",  128),     #  576
    "4c": Row(  160, (128, 160), (128, 160), "avg",  128),     #  608
    "4d": Row(   96, (128, 192), (160, 192), "avg",  128),     #  608
    "4e": Row( None, (128, 192), (192, 256), "max", None, 2),  # 1056, 7×7
    "5a": Row(  352, (192, 320), (160, 224), "avg",  128),     # 1024
    "5b": Row(  352, (192, 320), (192, 224), "max",  128),     # 1024
}
# fmt: on


class Inception(nn.Module):
    """Branches over one input, concatenated; the SE block takes the whole module (Fig. 2)."""

    def __init__(self, in_channels: int, row: Row):
        super().__init__()
        stride = row.stride
        self.branches = nn.ModuleDict()
        if row.conv1x1 is not None:
            self.branches["conv1x1"] = ConvNormReLU(in_channels, row.conv1x1, 1)
        reduced, channels = row.conv3x3
        self.branches["conv3x3"] = nn.Sequential(
            ConvNormReLU(in_channels, reduced, 1), ConvNormReLU(reduced, channels, 3, stride)
        )
        reduced, channels = row.double3x3
        self.branches["double3x3"] = nn.Sequential(
            ConvNormReLU(in_channels, reduced, 1),
            ConvNormReLU(reduced, channels, 3),
            ConvNormReLU(channels, channels, 3, stride),
        )
        pool = nn.AvgPool2d if row.pool == "avg" else nn.MaxPool2d
        pooled = nn.Sequential(pool(3, stride, padding=1))
        if row.pool_1x1 is not None:
            pooled.append(ConvNormReLU(in_channels, row.pool_1x1, 1))
        self.branches["pool"] = pooled
        self.channels = (
            (row.conv1x1 or 0)
            + row.conv3x3[-1]
            + row.double3x3[-1]
            + (in_channels if row.pool_1x1 is None else row.pool_1x1)
        )
        self.se: nn.Module | None = None

    def add_se(self, se: SE) -> None:
        self.se = se.block(self.channels)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([branch(x) for branch in self.branches.values()], 1)
        return y if self.se is None else self.se(y)


class BNInception(Network):
    """BN-Inception, an SE block after each Inception module (section 3.3).

    Args:
        modules: the rows of the table, as ``BN_INCEPTION``: name → :class:`Row`. A stage begins
            with each module of stride 2.
        num_classes: outputs of the classifier, at least 1.
        se: the SE blocks, or None: none. The stages are 3 (28×28, for images of 224×224), 4
            (14×14) and 5 (7×7): the module 3c is the first of stage 4, 4e of stage 5.
        in_channels: channels of the images.
        features_only: without classifier; returns the outputs of the 3×3 convolution before the
            modules and of stages 3, 4 and 5: strides 4, 8, 16 and 32.
        dropout: the probability, before the classifier.

    ``forward`` takes images (N, in_channels, H, W) with H and W of at least 32. Pools are padded as
    the convolutions are, so that the branches fit together at odd sizes.

    Raises:
        ValueError: an argument, or the images, not as above.
    """

    def __init__(
        self,
        modules: Mapping[str, Row],
        num_classes: int = 1000,
        *,
        se: SE | None = None,
        in_channels: int = 3,
        features_only: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__(
            num_classes, in_channels=in_channels, features_only=features_only, min_size=32
        )
        check_se(se, "BNInception", stages=(3, 4, 5))
        self.conv1 = ConvNormReLU(in_channels, 64, 7, 2)
        self.stage2 = nn.Sequential(halve(), ConvNormReLU(64, 64, 1), ConvNormReLU(64, 192, 3))
        self.stage3, number, width, channels = nn.Sequential(halve()), 3, 192, [192]
        for name, row in modules.items():
            if row.stride == 2:
                channels.append(width)
                number += 1
                self.add_module(f"stage{number}", nn.Sequential())
            module = Inception(width, row)
            if se is not None and se.is_in(number):
                module.add_se(se)
            self.get_submodule(f"stage{number}").add_module(f"inception_{name}", module)
            width = module.channels
        self.layers = tuple(f"stage{i}" for i in range(2, number + 1))
        self.finish((*channels, width), dropout)

    def stem(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return x


def halve() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, stride=2, padding=1)


@register
def bn_inception(num_classes: int = 1000, *, se: SE | None = None, **options: Any) -> BNInception:
    """BN-Inception: 2.03 G multiply-adds (Table 2). Options as of :class:`BNInception`."""
    return BNInception(BN_INCEPTION, num_classes, se=se, **options)


def se_bn_inception(
    num_classes: int = 1000, *, fused: bool | str = True, **options: Any
) -> BNInception:
    """SE-BN-Inception: 2.04 G multiply-adds (Table 2).

    ``fused=False`` has the same parameters under the same names. ``options`` are those of
    :class:`SE` and of ``bn_inception``.
    """
    return with_se(bn_inception, num_classes, fused, options)
