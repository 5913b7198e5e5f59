"""Inception-ResNet-v2: Szegedy et al., "Inception-v4, Inception-ResNet and the Impact of Residual
Connections on Learning", with the widths and the numbers of blocks of its published weights, which
are those of timm's ``inception_resnet_v2`` and not of the paper's figures."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from se_kernels.models import in_place
from se_kernels.models.conv_norm import ConvNormReLU
from se_kernels.models.network import Network
from se_kernels.models.registry import register, with_se
from se_kernels.models.se import SE, check_se

EPS = 1e-3  # of the norms


class Conv(NamedTuple):
    """One convolution of a branch. ``same``: padded to its input's size."""

    channels: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1
    same: bool = True


def conv(in_channels: int, row: Conv) -> ConvNormReLU:
    padding = None if row.same else 0
    return ConvNormReLU(in_channels, row.channels, row.kernel, row.stride, padding=padding, eps=EPS)


def branch(in_channels: int, rows: tuple[Conv, ...], *before: nn.Module) -> nn.Module:
    """Convolutions one after another; one alone is itself."""
    layers = list(before)
    for row in rows:
        layers.append(conv(in_channels, row))
        in_channels = row.channels
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


class Branches(nn.Module):
    """Branches over one input, concatenated. Their modules are ``branch0``, ``branch1``, ..."""

    def __init__(self, in_channels: int, rows: tuple[tuple[Conv, ...], ...]):
        super().__init__()
        self.channels = sum(row[-1].channels for row in rows)
        self.branches: list[str] = []
        for row in rows:
            self.add_branch(branch(in_channels, row))

    def add_branch(self, module: nn.Module) -> None:
        self.branches.append(f"branch{len(self.branches)}")
        self.add_module(self.branches[-1], module)

    def concatenated(self, x: Tensor) -> Tensor:
        return torch.cat([getattr(self, name)(x) for name in self.branches], 1)


