"""Drop-in: the SE modules of a model people have, fused in place.

specs (which class is which block) → match (a module as a plan) → verify (is that what it
computes) → swap (the class of the module) → call. See ``fuse``.
"""

from se_kernels.core.guards import Watch, functions_of
from se_kernels.surgery import earlier_pickles
from se_kernels.surgery.block_call import Tail
from se_kernels.surgery.call import Plan
from se_kernels.surgery.fuse import fuse, unfuse
from se_kernels.surgery.report import FuseReport
from se_kernels.surgery.specs import register_family
from se_kernels.surgery.steps import ExcitationSteps

# what a pickle of a fused model names, or named, beside the classes of its modules
SAFE_GLOBALS = (Plan, Tail, Watch, functions_of, *earlier_pickles.SAFE_GLOBALS)

__all__ = ["SAFE_GLOBALS", "ExcitationSteps", "FuseReport", "fuse", "register_family", "unfuse"]
