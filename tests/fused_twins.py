"""A module and its fused twin side by side: y, the gradients of x and of every parameter, buffers.

The judge is the module as it was, in float64.
"""

import copy

import torch
from torch import nn

import se_kernels


def twins(module: nn.Module, level: str = "layer") -> tuple[nn.Module, nn.Module]:
    """``module`` and a fused copy of it."""
    fused = copy.deepcopy(module)
    report = se_kernels.fuse(fused, level)
    assert report.fused
    assert not report.skipped, report
    if level == "block":
        assert report.blocks
        assert not report.apart, report
    return module, fused


def draw(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fills the parameters and buffers of a small module so that every part of it shows in y."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            inputs = p[0].numel() if p.dim() > 1 else 4
            p.copy_(1.5 * torch.randn(p.shape, generator=generator) / inputs**0.5)
        for b in module.buffers():
            if b.is_floating_point():
                b.copy_(0.5 + torch.rand(b.shape, generator=generator))
    return module


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    """x whose means differ from channel to channel."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x + torch.randn(shape[:2] + (1,) * (len(shape) - 2), generator=generator)


def outcome(module: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """y, dx, the gradient of every parameter and the buffers after one forward and backward."""
    module.zero_grad()
    x = x.detach().requires_grad_()
    torch.manual_seed(2)  # for drop-out
    y = module(x)
    y = getattr(y, "logits", y)
    generator = torch.Generator().manual_seed(1)
    y.backward(torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype))
    grads = {f"d{name}": p.grad for name, p in module.named_parameters() if p.requires_grad}
    buffers = {name: b.clone() for name, b in module.named_buffers()}
    return {"y": y.detach(), "dx": x.grad, **grads, **buffers}


def compare(unfused: nn.Module, fused: nn.Module, x: torch.Tensor, dtype: torch.dtype) -> None:
    """Asserts that the fused twin is no further from the judge than twice what the unfused is.

    In Euclidean norms. Beside that, 16 roundings of the largest gradient are allowed, for what
    unfused happens to have exactly, and for gradients that are nothing but rounding (of a bias
    before a batch norm). PyTorch's own hard sigmoid and hardswish take 1/6 in float32 in their
    backward: where one is used the judge itself is no better than that.
    """
    exact = outcome(copy.deepcopy(unfused).double(), x.double())
    baseline = outcome(copy.deepcopy(unfused).to(dtype), x.to(dtype))
    results = outcome(copy.deepcopy(fused).to(dtype), x.to(dtype))
    assert list(results) == list(exact)
    eps = torch.finfo(dtype).eps
    if "hardsigmoid" in repr(fused).lower() or "hardswish" in repr(fused).lower():
        eps = max(eps, torch.finfo(torch.float32).eps)
    gradients = {"dx", *(f"d{name}" for name, _ in fused.named_parameters())}
    largest = max(value.norm() for name, value in exact.items() if name in gradients)
    for name, value in exact.items():
        assert results[name].dtype == baseline[name].dtype, name
        assert results[name].shape == baseline[name].shape, name
        error, allowed = ((r[name].double() - value).norm() for r in (results, baseline))
        scale = largest if name in gradients else value.double().norm()
        assert error <= 2 * allowed + 16 * eps * scale, (
            f"{name}: error {error:.3g}, unfused {allowed:.3g}, of {value.double().norm():.3g}"
        )
