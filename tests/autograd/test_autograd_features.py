"""What surrounds an op in training, of the block with a norm and without: autocast, checkpoints,
hooks, modes, transforms."""

import contextlib
import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from norm_cases import RUNNING, Case, copies, make, run
from ops_called import OpsCalled
from placements import IMAGES
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from se_kernels import SqueezeExcite, reference
from se_kernels.verification import block_case

# autograd is the same whichever backend computes
pytestmark = [pytest.mark.sampled(every=0, on_host=7), pytest.mark.usefixtures("one_thread")]

TAIL = dict(post="relu", residual=True)
WIDE_WEIGHTS = dict(shape=(4, 16, 6, 5), weight_dtype=torch.float32, norm_dtype=torch.float32)


def equal(results, expected):
    return results.keys() == expected.keys() and all(
        torch.equal(value, expected[name]) for name, value in results.items()
    )


# --- autocast ------------------------------------------------------------------------------------


def autocast():
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("squeeze", ["avg", "max"])
@pytest.mark.parametrize("backward_inside", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_changes_no_bit(op, dtype, backward_inside, squeeze):
    """Weights, their gradients and running statistics stay float32, in value too."""
    case = op.case(**WIDE_WEIGHTS, dtype=dtype, pre="silu", squeeze=squeeze, **TAIL)
    inputs, dy = op.make(case)
    leaves = op.leaves_of(inputs)
    with contextlib.ExitStack() as stack:
        stack.enter_context(autocast())
        y = op(**leaves, **case.variant)
        if not backward_inside:
            stack.close()
        y.backward(dy)
    assert y.dtype == leaves[op.image].grad.dtype == dtype
    assert equal(op.results(y, leaves), op.run(case, inputs, dy))
    for name in op.names:
        if name not in (op.image, "residual"):
            assert leaves[name].grad.dtype == torch.float32
            assert (leaves[name].grad != leaves[name].grad.bfloat16()).any(), name


def test_inference_under_autocast(op):
    case = op.case(dtype=torch.bfloat16, weight_dtype=torch.float32, **TAIL)
    inputs, dy = op.make(case)
    expected = op.run(case, inputs, dy, ())
    with autocast():
        assert equal(op.run(case, inputs, dy, ()), expected)


@pytest.fixture
def coarse_products():
    """float32 products may be rounded to bfloat16 here, as far as the processor has them."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


def test_a_coarser_precision_of_products_changes_no_bit(op, request):
    case = op.case(
        shape=(64, 512, 1, 2), reduced=512, act="silu", **TAIL
    )  # large enough to be rounded
    inputs, dy = op.make(case)
    expected = op.run(case, inputs, dy)
    request.getfixturevalue("coarse_products")
    assert equal(op.run(case, inputs, dy), expected)
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_penalty_gradients_under_autocast_are_not_degraded(op, dtype, inside):
    """create_graph takes the differentiable definition: it too must stay out of autocast's reach"""
    case = op.case(**WIDE_WEIGHTS, dtype=dtype, pre="silu")
    inputs, dy = op.make(case)
    leaves = op.leaves_of(inputs)
    names = [name for name in op.names if leaves[name] is not None]
    with contextlib.ExitStack() as stack:
        stack.enter_context(autocast())
        y = op(**leaves, **case.variant)
        if not inside:
            stack.close()
        grads = torch.autograd.grad(y, [leaves[name] for name in names], dy, create_graph=True)
    exact = op.judge(case, inputs, dy)
    for name, grad in zip(names, grads, strict=True):
        assert grad.requires_grad
        if name != op.image:
            error = (grad - exact[f"d{name}"]).norm() / exact[f"d{name}"].norm()
            # sums of some hundred float32 roundings; one rounding to bfloat16 would be 2e-3
            assert error < 1e-5, name


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


# --- checkpoints, hooks, modes -------------------------------------------------------------------


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(op, use_reentrant):
    """The gradients are those without; running statistics move twice, as torch's do."""
    case = op.case(**TAIL)
    inputs, dy = op.make(case)
    leaves = op.leaves_of(inputs)

    def block(*tensors):
        return op(**{**leaves, **dict(zip(op.names, tensors, strict=True))}, **case.variant)

    tensors = [leaves[name] for name in op.names]
    with OpsCalled() as called:
        y = checkpoint(block, *tensors, use_reentrant=use_reentrant)
        y.backward(dy)
    assert called.names.count(f"{op.prefix}backward") == 1
    plain = op.run(case, inputs, dy)
    again = op.run(case, inputs | {name: plain[name] for name in op.running}, dy, ())
    results, expected = op.results(y, leaves), plain | {name: again[name] for name in op.running}
    # a reentrant one infers first, which a frozen norm may do in another way
    torch.testing.assert_close(results.pop("y"), expected.pop("y"), rtol=1e-5, atol=1e-5)
    assert equal(results, expected)


def test_a_tensor_given_twice(op):
    """x as its own residual, one weight in both places: the gradients add up."""
    case = op.case(shape=(2, 3, 3, 4), reduced=3, dtype=torch.float64, biases=(), affine=(), **TAIL)
    inputs, dy = op.make(case)
    x, w = inputs[op.image].requires_grad_(), inputs["w1"].requires_grad_()

    def gradients(function):
        given = op.copies(inputs) | {"residual": x, "w2": w}
        return torch.autograd.grad(function(**given, **case.variant), (x, w), dy)

    for result, value in zip(gradients(op), gradients(op.definition), strict=True):
        torch.testing.assert_close(result, value, rtol=op.tolerance, atol=op.tolerance)


@pytest.mark.parametrize(
    "options",
    [TAIL, dict(pre="relu", dtype=torch.float64), dict(layout="channels_last")],
    ids=["tail", "float64", "channels_last"],
)
def test_expanded_gradient(op, options):
    """dy of y.sum() has stride 0 everywhere."""
    case = op.case(**options)
    inputs, dy = op.make(case)
    leaves = op.leaves_of(inputs)
    y = op(**leaves, **case.variant)
    y.sum().backward()
    expected = op.run(case, inputs, torch.ones_like(dy))
    assert equal({n: t for n, t in op.results(y, leaves).items() if t is not None}, expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_without_gradients(op, mode):
    """The same numbers; running statistics move where the norm trains."""
    case = op.case(**TAIL)
    inputs, dy = op.make(case)
    expected = op.run(case, inputs, dy, ())
    leaves = op.leaves_of(inputs)
    with mode():
        y = op(**leaves, **case.variant)
    assert not y.requires_grad
    assert y.is_inference() == (mode is torch.inference_mode)
    assert equal({"y": y, **{n: leaves[n] for n in op.running}}, expected)


def test_tensors_made_in_inference_mode(kernel):
    """Usable outside it, but not to be saved for backward: PyTorch's own error, as in eager."""
    with torch.inference_mode():
        x = torch.randn(2, 5, 3, 4)
    w1, w2 = torch.randn(3, 5), torch.randn(5, 3)
    assert torch.equal(kernel(x, w1, w2), kernel(x.clone(), w1, w2))
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
        kernel(x, w1.requires_grad_(), w2)


def test_hooks_on_the_output(op):
    case = op.case(**TAIL)
    inputs, dy = op.make(case)
    leaves = op.leaves_of(inputs)
    y = op(**leaves, **case.variant)
    seen = []
    y.register_hook(lambda grad: seen.append(grad.clone()) or 2 * grad)
    y.retain_grad()
    y.grad_fn.register_hook(lambda grads, outputs: seen.append(outputs[0]))
    y.backward(dy)
    assert torch.equal(seen[0], dy)
    assert torch.equal(seen[1], 2 * dy)
    assert torch.equal(y.grad, 2 * dy)
    assert equal(op.results(y, leaves), op.run(case, inputs, 2 * dy))


def test_hooks_on_saved_tensors(op):
    """Saved tensors may leave for elsewhere, as in activation offloading."""
    case = op.case(pre="relu", **TAIL)
    inputs, dy = op.make(case)
    offloaded = []

    def pack(t):
        offloaded.append(t.numel())
        return t.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        results = op.run(case, inputs, dy)
    assert offloaded
    assert equal(results, op.run(case, inputs, dy))


def test_a_hook_may_give_x_back_in_another_layout_to_a_module_between(backend):
    """The bits of the mask go by where x lay in forward."""
    case = block_case.Case(dtype=torch.float64, layout="channels_last", **TAIL)
    inputs, dy = block_case.make(case)
    function = partial(block_case.with_excitation, backend=backend)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, torch.Tensor.contiguous):
        results = block_case.run(function, inputs, dy, **case.variant)
    for name, expected in block_case.run(function, inputs, dy, **case.variant).items():
        torch.testing.assert_close(results[name], expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("pre", ["identity", "silu"])
@pytest.mark.parametrize("shape", [(2, 6, 3, 2), (2, 9, 3, 4), (3, 12, 1, 1)], ids=str)
def test_hooks_that_lay_saved_tensors_otherwise(op, shape, pre, create_graph):
    """As offloading to pinned memory does: the ReLU's mask is still of the right elements."""
    case = op.case(shape=shape, dtype=torch.float64, pre=pre, **TAIL)
    inputs, dy = op.make(case)
    expected = op.run(case, inputs, dy)
    dense = ("contiguous", "channels_last")
    for start, end in {*itertools.product(IMAGES, dense), *itertools.product(dense, IMAGES)}:

        def pack(t, end=end):
            return IMAGES[end](t) if t.dim() == 4 else t

        leaves = op.leaves_of({**inputs, op.image: IMAGES[start](inputs[op.image])})
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = op(**leaves, **case.variant)
            tensors = [leaves[name] for name in op.names]
            grads = torch.autograd.grad(y, tensors, dy, create_graph=create_graph)
        for name, grad in zip(op.names, grads, strict=True):
            # sums in another order
            torch.testing.assert_close(grad, expected[f"d{name}"], rtol=1e-10, atol=1e-10)


def test_inside_a_network(norm_kernel):
    """Convolution, op, ReLU in place, head: three steps of the network and of its twin of parts."""

    class Block(nn.Module):
        def __init__(self, fused):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
            self.fc1, self.fc2, self.head = nn.Linear(8, 4), nn.Linear(4, 8), nn.Linear(8, 3)
            self.fused = fused

        def forward(self, x):
            u, bn = self.conv(x), self.bn
            excitation = self.fc1.weight, self.fc2.weight, self.fc1.bias, self.fc2.bias
            if self.fused:
                bn.num_batches_tracked += 1
                norm = u, bn.weight, bn.bias, bn.running_mean, bn.running_var
                y = norm_kernel(*norm, *excitation, training=True, pre="hardswish")
            else:
                y = reference.squeeze_excite(F.hardswish(bn(u)), *excitation)
            return self.head(F.relu_(y).mean((2, 3)))

    torch.manual_seed(0)
    parts = Block(False).double()
    fused = Block(True).double()
    fused.load_state_dict(parts.state_dict())
    for block in (parts, fused):
        optimizer = torch.optim.SGD(block.parameters(), lr=0.1, momentum=0.9)
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(4, 3, 6, 5, generator=generator, dtype=torch.float64)
            optimizer.zero_grad()
            block(x).square().sum().backward()
            optimizer.step()
    for name, value in parts.state_dict().items():
        torch.testing.assert_close(fused.state_dict()[name], value, rtol=1e-9, atol=1e-9, msg=name)


# --- transforms: the differentiable definition serves them ---------------------------------------


@pytest.fixture
def smooth(op):
    """The op and its definition as functions of x and w1, with nothing that jumps; on w1 the weight
    of a norm depends too."""
    options = dict(running=not op.running, pre="silu", act="silu")
    case = op.case(shape=(2, 4, 3, 2), dtype=torch.float64, **options)
    inputs, _ = op.make(case)

    def pair(function):
        def of_x_and_w1(x, w1):
            given = {**inputs, op.image: x, "w1": w1}
            if op.prefix:
                given["bn_weight"] = inputs["bn_weight"] + w1.sum(0)
            return function(**given, **case.variant)

        return of_x_and_w1

    return pair(op), pair(op.definition), inputs[op.image], inputs["w1"]


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


# --- running statistics --------------------------------------------------------------------------


def test_running_statistics_under_transforms_move_as_torch_moves_them(norm_kernel):
    """By the batch under grad; into nothing that outlives forward-mode's level."""
    case = Case(dtype=torch.float64)
    inputs, dy = make(case)
    once = run(norm_kernel, inputs, dy, (), **case.variant)

    def moved(transform):
        given = copies(inputs)

        def of_u(u):
            return norm_kernel(**{**given, "u": u}, **case.variant).sum()

        transform(of_u, inputs["u"])
        return given

    def jvp(function, u):
        with forward_ad.dual_level():
            function(forward_ad.make_dual(u, u.cos()))

    for transform in (lambda function, u: torch.func.grad(function)(u), jvp):
        given = moved(transform)
        for name in RUNNING:
            torch.testing.assert_close(given[name], once[name], rtol=1e-12, atol=1e-12)


def test_forward_mode_leaves_running_statistics_without_a_tangent(norm_kernel):
    case = Case(dtype=torch.float64)
    inputs, _ = make(case)
    given = copies(inputs)
    with forward_ad.dual_level():
        u = forward_ad.make_dual(inputs["u"], inputs["u"].cos())
        y = norm_kernel(**{**given, "u": u}, **case.variant)
        assert forward_ad.unpack_dual(y).tangent is not None
        for name in RUNNING:
            assert forward_ad.unpack_dual(given[name]).tangent is None, name


def test_vmap_over_batches_with_running_statistics_is_refused_as_by_torch(norm_kernel):
    inputs, _ = make(Case())
    given = copies(inputs)
    batches = torch.stack([inputs["u"], 2 * inputs["u"]])

    def of_u(u):
        return norm_kernel(**{**given, "u": u}, training=True)

    def of_torch(u):
        return F.batch_norm(u, given["running_mean"], given["running_var"], training=True)

    for function in (of_u, of_torch):
        with pytest.raises((RuntimeError, ValueError), match=r"vmap|running"):
            torch.func.vmap(function)(batches)
