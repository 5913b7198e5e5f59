"""The paper's networks, with SE blocks fused, eager or left out: docs/models.md."""

from se_kernels.models.bn_inception import BNInception, bn_inception, se_bn_inception
from se_kernels.models.cifar import (
    resnet110,
    resnet164,
    se_resnet110,
    se_resnet164,
    se_wrn_16_8,
    wrn_16_8,
)
from se_kernels.models.inception_resnet import (
    InceptionResNet,
    inception_resnet_v2,
    se_inception_resnet_v2,
)
from se_kernels.models.mobilenet import MobileNet, mobilenet, se_mobilenet
from se_kernels.models.registry import create, names
from se_kernels.models.residual import ResNet, Stage
from se_kernels.models.resnet import (
    RESNET50,
    resnet50,
    resnet101,
    resnet152,
    se_resnet50,
    se_resnet101,
    se_resnet152,
)
from se_kernels.models.resnext import (
    resnext50_32x4d,
    resnext101_32x4d,
    se_resnext50_32x4d,
    se_resnext101_32x4d,
)
from se_kernels.models.se import SE
from se_kernels.models.senet import senet154
from se_kernels.models.shake import (
    ShakeNet,
    se_shake_even_29_2x4x64d,
    se_shake_shake_26_2x96d,
    shake_even_29_2x4x64d,
    shake_shake_26_2x96d,
)
from se_kernels.models.shufflenet import ShuffleNet, se_shufflenet, shufflenet
from se_kernels.models.vgg import VGG, se_vgg16, vgg16

__all__ = [
    "RESNET50",
    "SE",
    "VGG",
    "BNInception",
    "InceptionResNet",
    "MobileNet",
    "ResNet",
    "ShakeNet",
    "ShuffleNet",
    "Stage",
    "bn_inception",
    "create",
    "inception_resnet_v2",
    "mobilenet",
    "names",
    "resnet50",
    "resnet101",
    "resnet110",
    "resnet152",
    "resnet164",
    "resnext50_32x4d",
    "resnext101_32x4d",
    "se_bn_inception",
    "se_inception_resnet_v2",
    "se_mobilenet",
    "se_resnet50",
    "se_resnet101",
    "se_resnet110",
    "se_resnet152",
    "se_resnet164",
    "se_resnext50_32x4d",
    "se_resnext101_32x4d",
    "se_shake_even_29_2x4x64d",
    "se_shake_shake_26_2x96d",
    "se_shufflenet",
    "se_vgg16",
    "se_wrn_16_8",
    "senet154",
    "shake_even_29_2x4x64d",
    "shake_shake_26_2x96d",
    "shufflenet",
    "vgg16",
    "wrn_16_8",
]
