"""The final judge: does the fused block compute what the module computes?

Both run on random images with random parameters, in float64 on the CPU, forward and backward. The
module's own parameters may be such that a wrong block would not show (zeros), may be on a device
that is slow to ask, or nowhere (meta): so they are lent others for the time, and nothing of the
module, nor the global random numbers, is changed.
"""

import contextlib
import math

import torch
from torch import Tensor, nn

from se_kernels.fusion.run import Plan, run

_TOLERANCE = 1e-5  # of the largest number; a forward may have a float32 step inside


def why_not(module: nn.Module, forward, plan: Plan, channels: int) -> str | None:
    """None where ``forward(module, x)`` is what the plan computes, else how they differ."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, 2, 3, channels) if plan.nhwc else (2, channels, 2, 3)
    x = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    lent = {name: _parameter(p, generator) for name, p in module.named_parameters()}
    buffers = {name: _buffer(b, generator) for name, b in module.named_buffers()}

    def fused(module, x):
        return run(module, plan, x, backend="reference")

    with _undisturbed(module):
        for training in (False, True):
            module.training = training
            try:
                expected = _outcome(module, forward, lent, buffers, x)
            except Exception as error:
                return f"its forward fails on x {shape} in float64: {_first_line(error)}"
            try:
                results = _outcome(module, fused, lent, buffers, x)
            except Exception as error:
                return f"its block fails on x {shape} in float64: {_first_line(error)}"
            for name, value in expected.items():
                if not _same(results[name], value):
                    return f"computes something else than its block: {name} differs"
    return None


class _Lending(nn.Module):
    """Around a module, so that ``functional_call`` calls no hook of it."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, function, x):
        return function(self.module, x)


def _outcome(module, function, parameters, buffers, x) -> dict[str, Tensor | None]:
    """y, and the gradients of x and of the parameters from a fixed dy."""
    leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
    x = x.clone().requires_grad_()
    lent = {name: b.clone() for name, b in buffers.items()} | leaves
    lent = {f"module.{name}": t for name, t in lent.items()}
    y = torch.func.functional_call(_Lending(module), lent, (function, 1 * x))
    if not isinstance(y, Tensor):
        raise TypeError(f"expected a tensor y, got {type(y).__name__}")
    dy = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    wanted = {"dx": x, **{f"the gradient of {name}": p for name, p in leaves.items()}}
    grads = torch.autograd.grad(y, list(wanted.values()), dy, allow_unused=True)
    return {"y": y.detach(), **dict(zip(wanted, grads, strict=True))}


def _parameter(p: Tensor, generator) -> Tensor:
    """Uniform numbers, such that a sum of as many inputs as p has is of size 2."""
    inputs = math.prod(p.shape[1:]) if p.dim() > 1 else 1
    random = torch.rand(p.shape, generator=generator, dtype=torch.float64, device="cpu")
    return (random - 0.5) * (2 * math.sqrt(12 / max(inputs, 1)))


def _buffer(b: Tensor, generator) -> Tensor:
    if not b.is_floating_point():
        return torch.zeros(b.shape, dtype=b.dtype, device="cpu")
    # may be a variance
    return torch.rand(b.shape, generator=generator, dtype=torch.float64, device="cpu") + 0.5


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    if a.shape != b.shape:
        return False
    return bool(((a - b).abs() <= _TOLERANCE * b.abs().amax()).all()) if b.numel() else True


@contextlib.contextmanager
def _undisturbed(module):
    """Children in eval mode, plain autograd, nothing global changed; all as it was afterwards."""
    modes = {m: m.training for m in module.modules()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # too little work to share, and waiting for a busy core is slow
    try:
        for m in modes:
            m.training = False
        with (
            torch.random.fork_rng(devices=[]),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
        ):
            yield
    finally:
        torch.set_num_threads(threads)
        for m, training in modes.items():
            m.training = training


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
