"""The paper's networks, with SE blocks fused, eager or left out."""

from se_kernels.models.resnet import RESNET50, ResNet, Stage, resnet50, se_resnet50

__all__ = ["RESNET50", "ResNet", "Stage", "resnet50", "se_resnet50"]
