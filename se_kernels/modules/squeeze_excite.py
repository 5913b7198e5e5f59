"""SqueezeExcite: the block as a layer, a drop-in for timm's and torchvision's."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from se_kernels import reference
from se_kernels.core import guards
from se_kernels.core.activations import activate, open_gate
from se_kernels.core.checks import DTYPES, check_count, check_ratio
from se_kernels.core.variants import ACTS, GATES, POSTS, SQUEEZES
from se_kernels.functional import squeeze_excite
from se_kernels.modules.recognition import (
    ACT_MODULES,
    GATE_MODULES,
    Fcs,
    act_of,
    alike,
    gate_of,
    is_traced,
    weights,
)

_TIMM_NAMES = {"swish": "silu", "hard_swish": "hardswish", "hard_sigmoid": "hardsigmoid"}


class SqueezeExcite(nn.Module):
    """The squeeze-and-excitation block (section 3; Fig. 3 with a residual and post="relu").

    timm's signature and defaults, but bias=False (section 6). Parameters: ``fc1.weight``
    (R, C, 1, 1), ``fc2.weight`` (C, R, 1, 1) and, with bias, ``fc1.bias`` (R,), ``fc2.bias``
    (C,): state dicts load from and into timm's ``SEModule`` and torchvision's
    ``SqueezeExcitation``.

    Args:
        channels: C.
        rd_ratio: R / C, 1 / r of the paper.
        rd_channels: R itself; overrides rd_ratio.
        rd_divisor: R from rd_ratio is rounded to a multiple of this.
        add_maxpool: squeeze="avgmax".
        bias: biases in both FCs.
        act_layer: δ: a name of ``variants.ACTS`` (or timm's spelling of one), or a module class,
            partial or instance among nn.ReLU, SiLU, GELU, Hardswish, LeakyReLU, Identity.
        norm_layer: a module made with R, between fc1 and δ (``bn``).
        gate_layer: σ: a name of ``variants.GATES``, or a module as above among nn.Sigmoid,
            Hardsigmoid, Tanh, ReLU.
        squeeze: "avg", "max" or "avgmax"; None follows add_maxpool.
        post: "none", or "relu" after the addition of the residual.
        backend: as in ``squeeze_excite``.
        device, dtype: of the parameters, as of ``nn.Conv2d``; a norm_layer takes them too.

    With a norm, or once fc1 or fc2 is replaced or hooked (adapters, pruning), they are called: the
    excitation runs in eager between the fused squeeze and the fused scale.

    Example:
        >>> se = se_kernels.SqueezeExcite(64, rd_ratio=1 / 16, post="relu")
        >>> x = torch.randn(2, 64, 7, 7)
        >>> se(x, residual=x).shape
        torch.Size([2, 64, 7, 7])

    Raises:
        ValueError: an unknown variant, a number of channels that is no integer of at least 1, a
            ratio that is not above 0, or a dtype that the block does not take.
    """

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1.0 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
        add_maxpool: bool = False,
        bias: bool = False,
        act_layer: Any = nn.ReLU,
        norm_layer: Callable[..., nn.Module] | None = None,
        gate_layer: Any = "sigmoid",
        *,
        squeeze: str | None = None,
        post: str = "none",
        backend: str | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if squeeze is None:
            squeeze = "avgmax" if add_maxpool else "avg"
        elif squeeze not in SQUEEZES:
            raise ValueError(f"squeeze: expected one of {', '.join(SQUEEZES)}; got {squeeze!r}")
        elif add_maxpool and squeeze != "avgmax":
            raise ValueError(f"squeeze: expected 'avgmax' with add_maxpool, got {squeeze!r}")
        if post not in POSTS:
            raise ValueError(f"post: expected one of {', '.join(POSTS)}; got {post!r}")
        check_count("channels", channels)
        if rd_channels is None:
            check_ratio("rd_ratio", rd_ratio)
            check_count("rd_divisor", rd_divisor)
            rd_channels = reduced_channels(channels, rd_ratio, rd_divisor)
        check_count("rd_channels", rd_channels)
        if norm_layer is not None and not callable(norm_layer):
            raise ValueError(f"norm_layer: expected a module class or None, got {norm_layer!r}")
        if dtype is not None and dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(map(str, DTYPES))}; got {dtype!r}")
        self.squeeze, self.post, self.backend = squeeze, post, backend
        self.act, self.act_slope = _variant_of("act_layer", act_layer, ACT_MODULES, ACTS)
        self.gate, _ = _variant_of("gate_layer", gate_layer, GATE_MODULES, GATES)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        made = {name: value for name, value in made.items() if value is not None}
        self.fc1 = nn.Conv2d(channels, rd_channels, 1, bias=bias, **made)
        self.bn = norm_layer(rd_channels, **made) if norm_layer else nn.Identity()
        self.fc2 = nn.Conv2d(rd_channels, channels, 1, bias=bias, **made)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x (N, C, H, W) and residual, of x's shape and dtype or None, to y (N, C, H, W)."""
        if torch.jit.is_scripting():  # and what is below else, TorchScript leaves alone
            return self._define(x, residual)
        else:
            if is_traced(x):
                return self._define(x, residual)
            if residual is x and torch.compiler.is_compiling():
                residual = x.view_as(x)  # Dynamo gives no autograd.Function a tensor twice
            fcs = self.fcs()
            if fcs is None:
                return squeeze_excite(
                    x,
                    excitation=self._excite,
                    squeeze=self.squeeze,
                    residual=residual,
                    post=self.post,
                    backend=self.backend,
                )
            return squeeze_excite(
                x,
                *fcs,
                squeeze=self.squeeze,
                act=self.act,
                act_slope=self.act_slope,
                gate=self.gate,
                residual=residual,
                post=self.post,
                backend=self.backend,
            )

    def gates(self, x: Tensor) -> Tensor:
        """s (N, C) of x (N, C, H, W), by the definition and in the dtype of the sums."""
        fcs = self.fcs()
        if fcs is None:
            return reference.gates(x, excitation=self._excite, squeeze=self.squeeze)
        variant: Any = dict(
            squeeze=self.squeeze, act=self.act, act_slope=self.act_slope, gate=self.gate
        )
        return reference.gates(x, *fcs, **variant)

    def fcs(self) -> Fcs | None:
        """w1, w2, b1, b2; None where the excitation is more than what they say."""
        return alike(*self.weights()) if guards.is_valid(self, _WATCH) else None

    def weights(self) -> Fcs:
        """w1, w2, b1, b2, whatever else the excitation is."""
        children = self.__dict__["_modules"]  # faster than nn.Module.__getattr__
        w1, b1 = weights(children["fc1"])
        w2, b2 = weights(children["fc2"])
        return w1, w2, b1, b2

    def _define(self, x: Tensor, residual: Tensor | None) -> Tensor:
        # operations of torch alone; z as (N, C, 1, 1), which is not asked for its size
        y = x * self._excite(reference.squeeze(x, self.squeeze, keepdim=True))
        if residual is not None:
            y = _add(y, residual)
        return activate(y) if self.post == "relu" else y

    def _excite(self, z: Tensor) -> Tensor:
        h = activate(self.bn(self.fc1(z)), self.act, self.act_slope)
        return open_gate(self.fc2(h), self.gate)

    def extra_repr(self) -> str:
        parts = [f"squeeze={self.squeeze!r}, act={self.act!r}, gate={self.gate!r}"]
        if self.post != "none":
            parts.append(f"post={self.post!r}")
        if self.backend is not None:
            parts.append(f"backend={self.backend!r}")
        return ", ".join(parts)


@torch.fx.wrap  # a proxy does not tell whether it is going to be None
def _add(y: Tensor, residual: Tensor | None) -> Tensor:
    return y if residual is None else y + residual


def reduced_channels(channels: int, rd_ratio: float, rd_divisor: int) -> int:
    """R: the multiple of rd_divisor nearest to channels * rd_ratio, and at least rd_divisor."""
    return max(rd_divisor, int(channels * rd_ratio + rd_divisor / 2) // rd_divisor * rd_divisor)


# an FC that was replaced (adapters) or hooked (pruning) must be called: its weight is not all
_FC = guards.watch(nn.Conv2d(1, 1, 1, device="meta"))
_WATCH = guards.watch_children(fc1=_FC, bn=guards.watch_class(nn.Identity), fc2=_FC)
# one whose own call may be stood for, too
PLAIN = guards.watch_class(SqueezeExcite)._replace(children=_WATCH.children)


def _variant_of(
    argument: str, layer: Any, modules: dict[type, str], names: Iterable[str]
) -> tuple[str, float]:
    """The variant that a layer argument names, and its negative slope where it has one."""
    if isinstance(layer, str):
        name = _TIMM_NAMES.get(layer, layer)
        if name in names:
            return name, 0.01
    elif isinstance(layer, (type, partial)) and getattr(layer, "func", layer) in modules:
        layer = layer()
    if type(layer) in modules:
        if (act := act_of(layer)) is not None:
            return act
        if (gate := gate_of(layer)) is not None:
            return gate, 0.01
    classes = ", ".join(f"nn.{cls.__name__}" for cls in modules)
    raise ValueError(f"{argument}: expected one of {', '.join(names)}, or {classes}; got {layer!r}")
