"""What a backend is: a module with these attributes and functions.

Shapes: x, u, y, residual and their gradients (N, C, H, W); w1 (R, C) or (R, C, 1, 1); w2 (C, R) or
(C, R, 1, 1); b1 (R,); b2 and all that belongs to a norm (C,), None for 0, or 1 for its weight; z, s
and their gradients (N, C), a (N, R), in the dtype of the sums. A mask is that of
``layout.empty_mask``, without elements if none is wanted. A gradient that ``needs`` does not want
has no elements. ``ops`` has registered an op of the same name for each function that a graph may
hold; it passes the arguments on without the last, which names the backend.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from se_kernels.core.layout import Gradients, NormGradients, ScaleGradients

Forward = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # y, mask, z, a, s
NormForward = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # y, mask, numbers, a, moved


class Sweeps(Protocol):
    """The block with a batch norm before it, and the sweeps of that alone."""

    def norm_inference(
        self, u: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None, mean: Tensor,
        var: Tensor, eps: float, w1: Tensor, w2: Tensor, b1: Tensor | None, b2: Tensor | None,
        residual: Tensor | None, pre: str, act: str, act_slope: float, gate: str, post: str, /,
    ) -> Tensor:  # fmt: skip
        """y, the norm in evaluation mode: mean and var are its running statistics."""

    def norm_forward(
        self, u: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None, mean: Tensor | None,
        var: Tensor | None, means: Tensor | None, w1: Tensor, w2: Tensor, b1: Tensor | None,
        b2: Tensor | None, residual: Tensor | None, training: bool, momentum: float, eps: float,
        pre: str, act: str, act_slope: float, gate: str, post: str, keep: bool, /,
    ) -> NormForward:  # fmt: skip
        """y; its mask if ``keep``; numbers (4 + 2 N, C): mean, scale, bias and 1 / √(var + eps) of
        the norm, then per image z (or, for pre="identity", what it follows from), then per image s;
        a; moved (2, C) in float64: the running statistics after the batch, if they move.

        mean and var: in training mode the running statistics, or None. means (N, C): of each
        image, if they are known already.
        """

    def norm_backward(
        self, dy: Tensor, u: Tensor, mask: Tensor | None, numbers: Tensor, a: Tensor, w1: Tensor,
        w2: Tensor, training: bool, pre: str, act: str, act_slope: float, gate: str,
        needs: Sequence[bool], /,
    ) -> NormGradients:  # fmt: skip
        """The gradients of the norm's weight and bias, which are always computed, and as ``needs``
        says du, dr, d = dz / P (N, C), dw1, dw2, db1, db2."""

    def norm_moments(self, u: Tensor, wide: bool, /) -> tuple[Tensor, Tensor]:
        """Mean and Σ (u - mean)² per image and channel (N, C) in float64; ``wide``: summed so."""

    def norm_squeeze(self, u: Tensor, norm: Tensor, pre: str, /) -> Tensor:
        """z; norm (3, C): mean, scale and bias."""

    def norm_scale(
        self, u: Tensor, norm: Tensor, s: Tensor, residual: Tensor | None, pre: str, post: str,
        keep: bool, /,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """y, and its mask if ``keep``."""

    def norm_scale_backward(
        self, dy: Tensor, u: Tensor, mask: Tensor | None, norm: Tensor, pre: str, write: bool, /
    ) -> tuple[Tensor, Tensor]:
        """dr = g, without elements unless ``write``, and its sums (2 or 5, N, C)."""

    def norm_squeeze_backward(
        self, g: Tensor, u: Tensor, mask: Tensor | None, norm: Tensor, s: Tensor, d: Tensor,
        pre: str, slope: Tensor | None, offset: Tensor | None, /,
    ) -> Tensor:  # fmt: skip
        """du = scale pre'(t) (g s + d) + slope (u - mean) + offset."""


class Backend(Sweeps, Protocol):
    """What ``dispatch.BACKENDS`` holds."""

    @property
    def DEVICE(self) -> str:
        """The device type whose tensors the backend is chosen for automatically."""

    def why_not(self) -> str | None:
        """Why the backend cannot be used on this machine, or None if it can."""

    def why_not_for(self, x: Tensor, /) -> str | None:
        """Why the backend does not serve x, or None if it does."""

    def inference(
        self, x: Tensor, w1: Tensor, w2: Tensor, b1: Tensor | None, b2: Tensor | None,
        residual: Tensor | None, squeeze: str, act: str, act_slope: float, gate: str, post: str, /,
    ) -> Tensor:  # fmt: skip
        """y."""

    def forward(
        self, x: Tensor, w1: Tensor, w2: Tensor, b1: Tensor | None, b2: Tensor | None,
        residual: Tensor | None, squeeze: str, act: str, act_slope: float, gate: str, post: str, /,
    ) -> Forward:  # fmt: skip
        """y, and what backward needs: its mask if post="relu", z, a, s."""

    def backward(
        self, dy: Tensor, x: Tensor, w1: Tensor, w2: Tensor, mask: Tensor | None, z: Tensor,
        a: Tensor, s: Tensor, squeeze: str, act: str, act_slope: float, gate: str,
        needs: Sequence[bool], /,
    ) -> Gradients:  # fmt: skip
        """dx, dr, dw1, dw2, db1, db2 as ``needs`` says; dr only with a mask, else it is dy."""

    def squeeze(self, x: Tensor, squeeze: str, /) -> Tensor:
        """z."""

    def scale(
        self, x: Tensor, s: Tensor, residual: Tensor | None, post: str, keep: bool, /
    ) -> tuple[Tensor, Tensor]:
        """y, and its mask if ``keep``."""

    def scale_backward(
        self, dy: Tensor, x: Tensor, mask: Tensor | None, s: Tensor, needs: Sequence[bool], /
    ) -> ScaleGradients:
        """dx = g s, dr = g, ds as ``needs`` says."""

    def squeeze_backward(
        self, g: Tensor | None, x: Tensor, s: Tensor | None, dz: Tensor, squeeze: str, /
    ) -> Tensor:
        """dx = g s, if there is a g, + what dz gives."""
