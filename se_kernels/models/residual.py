"""Residual networks from a table of stages: the builder and its blocks, with and without SE.

Modules carry the names that torchvision and timm use (``conv1``, ``bn1``, ``layer1.0.conv1``,
``layer1.0.downsample.0``, ``layer1.0.se.fc1``, ``fc``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from se_kernels.models import in_place
from se_kernels.models.network import Network, conv
from se_kernels.models.se import INTEGRATIONS, SE, after_norm, check_se, expect

STEMS = ("imagenet", "deep", "cifar")
POOLS = ("padded", "ceil")
PROJECTIONS = ("1x1", "3x3", "pad")


class Stage(NamedTuple):
    """One row of Table 1: ``blocks`` residual blocks, the first of them with ``stride``.

    ``channels`` are the output channels of a block's convolutions: three for a bottleneck
    (1×1, 3×3, 1×1), two for a basic block (3×3, 3×3).
    """

    channels: tuple[int, ...]
    blocks: int
    stride: int


@dataclass(frozen=True)
class Design:
    """What the blocks of a network have in common; the arguments of :class:`ResNet`."""

    groups: int = 1
    stride_in_1x1: bool = True
    projection: str = "1x1"


class Block(nn.Module):
    """What residual blocks share: the SE block, the shortcut and the tail (Figs. 3 and 5)."""

    integrations: tuple[str, ...] = INTEGRATIONS
    post = "relu"  # after the summation
    normed_projection = True

    def __init__(self, in_channels: int, channels: Sequence[int], stride: int, design: Design):
        super().__init__()
        self.in_channels, self.channels = in_channels, tuple(channels)
        self.downsample = None
        if stride != 1 or in_channels != channels[-1]:
            self.downsample = self.projection(in_channels, channels[-1], stride, design.projection)
        self.se: nn.Module | None = None
        self.integration, self.with_norm = "", False

    def projection(self, in_channels: int, channels: int, stride: int, kind: str) -> nn.Module:
        if kind == "pad":
            return Pad(channels - in_channels, stride)
        kernel = 3 if kind == "3x3" and stride != 1 else 1
        convolution = conv(in_channels, channels, kernel, stride)
        if not self.normed_projection:
            return convolution
        return nn.Sequential(convolution, nn.BatchNorm2d(channels))

    def add_se(self, se: SE) -> None:
        """The SE block, where its integration says; the last module of the block."""
        self.integration, self.with_norm = se.integration, se.with_norm
        channels = {"pre": self.in_channels, "3x3": self.channels[1]}
        ends_block = self.integration in ("standard", "identity")
        self.se = se.block(
            channels.get(self.integration, self.channels[-1]), self.post if ends_block else "none"
        )

    def se_if(self, integration: str, v: Tensor) -> Tensor:
        """SE of v in this integration, v itself in any other."""
        return self.se(v) if self.se is not None and self.integration == integration else v

    def tail(self, u: Tensor, norm: nn.Module | None, x: Tensor) -> Tensor:
        """u: the residual branch before its last norm, where it ends with one; x: what the shortcut
        starts from; returns the block's output."""
        shortcut = x if self.downsample is None else self.downsample(x)
        se: Any = self.se if self.integration == "standard" else None
        if se is not None and norm is not None:
            return after_norm(norm, se, u, shortcut, fused=self.with_norm)
        v: Tensor = u if norm is None else norm(u)
        if se is not None:
            v = se(v, shortcut)
            return v
        if self.se is not None and self.integration == "identity":
            v = self.se(shortcut, v)
            return v
        v = in_place.add(v, shortcut)
        if self.post == "relu":
            v = in_place.relu(v)
        return self.se_if("post", v)


class Bottleneck(Block):
    """1×1, 3×3, 1×1 convolutions: the brackets of Table 1."""

    def __init__(self, in_channels: int, channels: Sequence[int], stride: int, design: Design):
        super().__init__(in_channels, channels, stride, design)
        c1, c2, c3 = channels
        s1, s2 = (stride, 1) if design.stride_in_1x1 else (1, stride)
        self.conv1, self.bn1 = conv(in_channels, c1, 1, s1), nn.BatchNorm2d(c1)
        self.conv2, self.bn2 = conv(c1, c2, 3, s2, design.groups), nn.BatchNorm2d(c2)
        self.conv3, self.bn3 = conv(c2, c3, 1), nn.BatchNorm2d(c3)

    def forward(self, x: Tensor) -> Tensor:
        v = self.se_if("pre", x)
        v = in_place.relu(self.bn1(self.conv1(v)))
        v = self.conv2(v)
        if self.se is not None and self.integration == "3x3":
            v = after_norm(self.bn2, self.se, v, relu=True, fused=self.with_norm)
        else:
            v = in_place.relu(self.bn2(v))
        return self.tail(self.conv3(v), self.bn3, x)


