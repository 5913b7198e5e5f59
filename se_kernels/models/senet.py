"""SENet-154, of the ILSVRC 2017 submission (section 5.4 and the appendix)."""

import dataclasses
from typing import Any

from se_kernels.models.registry import register
from se_kernels.models.residual import ResNet, Stage
from se_kernels.models.se import SE

# The appendix: ResNeXt-152 (64×4d) with (a) half the channels in the first 1×1 convolutions.
# fmt: off
SENET154 = (
    #      1×1   3×3    1×1                             output  fc in SE, r = 16
    Stage(( 128,  256,  256), blocks= 3, stride=1),  # 56×56   [16, 256]
    Stage(( 256,  512,  512), blocks= 8, stride=2),  # 28×28   [32, 512]
    Stage(( 512, 1024, 1024), blocks=36, stride=2),  # 14×14   [64, 1024]
    Stage((1024, 2048, 2048), blocks= 3, stride=2),  # 7×7     [128, 2048]
)
# fmt: on

DESIGN = dict(
    groups=64,
    stride_in_1x1=False,
    stem="deep",  # (b) of the appendix
    pool="ceil",  # as in the authors' network
    projection="3x3",  # (c)
    dropout=0.2,  # (d)
)


WITH_SE = SE()


@register
def senet154(num_classes: int = 1000, *, se: SE | None = WITH_SE, **options: Any) -> ResNet:
    """SENet-154. ``se=None`` leaves its SE blocks out; ``options`` are those of :class:`ResNet`.

    Its FCs have biases, as the weights that the authors published have: section 6 leaves them out
    in the ablations only.
    """
    if isinstance(se, SE) and se.bias is None:
        se = dataclasses.replace(se, bias=True)
    return ResNet(SENET154, num_classes, se=se, **{**DESIGN, **options})