class Mixed(Branches):
    """An Inception module, with a pool as its last branch; the SE block is after it (Fig. 2)."""

    def __init__(self, in_channels: int, rows: tuple[tuple[Conv, ...], ...], pool_1x1: int = 0):
        super().__init__(in_channels, rows)
        if pool_1x1:
            pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
            self.add_branch(branch(in_channels, (Conv(pool_1x1),), pool))
        else:
            self.add_branch(nn.MaxPool2d(3, stride=2))
        self.channels += pool_1x1 or in_channels
        self.se: nn.Module | None = None

    def add_se(self, se: SE) -> None:
        self.se = se.block(self.channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.concatenated(x)
        return y if self.se is None else self.se(y)


class Residual(Branches):
    """relu(s * v + x), where v is ``scale`` times the branches after a 1×1 convolution, and s the
    gates of the SE block (Fig. 3). The last block of the network has neither scale nor ReLU."""

    def __init__(
        self,
        channels: int,
        rows: tuple[tuple[Conv, ...], ...],
        scale: float,
        relu: bool = True,
    ):
        super().__init__(channels, rows)
        self.conv2d = nn.Conv2d(self.channels, channels, 1)
        self.channels, self.scale, self.relu = channels, scale, relu
        self.se: nn.Module | None = None

    def add_se(self, se: SE) -> None:
        self.se = se.block(self.channels, post="relu" if self.relu else "none")

    def forward(self, x: Tensor) -> Tensor:
        v: Tensor = self.conv2d(self.concatenated(x))
        if self.scale != 1:
            v = in_place.mul(v, self.scale)
        if self.se is not None:
            v = self.se(v, x)
            return v
        v = in_place.add(v, x)
        return in_place.relu(v) if self.relu else v


# fmt: off
BLOCK35 = ((Conv(32),), (Conv(32), Conv(32, 3)), (Conv(32), Conv(48, 3), Conv(64, 3)))
BLOCK17 = ((Conv(192),), (Conv(128), Conv(160, (1, 7)), Conv(192, (7, 1))))
BLOCK8 = ((Conv(192),), (Conv(192), Conv(224, (1, 3)), Conv(256, (3, 1))))
MIXED_5B = ((Conv(96),), (Conv(48), Conv(64, 5)), (Conv(64), Conv(96, 3), Conv(96, 3)))
MIXED_6A = ((Conv(384, 3, 2, same=False),),
            (Conv(256), Conv(256, 3), Conv(384, 3, 2, same=False)))
MIXED_7A = ((Conv(256), Conv(384, 3, 2, same=False)),
            (Conv(256), Conv(288, 3, 2, same=False)),
            (Conv(256), Conv(288, 3), Conv(320, 3, 2, same=False)))
# fmt: on


class InceptionResNet(Network):
    """Inception-ResNet-v2, an SE block in each residual block and after each Inception module.

    Args:
        blocks: how many residual blocks of 35×35, 17×17 and 8×8 (for images of 299×299).
        num_classes: outputs of the classifier, at least 1.
        se: the SE blocks, or None: none. The stages are 5 (35×35), 6 (17×17) and 7 (8×8), as the
            published weights number their layers.
        in_channels: channels of the images.
        features_only: without classifier; returns the outputs of the last convolution before the
            modules and of stages 5, 6 and 7: strides 4, 8, 16 and 32. Convolutions with a stride
            are not padded, so the maps are somewhat smaller than that.
        dropout: the probability, before the classifier.

    ``forward`` takes images (N, in_channels, H, W) with H and W of at least 75.

    Raises:
        ValueError: an argument, or the images, not as above.
    """

    def __init__(
        self,
        blocks: tuple[int, int, int] = (10, 20, 10),
        num_classes: int = 1000,
        *,
        se: SE | None = None,
        in_channels: int = 3,
        features_only: bool = False,
        dropout: float = 0.0,
    ):
        if len(blocks) != 3 or min(blocks) < 1:
            raise ValueError(f"blocks: expected three numbers of at least 1, got {blocks}")
        super().__init__(
            num_classes, in_channels=in_channels, features_only=features_only, min_size=75
        )
        check_se(se, "InceptionResNet", stages=(5, 6, 7))
        self.conv2d_1a = conv(in_channels, Conv(32, 3, 2, same=False))
        self.conv2d_2a = conv(32, Conv(32, 3, same=False))
        self.conv2d_2b = conv(32, Conv(64, 3))
        self.maxpool_3a = nn.MaxPool2d(3, stride=2)
        self.conv2d_3b = conv(64, Conv(80))
        self.conv2d_4a = conv(80, Conv(192, 3, same=False))
        n5, n6, n7 = blocks
        self.stage5 = nn.Sequential(
            nn.MaxPool2d(3, stride=2),
            Mixed(192, MIXED_5B, pool_1x1=64),
            *(Residual(320, BLOCK35, 0.17) for _ in range(n5)),
        )
        self.stage6 = nn.Sequential(
            Mixed(320, MIXED_6A),
            *(Residual(1088, BLOCK17, 0.10) for _ in range(n6)),
        )
        self.stage7 = nn.Sequential(
            Mixed(1088, MIXED_7A),
            *(Residual(2080, BLOCK8, 0.20) for _ in range(n7 - 1)),
            Residual(2080, BLOCK8, 1.0, relu=False),
            conv(2080, Conv(1536)),
        )
        for number in (5, 6, 7):
            for module in self.get_submodule(f"stage{number}").children():
                if isinstance(module, (Mixed, Residual)) and se is not None and se.is_in(number):
                    module.add_se(se)
        self.layers = ("conv2d_4a", "stage5", "stage6", "stage7")
        self.finish((192, 320, 1088, 1536), dropout)

    def stem(self, x: Tensor) -> Tensor:
        x = self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(x)))
        x = self.conv2d_3b(self.maxpool_3a(x))
        return x


@register
def inception_resnet_v2(
    num_classes: int = 1000, *, se: SE | None = None, **options: Any
) -> InceptionResNet:
    """Inception-ResNet-v2, for images of 299×299: 13.16 G multiply-adds, where Table 2 has 11.75.

    Options as of :class:`InceptionResNet`.
    """
    return InceptionResNet(num_classes=num_classes, se=se, **options)


def se_inception_resnet_v2(
    num_classes: int = 1000, *, fused: bool | str = True, **options: Any
) -> InceptionResNet:
    """SE-Inception-ResNet-v2.

    ``fused=False`` has the same parameters under the same names. ``options`` are those of
    :class:`SE` and of ``inception_resnet_v2``.
    """
    return with_se(inception_resnet_v2, num_classes, fused, options)
