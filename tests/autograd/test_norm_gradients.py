"""First, second and third derivatives of a batch norm with its block, which of them are computed,
and what is noticed when a saved tensor changes."""

import itertools

import pytest
import torch
from norm_cases import DIFFERENTIABLE, RUNNING, Case, copies, make, run, run_judge
from operator_cases import LAYOUTS
from ops_called import OpsCalled

from se_kernels import reference
from se_kernels.core import dispatch
from se_kernels.core.variants import ACTS, GATES, POSTS, PRES, SQUEEZES

pytestmark = [
    pytest.mark.sampled(every=0, on_host=5),
    pytest.mark.usefixtures("poisoned_outputs", "one_thread"),
]

SMALL = dict(shape=(2, 3, 2, 2), reduced=2, dtype=torch.float64)
TAIL = dict(residual=True, post="relu")


def leaves_of(case, device="cpu"):
    inputs, dy = make(case, device)
    leaves = {
        n: t if t is None else t.detach().requires_grad_(n in DIFFERENTIABLE)
        for n, t in inputs.items()
    }
    return leaves, dy


def as_function(function, case, leaves):
    """``function`` of the differentiable tensors that are there, and those tensors."""
    present = [name for name in DIFFERENTIABLE if leaves[name] is not None]

    def block(*tensors):
        arguments = {**copies(leaves), **dict(zip(present, tensors, strict=True))}
        return function(**arguments, **case.variant)

    return block, [leaves[name] for name in present]


def definition(running_mean, running_var, training, momentum, **arguments):
    """``reference.batch_norm_squeeze_excite`` as the op is called."""
    mean, var = (None, None) if training else (running_mean, running_var)
    return reference.batch_norm_squeeze_excite(mean=mean, var=var, **arguments)


@pytest.mark.sampled(every=0, on_host=11)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pre", PRES)
@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(norm_kernel, device, training, pre, layout):
    for post in POSTS:
        case = Case(**SMALL, training=training, pre=pre, layout=layout, post=post, residual=True)
        block, tensors = as_function(norm_kernel, case, leaves_of(case, device)[0])
        assert torch.autograd.gradcheck(block, tensors)
        assert torch.autograd.gradgradcheck(block, tensors, fast_mode=True)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("act", ACTS)
def test_gradcheck_of_every_excitation(norm_kernel, device, act, gate):
    case = Case(**SMALL, pre="silu", act=act, gate=gate)
    block, tensors = as_function(norm_kernel, case, leaves_of(case, device)[0])
    assert torch.autograd.gradcheck(block, tensors)


@pytest.mark.parametrize("squeeze", SQUEEZES[1:])
def test_gradcheck_with_a_maximum(norm_kernel, device, squeeze):
    for training in (True, False):
        case = Case(**SMALL, training=training, pre="silu", squeeze=squeeze, **TAIL)
        block, tensors = as_function(norm_kernel, case, leaves_of(case, device)[0])
        assert torch.autograd.gradcheck(block, tensors)
        assert torch.autograd.gradgradcheck(block, tensors, fast_mode=True)


@pytest.mark.parametrize("post, residual", [("none", False), ("relu", True), ("relu", False)])
@pytest.mark.parametrize("training", [True, False])
def test_gradgradcheck_element_by_element(norm_kernel, device, training, post, residual):
    case = Case(
        **SMALL, training=training, pre="silu", post=post, residual=residual, biases=("b1",)
    )
    block, tensors = as_function(norm_kernel, case, leaves_of(case, device)[0])
    assert torch.autograd.gradgradcheck(block, tensors)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_third_derivatives(norm_kernel, device, layout, training):
    case = Case(dtype=torch.float64, training=training, pre="silu", residual=True, layout=layout)

    def third(function):
        leaves, dy = leaves_of(case, device)
        block, tensors = as_function(function, case, leaves)
        scalar = (block(*tensors).sin() * dy).sum()
        for _ in range(2):
            grads = torch.autograd.grad(scalar, tensors, create_graph=True)
            scalar = sum(g.square().sum() for g in grads)
        return torch.autograd.grad(scalar, tensors)

    for result, expected in zip(third(norm_kernel), third(definition), strict=True):
        assert expected.abs().max() > 0
        # the same operations in the same order, but for the first forward: roundings of float64
        scale = expected.abs().max().item()
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-11 * scale)


