"""ResNeXt-50 and -101 with 32 groups of 4 channels: Table 1, right, with SE blocks."""

from typing import Any

from se_kernels.models.registry import register, with_se
from se_kernels.models.residual import ResNet, Stage
from se_kernels.models.resnet import deeper
from se_kernels.models.se import SE

# Table 1; the 3×3 convolutions have 32 groups. Before and after these rows: as in ResNet-50.
# fmt: off
RESNEXT50 = (
    #      1×1   3×3    1×1                            output  fc in SE, r = 16
    Stage(( 128,  128,  256), blocks=3, stride=1),  # 56×56   [16, 256]
    Stage(( 256,  256,  512), blocks=4, stride=2),  # 28×28   [32, 512]
    Stage(( 512,  512, 1024), blocks=6, stride=2),  # 14×14   [64, 1024]
    Stage((1024, 1024, 2048), blocks=3, stride=2),  # 7×7     [128, 2048]
)
# fmt: on
RESNEXT101 = deeper(RESNEXT50, (3, 4, 23, 3))

DESIGN = dict(groups=32, stem_channels=64, stride_in_1x1=False)


@register
def resnext50_32x4d(num_classes: int = 1000, *, se: SE | None = None, **options: Any) -> ResNet:
    """ResNeXt-50 (32×4d): 4.24 G multiply-adds (Table 2). Options as of :class:`ResNet`."""
    return ResNet(RESNEXT50, num_classes, se=se, **{**DESIGN, **options})


@register
def resnext101_32x4d(num_classes: int = 1000, *, se: SE | None = None, **options: Any) -> ResNet:
    """ResNeXt-101 (32×4d): 7.99 G multiply-adds (Table 2). Options as of :class:`ResNet`."""
    return ResNet(RESNEXT101, num_classes, se=se, **{**DESIGN, **options})


def se_resnext50_32x4d(
    num_classes: int = 1000, *, fused: bool | str = True, **options: Any
) -> ResNet:
    """SE-ResNeXt-50 (32×4d): Table 1, right. 4.25 G multiply-adds (Table 2).

    Arguments as of ``se_resnet50``.
    """
    return with_se(resnext50_32x4d, num_classes, fused, options)


def se_resnext101_32x4d(
    num_classes: int = 1000, *, fused: bool | str = True, **options: Any
) -> ResNet:
    """SE-ResNeXt-101 (32×4d): 8.00 G multiply-adds (Table 2). Arguments as of ``se_resnet50``."""
    return with_se(resnext101_32x4d, num_classes, fused, options)
