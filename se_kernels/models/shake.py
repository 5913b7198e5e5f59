"""Residual networks of two branches, mixed at random: Gastaldi, "Shake-Shake regularization"; the
last rows of Tables 4 and 5."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from se_kernels.models import in_place
from se_kernels.models.cifar import check_no_features
from se_kernels.models.network import Network, conv
from se_kernels.models.registry import register, with_se
from se_kernels.models.residual import Stage
from se_kernels.models.se import SE, check_se, expect

FORWARDS = ("shake", "even")
BACKWARDS = ("shake", "even", "keep")
STEM_CHANNELS = 16


# The channels of a branch: 3×3, 3×3, or 1×1, 3×3 in groups, 1×1.
# fmt: off
SHAKE_26_2X96D = (
    #    3×3  3×3                           output
    Stage(( 96,  96), blocks=4, stride=1),  # 32×32
    Stage((192, 192), blocks=4, stride=2),  # 16×16
    Stage((384, 384), blocks=4, stride=2),  # 8×8
)
SHAKE_29_2X4X64D = (
    #     1×1   3×3   1×1
    Stage(( 256,  256,  256), blocks=3, stride=1),
    Stage(( 512,  512,  512), blocks=3, stride=2),
    Stage((1024, 1024, 1024), blocks=3, stride=2),
)
# fmt: on


class MixFunction(torch.autograd.Function):
    """alpha * a + (1 - alpha) * b forward, and backward as if alpha were beta."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        return torch.lerp(b, a, alpha)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[-1])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (beta,) = ctx.saved_tensors
        return dy * beta, dy * (1 - beta), None, None


class Mix(nn.Module):
    """The mean of a and b in eval; in training a mixture whose weights are drawn for each image.

    Args:
        forward: of training, "shake": the weight alpha of a is uniform in [0, 1); "even": 0.5.
        backward: the weight that the gradient meets in place of alpha: "shake": another random
            number; "even": 0.5; "keep": alpha.

    Both numbers are drawn in forward, in float32 and from torch's generator of the device, so that
    a seed gives the same pass again.
    """

    def __init__(self, forward: str = "shake", backward: str = "shake"):
        super().__init__()
        expect("forward", forward, FORWARDS)
        expect("backward", backward, BACKWARDS)
        self.how = forward, backward

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """a, b (N, C, H, W) to (N, C, H, W)."""
        return mixed(a, b, *self.how) if self.training else torch.lerp(a, b, 0.5)

    def extra_repr(self) -> str:
        return "forward={!r}, backward={!r}".format(*self.how)


@torch.fx.wrap  # draws when a graph runs, not when it is traced
def mixed(a: Tensor, b: Tensor, forward: str, backward: str) -> Tensor:
    """A mixture in training, see :class:`Mix`."""
    alpha = _weight(forward, a)
    beta = alpha if backward == "keep" else _weight(backward, a)
    y: Tensor = MixFunction.apply(a, b, alpha, beta)  # type: ignore[no-untyped-call]
    return y


def _weight(how: str, a: Tensor) -> Tensor:
    """(N, 1, 1, 1), dtype of a."""
    shape = (a.size(0), 1, 1, 1)
    if how == "even":
        return a.new_full(shape, 0.5)
    return torch.rand(shape, device=a.device).to(a.dtype)


class Shortcut(nn.Module):
    """ReLU, then every second pixel in two flows, the second shifted by one pixel, each with a 1×1
    convolution to half of the channels; a norm. With stride 1, one 1×1 convolution and a norm."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.stride = stride
        if stride == 1:
            self.conv = conv(in_channels, channels, 1)
        else:
            self.conv1 = conv(in_channels, channels // 2, 1)
            self.conv2 = conv(in_channels, channels - channels // 2, 1)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, a: Tensor) -> Tensor:
        """a: ReLU of the block's input."""
        if self.stride == 1:
            a = self.conv(a)
        else:
            shifted = F.pad(a, (-1, 1, -1, 1))
            flows = (self.conv1, a), (self.conv2, shifted)
            a = torch.cat([c(F.avg_pool2d(v, 1, self.stride)) for c, v in flows], 1)
        a = self.bn(a)
        return a


class Block(nn.Module):
    """s * mix(branch1, branch2) + shortcut. Branches begin with a ReLU; the SE block acts on their
    mixture, which is the non-identity branch of section 3.3."""

    def __init__(
        self, in_channels: int, channels: Sequence[int], stride: int, groups: int, mix: Mix
    ):
        super().__init__()
        self.channels = channels[-1]
        self.branch1, self.branch2 = (
            branch(in_channels, channels, stride, groups) for _ in range(2)
        )
        self.mix = mix
        self.shortcut = None
        if stride != 1 or in_channels != self.channels:
            self.shortcut = Shortcut(in_channels, self.channels, stride)
        self.se: nn.Module | None = None

    def add_se(self, se: SE) -> None:
        self.se = se.block(self.channels)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(x)
        v: Tensor = self.mix(self.branch1(a), self.branch2(a))
        shortcut = x if self.shortcut is None else self.shortcut(a)
        v = v + shortcut if self.se is None else self.se(v, shortcut)
        return v


