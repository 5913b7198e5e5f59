"""Residual networks with and without SE blocks: Table 1 of "Squeeze-and-Excitation Networks"
(Hu et al.), left and middle columns, and smaller relatives from the same builder.

Modules carry the names that torchvision and timm use (``conv1``, ``bn1``, ``layer1.0.conv1``,
``layer1.0.downsample.0``, ``layer1.0.se.fc1``, ``fc``).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from se_kernels.module import SqueezeExcite


class Stage(NamedTuple):
    """One row of Table 1: ``blocks`` residual blocks, the first of them with ``stride``.

    ``channels`` are the output channels of a block's convolutions: three for a bottleneck
    (1×1, 3×3, 1×1), two for a basic block (3×3, 3×3).
    """

    channels: tuple[int, ...]
    blocks: int
    stride: int


# Table 1, for 224×224 images. Before these rows: conv 7×7, 64, stride 2 (112×112) and max pool 3×3,
# stride 2 (56×56); after them: global average pool and fc. Softmax is left to the loss.
# fmt: off
RESNET50 = (
    #      1×1  3×3   1×1                           output  fc in SE, r = 16
    Stage(( 64,  64,  256), blocks=3, stride=1),  # 56×56   [16, 256]
    Stage((128, 128,  512), blocks=4, stride=2),  # 28×28   [32, 512]
    Stage((256, 256, 1024), blocks=6, stride=2),  # 14×14   [64, 1024]
    Stage((512, 512, 2048), blocks=3, stride=2),  # 7×7     [128, 2048]
)
# fmt: on

STEMS = ("imagenet", "cifar")
SES = (None, "eager", "fused")


class EagerSqueezeExcite(nn.Module):
    """An SE block of separate PyTorch operations: ``x * sigmoid(fc2(relu(fc1(mean(x)))))``.

    Sections 3.1 and 3.2. It has the parameters of :class:`se_kernels.SqueezeExcite`, so a state
    dict of one loads into the other, and it is what that one is compared with.
    """

    def __init__(self, channels: int, rd_channels: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, rd_channels, 1, bias=False)
        self.act = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(rd_channels, channels, 1, bias=False)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        z = x.mean((2, 3), keepdim=True)  # (N, C, 1, 1)
        return x * self.gate(self.fc2(self.act(self.fc1(z))))


class Block(nn.Module):
    """What residual blocks share: the shortcut and the tail ``relu(s * v + shortcut)`` (Fig. 3).

    The SE block acts on the residual branch, before the summation (Section 3.3).
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        se: str | None,
        rd_ratio: float,
        backend: str | None,
    ):
        super().__init__()
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                conv(in_channels, channels, 1, stride), nn.BatchNorm2d(channels)
            )
        rd_channels = max(1, round(channels * rd_ratio))
        self.tail_is_fused = se == "fused"
        if se == "fused":
            self.se = SqueezeExcite(channels, rd_channels=rd_channels, post="relu", backend=backend)
        elif se == "eager":
            self.se = EagerSqueezeExcite(channels, rd_channels)
        else:
            self.se = None

    def tail(self, v: Tensor, x: Tensor) -> Tensor:
        """v: the residual branch; x: the block's input; returns the block's output."""
        shortcut = x if self.downsample is None else self.downsample(x)
        if self.tail_is_fused:
            return self.se(v, shortcut)
        if self.se is not None:
            v = self.se(v)
        v += shortcut
        return F.relu(v, inplace=True)


class Bottleneck(Block):
    """1×1, 3×3, 1×1 convolutions: the brackets of Table 1."""

    def __init__(
        self, in_channels: int, channels: Sequence[int], stride: int, stride_in_1x1: bool, **tail
    ):
        c1, c2, c3 = channels
        s1, s2 = (stride, 1) if stride_in_1x1 else (1, stride)
        super().__init__(in_channels, c3, stride, **tail)
        self.conv1, self.bn1 = conv(in_channels, c1, 1, s1), nn.BatchNorm2d(c1)
        self.conv2, self.bn2 = conv(c1, c2, 3, s2), nn.BatchNorm2d(c2)
        self.conv3, self.bn3 = conv(c2, c3, 1), nn.BatchNorm2d(c3)

    def forward(self, x: Tensor) -> Tensor:
        v = F.relu(self.bn1(self.conv1(x)), inplace=True)
        v = F.relu(self.bn2(self.conv2(v)), inplace=True)
        v = self.bn3(self.conv3(v))
        return self.tail(v, x)


class BasicBlock(Block):
    """Two 3×3 convolutions: the block of the shallower networks."""

    def __init__(
        self, in_channels: int, channels: Sequence[int], stride: int, stride_in_1x1: bool, **tail
    ):
        c1, c2 = channels
        super().__init__(in_channels, c2, stride, **tail)
        self.conv1, self.bn1 = conv(in_channels, c1, 3, stride), nn.BatchNorm2d(c1)
        self.conv2, self.bn2 = conv(c1, c2, 3), nn.BatchNorm2d(c2)

    def forward(self, x: Tensor) -> Tensor:
        v = F.relu(self.bn1(self.conv1(x)), inplace=True)
        v = self.bn2(self.conv2(v))
        return self.tail(v, x)


BLOCKS = {3: Bottleneck, 2: BasicBlock}  # by the number of convolutions


