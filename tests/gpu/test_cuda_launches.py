"""What a training step with a batch norm launches on a GPU: the kernels in their order, memsets,
torch's own operations."""

import pytest
import torch
from host_gpu import CUDA, HostGpu
from torch.utils._python_dispatch import TorchDispatchMode

from se_kernels import BatchNormSqueezeExcite
from se_kernels.backends import cuda
from se_kernels.backends.cuda import library

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(cuda.why_not() is not None, reason=f"backend cuda: {cuda.why_not()}"),
    pytest.mark.skipif(
        library.native is None or library.native.DEVICE_TYPE != "cpu", reason="counts on the host"
    ),
]

MOST_LAUNCHES = 12  # a block and step
# of these torch launches nothing on a GPU
MAKING = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


class Torch(TorchDispatchMode):
    """The operations of torch that launch, by name: those that neither view nor allocate."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "aten" and not func.is_view:
            name = func._schema.name.removeprefix("aten::")
            if name not in MAKING:
                self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def host():
    return HostGpu(CUDA)


@pytest.fixture
def step(host, monkeypatch):
    """``step(layer, u, residual)``: a training step's kernels, memsets, torch's operations."""
    torch_ops = Torch()

    def counted(call):
        def run(*arguments):  # a mode does not see what an op does inside
            with torch_ops:
                return call(*arguments)

        return run

    for name in ("norm_forward", "norm_backward"):
        monkeypatch.setattr(cuda, name, counted(getattr(cuda, name)))

    def counts(layer, u, residual):
        torch_ops.names.clear()
        before = host.memsets()
        with host.recording() as recorded:
            with torch_ops:
                y = layer(u, residual)
            dy = torch.ones_like(y)
            with torch_ops:
                y.backward(dy)
        kernels = [kernel.split("<")[0] for kernel, *_ in recorded]
        return kernels, host.memsets() - before, torch_ops.names

    return counts


def layer_and_inputs(layout, pre, post="relu", **options):
    layer = BatchNormSqueezeExcite(64, pre=pre, post=post, backend="cuda", **options)
    u, residual = (
        torch.randn(2, 64, 28, 28).contiguous(memory_format=layout).requires_grad_()
        for _ in range(2)
    )
    return layer, u, residual


LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("pre", ["identity", "relu"])
def test_a_training_step_is_a_few_launches(step, pre, layout):
    """Running statistics are moved and batches are counted, by torch."""
    kernels, memsets, torch_ops = step(*layer_and_inputs(layout, pre))
    again = ["norm_squeeze"] * (pre != "identity")
    assert kernels == [
        *("norm_moments", "solve_norm", *again, "solve_excite", "norm_scale"),
        *("norm_scale_backward", "solve_backward", "norm_squeeze_backward"),
    ]
    assert torch_ops == ["_foreach_copy_", "add_"]
    assert len(kernels) + memsets + len(torch_ops) <= MOST_LAUNCHES


def test_a_frozen_norm_has_no_statistics_to_find(step):
    for pre, first in (("identity", "norm_moments"), ("relu", "norm_squeeze")):
        layer, u, residual = layer_and_inputs(torch.channels_last, pre)
        kernels, _, torch_ops = step(layer.eval(), u, residual)
        assert sorted(kernels[:4]) == sorted([first, "solve_norm", "solve_excite", "norm_scale"])
        assert torch_ops == []


def test_without_du_the_last_sweep_is_left_out(step):
    layer, u, residual = layer_and_inputs(torch.contiguous_format, "identity")
    kernels, *_ = step(layer, u.detach(), residual)
    assert kernels[-2:] == ["norm_scale_backward", "solve_backward"]


def test_weight_gradients_without_a_norm_are_one_launch(host):
    """In float32 whatever products may be rounded to: torch has no part in it."""
    x, s, a = torch.randn(2, 8, 4, 4), torch.rand(2, 8), torch.rand(2, 3)
    w1, w2 = torch.randn(3, 8), torch.randn(8, 3)
    variant = ("avg", "relu", 0.0, "sigmoid")
    for needs, extra in (((True,) * 4, ["solve_backward"]), ((False,) * 4, [])):
        with host.recording() as recorded, Torch() as torch_ops:
            cuda.backward(x, x, w1, w2, None, s, a, s, *variant, [True, False, *needs])
        kernels = [kernel.split("<")[0] for kernel, *_ in recorded]
        assert len(kernels) == 1 + len(extra)
        assert kernels[1:] == extra
        assert torch_ops.names == []
