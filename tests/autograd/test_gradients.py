"""First, second and third derivatives of the block with a norm and without, which of them are
computed, and what is noticed when a saved tensor changes."""

import itertools

import pytest
import torch
from norm_cases import RUNNING, Case, make, run
from operator_cases import LAYOUTS
from operators import OPERATORS
from ops_called import OpsCalled
from torch.utils._python_dispatch import TorchDispatchMode

from se_kernels.core import dispatch
from se_kernels.core.variants import ACTS, GATES, POSTS, PRES, SQUEEZES

pytestmark = [
    pytest.mark.sampled(every=0, on_host=5),  # a backend's gradients: test_squeeze_excite.py
    pytest.mark.usefixtures("poisoned_outputs", "one_thread"),
]

SMALL = dict(shape=(2, 3, 2, 2), reduced=2, dtype=torch.float64)
TAIL = dict(residual=True, post="relu")


def as_function(op, function, case, leaves):
    """``function`` of the differentiable tensors that are there, and those tensors."""
    present = [name for name in op.names if leaves[name] is not None]

    def block(*tensors):
        arguments = {**op.copies(leaves), **dict(zip(present, tensors, strict=True))}
        return function(**arguments, **case.variant)

    return block, [leaves[name] for name in present]


@pytest.mark.sampled(every=0, on_host=101)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("act, pre", [*zip(ACTS, itertools.cycle(PRES), strict=False)])
@pytest.mark.parametrize("squeeze", SQUEEZES)
def test_gradcheck(op, device, squeeze, act, pre, gate, layout):
    for post in POSTS:
        options = dict(squeeze=squeeze, act=act, pre=pre, gate=gate, post=post, residual=True)
        case = op.case(**SMALL, **options, layout=layout)
        block, tensors = as_function(op, op, case, op.leaves(case, device)[0])
        assert torch.autograd.gradcheck(block, tensors)
        assert torch.autograd.gradgradcheck(block, tensors, fast_mode=True)


@pytest.mark.sampled(every=0, on_host=23)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("squeeze", SQUEEZES)
@pytest.mark.parametrize("post, residual", [("none", False), ("relu", True), ("relu", False)])
def test_gradgradcheck_element_by_element(op, device, squeeze, post, residual, layout):
    smooth = dict(act="silu", pre="silu", biases=("b1",))
    case = op.case(**SMALL, **smooth, squeeze=squeeze, post=post, residual=residual, layout=layout)
    block, tensors = as_function(op, op, case, op.leaves(case, device)[0])
    assert torch.autograd.gradgradcheck(block, tensors)


