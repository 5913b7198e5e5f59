"""What surrounds a batch norm with its block: autocast, checkpoints, hooks, modes, transforms."""

import contextlib
import itertools

import pytest
import torch
import torch.nn.functional as F
from norm_cases import DIFFERENTIABLE, RUNNING, Case, copies, make, run, run_judge
from placements import IMAGES
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from se_kernels import reference

pytestmark = [pytest.mark.sampled(every=0, on_host=7), pytest.mark.usefixtures("one_thread")]

TAIL = dict(post="relu", residual=True)


def equal(results, expected):
    return results.keys() == expected.keys() and all(
        torch.equal(value, expected[name]) for name, value in results.items()
    )


def leaves_of(inputs):
    """Those of ``inputs``, the differentiable ones requiring a gradient."""
    return {
        name: t if t is None else t.detach().requires_grad_(name in DIFFERENTIABLE)
        for name, t in copies(inputs).items()
    }


# --- autocast ------------------------------------------------------------------------------------


def autocast():
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("backward_inside", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_changes_no_bit(norm_kernel, dtype, training, backward_inside):
    """Weights, their gradients and running statistics stay float32, in value too."""
    for squeeze in ("avg", "max"):
        case = Case(
            shape=(4, 16, 6, 5), dtype=dtype, weight_dtype=torch.float32, norm_dtype=torch.float32,
            training=training, pre="silu", squeeze=squeeze, **TAIL,
        )  # fmt: skip
        inputs, dy = make(case)
        leaves = leaves_of(inputs)
        with contextlib.ExitStack() as stack:
            stack.enter_context(autocast())
            y = norm_kernel(**leaves, **case.variant)
            if not backward_inside:
                stack.close()
            y.backward(dy)
        assert y.dtype == dtype
        results = {"y": y.detach()} | {f"d{name}": leaves[name].grad for name in DIFFERENTIABLE}
        results |= {name: leaves[name] for name in RUNNING if training}
        assert equal(results, run(norm_kernel, inputs, dy, **case.variant))
        assert results["dw1"].dtype == results["dbn_weight"].dtype == torch.float32
        assert (results["dbn_weight"] != results["dbn_weight"].bfloat16()).any()


@pytest.mark.parametrize("training", [True, False])
def test_inference_under_autocast(norm_kernel, training):
    case = Case(dtype=torch.bfloat16, weight_dtype=torch.float32, training=training, **TAIL)
    inputs, dy = make(case)
    expected = run(norm_kernel, inputs, dy, (), **case.variant)
    with autocast():
        assert equal(run(norm_kernel, inputs, dy, (), **case.variant), expected)


@pytest.fixture
def coarse_products():
    """float32 products may be rounded to bfloat16 here, as far as the processor has them."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("training", [True, False])
def test_a_coarser_precision_of_products_changes_no_bit(norm_kernel, training, request):
    case = Case((64, 512, 1, 2), 512, training=training, **TAIL)  # large enough to be rounded
    inputs, dy = make(case)
    expected = run(norm_kernel, inputs, dy, **case.variant)
    request.getfixturevalue("coarse_products")
    assert equal(run(norm_kernel, inputs, dy, **case.variant), expected)
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.parametrize("inside", [False, True])
def test_penalty_gradients_under_autocast_are_not_degraded(norm_kernel, inside):
    """create_graph takes the differentiable definition: it too must stay out of autocast's reach"""
    case = Case(
        shape=(4, 16, 6, 5), dtype=torch.bfloat16, weight_dtype=torch.float32,
        norm_dtype=torch.float32, pre="silu",
    )  # fmt: skip
    inputs, dy = make(case)
    leaves = leaves_of(inputs)
    names = [name for name in DIFFERENTIABLE if leaves[name] is not None]
    with contextlib.ExitStack() as stack:
        stack.enter_context(autocast())
        y = norm_kernel(**leaves, **case.variant)
        if not inside:
            stack.close()
        grads = torch.autograd.grad(y, [leaves[name] for name in names], dy, create_graph=True)
    exact = run_judge(case, inputs, dy)
    for name, grad in zip(names, grads, strict=True):
        assert grad.requires_grad
        if name != "u":
            error = (grad - exact[f"d{name}"]).norm() / exact[f"d{name}"].norm()
            # sums of some hundred float32 roundings; one rounding to bfloat16 would be 2e-3
            assert error < 1e-5, name


# --- checkpoints, hooks, modes -------------------------------------------------------------------


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_checkpoint(norm_kernel, training, use_reentrant):
    """The gradients are those without; the running statistics move twice, as torch's do."""
    case = Case(training=training, **TAIL)
    inputs, dy = make(case)
    leaves = leaves_of(inputs)

    def block(*tensors):
        given = dict(zip(DIFFERENTIABLE, tensors, strict=True))
        return norm_kernel(**{**leaves, **given}, **case.variant)

    tensors = [leaves[name] for name in DIFFERENTIABLE]
    checkpoint(block, *tensors, use_reentrant=use_reentrant).backward(dy)
    plain = run(norm_kernel, inputs, dy, **case.variant)
    for name in DIFFERENTIABLE:
        assert torch.equal(leaves[name].grad, plain[f"d{name}"]), name
    if training:
        moved = inputs | {name: plain[name] for name in RUNNING}
        again = run(norm_kernel, moved, dy, (), **case.variant)
        assert all(torch.equal(leaves[name], again[name]) for name in RUNNING)


def test_a_tensor_given_twice(norm_kernel):
    """u as its own residual, one weight in both places: the gradients add up."""
    case = Case(shape=(2, 3, 3, 4), reduced=3, dtype=torch.float64, biases=(), affine=())
    inputs, dy = make(case)
    u, w = inputs["u"].requires_grad_(), inputs["w1"].requires_grad_()
    given = u, None, None, None, None, w, w
    y = norm_kernel(*given, residual=u, training=True)
    expected = reference.batch_norm_squeeze_excite(*given, residual=u)
    for result, value in zip(
        torch.autograd.grad(y, (u, w), dy), torch.autograd.grad(expected, (u, w), dy), strict=True
    ):
        torch.testing.assert_close(result, value, rtol=1e-12, atol=1e-12)


def test_expanded_gradient(norm_kernel):
    """dy of y.sum() has stride 0 everywhere."""
    for case in (Case(**TAIL), Case(pre="relu"), Case(training=False, layout="channels_last")):
        inputs, dy = make(case)
        leaves = leaves_of(inputs)
        norm_kernel(**leaves, **case.variant).sum().backward()
        expected = run(norm_kernel, inputs, torch.ones_like(dy), **case.variant)
        for name in DIFFERENTIABLE:
            if leaves[name] is not None:
                assert torch.equal(leaves[name].grad, expected[f"d{name}"]), name


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("training", [True, False])
def test_modes_without_gradients(norm_kernel, training, mode):
    """The same numbers; running statistics move where the norm trains."""
    case = Case(training=training, **TAIL)
    inputs, dy = make(case)
    expected = run(norm_kernel, inputs, dy, (), **case.variant)
    leaves = leaves_of(inputs)
    with mode():
        y = norm_kernel(**leaves, **case.variant)
    assert not y.requires_grad
    assert y.is_inference() == (mode is torch.inference_mode)
    assert equal({"y": y, **{n: leaves[n] for n in RUNNING if training}}, expected)


def test_hooks_on_the_output(norm_kernel):
    case = Case(**TAIL)
    inputs, dy = make(case)
    leaves = leaves_of(inputs)
    y = norm_kernel(**leaves, **case.variant)
    y.register_hook(lambda grad: 2 * grad)
    y.retain_grad()
    y.backward(dy)
    assert torch.equal(y.grad, 2 * dy)
    doubled = run(norm_kernel, inputs, 2 * dy, **case.variant)
    assert all(torch.equal(leaves[name].grad, doubled[f"d{name}"]) for name in DIFFERENTIABLE)


def test_hooks_on_saved_tensors(norm_kernel):
    """Saved tensors may leave for elsewhere, as in activation offloading."""
    case = Case(pre="relu", **TAIL)
    inputs, dy = make(case)
    offloaded = []

    def pack(t):
        offloaded.append(t.numel())
        return t.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        results = run(norm_kernel, inputs, dy, **case.variant)
    assert offloaded
    assert equal(results, run(norm_kernel, inputs, dy, **case.variant))


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("pre", ["identity", "silu"])
@pytest.mark.parametrize("shape", [(2, 6, 3, 2), (2, 9, 3, 4), (3, 12, 1, 1)], ids=str)
def test_hooks_that_lay_saved_tensors_otherwise(norm_kernel, shape, pre, create_graph):
    """As offloading to pinned memory does: the ReLU's mask is still of the right elements."""
    case = Case(shape, dtype=torch.float64, pre=pre, **TAIL)
    inputs, dy = make(case)
    expected = run(norm_kernel, inputs, dy, **case.variant)
    for start, end in itertools.permutations(IMAGES, 2):

        def pack(t, end=end):
            return IMAGES[end](t) if t.dim() == 4 else t

        leaves = leaves_of({**inputs, "u": IMAGES[start](inputs["u"])})
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = norm_kernel(**leaves, **case.variant)
            tensors = [leaves[name] for name in DIFFERENTIABLE]
            grads = torch.autograd.grad(y, tensors, dy, create_graph=create_graph)
        for name, grad in zip(DIFFERENTIABLE, grads, strict=True):
            # sums in another order
            torch.testing.assert_close(grad, expected[f"d{name}"], rtol=1e-10, atol=1e-10)


def test_inside_a_network(norm_kernel, one_thread):
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


def smooth(norm_kernel, training):
    """The op and its definition as functions of u, bn_weight and w1, with nothing that jumps."""
    case = Case(
        (2, 4, 3, 2), dtype=torch.float64, training=training, running=not training, pre="silu"
    )
    inputs, _ = make(case)
    given = {name: t for name, t in inputs.items() if name not in ("u", "bn_weight", "w1")}

    def fused(u, bn_weight, w1):
        arguments = {**given, "u": u, "bn_weight": bn_weight, "w1": w1}
        return norm_kernel(**arguments, training=training, pre="silu", act="silu")

    def defined(u, bn_weight, w1):
        of = [None, None] if training else [given[name] for name in RUNNING]
        rest = given["w2"], given["b1"], given["b2"]
        return reference.batch_norm_squeeze_excite(
            u, bn_weight, given["bn_bias"], *of, w1, *rest, act="silu", pre="silu"
        )

    return fused, defined, *(inputs[name] for name in ("u", "bn_weight", "w1"))


@pytest.mark.parametrize(
    "transformed",
    [
        lambda f, u, g, w: torch.func.grad(lambda u: f(u, g, w).sin().sum())(u),
        lambda f, u, g, w: torch.func.vmap(f, (0, None, None))(torch.stack([u, 2 * u]), g, w),
        lambda f, u, g, w: torch.func.vmap(f, (None, 0, 0))(
            u, torch.stack([g, 2 * g]), torch.stack([w, -w])
        ),
        lambda f, u, g, w: torch.func.vmap(
            torch.func.grad(lambda w, u: f(u[None], g, w).sin().sum()), (None, 0)
        )(w, u),
        lambda f, u, g, w: torch.func.jvp(f, (u, g, w), (u.cos(), g.cos(), w.cos()))[1],
        lambda f, u, g, w: torch.func.jacrev(f, 1)(u, g, w),
        lambda f, u, g, w: torch.func.jacfwd(f, 1)(u, g, w),
        lambda f, u, g, w: torch.func.hessian(lambda g: f(u, g, w).sin().sum())(g),
        lambda f, u, g, w: torch.autograd.functional.jacobian(f, (u, g, w), vectorize=True)[0],
    ],
    ids=[
        "grad",
        "vmap over u",
        "vmap over weights",
        "gradients per image",
        "jvp",
        "jacrev",
        "jacfwd",
        "hessian",
        "vectorized jacobian",
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_function_transforms(norm_kernel, training, transformed):
    fused, defined, *tensors = smooth(norm_kernel, training)
    expected = transformed(defined, *tensors)
    assert expected.norm() > 0
    torch.testing.assert_close(transformed(fused, *tensors), expected)


@pytest.mark.parametrize("training", [True, False])
def test_batched_gradients(norm_kernel, training):
    fused, defined, u, g, w = smooth(norm_kernel, training)
    u.requires_grad_()
    directions = torch.randn(3, *u.shape, dtype=u.dtype)
    results = [
        torch.autograd.grad(function(u, g, w), u, directions, is_grads_batched=True)[0]
        for function in (fused, defined)
    ]
    torch.testing.assert_close(*results)


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