class ResNet(nn.Module):
    """A residual network from a table of stages.

    Args:
        stages: one :class:`Stage` per row of the table; see ``RESNET50``.
        num_classes: outputs of the classifier, at least 1.
        in_channels: channels of the images.
        stem: ``"imagenet"`` (7×7 convolution, stride 2, then 3×3 max pool, stride 2) or
            ``"cifar"`` (3×3 convolution, stride 1). Either gives as many channels as the first
            convolution of the first stage.
        se: ``None``, ``"eager"`` (an SE block of separate operations in each residual block) or
            ``"fused"`` (the SE block, the addition and the last ReLU in one operation). The last
            two have the same parameters under the same names.
        rd_ratio: 1/r; an SE block has ``round(channels * rd_ratio)``, at least 1, channels between
            its two layers. Unused without SE blocks.
        stride_in_1x1: where a bottleneck has its stride: in its first 1×1 convolution, as in the
            paper, or in its 3×3 convolution. Basic blocks have it in the first convolution.
        backend: of the fused SE blocks; ``None`` chooses by itself.

    ``forward`` takes images (N, in_channels, H, W) with H and W of at least ``min_size`` pixels
    (the product of all strides) and of the parameters' dtype; it returns (N, num_classes) logits.

    Raises:
        ValueError: an argument, or the images, not as above.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        num_classes: int = 1000,
        *,
        in_channels: int = 3,
        stem: str = "imagenet",
        se: str | None = None,
        rd_ratio: float = 1 / 16,
        stride_in_1x1: bool = True,
        backend: str | None = None,
    ):
        super().__init__()
        _check_arguments(stages, num_classes, in_channels, stem, se, rd_ratio)
        self.in_channels = in_channels
        self.num_classes = num_classes

        width = stages[0].channels[0]
        if stem == "imagenet":
            self.conv1 = conv(in_channels, width, 7, stride=2)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
            self.min_size = 4
        else:
            self.conv1 = conv(in_channels, width, 3)
            self.maxpool = nn.Identity()
            self.min_size = 1
        self.bn1 = nn.BatchNorm2d(width)

        tail = dict(se=se, rd_ratio=rd_ratio, backend=backend)
        self.layers = [f"layer{i}" for i in range(1, len(stages) + 1)]
        for name, stage in zip(self.layers, stages, strict=True):
            block = BLOCKS[len(stage.channels)]
            layer = nn.Sequential()
            for i in range(stage.blocks):
                stride = stage.stride if i == 0 else 1
                layer.append(block(width, stage.channels, stride, stride_in_1x1, **tail))
                width = stage.channels[-1]
            self.add_module(name, layer)
            self.min_size *= stage.stride

        self.fc = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        self._check_images(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.maxpool(x)
        for name in self.layers:
            x = getattr(self, name)(x)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (N, C)
        return self.fc(x)

    def _check_images(self, x: Tensor) -> None:
        size = self.min_size
        expected = f"expected images (N, {self.in_channels}, H, W) with H and W >= {size}"
        if x.dim() != 4 or x.size(1) != self.in_channels or x.size(2) < size or x.size(3) < size:
            raise ValueError(f"{expected}, got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"{expected} of floating-point numbers, got {x.dtype}")


def conv(in_channels: int, channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution that divides the size by its stride; the norm after it has the bias."""
    return nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, bias=False)


def resnet50(num_classes: int = 1000, *, stride_in_1x1: bool = True) -> ResNet:
    """ResNet-50: Table 1, left. 25.6 M parameters and 3.86 G multiply-adds (Table 2).

    With ``stride_in_1x1=False`` it is the variant of torchvision, 4.09 G multiply-adds.
    """
    return ResNet(RESNET50, num_classes, stride_in_1x1=stride_in_1x1)


def se_resnet50(
    num_classes: int = 1000,
    *,
    fused: bool = True,
    stride_in_1x1: bool = True,
    rd_ratio: float = 1 / 16,
    backend: str | None = None,
) -> ResNet:
    """SE-ResNet-50: Table 1, middle. 28.1 M parameters and 3.87 G multiply-adds (Table 2).

    ``fused=False`` has the same parameters under the same names; ``rd_ratio`` is 1/r (Section 6.1).
    """
    return ResNet(
        RESNET50,
        num_classes,
        se="fused" if fused else "eager",
        rd_ratio=rd_ratio,
        stride_in_1x1=stride_in_1x1,
        backend=backend,
    )


def _check_arguments(stages, num_classes, in_channels, stem, se, rd_ratio) -> None:
    if len(stages) == 0:
        raise ValueError("stages: expected at least one Stage, got none")
    for stage in stages:
        ok = len(stage.channels) in BLOCKS and min(*stage.channels, stage.blocks, stage.stride) >= 1
        if not ok:
            raise ValueError(
                f"stages: expected 2 or 3 channels, all numbers of at least 1, got {stage}"
            )
    for name, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if stem not in STEMS:
        raise ValueError(f"stem: expected one of {STEMS}, got {stem!r}")
    if se not in SES:
        raise ValueError(f"se: expected one of {SES}, got {se!r}")
    if not rd_ratio > 0:
        raise ValueError(f"rd_ratio: expected more than 0, got {rd_ratio}")
