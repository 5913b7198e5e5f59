"""The names that pickles of earlier versions hold, and what stands for them.

They name modules that are gone, and plans of other fields: what they hold is read anew where it is
loaded, as ``fuse`` reads it.
"""

import sys
import types

from torch import nn

from se_kernels.modules.batch_norm import BatchNormSqueezeExcite
from se_kernels.modules.squeeze_excite import SqueezeExcite
from se_kernels.surgery.swap import class_named, fused_class


class Outdated(tuple):
    """What was part of a plan, without its fields."""

    def __new__(cls, *fields):
        return super().__new__(cls)


def restore(cls: type[nn.Module], way: str, *arguments) -> nn.Module:
    """A fused module of original class ``cls``, still empty."""
    fused = fused_class(cls, way)
    return fused.__new__(fused, *arguments)


_NAMES = {
    "se_kernels.fusion.swap": dict(restore=restore),
    "se_kernels.fusion.run": dict(Plan=Outdated, Piece=Outdated),
    "se_kernels.fusion.tail": dict(Tail=Outdated, Part=Outdated),
    "se_kernels.guards": dict(Watch=Outdated, functions_of=Outdated),
    "se_kernels.module": dict(SqueezeExcite=SqueezeExcite),
    "se_kernels.norm.module": dict(BatchNormSqueezeExcite=BatchNormSqueezeExcite),
}
for _name, _parts in _NAMES.items():
    sys.modules[_name] = types.ModuleType(_name)
    vars(sys.modules[_name]).update(_parts)
vars(sys.modules["se_kernels.fusion.swap"])["__getattr__"] = class_named

# each with its name of then, as torch.serialization takes them
SAFE_GLOBALS = tuple(
    (part, f"{module}.{name}") for module, parts in _NAMES.items() for name, part in parts.items()
)
