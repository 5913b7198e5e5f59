"""The names that a pickle of a fused model holds. They stay, whatever moves behind them.

A pickle names the fused classes, and what their plans are made of, as attributes of this module.
One that is older than this module names modules that are gone, and plans of other fields: what it
holds is read anew where it is loaded, as ``fuse`` reads it.
"""

import sys
import types

from torch import nn

from se_kernels.core.guards import Watch, functions_of
from se_kernels.modules.batch_norm import BatchNormSqueezeExcite
from se_kernels.modules.squeeze_excite import SqueezeExcite
from se_kernels.surgery.call import BlockPlan
from se_kernels.surgery.swap import class_named, fused_class

for _part in (BlockPlan, Watch, functions_of):
    _part.__module__ = __name__


def __getattr__(name: str) -> type[nn.Module]:
    return class_named(name)


class Outdated(tuple[()]):
    """What was part of a plan, without its fields."""

    def __new__(cls, *fields: object) -> "Outdated":
        return super().__new__(cls)


Plan = Tail = Outdated  # of a layer and of a block, before they were one


def restore(cls: type[nn.Module], way: str, *arguments: object) -> nn.Module:
    """A fused module of original class ``cls``, still empty."""
    fused = fused_class(cls)
    return fused.__new__(fused, *arguments)


_MOVED: dict[str, dict[str, object]] = {
    "se_kernels.fusion.swap": dict(restore=restore, __getattr__=__getattr__),
    "se_kernels.fusion.run": dict(Plan=Outdated, Piece=Outdated),
    "se_kernels.fusion.tail": dict(Tail=Outdated, Part=Outdated),
    "se_kernels.guards": dict(Watch=Outdated, functions_of=Outdated),
    "se_kernels.module": dict(SqueezeExcite=SqueezeExcite),
    "se_kernels.norm.module": dict(BatchNormSqueezeExcite=BatchNormSqueezeExcite),
}
for _name, _parts in _MOVED.items():
    sys.modules[_name] = types.ModuleType(_name)
    vars(sys.modules[_name]).update(_parts)
