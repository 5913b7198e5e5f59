"""The SE blocks of a model whose gates can be had, and how each computes s."""

from typing import Any

from torch import Tensor, nn

from se_kernels.models.se import EagerSqueezeExcite
from se_kernels.modules.squeeze_excite import SqueezeExcite
from se_kernels.surgery.call import gates, layer_plan_of


def se_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Name, as in ``named_modules``, → SE block; one that has several names under the first.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: it has no such block.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    layers = {name: module for name, module in model.named_modules() if _has_gates(module)}
    if not layers:
        raise ValueError(
            "model: expected SE blocks (se_kernels.SqueezeExcite, those of se_kernels.models, or "
            f"other libraries' after se_kernels.fuse), found none in {type(model).__name__}"
        )
    return layers


def gates_of(module: Any, x: Tensor) -> Tensor:
    """s (N, C) of x by the definition of ``module``, one of ``se_layers``."""
    plan = layer_plan_of(module)
    if plan is not None:
        return gates(module, plan, x)
    if isinstance(module, EagerSqueezeExcite):
        return module.excite(x).flatten(1)
    s: Tensor = module.gates(x)
    return s


def _has_gates(module: nn.Module) -> bool:
    if isinstance(module, EagerSqueezeExcite):
        return module.squeeze is not None  # without a squeeze s has a number for every pixel
    return isinstance(module, SqueezeExcite) or layer_plan_of(module) is not None
