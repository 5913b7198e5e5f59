"""The pre-activated residual networks of Tables 4 and 5, for images of 32×32: ResNet-110 and
ResNet-164 (He et al., "Identity Mappings in Deep Residual Networks"), WRN-16-8 (Zagoruyko and
Komodakis, "Wide Residual Networks")."""

from typing import Any

from se_kernels.models.registry import register, with_se
from se_kernels.models.residual import ResNet, Stage
from se_kernels.models.se import SE

# fmt: off
RESNET110 = (
    #     3×3 3×3                              output
    Stage((16, 16), blocks=18, stride=1),    # 32×32
    Stage((32, 32), blocks=18, stride=2),    # 16×16
    Stage((64, 64), blocks=18, stride=2),    # 8×8
)
RESNET164 = (
    #     1×1 3×3  1×1
    Stage((16, 16,  64), blocks=18, stride=1),
    Stage((32, 32, 128), blocks=18, stride=2),
    Stage((64, 64, 256), blocks=18, stride=2),
)
WRN_16_8 = (
    #      3×3  3×3
    Stage((128, 128), blocks=2, stride=1),
    Stage((256, 256), blocks=2, stride=2),
    Stage((512, 512), blocks=2, stride=2),
)
# fmt: on

DESIGN = dict(stem="cifar", stem_channels=16, preactivation=True)


def check_no_features(network: str, features_only: bool) -> None:
    """ValueError where the feature maps are asked for."""
    if features_only:
        raise ValueError(
            f"features_only: expected False in {network}: its maps have strides 1, 2 and 4, "
            "and not the 4 to 32 of a detection backbone"
        )


@register
def resnet110(
    num_classes: int = 10, *, se: SE | None = None, features_only: bool = False, **options: Any
) -> ResNet:
    """ResNet-110, pre-activated: the one whose 6.37 % are in Table 4. 1.7 M parameters.

    Shortcuts have no parameters (``projection="pad"``). ``options`` are those of :class:`ResNet`;
    with ``preactivation=False`` it is He et al.'s earlier one.

    Raises:
        ValueError: ``features_only``, or what :class:`ResNet` raises.
    """
    check_no_features("resnet110", features_only)
    return ResNet(RESNET110, num_classes, se=se, **{**DESIGN, "projection": "pad", **options})


@register
def resnet164(
    num_classes: int = 10, *, se: SE | None = None, features_only: bool = False, **options: Any
) -> ResNet:
    """ResNet-164, pre-activated bottlenecks. 1.7 M parameters.

    Options and errors as of ``resnet110``.
    """
    check_no_features("resnet164", features_only)
    return ResNet(RESNET164, num_classes, se=se, **{**DESIGN, **options})


@register
def wrn_16_8(
    num_classes: int = 10, *, se: SE | None = None, features_only: bool = False, **options: Any
) -> ResNet:
    """WRN-16-8: depth 16, eight times the width, without dropout. 11.0 M parameters.

    Options and errors as of ``resnet110``.
    """
    check_no_features("wrn_16_8", features_only)
    return ResNet(WRN_16_8, num_classes, se=se, **{**DESIGN, **options})


def se_resnet110(num_classes: int = 10, *, fused: bool | str = True, **options: Any) -> ResNet:
    """SE-ResNet-110 (Tables 4 and 5).

    ``fused=False`` has the same parameters under the same names. ``options`` are those of
    :class:`SE` and of ``resnet110``.
    """
    return with_se(resnet110, num_classes, fused, options)


def se_resnet164(num_classes: int = 10, *, fused: bool | str = True, **options: Any) -> ResNet:
    """SE-ResNet-164 (Tables 4 and 5). Arguments as of ``se_resnet110``."""
    return with_se(resnet164, num_classes, fused, options)


def se_wrn_16_8(num_classes: int = 10, *, fused: bool | str = True, **options: Any) -> ResNet:
    """SE-WRN-16-8 (Tables 4 and 5). Arguments as of ``se_resnet110``."""
    return with_se(wrn_16_8, num_classes, fused, options)
