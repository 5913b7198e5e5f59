"""Fused squeeze-and-excitation blocks ("Squeeze-and-Excitation Networks", Hu et al.)."""

from se_kernels import models, reference
from se_kernels._version import __version__
from se_kernels.dispatch import available_backends
from se_kernels.functional import scale, squeeze, squeeze_excite
from se_kernels.module import SqueezeExcite

__all__ = [
    "SqueezeExcite",
    "__version__",
    "available_backends",
    "models",
    "reference",
    "scale",
    "squeeze",
    "squeeze_excite",
]
