"""The paper's networks, with SE blocks fused, eager or left out: docs/models.md."""

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
from se_kernels.models.se import SE

__all__ = [
    "RESNET50",
    "SE",
    "ResNet",
    "Stage",
    "create",
    "names",
    "resnet50",
    "resnet101",
    "resnet152",
    "se_resnet50",
    "se_resnet101",
    "se_resnet152",
]
