"""fuse and unfuse: over all modules of a model."""

from collections.abc import Callable
from typing import Any

from torch import nn

from se_kernels.core import guards
from se_kernels.modules.recognition import class_path
from se_kernels.surgery import verify
from se_kernels.surgery.call import BlockPlan, plan_of
from se_kernels.surgery.match import Misfit, Refusal, channels_of, read
from se_kernels.surgery.report import FuseReport
from se_kernels.surgery.specs import Family, block_family_of, layer_family_of
from se_kernels.surgery.steps import BlockSpec, ExcitationSteps
from se_kernels.surgery.swap import fused_class, original_class, swap, swap_back

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
    plans, refused = _read_all(model, layer_family_of, {})
    for module in list(model.modules()):
        if plan_of(module) is not None:  # of before
            swap_back(module)
    for module, plan in plans.items():
        swap(module, plan)
    # by the plans of the layers in them
    blocks, apart = _read_all(model, block_family_of, plans) if level == "block" else ({}, {})
    for module, plan in blocks.items():
        swap(module, plan)
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


def _read_all(
    model: nn.Module,
    family_of: Callable[[nn.Module], Family | None],
    fused: dict[nn.Module, BlockPlan],
) -> tuple[dict[nn.Module, BlockPlan], dict[nn.Module, str]]:
    """Of the modules that have a family and are not ``fused`` yet: the plans, and why the others
    have none."""
    plans: dict[nn.Module, BlockPlan] = {}
    refused: dict[nn.Module, str] = {}
    judged: dict[tuple[object, ...], str | None] = {}
    for name, module in model.named_modules():
        family = None if module in fused else family_of(module)
        if family is None:
            continue
        try:
            plans[module] = _plan(module, family, judged)
        except Refusal as refusal:
            if family.registered and isinstance(refusal, Misfit):
                label = f"{class_path(family.cls)} {name!r}" if name else class_path(family.cls)
                raise ValueError(f"adapter of {label}: {refusal}") from refusal.__cause__
            refused[module] = str(refusal)
    return plans, refused


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
    found = model.named_modules(remove_duplicate=False)
    fused = {name: module for name, module in found if plan_of(module) is not None}
    for module in fused.values():
        swap_back(module)
    return list(fused)


def _plan(
    module: nn.Module, family: Family, judged: dict[tuple[object, ...], str | None]
) -> BlockPlan:
    """The plan of a module that computes what its family does. Of modules that are alike one is
    judged, of blocks around a layer also of those that differ in sizes only. Raises Refusal or
    Misfit."""
    forward = _forward_of(module, family.cls)
    spec = _spec_of(module, family)
    plan = read(module, spec, original_class(module))
    own = {name: value for name, value in module.__dict__.items() if not name.startswith("_")}
    own.pop("training")
    layers = tuple((name, original_class(m)) for name, m in module.named_modules())
    tensors = (*module.named_parameters(), *module.named_buffers())
    sizes = tuple((name, t.dim() if plan.norm else t.shape) for name, t in tensors)
    key = (forward, repr(plan), repr(own), layers, sizes)
    if key not in judged:
        judged[key] = verify.why_not(module, forward, plan, channels_of(module, spec))
    reason = judged[key]
    if reason is not None:
        raise Misfit(reason)
    guards.verify(plan.watch)
    return plan


def _forward_of(module: nn.Module, family: type[nn.Module]) -> Callable[..., Any]:
    cls = original_class(module)
    if "forward" in module.__dict__:
        raise Refusal("its forward is replaced")
    if cls.forward is not family.forward:
        raise Refusal(f"{cls.__name__} has another forward than {family.__name__}")
    try:
        fused_class(cls)
    except TypeError as error:
        raise Refusal(f"{cls.__name__} cannot be extended: {error}") from error
    return cls.forward


def _spec_of(module: nn.Module, family: Family) -> BlockSpec:
    if isinstance(family.spec, BlockSpec):
        return family.spec
    try:
        steps = family.spec(module)
    except Refusal:
        raise
    except Exception as error:
        raise Misfit(f"raised {type(error).__name__}: {error}") from error
    if not isinstance(steps, ExcitationSteps):
        raise Misfit(f"expected a se_kernels.ExcitationSteps, got {steps!r}")
    return BlockSpec(excitation=steps)
