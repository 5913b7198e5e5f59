"""Looking inside the gates of a network's SE blocks (section 7.2).

layers (the SE blocks of a model) → record (s of each, during inference) → moments (over many images).
"""

from se_kernels.gates.moments import Moments
from se_kernels.gates.record import Gates, record_gates

__all__ = ["Gates", "Moments", "record_gates"]
