"""The names that a pickle of a fused model holds. They stay, whatever moves behind them.

A pickle names the fused classes, and what their plans are made of, as attributes of this module.
"""

from torch import nn

from se_kernels.core.guards import Watch, functions_of
from se_kernels.surgery.block_call import Tail
from se_kernels.surgery.call import Plan
from se_kernels.surgery.swap import class_named

for _part in (Plan, Tail, Watch, functions_of):
    _part.__module__ = __name__


def __getattr__(name: str) -> type[nn.Module]:
    return class_named(name)
