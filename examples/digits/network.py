"""The contenders: one residual network without SE blocks, with eager and with fused ones."""

from dataclasses import replace

import torch
from torch import nn

from se_kernels.models import SE, ResNet, Stage

CLASSES = 10
CONTENDERS = {
    "resnet": None,
    "se_resnet_eager": SE(fused=False, rd_ratio=1 / 4),
    "se_resnet_fused": SE(rd_ratio=1 / 4),
}


def network(
    contender: str,
    blocks: int = 3,
    width: int = 16,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
) -> nn.Module:
    """Three stages of basic blocks (ResNet-20 for blocks=3, width=16), r = 4, as seed draws it.

    The eager and the fused contender of one seed begin with the same numbers.
    """
    stages = [
        Stage((channels, channels), blocks, stride)
        for channels, stride in ((width, 1), (2 * width, 2), (4 * width, 2))
    ]
    se = CONTENDERS[contender]
    if se is not None and se.fused:
        se = replace(se, backend=backend)
    torch.manual_seed(seed)
    model = ResNet(stages, CLASSES, se=se, in_channels=1, stem="cifar")
    # torch's stub has no memory_format
    return model.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
