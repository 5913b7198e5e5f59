"""Fused squeeze-and-excitation blocks ("Squeeze-and-Excitation Networks", Hu et al.)."""

from se_kernels import _requirements, models, reference  # _requirements first
from se_kernels.core import flops as _flops  # noqa: F401 - registers them
from se_kernels.core.dispatch import available_backends
from se_kernels.functional import batch_norm_squeeze_excite, scale, squeeze, squeeze_excite
from se_kernels.gates import ConstantGate, Gates, PruneReport, prune_by_gate, record_gates
from se_kernels.modules import BatchNormSqueezeExcite, SqueezeExcite
from se_kernels.surgery import ExcitationSteps, FuseReport, fuse, register_family, unfuse

Block = ExcitationSteps  # its old name, for one release

__version__ = _requirements.version()

__all__ = [
    "BatchNormSqueezeExcite",
    "ConstantGate",
    "ExcitationSteps",
    "FuseReport",
    "Gates",
    "PruneReport",
    "SqueezeExcite",
    "__version__",
    "available_backends",
    "batch_norm_squeeze_excite",
    "fuse",
    "models",
    "prune_by_gate",
    "record_gates",
    "reference",
    "register_family",
    "scale",
    "squeeze",
    "squeeze_excite",
    "unfuse",
]
