"""Hooks on an SE block that observe its calls and change nothing.

A fused call of a norm and its block no longer calls the block's module, and gives way if that has
hooks. Observers are the exception: the fused call notifies them itself.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from se_kernels.core import guards

Args = tuple[Any, ...]  # of a call
Kwargs = dict[str, Any]


class Observer:
    """Observes the calls of one module while ``attached``. A subclass defines both methods."""

    def begin(self) -> None:
        """The block is about to be computed."""
        raise NotImplementedError

    def end(self, y: Tensor | None, x_of: Callable[[], Tensor]) -> None:
        """It was: y, or None where that has failed. ``x_of`` gives the block's x."""
        raise NotImplementedError

    @contextmanager
    def attached(self, module: nn.Module) -> Iterator[None]:
        # the last before the call and the first after it, so that contexts nest
        entry = module.register_forward_pre_hook(self.before, with_kwargs=True)
        leave = module.register_forward_hook(
            self.after, with_kwargs=True, prepend=True, always_call=True
        )
        try:
            yield
        finally:
            entry.remove()
            leave.remove()

    def before(self, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        self.begin()

    def after(self, module: nn.Module, args: Args, kwargs: Kwargs, y: Tensor | None) -> None:
        self.end(y, lambda: inputs_of(args, kwargs)[0])


def inputs_of(args: Args, kwargs: Kwargs) -> tuple[Tensor, Tensor | None]:
    """x and residual of a call of an SE block; x has another name in every library."""
    named = dict(kwargs)
    residual = named.pop("residual", None)
    x, *rest = (*args, *named.values())
    return x, rest[0] if rest else residual


def observers_of(module: nn.Module) -> tuple[Observer, ...] | None:
    """Those attached, in the order of their calls; None where a call is intercepted otherwise."""
    state = module.__dict__
    if not guards.is_intercepted(module):
        return ()
    if state["_backward_hooks"] or state["_backward_pre_hooks"] or guards.is_redirected(state):
        return None
    before: list[Any] = [getattr(h, "__self__", None) for h in state["_forward_pre_hooks"].values()]
    after = [getattr(hook, "__self__", None) for hook in state["_forward_hooks"].values()]
    hear = all(isinstance(observer, Observer) for observer in (*before, *after))
    return tuple(before) if hear and before == after[::-1] else None


def call_observed(
    observers: tuple[Observer, ...], call: Callable[[], Tensor], x_of: Callable[[], Tensor]
) -> Tensor:
    """``call()``, with the observers notified as by a call of their module."""
    if not observers:
        return call()
    y: Tensor | None = None
    begun: list[Observer] = []
    try:
        for observer in observers:
            observer.begin()
            begun.append(observer)
        y = call()
        return y
    finally:
        for observer in reversed(begun):
            observer.end(y, x_of)
