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
        "moments_kernel",
        "solve_norm_kernel",
        *(["squeeze_kernel"] if pre != "identity" else []),
        "solve_a_kernel",
        "solve_s_kernel",
        "scale_kernel",
        "aten::_foreach_copy_",  # the running statistics
        "aten::add_.Tensor",  # num_batches_tracked: a refused call counts none
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


# C, H = W and R of EfficientNet-B0's blocks, as they are fused: at the squeeze
EFFICIENTNET_B0 = [
    *[(32, 112, 8), (96, 56, 4), (144, 56, 6), (144, 28, 6), (240, 28, 10), (240, 14, 10)],
    *[(480, 14, 20), (672, 14, 28), (672, 7, 28), (1152, 7, 48)],
]


class Described:
    """Stands in for a kernel: notes what it would be compiled for, and launches nothing."""

    def __init__(self, name, compiled):
        self.name, self.compiled = name, compiled

    def __getitem__(self, grid):
        return self.launch

    def launch(self, *arguments, **constants):
        types = (t.dtype if isinstance(t, torch.Tensor) else t is None for t in arguments)
        self.compiled.add((self.name, *types, *constants.items()))


@pytest.mark.parametrize("layout", ["contiguous_format", "channels_last"])
@pytest.mark.parametrize("with_norm", [False, True])
def test_kernels_compiled_for_a_training_run_of_efficientnet_b0(monkeypatch, with_norm, layout):
    """Two dozen at most, under autocast; each takes a second or more when it is first called."""
    from se_kernels.core import dispatch

    backend, compiled = dispatch.get("triton"), set()
    for module, name in KERNELS:
        monkeypatch.setattr(module, name, Described(name, compiled))
    memory_format = getattr(torch, layout)
    excitation = "silu", 0.0, "sigmoid"
    for channels, side, reduced in EFFICIENTNET_B0:
        shape = 64, channels, side, side
        x = torch.empty(shape, dtype=torch.bfloat16, device="meta", memory_format=memory_format)
        w1, w2 = (torch.empty(reduced, channels, device="meta") for _ in range(2))
        w2, b1, b2 = w2.reshape(channels, reduced), w1[:, 0], w2[0]
        weights = w1, w2, b1, b2
        if with_norm:
            norm = (b2,) * 4
            _, _, numbers, a, _ = backend.norm_forward(
                x, *norm, None, *weights, None, True, 0.1, 1e-5, "silu", *excitation, "none", False
            )
            needs = True, False, False, True, True, True, True
            backend.norm_backward(
                x, x, None, numbers, a, w1, w2, True, "silu", *excitation, needs
            )  # fmt: skip
        else:
            _, _, *small = backend.forward(x, *weights, None, "avg", *excitation, "none")
            needs = True, False, True, True, True, True
            backend.backward(x, x, w1, w2, None, *small, "avg", *excitation, needs)
    names = sorted(name for name, *_ in compiled)
    print(len(names), names)
    assert len(compiled) < 24, names
