"""A convolution, its norm and ReLU: the layer that the networks without a residual tail stack."""

from torch import Tensor, nn

from se_kernels.models import in_place
from se_kernels.models.se import SE, after_norm


class ConvNormReLU(nn.Module):
    """ReLU of a batch norm of a convolution, and an SE block after it where ``add_se`` was called.

    Args:
        kernel: height and width, or one number for both.
        padding: of the convolution; None: half the kernel, so that only the stride divides the
            size.
        eps: of the norm.
        relu: False leaves the ReLU out.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        *,
        padding: int | tuple[int, int] | None = None,
        groups: int = 1,
        eps: float = 1e-5,
        relu: bool = True,
    ):
        super().__init__()
        height, width = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        if padding is None:
            padding = (height // 2, width // 2)
        self.conv = nn.Conv2d(
            in_channels, channels, (height, width), stride, padding, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(channels, eps)
        self.relu = relu
        self.se: nn.Module | None = None
        self.with_norm = False

    def add_se(self, se: SE) -> None:
        self.with_norm = se.with_norm
        self.se = se.block(self.conv.out_channels)

    @property
    def weight(self) -> Tensor:
        """For code that initialises whatever has "Conv" in the name of its class."""
        return self.conv.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.se is not None:
            return after_norm(self.bn, self.se, x, relu=self.relu, fused=self.with_norm)
        x = self.bn(x)
        return in_place.relu(x) if self.relu else x
