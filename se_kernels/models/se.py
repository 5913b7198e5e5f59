"""The SE blocks of a network: which, where, and made of what (sections 3 and 6)."""

from dataclasses import dataclass

from torch import Tensor, nn

from se_kernels import reference
from se_kernels.core.activations import activate, open_gate
from se_kernels.core.checks import check_ratio
from se_kernels.core.variants import ACTS, GATES, SQUEEZES
from se_kernels.models import in_place
from se_kernels.modules.batch_norm import run_norm
from se_kernels.modules.squeeze_excite import SqueezeExcite

# Fig. 5, and "3x3" of Table 15
INTEGRATIONS = ("standard", "pre", "post", "identity", "3x3")
FUSED = (True, False, "block", "layer")


@dataclass(frozen=True)
class SE:
    """The SE blocks of a network. The defaults are the paper's own.

    Args:
        fused: "block", or True: ``se_kernels.SqueezeExcite``, together with the batch norm, and the
            activation, before it where one is; "layer": ``SqueezeExcite`` alone, the norm a
            PyTorch operation; False: all as separate PyTorch operations. The parameters and
            their names are the same.
        rd_ratio: 1/r (Table 10). C channels are reduced to R = round(C * rd_ratio), at least 1.
        bias: biases in both FCs; None: as the network has them, and only SENet-154 has any
            (section 6 leaves them out).
        squeeze: "avg", "max" (Table 11), "avgmax", or None: no pooling, the FCs become 1×1
            convolutions on every pixel (NoSqueeze, section 7.1 and Table 16). There nothing can
            be fused: ``fused`` then changes nothing.
        act: δ, a name of ``variants.ACTS``.
        gate: σ, "sigmoid", "tanh", "relu" (Table 12) or "hardsigmoid".
        stages: the numbers of the stages that have SE blocks (Table 13), or None for all. Stages
            are numbered as in the paper: in a residual network they are 2 to 5.
        integration: where in a residual block: "standard", "pre", "post", "identity" (Table 14,
            Fig. 5) or "3x3", after the 3×3 convolution of a bottleneck (Table 15).
        backend: of the fused blocks; None chooses by itself.

    Raises:
        ValueError: a value not as above.
    """

    fused: bool | str = True
    rd_ratio: float = 1 / 16
    bias: bool | None = None
    squeeze: str | None = "avg"
    act: str = "relu"
    gate: str = "sigmoid"
    stages: tuple[int, ...] | None = None
    integration: str = "standard"
    backend: str | None = None

    def __post_init__(self) -> None:
        expect("fused", self.fused, FUSED)
        expect("squeeze", self.squeeze, (*SQUEEZES, None))
        expect("act", self.act, ACTS)
        expect("gate", self.gate, GATES)
        expect("integration", self.integration, INTEGRATIONS)
        check_ratio("rd_ratio", self.rd_ratio)
        if not (self.stages is None or isinstance(self.stages, (tuple, list))):
            raise ValueError(f"stages: expected a tuple of numbers or None, got {self.stages!r}")

    def is_in(self, stage: int) -> bool:
        """Whether the stage of this number has SE blocks."""
        return self.stages is None or stage in self.stages

    @property
    def with_norm(self) -> bool:
        """Whether the norm before a block is fused with it."""
        return self.fused in (True, "block")

    def block(self, channels: int, post: str = "none") -> nn.Module:
        """An SE block for (N, channels, H, W): called with x, or with x and a residual, it gives
        post(s * x + residual). ``post``: "none" or "relu"."""
        rd_channels = max(1, round(channels * self.rd_ratio))
        if self.fused and self.squeeze is not None:
            return SqueezeExcite(
                channels,
                rd_channels=rd_channels,
                bias=bool(self.bias),
                act_layer=self.act,
                gate_layer=self.gate,
                squeeze=self.squeeze,
                post=post,
                backend=self.backend,
            )
        return EagerSqueezeExcite(
            channels,
            rd_channels,
            bias=bool(self.bias),
            squeeze=self.squeeze,
            act=self.act,
            gate=self.gate,
            post=post,
        )


class EagerSqueezeExcite(nn.Module):
    """An SE block of separate PyTorch operations: sections 3.1 and 3.2, and the tail of Fig. 3.

    It has the parameters of :class:`se_kernels.SqueezeExcite`, so a state dict of one loads into
    the other, and it is what that one is compared with. ``squeeze=None`` does not pool: the gate
    is then (N, C, H, W).
    """

    def __init__(
        self,
        channels: int,
        rd_channels: int,
        *,
        bias: bool = False,
        squeeze: str | None = "avg",
        act: str = "relu",
        gate: str = "sigmoid",
        post: str = "none",
    ):
        super().__init__()
        self.squeeze, self.act, self.gate, self.post = squeeze, act, gate, post
        self.fc1 = nn.Conv2d(channels, rd_channels, 1, bias=bias)
        self.fc2 = nn.Conv2d(rd_channels, channels, 1, bias=bias)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x (N, C, H, W) and residual, of x's shape or None, to y (N, C, H, W)."""
        y = x * self.excite(x)
        if residual is not None:
            y += residual
        return y.relu_() if self.post == "relu" else y

    def excite(self, x: Tensor) -> Tensor:
        """s: (N, C, 1, 1), or (N, C, H, W) without a squeeze."""
        z = x if self.squeeze is None else reference.squeeze(x, self.squeeze)[:, :, None, None]
        h = activate(self.fc1(z), self.act)
        return open_gate(self.fc2(h), self.gate)

    def extra_repr(self) -> str:
        parts = f"squeeze={self.squeeze!r}, act={self.act!r}, gate={self.gate!r}"
        return parts if self.post == "none" else f"{parts}, post={self.post!r}"


def after_norm(
    norm: nn.Module,
    se: nn.Module,
    u: Tensor,
    residual: Tensor | None = None,
    *,
    relu: bool = False,
    fused: bool = False,
) -> Tensor:
    """The SE block of the norm of u, or of its ReLU: in one call where ``fused``."""
    if fused:
        pre = "relu" if relu else "identity"
        return run_norm(norm, se, u, residual, pre=pre)
    v = norm(u)
    y: Tensor = se(in_place.relu(v) if relu else v, residual)
    return y


def check_se(
    se: SE | None,
    network: str,
    *,
    stages: tuple[int, ...],
    integrations: tuple[str, ...] = ("standard",),
) -> None:
    """ValueError where the network has not these stages, or not this place for SE blocks."""
    if se is None:
        return
    if not isinstance(se, SE):
        raise ValueError(f"se: expected a models.SE or None, got {se!r}")
    if se.integration not in integrations:
        raise ValueError(
            f"integration: expected one of {listed(integrations)} in {network}; "
            f"got {se.integration!r}"
        )
    if se.stages is not None and not (se.stages and set(se.stages) <= set(stages)):
        raise ValueError(f"stages: expected some of {listed(stages)} in {network}; got {se.stages}")


def expect(argument: str, value: object, values: tuple[object, ...]) -> None:
    """ValueError where value is none of the values."""
    if value not in values:
        raise ValueError(f"{argument}: expected one of {listed(values)}; got {value!r}")


def listed(values: tuple[object, ...]) -> str:
    return ", ".join(str(value) for value in values)
