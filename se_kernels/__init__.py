"""Fused squeeze-and-excitation blocks ("Squeeze-and-Excitation Networks", Hu et al.)."""

from se_kernels import _requirements, models, reference  # _requirements first
from se_kernels import flops as _flops  # noqa: F401 - registers them
from se_kernels.dispatch import available_backends
from se_kernels.functional import scale, squeeze, squeeze_excite
from se_kernels.fusion import Block, FuseReport, fuse, register_family, unfuse
from se_kernels.gates import ConstantGate, Gates, PruneReport, prune_by_gate, record_gates
from se_kernels.module import SqueezeExcite
from se_kernels.norm import BatchNormSqueezeExcite, batch_norm_squeeze_excite

__version__ = _requirements.version()

__all__ = [
    "BatchNormSqueezeExcite",
    "Block",
    "ConstantGate",
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
