"""y in place of the bits that say where the final ReLU was open: nothing else changes."""

import pytest
import torch
from norm_cases import DIFFERENTIABLE, Case, make, run
from operator_cases import LAYOUTS
from ops_called import OpsCalled

from se_kernels import ops
from se_kernels.layout import empty_mask, unpacked

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("poisoned_outputs")]


@pytest.mark.sampled(every=5, on_host=3)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 5, 3, 4), (2, 40, 7, 7), (2, 1, 9, 2), (4, 24, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_mask_of_y(device, backend, dtype, shape, layout):
    generator = torch.Generator().manual_seed(0)
    memory_format = LAYOUTS[layout]
    y = torch.randn(shape, generator=generator).relu().to(device, dtype)
    y.view(-1)[:2] = torch.tensor([float("nan"), -0.0])
    u = torch.empty_like(y).contiguous(memory_format=memory_format)
    for laid in LAYOUTS.values():
        mask = ops.norm_mask(y.contiguous(memory_format=laid), u, backend)
        assert mask.shape == empty_mask(u).shape
        assert torch.equal(unpacked(mask, u), ~(y <= 0))
        row = empty_mask(u).new_tensor((y.numel() // mask.shape[0] // mask.shape[1] - 1) % 8 + 1)
        assert (mask[..., -1] >> row).count_nonzero() == 0


@pytest.mark.sampled(every=5, on_host=3)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("pre", ["identity", "silu"])
def test_gradients_are_the_same_numbers(norm_kernel, device, pre, training, residual, layout):
    case = Case(
        (3, 20, 5, 7), 4, training=training, pre=pre, post="relu", residual=residual, layout=layout
    )
    inputs, dy = make(case, device)
    by_bits = run(norm_kernel, inputs, dy, **case.variant)
    by_y = run(norm_kernel, inputs, dy, **case.variant, y_is_kept=True)
    assert by_bits.keys() == by_y.keys()
    for name, expected in by_bits.items():
        torch.testing.assert_close(by_y[name], expected, rtol=0, atol=0)


def test_y_is_saved_and_no_bit(norm_kernel, device):
    case = Case(post="relu", residual=True)
    inputs, _ = make(case, device)
    leaves = {
        name: None if t is None else t.clone().requires_grad_(name in DIFFERENTIABLE)
        for name, t in inputs.items()
    }
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = norm_kernel(**leaves, **case.variant, y_is_kept=True)
    assert y.data_ptr() in {t.data_ptr() for t in saved}
    assert not any(t.dtype == torch.uint8 for t in saved)


def test_y_may_not_be_changed_before_backward(norm_kernel, device):
    case = Case(post="relu", residual=True)
    inputs, _ = make(case, device)
    y = norm_kernel(
        **inputs | {"w1": inputs["w1"].requires_grad_()}, **case.variant, y_is_kept=True
    )
    y.detach().mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_nothing_changes_without_a_relu(norm_kernel, device):
    inputs, dy = make(Case(), device)
    with OpsCalled() as called:
        run(norm_kernel, inputs, dy, **Case().variant, y_is_kept=True)
    assert "norm_mask" not in called.names


def test_second_derivatives(norm_kernel, device):
    case = Case((2, 3, 2, 3), 2, torch.float64, post="relu", residual=True, running=False)
    inputs, _ = make(case, device)
    names = [name for name in DIFFERENTIABLE if inputs[name] is not None]

    def block(*tensors):
        return norm_kernel(
            **inputs | dict(zip(names, tensors, strict=True)), **case.variant, y_is_kept=True
        )

    leaves = [inputs[name].clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(block, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(block, leaves, fast_mode=True)


def test_another_type_is_refused(norm_kernel, device):
    inputs, _ = make(Case(), device)
    with pytest.raises(TypeError, match="y_is_kept: expected a bool, got 1"):
        norm_kernel(**inputs, **Case().variant, y_is_kept=1)
