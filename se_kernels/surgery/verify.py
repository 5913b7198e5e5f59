"""The final judge: does the fused block compute what the module computes?

Both run on random images with random parameters, in float64 on the CPU, forward and backward. The
module's own parameters may be such that a wrong block would not show (zeros), may be on a device
that is slow to ask, or nowhere (meta): so they are lent others for the time, and nothing of the
module, nor the global random numbers, is changed.
"""

import contextlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from se_kernels.surgery.call import BlockPlan, run

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_TOLERANCE = 1e-5  # of the largest number; a forward may have a float32 step inside


Forward = Callable[[nn.Module, Tensor], Tensor]


def why_not(module: nn.Module, forward: Forward, plan: BlockPlan, channels: int) -> str | None:
    """None where ``forward(module, x)`` is what the plan computes, else how they differ.

    The modules inside a layer stay in evaluation mode; of any other block they are in training mode
    for the gradients, and the statistics of its norms are compared.
    """
    with _undisturbed(module):
        return _difference(module, forward, plan, channels)


def _difference(module: nn.Module, forward: Forward, plan: BlockPlan, channels: int) -> str | None:
    is_layer = not plan.norm

    def of_plan(module: nn.Module, x: Tensor) -> Tensor:
        return run(module, plan, x, backend="reference")

    shape: tuple[int, ...] = (2, channels, 8, 4)
    if is_layer:
        shape = (2, 2, 3, channels) if plan.nhwc else (2, channels, 2, 3)
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.rand, generator=generator, dtype=torch.float64, device="cpu")
    x = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    lent = {name: _parameter(p, draw) for name, p in module.named_parameters()}
    lent |= {name: _buffer(b, draw) for name, b in module.named_buffers()}

    for training in (False, True):
        for m in (module,) if is_layer else module.modules():
            m.training = training
        outcomes = []
        for name, function in (("forward", forward), ("block", of_plan)):
            try:
                outcomes.append(_outcome(module, function, lent, x, training, is_layer))
            except Exception as error:
                return f"its {name} fails on x {shape} in float64: {_first_line(error)}"
        expected, results = outcomes
        if results.keys() != expected.keys():
            return "computes something else than its block"
        largest = max(t.abs().max() for t in expected.values() if t is not None and t.numel())
        for name, value in expected.items():
            if not _same(results[name], value, largest):
                return f"computes something else than its block: {name} differs"
    return None


class _Lending(nn.Module):
    """Around a module, so that ``functional_call`` calls no hook of it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, function: Forward, x: Tensor) -> Tensor:
        return function(self.module, x)


def _outcome(
    module: nn.Module,
    function: Forward,
    lent: dict[str, Tensor],
    x: Tensor,
    training: bool,
    keeps_shape: bool,
) -> dict[str, Tensor | None]:
    """y, the buffers and, in training, the gradients of x and of the parameters."""
    leaves = {f"module.{name}": t.detach().clone() for name, t in lent.items()}
    wanted: dict[str, Tensor] = {}
    if training:
        x = x.detach().requires_grad_()
        names = (f"module.{name}" for name, _ in module.named_parameters())
        wanted = {"x": x} | {name: leaves[name].requires_grad_() for name in names}
    torch.default_generator.manual_seed(0)  # for what is dropped
    y = torch.func.functional_call(_Lending(module), leaves, (function, 1 * x))
    if not isinstance(y, Tensor) or (keeps_shape and y.shape != x.shape):
        raise ValueError(f"expected a tensor of the shape of x, got {getattr(y, 'shape', type(y))}")
    generator = torch.Generator().manual_seed(1)
    dy = torch.randn(y.shape, generator=generator, dtype=y.dtype, device="cpu")
    grads = torch.autograd.grad(y, list(wanted.values()), dy, allow_unused=True) if wanted else ()
    named = (f"the gradient of {name.removeprefix('module.')}" for name in wanted)
    buffers = {name: leaves[f"module.{name}"] for name, _ in module.named_buffers()}
    return {"y": y.detach(), **buffers, **dict(zip(named, grads, strict=True))}


def _parameter(p: Tensor, draw: Callable[..., Tensor]) -> Tensor:
    """Uniform numbers, such that a sum of as many inputs as p has is of size 2."""
    inputs = math.prod(p.shape[1:]) if p.dim() > 1 else 1
    return (draw(p.shape) - 0.5) * (2 * math.sqrt(12 / max(inputs, 1)))


def _buffer(b: Tensor, draw: Callable[..., Tensor]) -> Tensor:
    if not b.is_floating_point():
        return torch.zeros(b.shape, dtype=b.dtype, device="cpu")
    return draw(b.shape) + 0.5  # may be a variance


def _same(a: Tensor | None, b: Tensor | None, largest: Tensor) -> bool:
    """``largest``: of all that is compared; a gradient may be rounding and nothing else."""
    if a is None or b is None:
        return a is b
    if a.shape != b.shape:
        return False
    if not b.numel():
        return True
    scale = torch.maximum(b.abs().amax(), 1e-6 * largest)
    return bool(((a - b).abs() <= _TOLERANCE * scale).all())


@contextlib.contextmanager
def _undisturbed(module: nn.Module) -> Iterator[None]:
    """Children in eval mode and without hooks, plain autograd, nothing global changed; all as it
    was afterwards."""
    modes = {m: m.training for m in module.modules()}
    hooks = {m: {name: m.__dict__[name] for name in _HOOKS if name in m.__dict__} for m in modes}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # too little work to share, and waiting for a busy core is slow
    try:
        for m in modes:
            m.training = False
            m.__dict__.update({name: OrderedDict() for name in hooks[m]})
        with (
            torch.random.fork_rng(devices=[]),
            _disable_current_modes(),  # a FakeTensorMode computes no numbers
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
        ):
            yield
    finally:
        torch.set_num_threads(threads)
        for m, training in modes.items():
            m.training = training
            m.__dict__.update(hooks[m])


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
