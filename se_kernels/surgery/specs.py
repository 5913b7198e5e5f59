"""Which class is which block: one entry a family, by name, so that no library is imported."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from torch import nn

from se_kernels.modules import norm_call
from se_kernels.modules.recognition import act_of, class_path
from se_kernels.modules.squeeze_excite import SqueezeExcite
from se_kernels.surgery.call import child, path_of
from se_kernels.surgery.match import Misfit, Refusal, check_fc
from se_kernels.surgery.steps import BlockSpec, ExcitationSteps

Adapter = Callable[[nn.Module], ExcitationSteps]


class Family(NamedTuple):
    """Modules of one class, and what each of them is."""

    cls: type[nn.Module]  # the class, among a module's, whose forward the block is
    spec: BlockSpec | Adapter  # of a layer the adapter
    registered: bool = False  # by a user


# --- layers: the class's name, and the steps from z to s -----------------------------------------

_LAYERS = (
    # timm.layers.squeeze_excite; bn is an nn.Identity or a norm
    ("SEModule", ExcitationSteps(("fc1", "bn", "act", "fc2", "gate"))),
    ("EffectiveSEModule", ExcitationSteps(("fc", "gate"))),
    ("SqueezeExciteCl", ExcitationSteps(("fc1", "act", "fc2", "gate"), layout="nhwc")),
    # timm.models._efficientnet_blocks
    ("SqueezeExcite", ExcitationSteps(("conv_reduce", "act1", "conv_expand", "gate"))),
    # timm.models.senet
    ("SEModule", ExcitationSteps(("fc1", "relu", "fc2", "sigmoid"))),
    # timm.models.hgnet
    ("EseModule", ExcitationSteps(("conv", "sigmoid"))),
    # torchvision.ops
    (
        "SqueezeExcitation",
        ExcitationSteps(("fc1", "activation", "fc2", "scale_activation"), pool="avgpool"),
    ),
    # transformers: regnet; efficientnet and its copy in align; pp_lcnet and its later versions
    ("RegNetSELayer", ExcitationSteps(tuple(f"attention.{i}" for i in range(4)), pool="pooler")),
    *(
        (
            f"{name}SqueezeExciteLayer",
            ExcitationSteps(("reduce", "act_reduce", "expand", "act_expand"), pool="squeeze"),
        )
        for name in ("EfficientNet", "AlignVision")
    ),
    *(
        (
            f"{name}SqueezeExcitationModule",
            ExcitationSteps(tuple(f"convolutions.{i}" for i in range(4)), pool="avg_pool"),
        )
        for name in ("PPLCNet", "PPLCNetV3", "PPLCNetV4")
    ),
)
_LAYER_NAMES = {name for name, _ in _LAYERS}

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


def layer_family_of(module: nn.Module) -> Family | None:
    """The family of the first class, in the order of inheritance, that has one."""
    if isinstance(module, SqueezeExcite):
        return Family(type(module), _fused_by_itself)
    for cls in type(module).__mro__:
        if cls in _registered:
            return Family(cls, _registered[cls], registered=True)
        if cls.__name__ in _LAYER_NAMES and issubclass(cls, nn.Module):
            return Family(cls, _known_layer)
    return None


def _fused_by_itself(module: nn.Module) -> ExcitationSteps:
    raise Refusal("is fused by itself")


def _known_layer(module: nn.Module) -> ExcitationSteps:
    names = {cls.__name__ for cls in type(module).__mro__}
    known = [steps for name, steps in _LAYERS if name in names]
    children = set(module._modules)
    for steps in known:
        if children == _children_of(steps):
            for name in (steps.excitation[0], steps.excitation[-2]):
                check_fc(name, child(module, path_of(name)))
            squeeze = "avgmax" if getattr(module, "add_maxpool", False) else steps.squeeze
            return replace(steps, squeeze=squeeze)
    expected = " or ".join(", ".join(sorted(_children_of(steps))) for steps in known)
    raise Misfit(f"expected the children {expected}; got {', '.join(sorted(children)) or 'none'}")


def _children_of(steps: ExcitationSteps) -> set[str]:
    names = {name.partition(".")[0] for name in steps.excitation}
    return names if steps.pool is None else names | {steps.pool}


# --- blocks with a layer in them: the class's path, and what is around the layer -----------------

_timm_residual = partial(
    BlockSpec, se="se", skip=True, drop="drop_path", shortcut="downsample", in_place=True
)
_timm_senet = partial(BlockSpec, se="se_module", skip=True, shortcut="downsample", post="relu")
_timm_inverted = partial(BlockSpec, se="se", idle=("aa",), skip="has_skip", drop="drop_path")

_BLOCKS = {
    "timm.models.resnet.Bottleneck": _timm_residual(
        before=("conv1", "bn1", "act1", "conv2", "bn2", "drop_block", "act2", "aa", "conv3"),
        norm="bn3",
        post="act3",
    ),
    "timm.models.resnet.BasicBlock": _timm_residual(
        before=("conv1", "bn1", "drop_block", "act1", "aa", "conv2"), norm="bn2", post="act2"
    ),
    # SEBottleneck, SEResNetBottleneck and SEResNeXtBottleneck have this one's forward
    "timm.models.senet.Bottleneck": _timm_senet(
        before=("conv1", "bn1", "relu", "conv2", "bn2", "relu", "conv3"), norm="bn3"
    ),
    "timm.models.senet.SEResNetBlock": _timm_senet(
        before=("conv1", "bn1", "relu", "conv2"), norm="bn2", pre="relu"
    ),
    "timm.models._efficientnet_blocks.InvertedResidual": _timm_inverted(
        before=("conv_s2d", "bn_s2d", "conv_pw", "bn1", "conv_dw"),
        norm="bn2",
        after=("conv_pwl", "bn3"),
    ),
    "timm.models._efficientnet_blocks.DepthwiseSeparableConv": _timm_inverted(
        before=("conv_s2d", "bn_s2d", "conv_dw"), norm="bn1", after=("conv_pw", "bn2")
    ),
    "timm.models._efficientnet_blocks.EdgeResidual": _timm_inverted(
        before=("conv_exp",), norm="bn1", after=("conv_pwl", "bn2")
    ),
    "timm.models.regnet.Bottleneck": BlockSpec(
        before=("conv1", "conv2.conv"),
        norm="conv2.bn",
        idle=("conv2.aa",),
        se="se",
        after=("conv3",),
        skip="downsample",
        drop="drop_path",
        shortcut="downsample",
        post="act3",
    ),
}


def block_family_of(module: nn.Module) -> Family | None:
    """The same for a module with an SE module in it."""
    for cls in type(module).__mro__:
        spec = _in_sequence(module) if cls is nn.Sequential else _BLOCKS.get(class_path(cls))
        if spec is not None and _is_layer(child(module, path_of(spec.se))):
            return Family(cls, spec)
        if spec is not None or cls is nn.Sequential:
            break
    return None


def _is_layer(module: nn.Module | None) -> bool:
    return module is not None and layer_family_of(module) is not None


def _in_sequence(module: nn.Module) -> BlockSpec | None:
    """Of the first SE module with a norm before it: torchvision's inverted residuals and RegNets,
    and whatever else is a sequence."""
    names = list(module._modules)
    for i, name in enumerate(names[1:], 1):
        if not _is_layer(module._modules[name]):
            continue
        steps = [*names[: i - 1], *_steps_of(module._modules[names[i - 1]], names[i - 1])]
        last, *before = (child(module, path_of(step)) for step in reversed(steps))
        pre = steps.pop() if before and act_of(last) is not None else ""
        norm = before[0] if pre else last
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm_call.is_frozen(norm):
            after = tuple(names[i + 1 :])
            return BlockSpec(tuple(steps[:-1]), steps[-1], name, pre, after=after)
    return None


def _steps_of(module: nn.Module | None, name: str) -> list[str]:
    """A sequence's children, those of its last child in its place; of another module itself."""
    if module is None or type(module).forward is not nn.Sequential.forward or not module._modules:
        return [name]
    *first, last = module._modules
    return [*(f"{name}.{n}" for n in first), *_steps_of(module._modules[last], f"{name}.{last}")]
