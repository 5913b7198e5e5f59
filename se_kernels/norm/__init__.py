"""A batch norm and an activation fused with the block after them: the tail of Fig. 3."""

from se_kernels.norm.functional import batch_norm_squeeze_excite
from se_kernels.norm.module import BatchNormSqueezeExcite

__all__ = ["BatchNormSqueezeExcite", "batch_norm_squeeze_excite"]
