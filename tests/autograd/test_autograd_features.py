"""What surrounds an op in training: autocast, checkpoints, accumulation, penalties, hooks."""

import contextlib
import itertools
from functools import partial

import pytest
import torch
from operator_cases import NAMES, Case, make, run, run_judge
from ops_called import OpsCalled
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import se_kernels
from se_kernels import SqueezeExcite
from se_kernels.verification.block_case import with_excitation

# autograd is the same whichever backend computes
pytestmark = pytest.mark.sampled(every=0, on_host=3)

TAIL = dict(post="relu", residual=True)


def equal(results, expected):
    return results.keys() == expected.keys() and all(
        torch.equal(value, expected[name]) for name, value in results.items()
    )


# --- autocast ------------------------------------------------------------------------------------


def autocast():
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("backward_inside", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_leaves_float32_weights_exact(kernel, dtype, backward_inside):
    """The weights and their gradients stay float32, in value too; y has x's dtype."""
    case = Case(shape=(4, 16, 6, 5), dtype=dtype, weight_dtype=torch.float32, **TAIL)
    inputs, dy = make(case)
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    with contextlib.ExitStack() as stack:
        stack.enter_context(autocast())
        y = kernel(**leaves, **case.variant)
        if not backward_inside:
            stack.close()
        y.backward(dy)
    assert y.dtype == dtype
    exact = run_judge(case, inputs, dy)
    for name in ("w1", "w2", "b1", "b2"):
        grad = leaves[name].grad
        assert grad.dtype == torch.float32
        error = (grad - exact[f"d{name}"]).norm() / exact[f"d{name}"].norm()
        # sums of some hundred float32 roundings; one rounding to bfloat16 would be 2e-3
        assert error < 1e-5, name
    assert leaves["x"].grad.dtype == dtype
    assert equal(
        {"y": y.detach(), **{f"d{name}": leaf.grad for name, leaf in leaves.items()}},
        run(kernel, inputs, dy, **case.variant),
    )


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_penalty_gradients_under_autocast_are_not_degraded(kernel, dtype, inside):
    """create_graph takes the differentiable definition: it too must stay out of autocast's reach"""
    case = Case(shape=(4, 16, 6, 5), dtype=dtype, weight_dtype=torch.float32)
    inputs, dy = make(case)
    del inputs["residual"]
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    with contextlib.ExitStack() as stack:
        stack.enter_context(autocast())
        y = kernel(**leaves, **case.variant)
        if not inside:
            stack.close()
        grads = torch.autograd.grad(y, [*leaves.values()], dy, create_graph=True)
    exact = run_judge(case, inputs, dy)
    for name, grad in zip(leaves, grads, strict=True):
        assert grad.requires_grad
        if name != "x":
            error = (grad - exact[f"d{name}"]).norm() / exact[f"d{name}"].norm()
            assert error < 1e-5, name  # as above


def test_module_under_autocast(backend):
    """The convolution before it makes x bfloat16; the block takes it with its float32 weights."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 16, 3, padding=1)
    se = SqueezeExcite(16, rd_channels=4, bias=True, post="relu", backend=backend)
    with autocast():
        x = conv(torch.randn(2, 3, 6, 5))
        y = se(x, x)
        y.float().square().sum().backward()
    assert y.dtype == x.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.float32 for p in se.parameters())
    assert all((p.grad != p.grad.bfloat16()).any() for p in se.parameters())


# --- checkpoints and graphs ----------------------------------------------------------------------


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(kernel, use_reentrant):
    case = Case(**TAIL)
    inputs, dy = make(case)

    def checkpointed(x, w1, w2, b1, b2, residual, **options):
        def block(*tensors):
            return kernel(*tensors[:5], residual=tensors[5], **options)

        return checkpoint(block, x, w1, w2, b1, b2, residual, use_reentrant=use_reentrant)

    def backward(function):
        leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
        y = function(**leaves, **case.variant)
        y.backward(dy)  # torch.autograd.grad does not go with a reentrant checkpoint
        return {"y": y.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}

    with OpsCalled() as called:
        results = backward(checkpointed)
    assert equal(results, backward(kernel))
    assert called.names[-1] == "backward"
    assert called.names.count("backward") == 1


def test_gradients_accumulate(kernel):
    case = Case(dtype=torch.float64, **TAIL)
    inputs, dy = make(case)
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    for factor in (1, 2):
        kernel(**leaves, **case.variant).backward(factor * dy)
    once = run(kernel, inputs, dy, **case.variant)
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, 3 * once[f"d{name}"], rtol=1e-14, atol=1e-14)


def test_one_graph_twice(kernel):
    case = Case(**TAIL)
    inputs, dy = make(case)
    leaves = [inputs[name].detach().requires_grad_() for name in NAMES]
    y = kernel(*leaves[:5], residual=leaves[5], **case.variant)
    first = torch.autograd.grad(y, leaves, dy, retain_graph=True)
    second = torch.autograd.grad(y, leaves, dy)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, leaves, dy)


@pytest.mark.parametrize("post", ["none", "relu"])
def test_every_subset_of_gradients(kernel, post):
    """Asked for alone or together, a gradient has the same bits, and no other is computed."""
    case = Case(post=post, residual=True)
    inputs, dy = make(case)
    full = run(kernel, inputs, dy, **case.variant)
    for size in range(len(NAMES) + 1):
        for need in itertools.combinations(NAMES, size):
            some = run(kernel, inputs, dy, need, **case.variant)
            assert set(some) == {"y", *(f"d{name}" for name in need)}
            assert equal(some, {name: full[name] for name in some}), need


def test_residual_alone_needs_no_kernel(kernel):
    for post in ("none", "relu"):
        case = Case(post=post, residual=True)
        inputs, dy = make(case)
        with OpsCalled() as called:
            run(kernel, inputs, dy, ["residual"], **case.variant)
        assert called.names == ["forward"]


def test_a_tensor_given_twice(kernel):
    """x as its own residual, one weight in both places: the gradients add up."""
    case = Case(shape=(2, 3, 3, 4), reduced=3, dtype=torch.float64, biases=())
    inputs, dy = make(case)
    x, w = inputs["x"].requires_grad_(), inputs["w1"].requires_grad_()
    results = torch.autograd.grad(kernel(x, w, w, residual=x), (x, w), dy)
    expected = torch.autograd.grad(
        se_kernels.reference.squeeze_excite(x, w, w, residual=x), (x, w), dy
    )
    for result, value in zip(results, expected, strict=True):
        torch.testing.assert_close(result, value, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("changed", ["x", "w1", "w2"])
def test_a_saved_tensor_changed_in_place_is_noticed(kernel, changed):
    case = Case(**TAIL)
    inputs, dy = make(case)
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    y = kernel(**leaves, **case.variant)
    with torch.no_grad():
        leaves[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(dy)


@pytest.mark.parametrize("post", ["none", "relu"])
def test_output_may_be_changed_in_place(kernel, post):
    """y is never saved: in-place operations after the block train."""
    inputs, dy = make(Case(post=post))
    leaves = [inputs[name].detach().requires_grad_() for name in NAMES[:5]]
    in_place = torch.autograd.grad(torch.relu_(kernel(*leaves, post=post).mul_(2)), leaves, dy)
    expected = torch.autograd.grad(torch.relu(kernel(*leaves, post=post) * 2), leaves, dy)
    assert all(torch.equal(a, b) for a, b in zip(in_place, expected, strict=True))


def test_expanded_gradient(kernel):
    """dy of y.sum() has stride 0 everywhere."""
    case = Case(dtype=torch.float64, **TAIL)
    inputs, dy = make(case)
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    kernel(**leaves, **case.variant).sum().backward()
    expected = run(kernel, inputs, torch.ones_like(dy), **case.variant)
    assert equal(
        {f"d{name}": leaf.grad for name, leaf in leaves.items()} | {"y": expected["y"]}, expected
    )


# --- double backward -----------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [{}, dict(act="silu", squeeze="avgmax", **TAIL)], ids=str)
def test_gradient_penalty_trains(kernel, variant):
    """A few steps on a loss that holds the gradient's norm: step by step that of the definition."""
    case = Case(shape=(3, 8, 4, 5), reduced=4, dtype=torch.float64, **variant)
    inputs, dy = make(case)

    def losses(function):
        leaves = {name: None if t is None else t.clone() for name, t in inputs.items()}
        x = leaves["x"].requires_grad_()
        weights = [leaves[name].requires_grad_() for name in NAMES[1:5]]
        optimizer = torch.optim.SGD(weights, lr=1e-3)
        for _ in range(5):
            optimizer.zero_grad()
            y = function(**leaves, **case.variant)
            (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
            loss = (y * dy).sum() + dx.flatten(1).norm(dim=1).sub(1).square().sum()
            loss.backward()
            optimizer.step()
            yield loss.item()

    fused, expected = [*losses(kernel)], [*losses(se_kernels.reference.squeeze_excite)]
    assert fused == pytest.approx(expected, rel=1e-12)
    assert fused[-1] < fused[0]


# --- without gradients ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inference_modes_save_nothing(kernel, mode):
    case = Case(**TAIL)
    inputs, dy = make(case)
    expected = run(kernel, inputs, dy, **case.variant)["y"]
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    with mode(), OpsCalled() as called:
        y = kernel(**leaves, **case.variant)
    assert called.names == ["inference"]
    assert not y.requires_grad
    assert y.is_inference() == (mode is torch.inference_mode)
    assert torch.equal(y, expected)


def test_frozen_block_saves_nothing(kernel):
    case = Case(**TAIL)
    inputs, _ = make(case)
    with OpsCalled() as called:
        y = kernel(**inputs, **case.variant)
    assert called.names == ["inference"]
    assert not y.requires_grad


def test_tensors_made_in_inference_mode(kernel):
    """Usable outside it, but not to be saved for backward: PyTorch's own error, as in eager."""
    with torch.inference_mode():
        x = torch.randn(2, 5, 3, 4)
    w1, w2 = torch.randn(3, 5), torch.randn(5, 3)
    assert torch.equal(kernel(x, w1, w2), kernel(x.clone(), w1, w2))
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
        kernel(x, w1.requires_grad_(), w2)


# --- hooks ---------------------------------------------------------------------------------------


def test_hooks_on_the_output(kernel):
    case = Case(**TAIL)
    inputs, dy = make(case)
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    y = kernel(**leaves, **case.variant)
    seen = []
    y.register_hook(lambda grad: seen.append(grad.clone()) or 2 * grad)
    y.retain_grad()
    y.grad_fn.register_hook(lambda grads, outputs: seen.append(outputs[0]))
    y.backward(dy)
    assert torch.equal(seen[0], dy)
    assert torch.equal(seen[1], 2 * dy)
    assert torch.equal(y.grad, 2 * dy)
    doubled = run(kernel, inputs, 2 * dy, **case.variant)
    assert equal({"y": y.detach(), **{f"d{n}": leaf.grad for n, leaf in leaves.items()}}, doubled)


def test_hooks_on_saved_tensors(kernel):
    """Saved tensors may leave for elsewhere, as in activation offloading."""
    case = Case(**TAIL)
    inputs, dy = make(case)
    offloaded = []

    def pack(t):
        offloaded.append(t.numel())
        return t.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        results = run(kernel, inputs, dy, **case.variant)
    assert offloaded
    assert equal(results, run(kernel, inputs, dy, **case.variant))


@pytest.mark.parametrize("excitation", [False, True])
def test_a_hook_may_give_x_back_in_another_layout(kernel, backend, excitation):
    """The bits of the mask go by where x lay in forward."""
    case = Case(dtype=torch.float64, layout="channels_last", **TAIL)
    inputs, dy = make(case)
    function = partial(with_excitation, backend=backend) if excitation else kernel
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, torch.Tensor.contiguous):
        results = run(function, inputs, dy, **case.variant)
    for name, expected in run(function, inputs, dy, **case.variant).items():
        torch.testing.assert_close(results[name], expected, rtol=1e-13, atol=1e-13)


# --- transforms: the differentiable definition serves them ---------------------------------------


@pytest.fixture
def smooth(kernel):
    """The block as a function of x, of w1 and of both, on float64, with nothing that jumps."""
    torch.manual_seed(0)
    x = torch.randn(2, 4, 3, 2, dtype=torch.float64)
    w1, w2 = torch.randn(3, 4, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)

    def pair(function):
        return lambda x, w1: function(x, w1, w2, act="silu")

    return pair(kernel), pair(se_kernels.reference.squeeze_excite), x, w1


@pytest.mark.parametrize(
    "transformed",
    [
        lambda f, x, w1: torch.func.grad(lambda x: f(x, w1).sin().sum())(x),
        lambda f, x, w1: torch.func.vmap(f, (0, None))(torch.stack([x, 2 * x]), w1),
        lambda f, x, w1: torch.func.vmap(f, (None, 0))(x, torch.stack([w1, 2 * w1])),
        lambda f, x, w1: torch.func.vmap(
            torch.func.grad(lambda w1, x: f(x[None], w1).sin().sum()), (None, 0)
        )(w1, x),
        lambda f, x, w1: torch.func.jvp(f, (x, w1), (x.cos(), w1.cos()))[1],
        lambda f, x, w1: torch.func.jacrev(f, 1)(x, w1),
        lambda f, x, w1: torch.func.jacfwd(f, 1)(x, w1),
        lambda f, x, w1: torch.func.hessian(lambda w1: f(x, w1).sin().sum())(w1),
        lambda f, x, w1: torch.autograd.functional.jacobian(f, (x, w1), vectorize=True)[0],
    ],
    ids=[
        "grad",
        "vmap over x",
        "vmap over w1",
        "gradients per image",
        "jvp",
        "jacrev",
        "jacfwd",
        "hessian",
        "vectorized jacobian",
    ],
)
def test_function_transforms(smooth, transformed):
    fused, eager, x, w1 = smooth
    expected = transformed(eager, x, w1)
    assert expected.norm() > 0
    torch.testing.assert_close(transformed(fused, x, w1), expected)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_forward_mode(smooth, requires_grad):
    fused, eager, x, w1 = smooth
    tangents = []
    for function in (fused, eager):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x.clone().requires_grad_(requires_grad), x.cos())
            tangents.append(forward_ad.unpack_dual(function(dual, w1)).tangent)
    assert tangents[0] is not None
    torch.testing.assert_close(*tangents)


def test_gradient_through_vmap(smooth):
    fused, eager, x, w1 = smooth
    grads = []
    for function in (fused, eager):
        batch = torch.stack([x, 2 * x]).requires_grad_()
        torch.func.vmap(function, (0, None))(batch, w1).sin().sum().backward()
        grads.append(batch.grad)
    torch.testing.assert_close(*grads)


def test_batched_gradients(smooth):
    fused, eager, x, w1 = smooth
    x.requires_grad_()
    directions = torch.randn(3, *x.shape, dtype=x.dtype)
    results = [
        torch.autograd.grad(function(x, w1), x, directions, is_grads_batched=True)[0]
        for function in (fused, eager)
    ]
    torch.testing.assert_close(*results)
