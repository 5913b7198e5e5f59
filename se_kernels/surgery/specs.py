"""Which class is which block: one entry a family, by class name, so that no library is imported."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from torch import nn

from se_kernels.surgery.call import child
from se_kernels.surgery.match import Misfit, check_fc
from se_kernels.surgery.steps import ExcitationSteps

Adapter = Callable[[nn.Module], ExcitationSteps]


class Family(NamedTuple):
    """Modules of one class, and the ``ExcitationSteps`` that each is."""

    cls: type  # the class, among a module's, whose forward the block is
    adapter: Adapter
    registered: bool  # by a user


class _Known(NamedTuple):
    name: str  # of the class
    fcs: tuple[str, ...]
    block: ExcitationSteps


_KNOWN = (
    # timm.layers.squeeze_excite; bn is an nn.Identity or a norm
    _Known("SEModule", ("fc1", "fc2"), ExcitationSteps(("fc1", "bn", "act", "fc2", "gate"))),
    _Known("EffectiveSEModule", ("fc",), ExcitationSteps(("fc", "gate"))),
    _Known(
        "SqueezeExciteCl",
        ("fc1", "fc2"),
        ExcitationSteps(("fc1", "act", "fc2", "gate"), layout="nhwc"),
    ),
    # timm.models._efficientnet_blocks
    _Known(
        "SqueezeExcite",
        ("conv_reduce", "conv_expand"),
        ExcitationSteps(("conv_reduce", "act1", "conv_expand", "gate")),
    ),
    # timm.models.senet
    _Known("SEModule", ("fc1", "fc2"), ExcitationSteps(("fc1", "relu", "fc2", "sigmoid"))),
    # timm.models.hgnet
    _Known("EseModule", ("conv",), ExcitationSteps(("conv", "sigmoid"))),
    # torchvision.ops
    _Known(
        "SqueezeExcitation",
        ("fc1", "fc2"),
        ExcitationSteps(("fc1", "activation", "fc2", "scale_activation"), pool="avgpool"),
    ),
    # transformers: regnet; efficientnet and its copy in align; pp_lcnet and its later versions
    _Known(
        "RegNetSELayer",
        ("attention.0", "attention.2"),
        ExcitationSteps(
            ("attention.0", "attention.1", "attention.2", "attention.3"), pool="pooler"
        ),
    ),
    *(
        _Known(
            name,
            ("reduce", "expand"),
            ExcitationSteps(("reduce", "act_reduce", "expand", "act_expand"), pool="squeeze"),
        )
        for name in ("EfficientNetSqueezeExciteLayer", "AlignVisionSqueezeExciteLayer")
    ),
    *(
        _Known(
            f"{name}SqueezeExcitationModule",
            ("convolutions.0", "convolutions.2"),
            ExcitationSteps(tuple(f"convolutions.{i}" for i in range(4)), pool="avg_pool"),
        )
        for name in ("PPLCNet", "PPLCNetV3", "PPLCNetV4")
    ),
)
_KNOWN_NAMES = {known.name for known in _KNOWN}

_registered: dict[type, Adapter] = {}


def register_family(cls: type[nn.Module], adapter: Adapter) -> None:
    """Tells ``fuse`` how to fuse modules of class ``cls``, and of its subclasses that keep forward.

    Args:
        cls: the class; its forward takes x alone and returns y = s * x, both (N, C, H, W), or
            (N, H, W, C) where the block says so.
        adapter: called with a module, returns its ``ExcitationSteps``.

    A wrong adapter is noticed at ``fuse``, which compares the module with its block on random
    numbers, forward and backward.

    Example:
        >>> class Gate(torch.nn.Module):
        ...     def __init__(self, channels):
        ...         super().__init__()
        ...         self.down = torch.nn.Conv2d(channels, 4, 1)
        ...         self.up = torch.nn.Conv2d(4, channels, 1)
        ...     def forward(self, x):
        ...         z = x.mean((2, 3), keepdim=True)
        ...         return x * self.up(self.down(z).relu()).sigmoid()
        >>> steps = se_kernels.ExcitationSteps(("down", "relu", "up", "sigmoid"))
        >>> se_kernels.register_family(Gate, lambda module: steps)
        >>> len(se_kernels.fuse(Gate(8)).fused)
        1

    Raises:
        TypeError: ``cls`` is no class of modules; ``adapter`` cannot be called with one argument.
        ValueError: ``cls`` has no forward of its own to stand for, or another adapter.
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        got = repr(cls) if isinstance(cls, type) else f"an instance of {type(cls).__name__}"
        raise TypeError(f"cls: expected a class of nn.Module, got {got}")
    if cls.forward is nn.Module.forward:
        raise ValueError(f"cls: expected a class with a forward, got {cls.__name__}")
    if not callable(adapter):
        raise TypeError(f"adapter: expected a function of a module, got {adapter!r}")
    try:
        inspect.signature(adapter).bind(None)
    except TypeError as error:
        raise TypeError(f"adapter: expected a function of one argument, {error}") from None
    if _registered.get(cls, adapter) is not adapter:
        raise ValueError(f"cls: expected a class without an adapter, {cls.__name__} has one")
    _registered[cls] = adapter


def family_of(module: nn.Module) -> Family | None:
    """The family of the first class, in the order of inheritance, that has one."""
    for cls in type(module).__mro__:
        if cls in _registered:
            return Family(cls, _registered[cls], registered=True)
        if cls.__name__ in _KNOWN_NAMES and issubclass(cls, nn.Module):
            return Family(cls, _known_block, registered=False)
    return None


def _known_block(module: nn.Module) -> ExcitationSteps:
    names = {cls.__name__ for cls in type(module).__mro__}
    known = [known for known in _KNOWN if known.name in names]
    children = set(module._modules)
    for family in known:
        block = family.block
        if children == _children_of(block):
            for name in family.fcs:
                check_fc(name, child(module, tuple(name.split("."))))
            squeeze = "avgmax" if getattr(module, "add_maxpool", False) else block.squeeze
            return replace(block, squeeze=squeeze)
    expected = " or ".join(", ".join(sorted(_children_of(family.block))) for family in known)
    raise Misfit(f"expected the children {expected}; got {', '.join(sorted(children)) or 'none'}")


def _children_of(block: ExcitationSteps) -> set[str]:
    names = {name.partition(".")[0] for name in block.excitation}
    return names if block.pool is None else names | {block.pool}
