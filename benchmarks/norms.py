"""Batch norms as trained networks have them: ordinary scales and shifts, statistics of images.

Fresh norms have none: activations would grow from block to block, and no gate would matter.

The end of a branch is known by the name ``bn3``, or by a weight that starts from zero. That serves
the deep bottlenecks, where rounding grows most: in ResNet-152 and SENet-154 it would be tens of
times larger. Branches that end otherwise need no such care: pre-activated and Shake blocks add them
to a sum that nothing norms or cuts on its way, basic blocks and ShuffleNet's units come in shallow
networks, and VGG, MobileNet and the Inceptions have none, or a factor of their own. In all of them
an error of 1 % in one SE block moves the logits by far more than ``network_verify.py`` lets pass.
"""

import torch
from torch import Tensor, nn

BRANCH_SCALE = 0.3  # of residual branches, so that rounding does not grow from block to block


def settle(model: nn.Module, images: Tensor, seed: int) -> None:
    """Give the norms random scales and shifts, and the statistics of ``images`` (N, 3, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    for name, norm in batch_norms(model).items():
        if norm.weight is None:
            continue
        ends_branch = name.endswith(".bn3") or not norm.weight.any()  # or starts from zero
        scale = BRANCH_SCALE if ends_branch else 1.0
        with torch.no_grad():
            norm.weight.copy_((torch.rand(norm.num_features, generator=generator) + 0.5) * scale)
            norm.bias.copy_(torch.randn(norm.num_features, generator=generator) * 0.1)
    calibrate(model, images)


def calibrate(model: nn.Module, images: Tensor) -> None:
    """Give the norms the statistics that ``images`` (N, 3, H, W) have where they stand."""
    norms = list(batch_norms(model).values())
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()
    with torch.no_grad():
        model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def batch_norms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
