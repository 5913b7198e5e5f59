"""The names that a pickle of a fused model holds. They stay, whatever moves behind them.

A pickle names the fused classes, and what their plans are made of, as attributes of this module.
"""

from torch import nn

from se_kernels.core.guards import Watch, functions_of
from se_kernels.surgery.call import BlockPlan
from se_kernels.surgery.earlier_pickles import Outdated
from se_kernels.surgery.swap import class_named

for _part in (BlockPlan, Watch, functions_of):
    _part.__module__ = __name__
Plan = Tail = Outdated  # of a layer and of a block, before they were one


def __getattr__(name: str) -> type[nn.Module]:
    return class_named(name)
