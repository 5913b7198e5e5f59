"""record_gates: s of every SE block while a model runs.

Hooks on the SE blocks, there for the duration only, listen to the library's registered ops: what is
recorded is the s that the block used, and x is read as often as ever; a block fused with its norm
is squeezed twice in inference. Where no op runs (a block of separate operations, the reference), s
is computed once more, by the definition.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from se_kernels.core import ops
from se_kernels.core.precision import compute_dtype
from se_kernels.gates.layers import gates_of, se_layers
from se_kernels.modules.observers import Observer


class Gates(Mapping[str, Tensor]):
    """name of an SE block → s (N, C), the images of all calls one after the other.

    In float32, or float64 where x or the weights are, without gradients, on the device of x. Only
    blocks that were called are among the keys, in the order of the model.
    """

    def __init__(self, layers: Iterable[str]):
        self._calls: dict[str, list[Tensor]] = {name: [] for name in layers}

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of all blocks that are listened to, called or not."""
        return tuple(self._calls)

    def clear(self) -> None:
        """Forgets what was recorded: a long run takes its sums and clears after every batch."""
        for calls in self._calls.values():
            calls.clear()

    def add(self, name: str, s: Tensor) -> None:
        """A copy of s: of inference mode and of the block's own memory it knows nothing."""
        with torch.inference_mode(False), torch.no_grad():
            self._calls[name].append(s.clone())

    def __getitem__(self, name: str) -> Tensor:
        calls = self._calls.get(name)
        if calls is None:
            raise KeyError(f"expected one of {', '.join(self._calls)}; got {name!r}")
        if not calls:
            raise KeyError(
                f"{name!r} was not called yet (a model compiled before record_gates calls no block)"
            )
        if len(calls) > 1:
            calls[:] = [torch.cat(calls)]
        return calls[0]

    def __iter__(self) -> Iterator[str]:
        return (name for name, calls in self._calls.items() if calls)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@contextmanager
def record_gates(model: nn.Module, layers: Iterable[str] | None = None) -> Iterator[Gates]:
    """Records s, the gates of equation 3, of every SE block while the context lasts.

    The outputs are those of the model without a recorder. With gradients on, they flow as ever;
    what is recorded has none. Each image costs 4 bytes for each channel of an SE block, 60 kB in
    SE-ResNet-50, until the ``Gates`` are cleared or dropped; they stay readable after the context.

    Recorded are the calls of the thread that entered the context; other threads may use the model
    meanwhile. Contexts nest, each with its own ``Gates``.

    Args:
        model: any module, with ``se_kernels.SqueezeExcite``, blocks of ``se_kernels.models``,
            fused or eager, or other libraries' after ``fuse``.
        layers: the names of the blocks to listen to; None for all.

    Example:
        >>> model = se_kernels.models.se_resnet50().eval()
        >>> with torch.inference_mode(), se_kernels.record_gates(model) as gates:
        ...     y = model(torch.randn(2, 3, 64, 64))
        >>> gates["layer1.0.se"].shape
        torch.Size([2, 256])

    Raises:
        TypeError: ``model`` is not a module, or ``layers`` is one string.
        ValueError: it has no SE block, or none of a name in ``layers``; or it is compiled.
        RuntimeError: in a call: the model is traced, under a torch.func transform, or holds a norm
            in training mode inside a block whose excitation would have to run twice.
    """
    found = se_layers(model)
    if isinstance(layers, str):
        raise TypeError(f"layers: expected several names, got the string {layers!r}")
    if layers is not None:
        layers = list(layers)
        unknown = [name for name in layers if name not in found]
        if unknown:
            raise ValueError(f"layers: expected some of {', '.join(found)}; got {unknown[0]!r}")
        found = {name: module for name, module in found.items() if name in layers}
    _check_not_compiled(model)
    gates = Gates(found)
    with ExitStack() as stack:
        for name, module in found.items():
            stack.enter_context(_Recorder(name, module, gates).attached(module))
        yield gates


class _Recorder(Observer):
    """Records the calls of one SE block by the thread that has made it."""

    def __init__(self, name: str, module: nn.Module, gates: Gates):
        self.name, self.module, self.gates = name, module, gates
        self.thread = threading.get_ident()
        self.ears: list[Any] = []
        self.is_open = True  # a copy of the module made meanwhile keeps the hooks

    @contextmanager
    def attached(self, module: nn.Module) -> Iterator[None]:
        with super().attached(module):
            try:
                yield
            finally:
                self.is_open = False

    def begin(self) -> None:
        if self.is_open and threading.get_ident() == self.thread:
            _check_plain_call(self.name)
            self.ears.append(OpRecorder())  # type: ignore[no-untyped-call]
            self.ears[-1].__enter__()

    def end(self, y: Tensor | None, x_of: Callable[[], Tensor]) -> None:
        if not self.ears or threading.get_ident() != self.thread:
            return
        ear = self.ears.pop()
        ear.__exit__(None, None, None)
        if y is not None:  # else its forward has raised
            s = ear.s if ear.s is not None else _again(self.name, self.module, x_of)
            self.gates.add(self.name, s)


class OpRecorder(TorchDispatchMode):
    """Hears the registered ops of one call of a block; ``s`` (N, C) or None."""

    s: Tensor | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is ops.inference:  # the same y; forward returns s too
            y, *_, self.s = ops.forward(*args)
            return y
        out = func(*args, **(kwargs or {}))
        if func is ops.forward:
            self.s = out[4]
        elif func is ops.scale:
            self.s = args[1]
        elif func is ops.norm_forward:
            self.s = _norm_gates(args[0], out)
        elif func is ops.norm_inference:  # which does not return it
            self.s = _norm_gates(args[0], _forward_of(*args))
        return out


def _norm_gates(u: Tensor, results: tuple[Tensor, ...]) -> Tensor:
    """s (N, C), among what ``ops.norm_forward`` returns."""
    return results[2][4 + u.shape[0] :]


def _forward_of(*arguments: Any) -> Any:
    """``ops.norm_forward`` for the arguments of ``ops.norm_inference``."""
    u, bn_weight, bn_bias, mean, var, eps, w1, w2, b1, b2, residual, *variant, backend = arguments
    return ops.norm_forward(
        u, bn_weight, bn_bias, mean, var, None, w1, w2, b1, b2, residual, False, 0.0, eps,
        *variant, False, backend,
    )  # fmt: skip


def _again(name: str, module: nn.Module, x_of: Callable[[], Tensor]) -> Tensor:
    if module.training and any(True for _ in module.buffers()):
        raise RuntimeError(
            f"record_gates: expected eval mode: {name!r} holds a norm, and its excitation has to "
            "run once more, which would move the norm's statistics"
        )
    with torch.no_grad():
        x = x_of()
        s = gates_of(module, x)
        return s.to(compute_dtype(x, s))


def _check_plain_call(name: str) -> None:
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        raise RuntimeError(f"record_gates: expected a plain call of {name!r}, not a traced one")
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(f"record_gates: expected no torch.func transform around {name!r}")


def _check_not_compiled(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
            where = f"{name!r} of it" if name else "it"
            raise ValueError(
                f"model: expected one that is not compiled, as compiled code calls no block; "
                f"{where} is (torch.compile keeps the original as _orig_mod)"
            )
