"""How many launches a call of the Triton backend makes, and which kernels they are of."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import se_kernels

pytest.importorskip("triton")

from triton.runtime.jit import KernelInterface

from se_kernels.backends.triton.kernels import (
    backward,
    forward,
    scale,
    solve,
    squeeze,
)

KERNELS = [
    (module, name)
    for module in (backward, forward, scale, solve, squeeze)
    for name, value in vars(module).items()
    if name.endswith("_kernel") and isinstance(value, KernelInterface)
]
NO_LAUNCH = {"aten::empty.memory_format", "aten::empty_strided", "aten::empty_like"}
NO_LAUNCH |= {"aten::new_empty", "aten::new_empty_strided", "aten::detach"}


class Counted:
    """Stands in for a kernel: notes its launch, which it makes."""

    def __init__(self, kernel, name, launches):
        self.kernel, self.name, self.launches = kernel, name, launches

    def __getitem__(self, grid):
        self.launches.append(self.name)
        return self.kernel[grid]


class Launches(TorchDispatchMode):
    """What torch computes, but for views and empty tensors: on a GPU each is a launch or more."""

    def __init__(self, launches):
        super().__init__()
        self.launches = launches

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        launches = func.namespace == "aten" and not func.is_view and func.name() not in NO_LAUNCH
        if launches:
            self.launches.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.fixture
def launches(monkeypatch):
    """The names of all launches from here on, in order."""
    reason = se_kernels.available_backends()["triton"]
    if reason is not None:
        pytest.skip(reason)
    made = []
    for module, name in KERNELS:
        monkeypatch.setattr(module, name, Counted(getattr(module, name), name, made))
    with Launches(made):
        yield made


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("pre", ["identity", "silu"])
def test_a_training_step_with_a_norm(launches, pre):
    """Twelve at most, with every weight's gradient, the running statistics and the count of
    batches; 59 where the algebra between the sweeps was torch's."""
    layer = se_kernels.BatchNormSqueezeExcite(
        16, pre=pre, rd_ratio=1 / 2, post="relu", backend="triton", device=DEVICE
    )
    u, residual, dy = torch.randn(3, 2, 16, 6, 6, device=DEVICE)
    leaves = [u.requires_grad_(), residual.requires_grad_(), *layer.parameters()]
    launches.clear()
    y = layer(u, residual)
    torch.autograd.grad(y, leaves, dy)
    assert len(launches) <= 12, launches
    assert launches == [
        "aten::add_.Tensor",  # num_batches_tracked
        "moments_kernel",
        "solve_norm_kernel",
        *(["squeeze_kernel"] if pre != "identity" else []),
        "solve_a_kernel",
        "solve_s_kernel",
        "scale_kernel",
        "aten::_foreach_copy_",  # the running statistics
        "scale_backward_kernel",
        "solve_da_kernel",
        "solve_gradients_kernel",
        "squeeze_backward_kernel",
    ]


def test_a_training_step_of_the_block_alone(launches):
    layer = se_kernels.SqueezeExcite(16, rd_ratio=1 / 2, backend="triton", device=DEVICE)
    x, dy = torch.randn(2, 2, 16, 6, 6, device=DEVICE)
    launches.clear()
    torch.autograd.grad(layer(x.requires_grad_()), [x, *layer.parameters()], dy)
    kernels = [name for name in launches if name.endswith("_kernel")]
    assert kernels == ["forward_kernel", "backward_kernel", "solve_gradients_kernel"]
    zeroed = {"aten::zeros", "aten::zero_"}  # the counters
    assert {name.split(".")[0] for name in launches} - set(kernels) <= zeroed
