"""What is kept for backward beside the op's inputs: a bit an element where a ReLU ends it, never y
nor another tensor of u's size, and some numbers an image and channel."""

import math

import pytest
import torch
from norm_cases import DIFFERENTIABLE, Case, copies, make
from operator_cases import LAYOUTS

from se_kernels.core.variants import POSTS, PRES

pytestmark = pytest.mark.usefixtures("poisoned_outputs")


def run_and_collect(norm_kernel, inputs, need, variant):
    """y, the leaves, and every tensor saved for backward."""
    saved = []

    def pack(t):
        saved.append(t)
        return t

    leaves = {
        name: t if t is None else t.detach().requires_grad_(name in need)
        for name, t in copies(inputs).items()
    }
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = norm_kernel(**leaves, **variant)
    return y, leaves, saved


@pytest.mark.sampled(every=23, on_host=11)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("post", POSTS)
@pytest.mark.parametrize("pre", PRES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_saved_for_backward(norm_kernel, device, dtype, training, pre, post, layout):
    case = Case(
        (3, 20, 6, 7), 5, dtype, training=training, pre=pre, post=post, layout=layout, residual=True
    )
    inputs, _ = make(case, device)
    y, leaves, saved = run_and_collect(norm_kernel, inputs, DIFFERENTIABLE, case.variant)
    held = {t.data_ptr() for t in leaves.values()}
    extra = [t for t in saved if t.data_ptr() not in held]
    kept = {t.data_ptr() for t in saved}
    assert y.data_ptr() not in kept
    assert leaves["residual"].data_ptr() not in kept
    masks = [t for t in extra if t.dtype == torch.uint8]
    images, channels, height, width = case.shape
    if post == "relu":
        rows, row = (channels, height * width) if layout == "nchw" else (height * width, channels)
        assert [t.numel() for t in masks] == [images * rows * math.ceil(row / 8)]
    else:
        assert not masks
    numbers = sum(t.numel() for t in extra if t.dtype != torch.uint8)
    # z, s, the images' means, a; of a channel mean, var, scale, bias, deviation, the mean twice
    assert 0 < numbers <= images * (3 * channels + case.reduced) + 6 * channels


@pytest.mark.parametrize("training", [True, False])
def test_no_gradient_saves_nothing(norm_kernel, device, training):
    case = Case(training=training, residual=True, post="relu")
    inputs, _ = make(case, device)
    y, _, saved = run_and_collect(norm_kernel, inputs, (), case.variant)
    assert not saved
    assert y.grad_fn is None
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            y, _, saved = run_and_collect(norm_kernel, inputs, DIFFERENTIABLE, case.variant)
        assert not saved
        assert not y.requires_grad


def test_the_graph_holds_u_and_nothing_else_of_its_size(norm_kernel, device):
    """By the memory of what autograd reaches: the saved tensors of every node."""
    case = Case((2, 16, 8, 8), pre="silu", residual=True, post="relu")
    inputs, _ = make(case, device)
    y, leaves, _ = run_and_collect(norm_kernel, inputs, DIFFERENTIABLE, case.variant)
    reached, nodes = [], [y.grad_fn]
    while nodes:
        node = nodes.pop()
        reached += [t for t in getattr(node, "saved_tensors", ()) if t is not None]
        nodes += [parent for parent, _ in node.next_functions if parent is not None]
    size = leaves["u"].numel()
    as_large = {t.data_ptr() for t in reached if t.numel() >= size}
    assert as_large == {leaves["u"].data_ptr()}