@pytest.mark.parametrize("squeeze", ["avg", "avgmax"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_third_derivatives(op, device, layout, squeeze):
    smooth = dict(act="silu", pre="silu", residual=True)
    case = op.case(dtype=torch.float64, **smooth, squeeze=squeeze, layout=layout)

    def third(function):
        leaves, dy = op.leaves(case, device)
        block, tensors = as_function(op, function, case, leaves)
        scalar = (block(*tensors).sin() * dy).sum()
        for _ in range(2):
            grads = torch.autograd.grad(scalar, tensors, create_graph=True)
            scalar = sum(g.square().sum() for g in grads)
        return torch.autograd.grad(scalar, tensors)

    for result, expected in zip(third(op), third(op.definition), strict=True):
        assert expected.abs().max() > 0
        # the same operations in the same order, but for the first forward: roundings of float64
        scale = expected.abs().max().item()
        torch.testing.assert_close(result, expected, rtol=0, atol=op.tolerance * scale)


@pytest.mark.parametrize("post", POSTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_first_derivatives_do_not_depend_on_create_graph(op, device, layout, post):
    for pre in op.pres:
        case = op.case(dtype=torch.float64, pre=pre, residual=True, post=post, layout=layout)
        leaves, dy = op.leaves(case, device)
        block, tensors = as_function(op, op, case, leaves)
        plain = torch.autograd.grad(block(*tensors), tensors, dy)
        with_graph = torch.autograd.grad(block(*tensors), tensors, dy, create_graph=True)
        for result, expected in zip(with_graph, plain, strict=True):
            torch.testing.assert_close(result, expected, rtol=op.tolerance, atol=op.tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_create_graph_moves_no_statistics(norm_kernel, device, dtype):
    """The definition that backward then runs is not another batch."""
    leaves, dy = OPERATORS["norm"].leaves(Case(dtype=dtype), device)
    y = norm_kernel(**leaves, training=True)
    once = {name: leaves[name].clone() for name in RUNNING}
    (du,) = torch.autograd.grad(y, leaves["u"], dy, create_graph=True)
    assert du.dtype == dtype
    du.float().square().sum().backward()
    assert all(torch.equal(leaves[name], once[name]) for name in RUNNING)


@pytest.mark.parametrize("options", [{}, dict(squeeze="avgmax", **TAIL)], ids=["plain", "tail"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_penalty_trains(op, device, dtype, layout, options):
    """Losses of a descent on |y|² + |d|y|²/dx|², and first gradients, beside the definition's."""
    smooth = dict(act="silu", pre="silu", dtype=dtype, layout=layout)
    case = op.case(shape=(4, 8, 5, 5), reduced=4, **smooth, **options)

    def trained(function):
        leaves, _ = op.leaves(case, device)
        weights = [leaves[name] for name in ("w1", "w2", "b1", "b2")]
        optimizer = torch.optim.SGD(weights, lr=0.05)
        losses, first = [], None
        for _ in range(10):
            optimizer.zero_grad()
            loss = function(**leaves, **case.variant).square().mean()
            (slope,) = torch.autograd.grad(loss, leaves[op.image], create_graph=True)
            loss = loss + 100 * slope.square().sum()
            loss.backward()
            first = first or [w.grad.clone() for w in weights]
            optimizer.step()
            losses.append(loss.item())
        return losses, first

    (losses, grads), (expected_losses, expected) = trained(op), trained(op.definition)
    assert losses[-1] < losses[0]
    # sums of some hundred terms: a hundred roundings
    tolerance = 100 * torch.finfo(dtype).eps
    for grad, right in zip(grads, expected, strict=True):
        scale = right.abs().max().item()
        torch.testing.assert_close(grad, right, rtol=0, atol=tolerance * scale)
    torch.testing.assert_close(losses, expected_losses, rtol=20 * tolerance, atol=0)


def test_backward_twice_through_one_graph(op, device):
    case = op.case(pre="relu", **TAIL)
    leaves, dy = op.leaves(case, device)
    block, tensors = as_function(op, op, case, leaves)
    y = block(*tensors)
    first = torch.autograd.grad(y, tensors, dy, retain_graph=True)
    second = torch.autograd.grad(y, tensors, dy)
    assert all(map(torch.equal, first, second))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, tensors, dy)


def test_gradients_accumulate(op, device):
    case = op.case(dtype=torch.float64, **TAIL)
    leaves, dy = op.leaves(case, device)
    for factor in (1, 2):
        op(**leaves, **case.variant).backward(factor * dy)
    exact = op.judge(case, *op.make(case, device))
    for name in op.names:
        grad = leaves[name].grad.cpu()
        torch.testing.assert_close(grad, 3 * exact[f"d{name}"], rtol=1e-10, atol=1e-10)


# --- changed in place ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x", "bn_weight", "w1", "w2"])
def test_an_input_changed_in_place_is_an_error(op, device, name):
    case = op.case()
    leaves, dy = op.leaves(case, device)
    name = op.image if name == "x" else name
    if name not in leaves:
        pytest.skip("no norm")
    y = op(**leaves, **case.variant)
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
    leaves, dy = OPERATORS["frozen norm"].leaves(case, device)
    y = norm_kernel(**leaves, **case.variant)
    leaves[name].mul_(2)
    try:
        (du,) = torch.autograd.grad(y, leaves["u"], dy)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)  # noqa: PT017
    else:
        assert torch.equal(du, expected)


def test_two_batches_forward_then_both_backward(op, device):
    """As in gradients of two losses; a norm's running statistics have moved in between."""
    case = op.case(**TAIL)
    once = op.run(case, *op.make(case, device))
    leaves, dy = op.leaves(case, device)
    for y in [op(**leaves, **case.variant) for _ in range(2)]:
        grads = torch.autograd.grad(y, [leaves[name] for name in op.names], dy)
        for name, grad in zip(op.names, grads, strict=True):
            assert torch.equal(grad, once[f"d{name}"]), name


@pytest.mark.parametrize("post", POSTS)
def test_an_output_may_be_changed_in_place(op, device, post):
    """y is not kept for backward, not even for a ReLU's mask."""
    case = op.case(dtype=torch.float64, post=post, residual=True)
    inputs, dy = op.make(case, device)
    plain = op.run(case, inputs, dy)
    leaves = op.leaves_of(inputs)
    torch.relu_(op(**leaves, **case.variant).mul_(2)).backward(dy / 2)
    expected = plain if post == "relu" else op.run(case, inputs, dy * (plain["y"] > 0))
    for name in op.names:
        assert torch.equal(leaves[name].grad, expected[f"d{name}"]), name


# --- only what is needed -------------------------------------------------------------------------


class Needs(TorchDispatchMode):
    """Which gradients the registered backward of the block was asked for, at each call."""

    def __init__(self):
        super().__init__()
        self.needs = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() == "se_kernels::backward":
            self.needs.append(next(a for a in args if isinstance(a, list)))
        return func(*args, **(kwargs or {}))


# the order in which the registered op is told
OP_ORDER = ("x", "residual", "w1", "w2", "b1", "b2")


@pytest.mark.parametrize("post", POSTS)
def test_only_the_gradients_that_are_needed(op, backend, device, post):
    """Asked for alone or together, a gradient has the same bits, and no other is computed."""
    for pre in op.pres[::3]:
        case = op.case(pre=pre, post=post, residual=True)
        inputs, dy = op.make(case, device)
        full = op.run(case, inputs, dy)
        sizes = range(1, len(op.names) + 1)
        subsets = [s for k in sizes for s in itertools.combinations(op.names, k)]
        every = 47 if backend != "cpu" else 3 if op.prefix else 1
        for need in subsets[::every]:
            with Needs() as asked:
                some = op.run(case, inputs, dy, need)
            assert set(some) == {"y", *op.running, *(f"d{name}" for name in need)}
            assert all(torch.equal(some[name], full[name]) for name in some), need
            if op.prefix or need == ("residual",):
                assert asked.needs == []
                continue
            # without a mask dresidual is dy
            written = set(need) - ({"residual"} if post == "none" else set())
            (needs,) = asked.needs
            assert {n for n, is_needed in zip(OP_ORDER, needs, strict=True) if is_needed} == written


def ops_of(op, case, device, need):
    """Which ops run in forward, and which in backward."""
    inputs, dy = op.make(case, device)
    leaves = {
        n: t if t is None else t.detach().requires_grad_(n in need)
        for n, t in op.copies(inputs).items()
    }
    with OpsCalled() as forward:
        y = op(**leaves, **case.variant)
    with OpsCalled() as backward:
        if need:
            y.backward(dy)
    assert {n for n, t in leaves.items() if t is not None and t.grad is not None} == set(need)
    return forward.names, backward.names


@pytest.mark.parametrize("post", POSTS)
def test_a_residual_alone_needs_no_kernel(op, device, post):
    forward, backward = ops_of(op, op.case(residual=True, post=post), device, ["residual"])
    assert forward == [f"{op.prefix}forward"]
    assert backward == []


def test_nothing_needed_is_inference(op, device):
    """What trains moves its statistics by the op that training has."""
    case = op.case(**TAIL)
    expected = [f"{op.prefix}{'forward' if op.running else 'inference'}"]
    forward, _ = ops_of(op, case, device, ())
    assert forward == expected
    leaves, _ = op.leaves(case, device)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode, OpsCalled() as called:
            op(**leaves, **case.variant)
        assert called.names == expected


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
def test_x_is_read_as_often_as_it_must(op, device, sweeps_called, pre):
    """Two sweeps each way; a third in training with an activation before the squeeze."""
    if pre not in op.pres:
        pytest.skip("no norm")
    case = op.case(pre=pre, **TAIL)
    forward, backward = ops_of(op, case, device, op.names)
    assert forward == [f"{op.prefix}forward"]
    assert backward == [f"{op.prefix}backward"]
    if not op.prefix:
        return
    moments = bool(op.running) or pre == "identity"
    squeeze = pre != "identity"
    first = ["_moments"] * moments + ["_squeeze"] * squeeze
    last = ["_scale_backward", "_squeeze_backward"]
    assert sweeps_called in (None, [*first, "norm_scale", *last])


@pytest.mark.sampled(every=1)
def test_without_du_the_last_sweep_is_left_out(backend, device, sweeps_called):
    op = OPERATORS["norm"].on(backend)
    for need in (("bn_weight",), ("w1", "b2"), ("bn_bias", "residual")):
        _, backward = ops_of(op, op.case(**TAIL), device, need)
        assert backward == ["norm_backward"]
    assert sweeps_called is None or "_squeeze_backward" not in sweeps_called
