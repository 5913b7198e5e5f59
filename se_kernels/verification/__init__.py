"""``python -m se_kernels check``: every backend of this machine against the definition in float64.

    from se_kernels.verification import Trial, block_case
    Trial("block", block_case.Case(shape=(8, 64, 14, 14), reduced=4)).verify("cpu", "cpu")

raises ``Mismatch`` where y or a gradient is off by more than its roundings; ``norm_case`` has the
cases with a batch norm before the block.
"""

from se_kernels.verification import block_case, norm_case
from se_kernels.verification.judge import Mismatch
from se_kernels.verification.trial import Trial

__all__ = ["Mismatch", "Trial", "block_case", "norm_case"]
