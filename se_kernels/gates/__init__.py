"""Looking inside the gates of a network's SE blocks, and pruning by them (sections 7.2 and 8).

layers (the SE blocks of a model) → record (s of each, during inference) → prune (blocks that need
no gate, replaced by a constant).
"""

from se_kernels.gates.constant import ConstantGate
from se_kernels.gates.layers import se_layers
from se_kernels.gates.moments import Moments
from se_kernels.gates.prune import prune_by_gate
from se_kernels.gates.prune_report import PruneReport
from se_kernels.gates.record import Gates, record_gates

__all__ = [
    "ConstantGate",
    "Gates",
    "Moments",
    "PruneReport",
    "prune_by_gate",
    "record_gates",
    "se_layers",
]
