"""What is kept for backward beside the op's inputs: at most N (2 C + 2 R) numbers, and one bit per
element if a ReLU ends it; never y."""

import math

import pytest
import torch
from operator_cases import LAYOUTS, Case, make

from se_kernels.core.variants import POSTS, SQUEEZES

pytestmark = pytest.mark.usefixtures("poisoned_outputs")


def run_and_collect(kernel, leaves, variant):
    """y, and every tensor saved for backward."""
    saved = []

    def pack(t):
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = kernel(**leaves, **variant)
    return y, saved


@pytest.mark.sampled(every=5)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("post", POSTS)
@pytest.mark.parametrize("squeeze", SQUEEZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_for_backward(kernel, device, squeeze, post, layout, dtype):
    case = Case(
        shape=(3, 20, 6, 7),
        reduced=5,
        dtype=dtype,
        squeeze=squeeze,
        post=post,
        residual=True,
        layout=layout,
    )
    inputs, _ = make(case, device)
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    y, saved = run_and_collect(kernel, leaves, case.variant)
    held = {t.data_ptr() for t in leaves.values()}
    extra = [t for t in saved if t.data_ptr() not in held]
    images, channels, height, width = case.shape
    masks = [t.numel() for t in extra if t.dtype == torch.uint8]
    rows, row = (channels, height * width) if layout == "nchw" else (height * width, channels)
    assert masks == ([images * rows * math.ceil(row / 8)] if post == "relu" else [])
    numbers = sum(t.numel() for t in extra) - sum(masks)
    assert 0 < numbers <= images * (2 * channels + 2 * case.reduced)
    kept = {t.data_ptr() for t in saved}
    assert y.data_ptr() not in kept
    assert leaves["residual"].data_ptr() not in kept


@pytest.mark.parametrize("post", POSTS)
def test_inference_saves_nothing(kernel, device, post):
    case = Case(residual=True, post=post)
    inputs, _ = make(case, device)
    y, saved = run_and_collect(kernel, inputs, case.variant)
    assert not saved
    assert y.grad_fn is None
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            y, saved = run_and_collect(kernel, leaves, case.variant)
        assert not saved
        assert not y.requires_grad
