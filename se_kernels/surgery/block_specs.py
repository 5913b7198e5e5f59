"""Which class is which block around an SE module: one entry a family, by the path of the class."""

from dataclasses import dataclass

from torch import nn

from se_kernels.modules import norm_call
from se_kernels.modules.recognition import act_of, class_path
from se_kernels.modules.squeeze_excite import SqueezeExcite
from se_kernels.surgery.call import child
from se_kernels.surgery.specs import family_of


@dataclass(frozen=True)
class BlockSpec:
    """How a block computes its output, said with the names of its children (dotted: nested ones).

    u = ``before`` of x, v = ``act`` of ``norm`` of u, y = ``after`` of the SE module's s * v; then,
    where ``skip``, ``drop`` of y plus ``shortcut`` of x; then ``post``. A child that is None, or
    that the block does not have, does nothing.
    """

    before: tuple[str, ...]
    norm: str
    se: str
    act: str | None = None  # a norm of timm's that holds its own needs none here
    idle: tuple[str, ...] = ()  # between norm and SE module: must do nothing
    after: tuple[str, ...] = ()
    skip: str | bool = False  # or the name of an attribute that tells
    drop: str | None = None  # stochastic depth
    shortcut: str | None = None  # x itself
    in_place: bool = False  # the addition: it keeps the dtype of y
    post: str | None = None


_KNOWN = {
    "timm.models.resnet.Bottleneck": BlockSpec(
        before=("conv1", "bn1", "act1", "conv2", "bn2", "drop_block", "act2", "aa", "conv3"),
        norm="bn3",
        se="se",
        skip=True,
        drop="drop_path",
        shortcut="downsample",
        in_place=True,
        post="act3",
    ),
    "timm.models.resnet.BasicBlock": BlockSpec(
        before=("conv1", "bn1", "drop_block", "act1", "aa", "conv2"),
        norm="bn2",
        se="se",
        skip=True,
        drop="drop_path",
        shortcut="downsample",
        in_place=True,
        post="act2",
    ),
    # SEBottleneck, SEResNetBottleneck and SEResNeXtBottleneck have this one's forward
    "timm.models.senet.Bottleneck": BlockSpec(
        before=("conv1", "bn1", "relu", "conv2", "bn2", "relu", "conv3"),
        norm="bn3",
        se="se_module",
        skip=True,
        shortcut="downsample",
        post="relu",
    ),
    "timm.models.senet.SEResNetBlock": BlockSpec(
        before=("conv1", "bn1", "relu", "conv2"),
        norm="bn2",
        act="relu",
        se="se_module",
        skip=True,
        shortcut="downsample",
        post="relu",
    ),
    "timm.models._efficientnet_blocks.InvertedResidual": BlockSpec(
        before=("conv_s2d", "bn_s2d", "conv_pw", "bn1", "conv_dw"),
        norm="bn2",
        idle=("aa",),
        se="se",
        after=("conv_pwl", "bn3"),
        skip="has_skip",
        drop="drop_path",
    ),
    "timm.models._efficientnet_blocks.DepthwiseSeparableConv": BlockSpec(
        before=("conv_s2d", "bn_s2d", "conv_dw"),
        norm="bn1",
        idle=("aa",),
        se="se",
        after=("conv_pw", "bn2"),
        skip="has_skip",
        drop="drop_path",
    ),
    "timm.models._efficientnet_blocks.EdgeResidual": BlockSpec(
        before=("conv_exp",),
        norm="bn1",
        idle=("aa",),
        se="se",
        after=("conv_pwl", "bn2"),
        skip="has_skip",
        drop="drop_path",
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


def block_spec_of(module: nn.Module) -> tuple[type, BlockSpec] | None:
    """The class, among a module's, whose forward the block is, and the block; None for a module
    that is no block with an SE module in it."""
    for cls in type(module).__mro__:
        if cls is nn.Sequential:
            around = _in_sequence(module)
            return None if around is None else (cls, around)
        around = _KNOWN.get(class_path(cls))
        if around is not None:
            return (cls, around) if _is_se(child(module, (around.se,))) else None
    return None


def _is_se(module: nn.Module | None) -> bool:
    return isinstance(module, SqueezeExcite) or (
        module is not None and family_of(module) is not None
    )


def _in_sequence(module: nn.Sequential) -> BlockSpec | None:
    """Of the first SE module with a norm before it: torchvision's inverted residuals and RegNets,
    and whatever else is a sequence."""
    names = list(module._modules)
    for i, name in enumerate(names[1:], 1):
        if not _is_se(module._modules[name]):
            continue
        steps = [*names[: i - 1], *_steps_of(module._modules[names[i - 1]], names[i - 1])]
        act = steps.pop() if len(steps) > 1 and _is_act(module, steps[-1]) else None
        norm = _at(module, steps[-1])
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm_call.is_frozen(norm):
            return BlockSpec(tuple(steps[:-1]), steps[-1], name, act, after=tuple(names[i + 1 :]))
    return None


def _steps_of(module: nn.Module | None, name: str) -> list[str]:
    """A sequence's children, those of its last child in its place; of another module itself."""
    is_sequence = module is not None and type(module).forward is nn.Sequential.forward
    if not is_sequence or not module._modules:
        return [name]
    *first, last = module._modules
    return [*(f"{name}.{n}" for n in first), *_steps_of(module._modules[last], f"{name}.{last}")]


def _is_act(module: nn.Module, name: str) -> bool:
    return act_of(_at(module, name)) is not None


def _at(module: nn.Module, name: str) -> nn.Module | None:
    return child(module, tuple(name.split(".")))
