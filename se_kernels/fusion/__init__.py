"""Drop-in: the SE modules of a model people have, fused in place.

families (which class is which block) → reading (a module as a plan) → probe (is that what it
computes) → swap (the class of the module) → run (a call). See ``fuse``.
"""

from se_kernels.fusion.block import Block
from se_kernels.fusion.families import register_family
from se_kernels.fusion.fuse import fuse, unfuse
from se_kernels.fusion.report import FuseReport
from se_kernels.fusion.run import Plan
from se_kernels.fusion.tail import Tail
from se_kernels.guards import Watch, functions_of

# what a pickle of a fused model names beside the classes of its modules
SAFE_GLOBALS = (Plan, Tail, Watch, functions_of)

__all__ = ["SAFE_GLOBALS", "Block", "FuseReport", "fuse", "register_family", "unfuse"]
