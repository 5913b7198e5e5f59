"""First, second and third derivatives of the kernels, and which of them are computed."""

import itertools

import pytest
import torch
from operator_cases import LAYOUTS, NAMES, Case, make, run, run_judge
from torch.utils._python_dispatch import TorchDispatchMode

import se_kernels
from se_kernels import reference
from se_kernels.core.variants import ACTS, GATES, POSTS, SQUEEZES

pytestmark = [
    pytest.mark.sampled(every=0, on_host=5),  # a backend's gradients: test_squeeze_excite.py
    pytest.mark.usefixtures("poisoned_outputs"),
]


def leaves_of(case, device="cpu"):
    inputs, dy = make(case, device)
    leaves = {n: None if t is None else t.detach().requires_grad_() for n, t in inputs.items()}
    return leaves, dy


def as_function(function, case, leaves):
    """``function`` of the tensors that are there, in the order of NAMES, and those tensors."""
    present = [name for name in NAMES if leaves[name] is not None]

    def block(*tensors):
        arguments = {**leaves, **dict(zip(present, tensors, strict=True))}
        return function(**arguments, **case.variant)

    return block, [leaves[name] for name in present]


@pytest.mark.sampled(every=0, on_host=29)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("squeeze", SQUEEZES)
def test_gradcheck(kernel, device, squeeze, act, gate, layout):
    for post in POSTS:
        case = Case(
            shape=(2, 3, 2, 2),
            reduced=2,
            dtype=torch.float64,
            squeeze=squeeze,
            act=act,
            gate=gate,
            post=post,
            residual=True,
            layout=layout,
        )
        block, tensors = as_function(kernel, case, leaves_of(case, device)[0])
        assert torch.autograd.gradcheck(block, tensors)
        assert torch.autograd.gradgradcheck(block, tensors, fast_mode=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("squeeze", SQUEEZES)
@pytest.mark.parametrize("post, residual", [("none", False), ("relu", True), ("relu", False)])
def test_gradgradcheck_element_by_element(kernel, device, squeeze, post, residual, layout):
    case = Case(
        shape=(2, 3, 2, 2),
        reduced=2,
        dtype=torch.float64,
        squeeze=squeeze,
        act="silu",
        post=post,
        residual=residual,
        biases=("b1",),
        layout=layout,
    )
    block, tensors = as_function(kernel, case, leaves_of(case, device)[0])
    assert torch.autograd.gradgradcheck(block, tensors)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_third_derivatives(kernel, device, layout):
    case = Case(dtype=torch.float64, act="silu", squeeze="avgmax", residual=True, layout=layout)

    def third(function):
        leaves, dy = leaves_of(case, device)
        block, tensors = as_function(function, case, leaves)
        scalar = (block(*tensors).sin() * dy).sum()
        for _ in range(2):
            grads = torch.autograd.grad(scalar, tensors, create_graph=True)
            scalar = sum(g.square().sum() for g in grads)
        return torch.autograd.grad(scalar, tensors)

    for result, expected in zip(third(kernel), third(reference.squeeze_excite), strict=True):
        assert expected.abs().max() > 0
        # the same operations in the same order, but for the first forward: roundings of float64
        scale = expected.abs().max().item()
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("post", POSTS)
def test_first_derivatives_do_not_depend_on_create_graph(kernel, device, post):
    case = Case(dtype=torch.float64, residual=True, post=post)
    leaves, dy = leaves_of(case, device)
    block, tensors = as_function(kernel, case, leaves)
    plain = torch.autograd.grad(block(*tensors), tensors, dy)
    with_graph = torch.autograd.grad(block(*tensors), tensors, dy, create_graph=True)
    for result, expected in zip(with_graph, plain, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


def penalised_training(function, case, steps, device):
    """Losses, and the parameters' first gradients, of a descent on |y|² + |d|y|²/dx|²."""
    leaves, _ = leaves_of(case, device)
    weights = [leaves[name] for name in ("w1", "w2", "b1", "b2")]
    optimizer = torch.optim.SGD(weights, lr=0.1)
    losses, first = [], None
    for _ in range(steps):
        optimizer.zero_grad()
        loss = function(**leaves, **case.variant).square().mean()
        (slope,) = torch.autograd.grad(loss, leaves["x"], create_graph=True)
        loss = loss + 100 * slope.square().sum()
        loss.backward()
        first = first or [w.grad.clone() for w in weights]
        optimizer.step()
        losses.append(loss.item())
    return losses, first


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_gradient_penalty_trains(kernel, device, layout, dtype):
    case = Case(shape=(4, 8, 5, 5), reduced=4, dtype=dtype, act="silu", layout=layout)
    losses, grads = penalised_training(kernel, case, 20, device)
    expected_losses, expected = penalised_training(reference.squeeze_excite, case, 20, device)
    assert losses[-1] < 0.8 * losses[0]
    # sums of some hundred terms: a hundred roundings
    tolerance = 100 * torch.finfo(dtype).eps
    for grad, right in zip(grads, expected, strict=True):
        scale = right.abs().max().item()
        torch.testing.assert_close(grad, right, rtol=0, atol=tolerance * scale)
    torch.testing.assert_close(losses, expected_losses, rtol=20 * tolerance, atol=0)


def test_backward_twice_through_one_graph(kernel, device):
    case = Case(residual=True, post="relu")
    leaves, dy = leaves_of(case, device)
    block, tensors = as_function(kernel, case, leaves)
    y = block(*tensors)
    first = torch.autograd.grad(y, tensors, dy, retain_graph=True)
    second = torch.autograd.grad(y, tensors, dy)
    assert all(map(torch.equal, first, second))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, tensors, dy)


def test_gradients_accumulate(kernel, device):
    case = Case(dtype=torch.float64)
    leaves, dy = leaves_of(case, device)
    for _ in range(2):
        kernel(**leaves, **case.variant).backward(dy)
    inputs, dy = make(case, device)
    exact = run_judge(case, inputs, dy)
    for name in ("x", "w1", "w2", "b1", "b2"):
        grad = leaves[name].grad.cpu()
        torch.testing.assert_close(grad, 2 * exact[f"d{name}"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["x", "w1", "w2"])
def test_an_input_changed_in_place_is_an_error(kernel, device, name):
    leaves, dy = leaves_of(Case(), device)
    y = kernel(**leaves)
    with torch.no_grad():
        leaves[name].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(dy)


@pytest.mark.parametrize("post", POSTS)
def test_an_output_may_be_changed_in_place(kernel, device, post):
    case = Case(dtype=torch.float64, post=post)
    inputs, dy = make(case, device)
    exact = run_judge(case, inputs, dy)
    results = run(lambda **a: kernel(**a, **case.variant).mul_(2), inputs, dy)
    torch.testing.assert_close(results["dx"].cpu(), 2 * exact["dx"], rtol=1e-12, atol=1e-12)


# --- only what is needed -------------------------------------------------------------------------


class Calls(TorchDispatchMode):
    """The operators called, by name, and which gradients se_kernels' backward was asked for."""

    def __init__(self):
        super().__init__()
        self.names, self.needs = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        if func.name() == "se_kernels::backward":
            self.needs.append(next(a for a in args if isinstance(a, list)))
        return func(*args, **(kwargs or {}))


# the order in which the registered op is told
OP_ORDER = ("x", "residual", "w1", "w2", "b1", "b2")


@pytest.mark.sampled(every=23, on_host=11)
@pytest.mark.parametrize("post", POSTS)
@pytest.mark.parametrize(
    "need", [s for k in range(1, 7) for s in itertools.combinations(NAMES, k)], ids="-".join
)
def test_only_the_gradients_that_are_needed(kernel, device, need, post):
    case = Case(residual=True, post=post)
    inputs, dy = make(case, device)
    leaves = {name: t.detach().requires_grad_(name in need) for name, t in inputs.items()}
    with Calls() as calls:
        kernel(**leaves, **case.variant).backward(dy)
    assert {name for name, t in leaves.items() if t.grad is not None} == set(need)
    if need == ("residual",):
        assert "se_kernels::backward" not in calls.names
        return
    assert calls.names.count("se_kernels::backward") == 1
    written = set(need) - ({"residual"} if post == "none" else set())  # unmasked, it is dy
    assert {n for n, asked in zip(OP_ORDER, calls.needs[0], strict=True) if asked} == written


def test_nothing_needed_is_inference(kernel, device):
    inputs, _ = make(Case(), device)
    with Calls() as calls:
        kernel(**inputs)
        with torch.no_grad():
            kernel(**{n: None if t is None else t.requires_grad_() for n, t in inputs.items()})
    assert calls.names.count("se_kernels::inference") == 2
    assert "se_kernels::forward" not in calls.names


def test_a_frozen_block_passes_its_gradient_on():
    """Weights without a gradient inside a network: x still has one, the weights have none."""
    block = se_kernels.SqueezeExcite(8).requires_grad_(False)
    x = torch.randn(2, 8, 3, 3, requires_grad=True)
    block(x).sum().backward()
    assert x.grad.abs().max() > 0
    assert all(p.grad is None for p in block.parameters())