def branch(in_channels: int, channels: Sequence[int], stride: int, groups: int) -> nn.Sequential:
    """Convolutions with their norms, ReLU between them."""
    kernels = (3, 3) if len(channels) == 2 else (1, 3, 1)
    layers = nn.Sequential()
    strided = kernels.index(3)
    for i, (kernel, width) in enumerate(zip(kernels, channels, strict=True)):
        if i:
            layers.append(in_place.ReLU())
        step = stride if i == strided else 1
        layers.append(conv(in_channels, width, kernel, step, groups if kernel == 3 else 1))
        layers.append(nn.BatchNorm2d(width))
        in_channels = width
    return layers


class ShakeNet(Network):
    """A residual network of two branches a block, for images of 32×32.

    Args:
        stages: one :class:`Stage` per stage, as ``SHAKE_26_2X96D``.
        num_classes: outputs of the classifier, at least 1.
        se: the SE blocks, or None: none. The stages are numbered from 2.
        in_channels: channels of the images.
        groups: of the 3×3 convolutions.
        forward, backward: of training, as of :class:`Mix`.

    ``forward`` takes images (N, in_channels, H, W) with H and W of at least the product of all
    strides.

    Raises:
        ValueError: an argument, or the images, not as above.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        num_classes: int = 10,
        *,
        se: SE | None = None,
        in_channels: int = 3,
        groups: int = 1,
        forward: str = "shake",
        backward: str = "shake",
    ):
        if len(stages) < 1:
            raise ValueError("stages: expected at least one, got none")
        min_size = 1
        for stage in stages:
            min_size *= stage.stride
        super().__init__(
            num_classes, in_channels=in_channels, features_only=False, min_size=min_size
        )
        numbers = tuple(range(2, 2 + len(stages)))
        check_se(se, "ShakeNet", stages=numbers)
        self.conv1, self.bn1 = conv(in_channels, STEM_CHANNELS, 3), nn.BatchNorm2d(STEM_CHANNELS)
        self.layers = tuple(f"layer{i}" for i in range(1, len(stages) + 1))
        width = STEM_CHANNELS
        for name, number, stage in zip(self.layers, numbers, stages, strict=True):
            layer = nn.Sequential()
            for i in range(stage.blocks):
                mix = Mix(forward, backward)
                block = Block(width, stage.channels, stage.stride if i == 0 else 1, groups, mix)
                if se is not None and se.is_in(number):
                    block.add_se(se)
                layer.append(block)
                width = stage.channels[-1]
            self.add_module(name, layer)
        self.finish(tuple(stage.channels[-1] for stage in stages))

    def stem(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        return x

    def head(self, x: Tensor) -> Tensor:
        return super().head(F.relu(x))


@register
def shake_shake_26_2x96d(
    num_classes: int = 10, *, se: SE | None = None, features_only: bool = False, **options: Any
) -> ShakeNet:
    """Shake-Shake 26 2×96d: depth 26, two branches of 96 channels, both passes shaken. 26.2 M
    parameters.

    Options and errors as of :class:`ShakeNet`; ``features_only`` is an error.
    """
    check_no_features("shake_shake_26_2x96d", features_only)
    return ShakeNet(SHAKE_26_2X96D, num_classes, se=se, **options)


@register
def shake_even_29_2x4x64d(
    num_classes: int = 100, *, se: SE | None = None, features_only: bool = False, **options: Any
) -> ShakeNet:
    """Shake-Even 29 2×4×64d: depth 29, two branches of 4 groups of 64 channels, the forward pass
    shaken and the backward pass even. 34.4 M parameters with 10 classes.

    Options and errors as of :class:`ShakeNet`; ``features_only`` is an error.
    """
    check_no_features("shake_even_29_2x4x64d", features_only)
    options = {"groups": 4, "backward": "even", **options}
    return ShakeNet(SHAKE_29_2X4X64D, num_classes, se=se, **options)


def se_shake_shake_26_2x96d(
    num_classes: int = 10, *, fused: bool | str = True, **options: Any
) -> ShakeNet:
    """SE-Shake-Shake 26 2×96d (Table 4).

    ``fused=False`` has the same parameters under the same names. ``options`` are those of
    :class:`SE` and of ``shake_shake_26_2x96d``.
    """
    return with_se(shake_shake_26_2x96d, num_classes, fused, options)


def se_shake_even_29_2x4x64d(
    num_classes: int = 100, *, fused: bool | str = True, **options: Any
) -> ShakeNet:
    """SE-Shake-Even 29 2×4×64d (Table 5). Arguments as of ``se_shake_shake_26_2x96d``."""
    return with_se(shake_even_29_2x4x64d, num_classes, fused, options)
