"""ConstantGate: what is left of a pruned SE block."""

import torch.nn.functional as F
from torch import Tensor, nn

from se_kernels.core.checks import DTYPES, check_tensor_type
from se_kernels.core.variants import POSTS
from se_kernels.functional import scale


class ConstantGate(nn.Module):
    """post(s * x + residual) with the same s (C,) for every image: no pooling, no FCs.

    Args:
        s: (C,), kept as a buffer; None for 1, which takes no multiplication.
        post: "none", or "relu" after the addition of the residual.
        nhwc: x is (N, H, W, C) rather than (N, C, H, W).

    Raises:
        TypeError: s is no tensor.
        ValueError: s of another shape or dtype, or an unknown post.

    Example:
        >>> se_kernels.ConstantGate(torch.tensor([0.5, 2.0]))(torch.ones(1, 2, 1, 1)).flatten()
        tensor([0.5000, 2.0000])
    """

    s: Tensor | None

    def __init__(self, s: Tensor | None = None, *, post: str = "none", nhwc: bool = False):
        super().__init__()
        if s is not None:
            check_tensor_type("s", s)
            if s.dim() != 1 or s.dtype not in DTYPES:
                raise ValueError(
                    f"s: expected shape (C,) and a float dtype, got {s.shape}, {s.dtype}"
                )
        if post not in POSTS:
            raise ValueError(f"post: expected one of {', '.join(POSTS)}; got {post!r}")
        self.post, self.nhwc = post, nhwc
        self.register_buffer("s", s)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x and residual, of x's shape or None, to y; x itself where there is nothing to do."""
        if self.s is None:
            y = x if residual is None else x + residual
            return F.relu(y) if self.post == "relu" else y
        x = x.permute(0, 3, 1, 2) if self.nhwc else x
        y = scale(x, self.s.expand(len(x), -1), residual, post=self.post)
        return y.permute(0, 2, 3, 1) if self.nhwc else y

    def extra_repr(self) -> str:
        parts = ["s=1" if self.s is None else f"channels={len(self.s)}"]
        if self.post != "none":
            parts.append(f"post={self.post!r}")
        return ", ".join(parts)