@pytest.mark.parametrize("post", POSTS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_first_derivatives_do_not_depend_on_create_graph(
    norm_kernel, device, layout, training, post
):
    for pre in PRES:
        case = Case(
            dtype=torch.float64, training=training, pre=pre, residual=True, post=post, layout=layout
        )
        leaves, dy = leaves_of(case, device)
        block, tensors = as_function(norm_kernel, case, leaves)
        plain = torch.autograd.grad(block(*tensors), tensors, dy)
        with_graph = torch.autograd.grad(block(*tensors), tensors, dy, create_graph=True)
        for result, expected in zip(with_graph, plain, strict=True):
            torch.testing.assert_close(result, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_create_graph_moves_no_statistics(norm_kernel, device, dtype):
    """The definition that backward then runs is not another batch."""
    leaves, dy = leaves_of(Case(dtype=dtype), device)
    y = norm_kernel(**leaves, training=True)
    once = {name: leaves[name].clone() for name in RUNNING}
    (du,) = torch.autograd.grad(y, leaves["u"], dy, create_graph=True)
    assert du.dtype == dtype
    du.float().square().sum().backward()
    assert all(torch.equal(leaves[name], once[name]) for name in RUNNING)


def test_a_gradient_penalty_trains(norm_kernel, device):
    """Losses of a descent on |y|² + |d|y|²/du|², step by step those of the definition."""
    case = Case(shape=(4, 8, 5, 5), reduced=4, dtype=torch.float64, pre="silu")

    def losses(function):
        leaves, dy = leaves_of(case, device)
        weights = [leaves[name] for name in DIFFERENTIABLE[1:7]]
        optimizer = torch.optim.SGD(weights, lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            y = function(**leaves, **case.variant)
            (slope,) = torch.autograd.grad((y * dy).sum(), leaves["u"], create_graph=True)
            loss = y.square().mean() + slope.square().sum()
            loss.backward()
            optimizer.step()
            yield loss.item()

    fused, expected = [*losses(norm_kernel)], [*losses(definition)]
    assert fused == pytest.approx(expected, rel=1e-10)
    assert fused[-1] < fused[0]


def test_backward_twice_through_one_graph(norm_kernel, device):
    leaves, dy = leaves_of(Case(pre="relu", **TAIL), device)
    tensors = [leaves[name] for name in DIFFERENTIABLE]
    y = norm_kernel(**leaves, training=True, pre="relu", post="relu")
    first = torch.autograd.grad(y, tensors, dy, retain_graph=True)
    second = torch.autograd.grad(y, tensors, dy)
    assert all(map(torch.equal, first, second))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, tensors, dy)


def test_gradients_accumulate(norm_kernel, device):
    case = Case(dtype=torch.float64, **TAIL)
    leaves, dy = leaves_of(case, device)
    for factor in (1, 2):
        norm_kernel(**leaves, **case.variant).backward(factor * dy)
    inputs, dy = make(case, device)
    exact = run_judge(case, inputs, dy)
    for name in DIFFERENTIABLE:
        grad = leaves[name].grad.cpu()
        torch.testing.assert_close(grad, 3 * exact[f"d{name}"], rtol=1e-10, atol=1e-10)


# --- changed in place ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["u", "bn_weight", "w1", "w2"])
@pytest.mark.parametrize("training", [True, False])
def test_an_input_changed_in_place_is_an_error(norm_kernel, device, training, name):
    leaves, dy = leaves_of(Case(), device)
    y = norm_kernel(**leaves, training=training)
    with torch.no_grad():
        leaves[name].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(dy)


@pytest.mark.parametrize("name", RUNNING)
def test_running_statistics_of_a_frozen_norm_changed_before_backward(norm_kernel, device, name):
    """Never a gradient of other statistics than forward's: the right one, or an error."""
    case = Case(training=False)
    inputs, dy = make(case, device)
    expected = run(norm_kernel, inputs, dy, ("u",), **case.variant)["du"]
    leaves, dy = leaves_of(case, device)
    y = norm_kernel(**leaves, **case.variant)
    leaves[name].mul_(2)
    try:
        (du,) = torch.autograd.grad(y, leaves["u"], dy)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)  # noqa: PT017
    else:
        assert torch.equal(du, expected)


def test_running_statistics_moved_by_the_next_batch_do_not_matter(norm_kernel, device):
    """Two batches forward, then both backward, as in gradients of two losses."""
    case = Case(**TAIL)
    inputs, dy = make(case, device)
    once = run(norm_kernel, inputs, dy, **case.variant)
    leaves, dy = leaves_of(case, device)
    first = norm_kernel(**leaves, **case.variant)
    second = norm_kernel(**leaves, **case.variant)
    for y in (first, second):
        grads = torch.autograd.grad(y, [leaves[name] for name in DIFFERENTIABLE], dy)
        for name, grad in zip(DIFFERENTIABLE, grads, strict=True):
            assert torch.equal(grad, once[f"d{name}"]), name


@pytest.mark.parametrize("post", POSTS)
def test_an_output_may_be_changed_in_place(norm_kernel, device, post):
    """y is not kept for backward, not even for a ReLU's mask."""
    case = Case(dtype=torch.float64, post=post, residual=True)
    inputs, dy = make(case, device)
    plain = run(norm_kernel, inputs, dy, **case.variant)
    doubled = run(lambda **a: norm_kernel(**a).mul_(2), inputs, dy / 2, **case.variant)
    for name in DIFFERENTIABLE:
        assert torch.equal(doubled[f"d{name}"], plain[f"d{name}"]), name


# --- only what is needed -------------------------------------------------------------------------

SUBSETS = [s for k in range(9) for s in itertools.combinations(DIFFERENTIABLE, k)]


@pytest.mark.sampled(every=0, on_host=5)
@pytest.mark.parametrize("post", POSTS)
@pytest.mark.parametrize("pre", ["identity", "hardswish"])
@pytest.mark.parametrize("training", [True, False])
def test_every_subset_of_gradients(norm_kernel, backend, device, training, pre, post):
    """Asked for alone or together, a gradient has the same bits, and no other is given."""
    case = Case(training=training, pre=pre, post=post, residual=True)
    inputs, dy = make(case, device)
    full = run(norm_kernel, inputs, dy, **case.variant)
    for need in SUBSETS[:: 3 if backend == "cpu" else 47]:
        some = run(norm_kernel, inputs, dy, need, **case.variant)
        gradients = {name for name in some if name.startswith("d")}
        assert gradients == {f"d{name}" for name in need}
        assert all(torch.equal(some[name], full[name]) for name in gradients), need
        # inference of a frozen norm may go another way
        torch.testing.assert_close(some["y"], full["y"], rtol=1e-5, atol=1e-5)


def ops_of(norm_kernel, case, device, need):
    """Which ops run in forward, and which in backward."""
    leaves, dy = leaves_of(case, device)
    leaves = {
        n: t if t is None else t.detach().requires_grad_(n in need) for n, t in leaves.items()
    }
    with OpsCalled() as forward:
        y = norm_kernel(**leaves, **case.variant)
    with OpsCalled() as backward:
        if need:
            y.backward(dy)
    assert {n for n, t in leaves.items() if t is not None and t.grad is not None} == set(need)
    return forward.names, backward.names


@pytest.fixture
def sweeps_called(backend, monkeypatch):
    """The sweeps as they are called, where Python calls them; None where native code does:
    test_cuda_launches.py has those of CUDA."""
    if backend in ("cpu", "cuda"):
        return None
    module, called = dispatch.get(backend).norm, []

    def recorded(name):
        sweep = getattr(module, name)

        def record(*arguments):
            called.append(name)
            return sweep(*arguments)

        return record

    for name in ("_moments", "_squeeze", "norm_scale", "_scale_backward", "_squeeze_backward"):
        monkeypatch.setattr(module, name, recorded(name))
    return called


@pytest.mark.sampled(every=5, on_host=3)
@pytest.mark.parametrize("pre", PRES)
@pytest.mark.parametrize("training", [True, False])
def test_u_is_read_as_often_as_it_must(norm_kernel, device, sweeps_called, training, pre):
    """Two sweeps each way; a third in training with an activation before the squeeze."""
    case = Case(training=training, pre=pre, **TAIL)
    forward, backward = ops_of(norm_kernel, case, device, DIFFERENTIABLE)
    assert forward == ["norm_forward"]
    assert backward == ["norm_backward"]
    moments = training or pre == "identity"
    squeeze = pre != "identity"
    first = ["_moments"] * moments + ["_squeeze"] * squeeze
    last = ["_scale_backward", "_squeeze_backward"]
    assert sweeps_called in (None, [*first, "norm_scale", *last])


def test_without_du_the_last_sweep_is_left_out(norm_kernel, device, sweeps_called):
    for need in (("bn_weight",), ("w1", "b2"), ("bn_bias", "residual")):
        _, backward = ops_of(norm_kernel, Case(**TAIL), device, need)
        assert backward == ["norm_backward"]
    assert sweeps_called is None or "_squeeze_backward" not in sweeps_called


@pytest.mark.parametrize("training", [True, False])
def test_a_residual_alone(norm_kernel, device, training):
    for options in (dict(residual=True), TAIL):
        case = Case(training=training, **options)
        _, backward = ops_of(norm_kernel, case, device, ["residual"])
        assert backward == []


def test_nothing_needed_is_inference(norm_kernel, device):
    forward, _ = ops_of(norm_kernel, Case(training=False, **TAIL), device, ())
    assert forward == ["norm_inference"]
    leaves, _ = leaves_of(Case(training=False, **TAIL), device)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode, OpsCalled() as called:
            norm_kernel(**leaves, post="relu")
        assert called.names == ["norm_inference"]


def test_a_frozen_block_passes_its_gradient_on(norm_kernel, device):
    """Weights without a gradient inside a network: u still has one, the weights have none."""
    for training in (True, False):
        case = Case(training=training, dtype=torch.float64)
        inputs, dy = make(case, device)
        results = run(norm_kernel, inputs, dy, ("u",), **case.variant)
        exact = run_judge(case, inputs, dy, ("u",))
        torch.testing.assert_close(results["du"].cpu(), exact["du"], rtol=1e-10, atol=1e-10)
