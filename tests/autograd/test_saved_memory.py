"""What is kept for backward beside the op's inputs: a few numbers per image and channel, and one
bit per element if a ReLU ends it; never y nor another tensor of x's size."""

import math

import pytest
import torch
from operator_cases import LAYOUTS
from operators import OPERATORS

from se_kernels.core.variants import POSTS, PRES, SQUEEZES

pytestmark = pytest.mark.usefixtures("poisoned_outputs")


def run_and_collect(op, leaves, variant):
    """y, and every tensor saved for backward."""
    saved = []

    def pack(t):
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = op(**leaves, **variant)
    return y, saved


@pytest.mark.sampled(every=37, on_host=11)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("post", POSTS)
@pytest.mark.parametrize(
    "squeeze, pre",
    [*((kind, "identity") for kind in SQUEEZES), *(("avg", pre) for pre in PRES[1:])],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_for_backward(op, device, squeeze, pre, post, layout, dtype):
    if op.prefix and squeeze != "avg":
        pytest.skip("the norm then runs apart from the block")
    options = dict(squeeze=squeeze, pre=pre, post=post, residual=True, layout=layout)
    case = op.case(shape=(3, 20, 6, 7), reduced=5, dtype=dtype, **options)
    leaves, _ = op.leaves(case, device)
    y, saved = run_and_collect(op, leaves, case.variant)
    held = {t.data_ptr() for t in leaves.values()}
    extra = [t for t in saved if t.data_ptr() not in held]
    images, channels, height, width = case.shape
    masks = [t.numel() for t in extra if t.dtype == torch.uint8]
    rows, row = (channels, height * width) if layout == "nchw" else (height * width, channels)
    assert masks == ([images * rows * math.ceil(row / 8)] if post == "relu" else [])
    numbers = sum(t.numel() for t in extra) - sum(masks)
    # z, s, a; with a norm the images' means too, and of a channel mean, var, scale, bias,
    # deviation and the mean twice
    block = images * (2 * channels + 2 * case.reduced)
    norm = images * (3 * channels + case.reduced) + 6 * channels
    assert 0 < numbers <= (norm if op.prefix else block)
    kept = {t.data_ptr() for t in saved}
    assert y.data_ptr() not in kept
    assert leaves["residual"].data_ptr() not in kept


@pytest.mark.sampled(every=5)
@pytest.mark.parametrize("post", POSTS)
def test_no_gradient_saves_nothing(op, device, post):
    case = op.case(residual=True, post=post)
    inputs, _ = op.make(case, device)
    y, saved = run_and_collect(op, op.copies(inputs), case.variant)
    assert not saved
    assert y.grad_fn is None
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            y, saved = run_and_collect(op, op.leaves_of(inputs), case.variant)
        assert not saved
        assert not y.requires_grad


def test_the_graph_holds_u_and_nothing_else_of_its_size(backend, device):
    """By the memory of what autograd reaches: the saved tensors of every node."""
    op = OPERATORS["norm"].on(backend)
    case = op.case(shape=(2, 16, 8, 8), pre="silu", residual=True, post="relu")
    leaves, _ = op.leaves(case, device)
    y, _ = run_and_collect(op, leaves, case.variant)
    reached, nodes = [], [y.grad_fn]
    while nodes:
        node = nodes.pop()
        reached += [t for t in getattr(node, "saved_tensors", ()) if t is not None]
        nodes += [parent for parent, _ in node.next_functions if parent is not None]
    size = leaves["u"].numel()
    as_large = {t.data_ptr() for t in reached if t.numel() >= size}
    assert as_large == {leaves["u"].data_ptr()}
