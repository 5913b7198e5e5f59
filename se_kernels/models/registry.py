"""The networks by name.

A family joins with ``@register`` on the function that builds one of its networks, and with its
module imported by ``se_kernels.models``:

    @register
    def resnet50(num_classes: int = 1000, *, se: SE | None = None, **options: Any) -> ResNet:
        return ResNet(RESNET50, num_classes, se=se, **options)

    def se_resnet50(num_classes: int = 1000, *, fused: bool | str = True, **options: Any) -> ResNet:
        return with_se(resnet50, num_classes, fused, options)

The registered name is the architecture's; whether it has SE blocks is an argument. ``options``
must include ``in_channels`` and ``features_only``.
"""

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from se_kernels.models.network import Network
from se_kernels.models.se import SE, expect

N = TypeVar("N", bound=Network)
P = ParamSpec("P")
# and the ``fused`` of :class:`SE`
SES: dict[str | None, bool | str | None] = {
    "fused": True,
    "layer": "layer",
    "eager": False,
    None: None,
}

_NETWORKS: dict[str, Callable[..., Network]] = {}
_SE_OPTIONS = tuple(f.name for f in dataclasses.fields(SE) if f.name != "fused")


def register(build: Callable[P, N]) -> Callable[P, N]:
    """Decorator: the function's name is the network's."""
    _NETWORKS[build.__name__] = build
    return build


def names() -> list[str]:
    """The names that ``create`` knows, sorted."""
    return sorted(_NETWORKS)


def create(
    name: str,
    num_classes: int = 1000,
    *,
    se: str | None = "fused",
    in_channels: int = 3,
    features_only: bool = False,
    **options: Any,
) -> Network:
    """A network of the paper by its name.

    Args:
        name: one of ``names()``, as "resnet50".
        num_classes: outputs of the classifier, at least 1.
        se: "fused", together with the norm before; "layer": fused, the norm apart; "eager", the
            same of separate operations; or None: without SE blocks.
        in_channels: channels of the images.
        features_only: without classifier; returns the feature maps.
        options: the arguments of :class:`SE` (reduction ratio, squeeze, gate, stages, integration:
            the ablations of section 6), and those of the network's own function.

    Raises:
        ValueError: an unknown name, or an argument not as above.
        TypeError: an option that the network has not.
    """
    if name not in _NETWORKS:
        close = difflib.get_close_matches(name, _NETWORKS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"name: expected one of {', '.join(names())}; got {name!r}{hint}")
    options = {"in_channels": in_channels, "features_only": features_only, **options}
    expect("se", se, tuple(SES))
    return with_se(_NETWORKS[name], num_classes, SES[se], options)


def with_se(
    build: Callable[..., N], num_classes: int, fused: bool | str | None, options: dict[str, Any]
) -> N:
    """The network with the SE blocks that the options of :class:`SE` describe; None: without."""
    chosen = {name: options[name] for name in _SE_OPTIONS if name in options}
    if fused is None and chosen:
        raise ValueError(f"{next(iter(chosen))}: expected none without SE blocks (se=None)")
    rest = {name: value for name, value in options.items() if name not in chosen}
    blocks = None if fused is None else SE(fused=fused, **chosen)
    return build(num_classes, se=blocks, **rest)
