"""BatchNormSqueezeExcite: the norm, an activation and the block as one layer."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from se_kernels.core import fast_path, guards
from se_kernels.core.activations import activate
from se_kernels.core.checks import check_tensor_type
from se_kernels.core.variants import PRES
from se_kernels.modules import norm_call
from se_kernels.modules.observers import call_observed, observers_of
from se_kernels.modules.recognition import TENSORS, class_path, is_plain, is_traced
from se_kernels.modules.squeeze_excite import PLAIN, SqueezeExcite


class BatchNormSqueezeExcite(nn.Module):
    """A drop-in for ``nn.BatchNorm2d``, an activation and ``SqueezeExcite``, one after the other.

    post(s * v + residual), where v = pre(batch norm of u) and s are the gates of v: what comes
    after the last convolution of a residual block (Fig. 3). See ``batch_norm_squeeze_excite``.

    Its children are ``bn``, an ``nn.BatchNorm2d``, and ``se``, a ``SqueezeExcite``: state dicts are
    those of the two under these names, and what is done to a batch norm is done to ``bn``:
    ``eval()`` freezes its statistics, ``convert_sync_batchnorm`` makes it an
    ``nn.SyncBatchNorm``, which works on the CPU too.

    Args:
        channels: C.
        pre: between the norm and the squeeze: "identity", "relu", "silu" or "hardswish".
        eps, momentum, affine, track_running_stats, device, dtype: as of ``nn.BatchNorm2d``.
        options: those of ``SqueezeExcite``.

    Once ``bn`` or ``se`` is hooked or replaced, or while all modules are, and for a squeeze other
    than "avg" or an excitation that has to be called, the two are called one after the other.

    Example:
        >>> tail = se_kernels.BatchNormSqueezeExcite(64, post="relu")
        >>> u = torch.randn(2, 64, 7, 7)
        >>> tail(u, residual=u).shape
        torch.Size([2, 64, 7, 7])

    Raises:
        ValueError: as of ``SqueezeExcite``, or an unknown pre.
    """

    def __init__(
        self,
        channels: int,
        *,
        pre: str = "identity",
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ):
        super().__init__()
        if pre not in PRES:
            raise ValueError(f"pre: expected one of {', '.join(PRES)}; got {pre!r}")
        self.pre = pre
        se = SqueezeExcite(channels, device=device, dtype=dtype, **options)
        self.bn = nn.BatchNorm2d(
            channels, eps, momentum, affine, track_running_stats, device=device, dtype=dtype
        )
        self.se = se

    # what initialises or freezes by the name of a class ("BatchNorm" in it) finds these
    @property
    def weight(self) -> Tensor | None:
        return self.bn.weight

    @property
    def bias(self) -> Tensor | None:
        return self.bn.bias

    def forward(self, u: Tensor, residual: Tensor | None = None) -> Tensor:
        """u (N, C, H, W) and residual, of u's shape and dtype or None, to y (N, C, H, W)."""
        if torch.jit.is_scripting():
            y: Tensor = self.se(activate(self.bn(u), self.pre), residual)
            return y
        else:  # TorchScript does not compile it
            return run_norm(self.bn, self.se, u, residual, pre=self.pre)

    def extra_repr(self) -> str:
        return f"pre={self.pre!r}"


def run_norm(
    norm: nn.Module,
    se: Any,  # a module
    u: Tensor,
    residual: Tensor | None = None,
    *,
    pre: str = "identity",
) -> Tensor:
    """``se(pre(norm(u)), residual)``, in one call where ``norm`` is a plain batch norm and ``se`` a
    plain ``SqueezeExcite``."""
    if fast_path.can_bypass_dispatcher(se.__dict__.get("backend")):
        y = _infer(norm, se, u, residual, pre)
        if y is not None:
            return y
    observers = observers_of(se) if _is_one_call(norm, se, u) else None
    fcs = se.fcs() if observers is not None else None
    if fcs is None:
        if not is_traced(u):
            check_tensor_type("u", u)
        v = norm_call.normed(norm, u, pre).to(u.dtype) if _is_sharded(norm, u) else None
        v = activate(norm(u), pre) if v is None else v
        # one in its place may take v alone
        apart: Tensor = se(v) if residual is None else se(v, residual)
        return apart
    if residual is u and torch.compiler.is_compiling():
        residual = u.view_as(u)  # Dynamo gives no autograd.Function a tensor twice
    call = partial(
        norm_call.run,
        norm,
        u,
        *fcs,
        pre=pre,
        act=se.act,
        act_slope=se.act_slope,
        gate=se.gate,
        residual=residual,
        post=se.post,
        backend=se.backend,
    )
    return (
        call_observed(observers, call, partial(norm_call.normed, norm, u, pre))
        if observers
        else call()
    )


def _is_one_call(norm: nn.Module, se: Any, u: Tensor) -> bool:
    """Whether the fused op computes what calls of the two do, as far as they are not hooked."""
    return (
        type(u) in TENSORS
        and not is_traced(u)
        and norm_call.is_batch_norm(norm)
        and guards.is_valid(se, _OBSERVED)
        and se.squeeze == "avg"
    )


def _is_sharded(norm: nn.Module, u: Tensor) -> bool:
    """Whether u is a DTensor that a norm in evaluation mode can leave sharded, image by image:
    torch's own call gathers it on every process."""
    return (
        class_path(type(u)) == "torch.distributed.tensor.DTensor"
        and is_plain(norm, *norm_call.NORMS)
        and not norm_call.is_of_the_batch(norm)
    )


def _infer(norm: nn.Module, se: Any, u: Tensor, residual: Tensor | None, pre: str) -> Tensor | None:
    """y of an inference, past autograd and ops; None where the long way is to be taken."""
    of_norm = norm_call.inferred_with(norm)
    if of_norm is None or not guards.is_valid(se, PLAIN):
        return None
    of_se = se.__dict__
    return fast_path.run_norm(
        u,
        *se.weights(),
        residual,
        of_se["squeeze"],
        of_se["act"],
        of_se["act_slope"],
        of_se["gate"],
        of_se["post"],
        *of_norm,
        pre,
    )


_OBSERVED = guards.watch_class(SqueezeExcite, guards.OBSERVED)
