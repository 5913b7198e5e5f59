"""Drop-in: the SE modules of a model people have, fused in place.

families (which class is which block) → reading (a module as a plan) → probe (is that what it
computes) → swap (the class of the module) → run (a call). See ``fuse``.
"""

from se_kernels.fusion.block import Block
from se_kernels.fusion.families import register_family
from se_kernels.fusion.fuse import fuse, unfuse
from se_kernels.fusion.report import FuseReport

__all__ = ["Block", "FuseReport", "fuse", "register_family", "unfuse"]
