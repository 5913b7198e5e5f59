"""fuse and unfuse: over all modules of a model."""

from torch import nn

from se_kernels.core import guards
from se_kernels.modules.recognition import class_path
from se_kernels.modules.squeeze_excite import SqueezeExcite
from se_kernels.surgery import verify
from se_kernels.surgery.block_call import Tail
from se_kernels.surgery.block_match import channels_into, read_tail
from se_kernels.surgery.block_specs import BlockSpec, block_spec_of
from se_kernels.surgery.call import Plan
from se_kernels.surgery.match import Misfit, Refusal, channels_of, read
from se_kernels.surgery.report import FuseReport
from se_kernels.surgery.specs import Family, family_of
from se_kernels.surgery.steps import ExcitationSteps
from se_kernels.surgery.swap import fused_class, is_fused, original_class, swap, swap_back

LEVELS = ("layer", "block")


def fuse(model: nn.Module, level: str = "layer") -> FuseReport:
    """Fuses every SE module of ``model``, in place.

    A fused module is the same object with the same parameters, buffers, names, hooks, mode, device
    and dtype; only its class has become a subclass of what it was, whose forward is
    ``squeeze_excite``. State dicts go to and from unfused models, and optimizers stay valid.
    Fusing again reads every module anew.

    Known are the SE modules of timm, torchvision and transformers; ``register_family`` adds a
    class. A module that has more inside than its family (hooks, adapters, quantised or parametrised
    weights), or that computes something else, is left as it is, and the report says why. One that
    is changed so later runs its own forward from then on, as does every module while it is traced
    for TorchScript, ONNX or torch.fx.

    Args:
        model: any module, an SE module too.
        level: "layer": the SE modules; "block": each also with the batch norm and the activation
            before it and, where the block ends there, the shortcut and the ReLU after it
            (``batch_norm_squeeze_excite``). That is another class for the block, under the same
            conditions. Known are timm's ResNets, SENets, RegNets, EfficientNets and MobileNetV3s,
            torchvision's RegNets, EfficientNets and MobileNetV3s, and every ``nn.Sequential`` with
            a norm before an SE module. In other blocks the SE module alone is fused.

    Returns:
        What was fused, what was skipped and why; print it.

    Example:
        >>> model = torchvision.models.efficientnet_b0()
        >>> len(se_kernels.fuse(model).fused)
        16

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: an unknown level, or an adapter of ``register_family`` does not describe its
            module. Nothing is fused then.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if level not in LEVELS:
        raise ValueError(f"level: expected one of {', '.join(LEVELS)}; got {level!r}")
    with guards.without_global_hooks():
        return _fuse(model, level)


def _fuse(model: nn.Module, level: str) -> FuseReport:
    plans: dict[nn.Module, Plan] = {}
    refused: dict[nn.Module, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, SqueezeExcite):
            refused[module] = "is fused by itself"
        elif (family := family_of(module)) is not None:
            try:
                plans[module] = _plan(module, family)
            except Refusal as refusal:
                if family.registered and isinstance(refusal, Misfit):
                    label = f"{class_path(family.cls)} {name!r}" if name else class_path(family.cls)
                    raise ValueError(f"adapter of {label}: {refusal}") from refusal.__cause__
                refused[module] = str(refusal)
    for module in list(model.modules()):
        if is_fused(module):  # by a plan of before
            swap_back(module)
    for module, plan in plans.items():
        swap(module, plan)
    blocks, apart = _fuse_blocks(model) if level == "block" else ({}, {})
    report = FuseReport(original_class(model).__name__)
    for name, module in model.named_modules(remove_duplicate=False):
        if module in plans:
            report.fused[name] = class_path(original_class(module))
        elif module in refused:
            report.skipped[name] = refused[module]
        elif module in blocks:
            report.blocks[name] = class_path(original_class(module))
        elif module in apart:
            report.apart[name] = apart[module]
    return report


def _fuse_blocks(model: nn.Module) -> tuple[dict[nn.Module, Tail], dict[nn.Module, str]]:
    """After the SE modules. The plans of the blocks fused, and why the others are not."""
    plans: dict[nn.Module, Tail] = {}
    apart: dict[nn.Module, str] = {}
    judged: dict[tuple, str | None] = {}
    for module in model.modules():
        if (found := block_spec_of(module)) is not None:
            try:
                plans[module] = _tail_plan(module, *found, judged)
            except Refusal as refusal:
                apart[module] = str(refusal)
    for module, plan in plans.items():
        swap(module, plan)
    return plans, apart


def unfuse(model: nn.Module) -> list[str]:
    """Makes every module of ``model`` that ``fuse`` fused what it was; returns their names.

    Example:
        >>> class SEModule(torch.nn.Module):  # of a library
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.fc1, self.relu = torch.nn.Conv2d(8, 2, 1), torch.nn.ReLU()
        ...         self.fc2, self.sigmoid = torch.nn.Conv2d(2, 8, 1), torch.nn.Sigmoid()
        ...     def forward(self, x):
        ...         s = x.mean((2, 3), keepdim=True)
        ...         return x * self.sigmoid(self.fc2(self.relu(self.fc1(s))))
        >>> model = torch.nn.Sequential(SEModule())
        >>> _ = se_kernels.fuse(model)
        >>> se_kernels.unfuse(model)
        ['0']

    Raises:
        TypeError: ``model`` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    names = [name for name, m in model.named_modules(remove_duplicate=False) if is_fused(m)]
    for module in list(model.modules()):
        if is_fused(module):
            swap_back(module)
    return names


def _plan(module: nn.Module, family: Family) -> Plan:
    """The plan of a module that computes its family's block. Raises Refusal or Misfit."""
    forward = _forward_of(module, family.cls, "plan")
    block = _block_of(module, family)
    plan = read(module, block, original_class(module))
    reason = verify.why_not(module, forward, plan, channels_of(module, block) or 8)
    if reason is not None:
        raise Misfit(reason)
    guards.verify(plan.watch)
    return plan


def _tail_plan(module: nn.Module, family: type, around: BlockSpec, judged: dict) -> Tail:
    """The plan of a block that computes what its family does; of those that are alike but for the
    sizes of their layers one is judged. Raises Refusal."""
    forward = _forward_of(module, family, "tail")
    plan = read_tail(module, around, original_class(module))
    own = {name: value for name, value in module.__dict__.items() if not name.startswith("_")}
    own.pop("training")
    layers = tuple((name, original_class(m)) for name, m in module.named_modules())
    key = (forward, repr(plan), repr(own), layers)
    if key not in judged:
        channels = channels_into(module, plan) or 8
        judged[key] = verify.why_not_tail(module, forward, plan, channels)
    if judged[key] is not None:
        raise Refusal(judged[key])
    guards.verify(plan.watch)
    return plan


def _forward_of(module, family: type, way: str):
    cls = original_class(module)
    if "forward" in module.__dict__:
        raise Refusal("its forward is replaced")
    if cls.forward is not family.forward:
        raise Refusal(f"{cls.__name__} has another forward than {family.__name__}")
    try:
        fused_class(cls, way)
    except TypeError as error:
        raise Refusal(f"{cls.__name__} cannot be extended: {error}") from error
    return cls.forward


def _block_of(module, family) -> ExcitationSteps:
    try:
        block = family.adapter(module)
    except Refusal:
        raise
    except Exception as error:
        raise Misfit(f"raised {type(error).__name__}: {error}") from error
    if not isinstance(block, ExcitationSteps):
        raise Misfit(f"expected a se_kernels.ExcitationSteps, got {block!r}")
    return block
