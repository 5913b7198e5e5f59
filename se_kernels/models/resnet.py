"""ResNet-50, -101 and -152: Table 1, left, and with SE blocks its middle column."""

from typing import Any

from se_kernels.models.registry import register, with_se
from se_kernels.models.residual import ResNet, Stage
from se_kernels.models.se import SE

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


def deeper(stages: tuple[Stage, ...], blocks: tuple[int, ...]) -> tuple[Stage, ...]:
    """The same rows with other numbers of blocks."""
    return tuple(row._replace(blocks=n) for row, n in zip(stages, blocks, strict=True))


RESNET101 = deeper(RESNET50, (3, 4, 23, 3))
RESNET152 = deeper(RESNET50, (3, 8, 36, 3))


@register
def resnet50(num_classes: int = 1000, *, se: SE | None = None, **options: Any) -> ResNet:
    """ResNet-50: Table 1, left. 25.6 M parameters and 3.86 G multiply-adds (Table 2).

    ``options`` are those of :class:`ResNet`. With ``stride_in_1x1=False`` it is the variant of
    torchvision, 4.09 G multiply-adds.
    """
    return ResNet(RESNET50, num_classes, se=se, **options)


@register
def resnet101(num_classes: int = 1000, *, se: SE | None = None, **options: Any) -> ResNet:
    """ResNet-101: 7.58 G multiply-adds (Table 2). Options as of ``resnet50``."""
    return ResNet(RESNET101, num_classes, se=se, **options)


@register
def resnet152(num_classes: int = 1000, *, se: SE | None = None, **options: Any) -> ResNet:
    """ResNet-152: 11.30 G multiply-adds (Table 2). Options as of ``resnet50``."""
    return ResNet(RESNET152, num_classes, se=se, **options)


def se_resnet50(num_classes: int = 1000, *, fused: bool | str = True, **options: Any) -> ResNet:
    """SE-ResNet-50: Table 1, middle. 28.1 M parameters and 3.87 G multiply-adds (Table 2).

    ``fused=False`` has the same parameters under the same names. ``options`` are those of
    :class:`SE` (the ablations of section 6) and of ``resnet50``.
    """
    return with_se(resnet50, num_classes, fused, options)


def se_resnet101(num_classes: int = 1000, *, fused: bool | str = True, **options: Any) -> ResNet:
    """SE-ResNet-101: 7.60 G multiply-adds (Table 2). Arguments as of ``se_resnet50``."""
    return with_se(resnet101, num_classes, fused, options)


def se_resnet152(num_classes: int = 1000, *, fused: bool | str = True, **options: Any) -> ResNet:
    """SE-ResNet-152: 11.32 G multiply-adds (Table 2). Arguments as of ``se_resnet50``."""
    return with_se(resnet152, num_classes, fused, options)
