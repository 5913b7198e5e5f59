"""The short way of an inference: one native call that reads, and checks, the tensors itself.

In a network the caches are full of other things when a block is called, and each step of Python and
of torch's dispatcher is then read from memory: they take longer than the block's arithmetic. Where
nobody needs to see the registered op (autograd, a tracer, a transform, a mode, the profiler), and
nothing about the arguments is out of the ordinary, neither is taken. See docs/cpu.md for figures.
"""

from torch import is_grad_enabled
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from se_kernels.core import dispatch

try:
    from torch._C import (
        _are_functorch_transforms_active,
        _get_tracing_state,
        _len_torch_dispatch_stack,
    )
    from torch.autograd import _profiler_enabled
except ImportError:  # private names: without one of them, the long way always
    _native = None
else:
    _native = dispatch.native_direct()


def can_bypass_dispatcher(backend: str | None = None) -> bool:
    """Whether nobody needs to see the registered op, and the native backend may be chosen."""
    return not (
        is_compiling()  # first: a compiler sees the rest as false
        or is_grad_enabled()
        or _native is None
        or (backend or dispatch.DEFAULT) not in (None, "cpu")
        or _len_torch_dispatch_stack()
        or _get_tracing_state() is not None
        or _are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or _profiler_enabled()
    )


if _native is not None:  # once it is open, called with no step of Python between
    # (x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post): y as of ``ops.inference``,
    # or None where the long way is to be taken, which checks and tells
    run = _native.direct_inference
    # the same with bn_weight, bn_bias, mean, var, eps and pre after them: as of
    # ``ops.norm_inference``
    run_norm = _native.direct_norm_inference