class BasicBlock(Block):
    """Two 3×3 convolutions: the block of the shallower networks."""

    integrations = ("standard", "pre", "post", "identity")

    def __init__(self, in_channels: int, channels: Sequence[int], stride: int, design: Design):
        super().__init__(in_channels, channels, stride, design)
        c1, c2 = channels
        self.conv1, self.bn1 = conv(in_channels, c1, 3, stride), nn.BatchNorm2d(c1)
        self.conv2, self.bn2 = conv(c1, c2, 3, 1, design.groups), nn.BatchNorm2d(c2)

    def forward(self, x: Tensor) -> Tensor:
        v = self.se_if("pre", x)
        v = in_place.relu(self.bn1(self.conv1(v)))
        return self.tail(self.conv2(v), self.bn2, x)


class PreActBlock(Block):
    """Norm and ReLU before each convolution, none after the summation (He et al., "Identity
    Mappings in Deep Residual Networks"). A projection starts from the first ReLU."""

    integrations = ("standard",)
    post = "none"
    normed_projection = False

    def shortcut_from(self, x: Tensor, a: Tensor) -> Tensor:
        """a: ReLU and norm of the block's input x."""
        return a if isinstance(self.downsample, nn.Conv2d) else x


class PreActBottleneck(PreActBlock):
    """1×1, 3×3, 1×1 convolutions, pre-activated."""

    def __init__(self, in_channels: int, channels: Sequence[int], stride: int, design: Design):
        super().__init__(in_channels, channels, stride, design)
        c1, c2, c3 = channels
        s1, s2 = (stride, 1) if design.stride_in_1x1 else (1, stride)
        self.bn1, self.conv1 = nn.BatchNorm2d(in_channels), conv(in_channels, c1, 1, s1)
        self.bn2, self.conv2 = nn.BatchNorm2d(c1), conv(c1, c2, 3, s2, design.groups)
        self.bn3, self.conv3 = nn.BatchNorm2d(c2), conv(c2, c3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = in_place.relu(self.bn1(x))
        v = self.conv1(a)
        v = self.conv2(in_place.relu(self.bn2(v)))
        v = self.conv3(in_place.relu(self.bn3(v)))
        return self.tail(v, None, self.shortcut_from(x, a))


class PreActBasicBlock(PreActBlock):
    """Two 3×3 convolutions, pre-activated."""

    def __init__(self, in_channels: int, channels: Sequence[int], stride: int, design: Design):
        super().__init__(in_channels, channels, stride, design)
        c1, c2 = channels
        self.bn1, self.conv1 = nn.BatchNorm2d(in_channels), conv(in_channels, c1, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(c1), conv(c1, c2, 3, 1, design.groups)

    def forward(self, x: Tensor) -> Tensor:
        a = in_place.relu(self.bn1(x))
        v = self.conv1(a)
        v = self.conv2(in_place.relu(self.bn2(v)))
        return self.tail(v, None, self.shortcut_from(x, a))


class Pad(nn.Module):
    """A shortcut without parameters: every stride-th pixel, zeros for the further channels (He et
    al., "Deep Residual Learning", option A)."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        if channels < 0:
            raise ValueError(f"projection: 'pad' only adds channels, got {channels}")
        self.channels, self.stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.channels))


# by the number of convolutions, and whether they are pre-activated
BLOCKS = {
    (3, False): Bottleneck,
    (2, False): BasicBlock,
    (3, True): PreActBottleneck,
    (2, True): PreActBasicBlock,
}


class ResNet(Network):
    """A residual network from a table of stages.

    Args:
        stages: one :class:`Stage` per row of the table; see ``RESNET50``.
        num_classes: outputs of the classifier, at least 1.
        se: the SE blocks, or None: none. The stages are numbered from 2, as in the paper.
        in_channels: channels of the images.
        features_only: without classifier; returns the output of each stage, C2 to C5.
        stem: "imagenet" (7×7 convolution, stride 2, then 3×3 max pool, stride 2), "deep" (three
            3×3 convolutions of 64, 64 and ``stem_channels`` in place of the 7×7) or "cifar" (3×3
            convolution, stride 1).
        stem_channels: of the stem's output; None: as many as the first convolution's of the first
            stage.
        pool: the max pool of the stem: "padded" by one pixel, as in torchvision, or "ceil", not
            padded and its size rounded up, as in the authors' networks and timm's ``legacy_*``.
        groups: of the 3×3 convolutions, the last one in a basic block.
        stride_in_1x1: where a bottleneck has its stride: in its first 1×1 convolution, as in the
            paper, or in its 3×3 convolution. Basic blocks have it in the first convolution.
        projection: a shortcut that changes shape: "1x1" or, where it has a stride, "3x3"
            convolution, or "pad": zeros for the further channels, no parameters.
        preactivation: pre-activated blocks, and a norm and a ReLU before the head; feature maps
            come without these.
        dropout: the probability, before the classifier.

    ``forward`` takes images (N, in_channels, H, W) with H and W of at least ``min_size`` pixels
    (the product of all strides) and of the parameters' dtype; it returns (N, num_classes) logits,
    or the list of feature maps.

    Raises:
        ValueError: an argument, or the images, not as above.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        num_classes: int = 1000,
        *,
        se: SE | None = None,
        in_channels: int = 3,
        features_only: bool = False,
        stem: str = "imagenet",
        stem_channels: int | None = None,
        pool: str = "padded",
        groups: int = 1,
        stride_in_1x1: bool = True,
        projection: str = "1x1",
        preactivation: bool = False,
        dropout: float = 0.0,
    ):
        expect("stem", stem, STEMS)
        expect("pool", pool, POOLS)
        expect("projection", projection, PROJECTIONS)
        _check_stages(stages)
        min_size = 1 if stem == "cifar" else 4
        for stage in stages:
            min_size *= stage.stride
        super().__init__(
            num_classes, in_channels=in_channels, features_only=features_only, min_size=min_size
        )
        numbers = tuple(range(2, 2 + len(stages)))
        for stage in stages:
            block = BLOCKS[len(stage.channels), preactivation]
            check_se(se, block.__name__, stages=numbers, integrations=block.integrations)

        width = stages[0].channels[0] if stem_channels is None else stem_channels
        self._add_stem(stem, width, pool, preactivation)
        design = Design(groups, stride_in_1x1, projection)
        self.layers = tuple(f"layer{i}" for i in range(1, len(stages) + 1))
        for name, number, stage in zip(self.layers, numbers, stages, strict=True):
            layer = nn.Sequential()
            for i in range(stage.blocks):
                unit = BLOCKS[len(stage.channels), preactivation](
                    width, stage.channels, stage.stride if i == 0 else 1, design
                )
                if se is not None and se.is_in(number):
                    unit.add_se(se)
                layer.append(unit)
                width = stage.channels[-1]
            self.add_module(name, layer)

        self.bn = nn.BatchNorm2d(width) if preactivation and not features_only else None
        self.finish(tuple(stage.channels[-1] for stage in stages), dropout)

    def _add_stem(self, stem: str, width: int, pool: str, preactivation: bool) -> None:
        if stem == "imagenet":
            self.conv1: nn.Module = conv(self.in_channels, width, 7, stride=2)
        elif stem == "deep":
            self.conv1 = nn.Sequential(
                *(conv(self.in_channels, 64, 3, stride=2), nn.BatchNorm2d(64), in_place.ReLU()),
                *(conv(64, 64, 3), nn.BatchNorm2d(64), in_place.ReLU()),
                conv(64, width, 3),
            )
        else:
            self.conv1 = conv(self.in_channels, width, 3)
        self.bn1 = nn.Identity() if preactivation else nn.BatchNorm2d(width)
        if stem == "cifar":
            self.maxpool: nn.Module = nn.Identity()
        elif pool == "padded":
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)

    def stem(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        if not isinstance(self.bn1, nn.Identity):
            x = in_place.relu(self.bn1(x))
        x = self.maxpool(x)
        return x

    def head(self, x: Tensor) -> Tensor:
        return super().head(x if self.bn is None else in_place.relu(self.bn(x)))


def _check_stages(stages: Sequence[Stage]) -> None:
    if len(stages) == 0:
        raise ValueError("stages: expected at least one Stage, got none")
    for stage in stages:
        numbers = (*stage.channels, stage.blocks, stage.stride)
        if len(stage.channels) not in (2, 3) or min(numbers) < 1:
            raise ValueError(
                f"stages: expected 2 or 3 channels, all numbers of at least 1, got {stage}"
            )
