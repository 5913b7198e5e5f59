"""The short ways on the CPU: of an inference, one native call that reads, and checks, the tensors
itself; of a node of the graph, the backend's function without the registered op around it.

In a network the caches are full of other things when a block is called, and each step of Python and
of torch's dispatcher is then read from memory: they take longer than the block's arithmetic. Where
nobody needs to see the registered op (a tracer, a transform, a mode, the profiler; for an inference
autograd), and nothing about the arguments is out of the ordinary, neither is taken. See docs/cpu.md
for figures.
"""

from torch import is_grad_enabled
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from se_kernels.core import dispatch

try:
    from torch._C import (
        DispatchKey,
        _are_functorch_transforms_active,
        _dispatch_tls_is_dispatch_key_included,
        _get_tracing_state,
        _len_torch_dispatch_stack,
        _len_torch_function_stack,
    )
    from torch.autograd import _profiler_enabled
    from torch.overrides import _get_current_function_mode_stack
except ImportError:  # private names: without one of them, the long way always
    _native = None
else:
    _native = dispatch.native_core()
    _PRE_DISPATCH = DispatchKey.PreDispatch


def can_bypass_dispatcher(backend: str | None = None) -> bool:
    """Whether nobody needs to see the registered op, and the native backend may be chosen."""
    return not (
        is_compiling()  # first: a compiler sees the rest as false
        or is_grad_enabled()
        or (backend or dispatch.DEFAULT) not in (None, "cpu")
        or is_op_seen()
        or (_len_torch_function_stack() and is_function_seen())
    )


def is_function_seen() -> bool:
    """Whether a TorchFunctionMode, which is not torch's own as of a default device, hears of the
    functions that a module calls."""
    return (
        _native is not None
        and _len_torch_function_stack() > 0
        and any(
            not type(mode).__module__.startswith("torch.")
            for mode in _get_current_function_mode_stack()
        )
    )


def is_op_seen() -> bool:
    """Whether somebody beside autograd needs to see a call of the registered op."""
    return (
        _native is None
        or bool(_len_torch_dispatch_stack())
        or _dispatch_tls_is_dispatch_key_included(_PRE_DISPATCH)  # modes above autograd
        or _get_tracing_state() is not None
        or _are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or _profiler_enabled()
    )


if _native is not None:  # once it is open, called with no step of Python between
    # (x, w1, w2, b1, b2, residual, squeeze, act, act_slope, gate, post): y as of ``ops.inference``,
    # or None where the long way is to be taken, which checks and tells
    run = _native.fast_path_inference
    # the same with bn_weight, bn_bias, mean, var, eps and pre after them: as of
    # ``ops.norm_inference``
    run_norm = _native.fast_path_norm_inference
    # (arguments of an op): whether all its tensors are plain ones on the CPU with numbers, so that
    # the dispatcher would do no more than call the kernel
    are_plain = _native.fast_path_are_plain
