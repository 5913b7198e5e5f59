"""fuse and unfuse: over all modules of a model."""

from torch import nn

from se_kernels.fusion import probe
from se_kernels.fusion.block import Block
from se_kernels.fusion.families import Family, family_of
from se_kernels.fusion.reading import Misfit, Refusal, channels_of, read
from se_kernels.fusion.report import FuseReport
from se_kernels.fusion.run import Plan
from se_kernels.fusion.swap import fused_class, original_class, plan_of, swap, swap_back
from se_kernels.module import SqueezeExcite
from se_kernels.pieces import class_path


def fuse(model: nn.Module) -> FuseReport:
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

    Returns:
        What was fused, what was skipped and why; print it.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: an adapter of ``register_family`` does not describe its module. Nothing is
            fused then.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
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
    for module, plan in plans.items():
        swap(module, plan)
    for module in refused:
        if plan_of(module) is not None:
            swap_back(module)
    report = FuseReport(original_class(model).__name__)
    for name, module in model.named_modules(remove_duplicate=False):
        if module in plans:
            report.fused[name] = class_path(original_class(module))
        elif module in refused:
            report.skipped[name] = refused[module]
    return report


def unfuse(model: nn.Module) -> list[str]:
    """Makes every module of ``model`` that ``fuse`` fused what it was; returns their names.

    Raises:
        TypeError: ``model`` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    names = [
        name for name, m in model.named_modules(remove_duplicate=False) if plan_of(m) is not None
    ]
    for module in list(model.modules()):
        if plan_of(module) is not None:
            swap_back(module)
    return names


def _plan(module: nn.Module, family: Family) -> Plan:
    """The plan of a module that computes its family's block. Raises Refusal or Misfit."""
    forward = _forward_of(module, family)
    block = _block_of(module, family)
    plan = read(module, block)
    reason = probe.why_not(module, forward, plan, channels_of(module, block) or 8)
    if reason is not None:
        raise Misfit(reason)
    return plan


def _forward_of(module, family):
    cls = original_class(module)
    if "forward" in module.__dict__:
        raise Refusal("its forward is replaced")
    if cls.forward is not family.cls.forward:
        raise Refusal(f"{cls.__name__} has another forward than {family.cls.__name__}")
    try:
        fused_class(cls)
    except TypeError as error:
        raise Refusal(f"{cls.__name__} cannot be extended: {error}") from error
    return cls.forward


def _block_of(module, family) -> Block:
    try:
        block = family.adapter(module)
    except Refusal:
        raise
    except Exception as error:
        raise Misfit(f"raised {type(error).__name__}: {error}") from error
    if not isinstance(block, Block):
        raise Misfit(f"expected a se_kernels.Block, got {block!r}")
    return block
