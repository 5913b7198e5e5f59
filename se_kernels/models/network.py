"""What every network has: checked images and classes, named layers, a head or feature maps."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from se_kernels.core.checks import check_count
from se_kernels.modules.recognition import is_traced


class Network(nn.Module):
    """An image classifier, or a backbone: a stem, then layers, then a head.

    A family's ``__init__`` calls this one first, adds its modules, lists in ``layers`` the names of
    those whose outputs are the feature maps, in order, and calls ``finish`` last; it defines
    ``stem``, and ``head`` where it is more than pooling, dropout and one FC.

    Args:
        num_classes: outputs of the classifier, at least 1.
        in_channels: channels of the images.
        features_only: no head; ``forward`` returns the feature maps.
        min_size: the fewest pixels, in H and in W, that the network can take.

    ``forward`` takes images (N, in_channels, H, W) of the parameters' dtype, and returns
    (N, num_classes) logits, or the list of feature maps, finest first, of which
    ``feature_channels`` has the channels. Softmax is left to the loss.

    Raises:
        ValueError: an argument, or the images, not as above.
    """

    layers: tuple[str, ...]
    feature_channels: tuple[int, ...]

    def __init__(self, num_classes: int, *, in_channels: int, features_only: bool, min_size: int):
        super().__init__()
        for name, value in (("num_classes", num_classes), ("in_channels", in_channels)):
            check_count(name, value)
        self.num_classes, self.in_channels = num_classes, in_channels
        self.features_only, self.min_size = features_only, min_size

    def finish(self, channels: tuple[int, ...], dropout: float = 0.0) -> None:
        """Adds the head, initialises all. ``channels``: of each feature map."""
        self.feature_channels = tuple(channels)
        if not self.features_only:
            self.add_head(dropout)
        initialise(self)

    def add_head(self, dropout: float) -> None:
        self.dropout: nn.Module | None = nn.Dropout(dropout) if dropout else None
        self.fc = nn.Linear(self.feature_channels[-1], self.num_classes)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        if not is_traced(x):  # a tracer may not know the sizes
            check_images(x, self.in_channels, self.min_size)
        x = self.stem(x)
        maps = []
        for name in self.layers:
            x = getattr(self, name)(x)
            if self.features_only:
                maps.append(x)
        return maps if self.features_only else self.head(x)

    def __prepare_scriptable__(self) -> nn.Module:
        # what torch.jit.script compiles: it knows no getattr by a variable name
        traced = torch.fx.symbolic_trace(self)
        traced.graph.output_node().type = None  # one of forward's two
        traced.recompile()
        return traced

    def stem(self, x: Tensor) -> Tensor:
        return x

    def head(self, x: Tensor) -> Tensor:
        z: Tensor = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (N, C)
        if self.dropout is not None:
            z = self.dropout(z)
        z = self.fc(z)
        return z


def check_images(x: Tensor, channels: int, size: int) -> None:
    """ValueError unless x is (N, channels, H, W), floating, with H and W of at least size."""
    expected = f"expected images (N, {channels}, H, W) with H and W >= {size}"
    if x.dim() != 4 or x.size(1) != channels or x.size(2) < size or x.size(3) < size:
        raise ValueError(f"{expected}, got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"{expected} of floating-point numbers, got {x.dtype}")


def conv(
    in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """A convolution that divides the size by its stride; the norm after it has the bias."""
    return nn.Conv2d(
        in_channels, channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )


def initialise(network: nn.Module) -> None:
    """He et al., "Delving Deep into Rectifiers", as in section 5.1: normal with variance 2 / the
    number of outputs that an input reaches, biases zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            area = math.prod(module.kernel_size)
            fan_out = area * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
