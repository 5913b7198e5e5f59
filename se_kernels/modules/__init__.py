"""The layers, and how a module of any network is recognised and heard."""

from se_kernels.modules.batch_norm import BatchNormSqueezeExcite
from se_kernels.modules.squeeze_excite import SqueezeExcite

__all__ = ["BatchNormSqueezeExcite", "SqueezeExcite"]
