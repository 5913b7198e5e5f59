"""squeeze and scale on their own, and the block with an excitation that the caller gives.

Two ways to put the block together again, judged as the block is: ``excitation=`` with the FCs of a
case, and ``scale`` of what ``squeeze`` gave.
"""

import copy
import itertools

import pytest
import torch
from hypothesis import given
from operator_cases import DTYPES, LAYOUTS, NAMES, Case, check, check_against_eager, make, run
from ops_called import OpsCalled
from random_cases import check_placed, placed_cases, random_cases
from torch import nn

import se_kernels
from se_kernels import reference
from se_kernels.core import ops
from se_kernels.core.precision import compute_dtype
from se_kernels.core.variants import POSTS, SQUEEZES
from se_kernels.verification.block_case import with_excitation

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("poisoned_outputs")]

WIDE = (torch.float32, torch.float64)  # z passes from phase to phase in x's dtype


def fcs(w1, w2, b1, b2, act, act_slope, gate):
    """The FCs as a function from z (N, C, 1, 1) to s (N, C, 1, 1)."""

    def excite(z):
        dtype = compute_dtype(z, w1)
        weights = (
            None if t is None else t.to(dtype).flatten(1) if t.dim() > 1 else t.to(dtype)
            for t in (w1, w2, b1, b2)
        )
        z = z.flatten(1).to(dtype)
        return reference.excite(z, *weights, act=act, act_slope=act_slope, gate=gate)[
            ..., None, None
        ]

    return excite


def phase_by_phase(x, w1, w2, b1=None, b2=None, *, residual=None, squeeze, post, backend, **names):
    z = se_kernels.squeeze(x, squeeze, backend=backend)
    s = fcs(w1, w2, b1, b2, **names)(z[:, :, None, None])
    return se_kernels.scale(x, s, residual, post=post, backend=backend)


@pytest.fixture(scope="session", params=[with_excitation, phase_by_phase])
def assembled(request, backend):
    """The block put together from its phases on ``backend``; called as the block is."""

    def block(*args, **options):
        return request.param(*args, **{**Case().variant, **options}, backend=backend)

    return block


# --- right numbers -------------------------------------------------------------------------------


@pytest.mark.sampled(every=17)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("post", POSTS)
@pytest.mark.parametrize("squeeze", SQUEEZES)
@pytest.mark.parametrize("dtype", WIDE)
def test_every_variant(assembled, device, dtype, squeeze, post, residual, layout):
    for shape in ((2, 5, 3, 4), (3, 17, 7, 7), (1, 33, 1, 1)):
        case = Case(
            shape=shape,
            dtype=dtype,
            squeeze=squeeze,
            post=post,
            residual=residual,
            layout=layout,
            act="silu",
        )
        inputs, dy = make(case, device)
        check(case, inputs, dy, run(assembled, inputs, dy, **case.variant))


@pytest.mark.sampled(every=11)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("post", POSTS)
@pytest.mark.parametrize("squeeze", SQUEEZES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(assembled, device, dtype, squeeze, post, layout):
    """Against eager's error: z and s are rounded to 16 bits here as they are there."""
    case = Case(
        shape=(3, 24, 6, 7),
        reduced=6,
        dtype=dtype,
        squeeze=squeeze,
        post=post,
        residual=True,
        layout=layout,
        act="silu",
    )
    inputs, dy = make(case, device)
    check_against_eager(case, inputs, dy, run(assembled, inputs, dy, **case.variant))


@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_random_cases(assembled, backend, device, dtype):
    # float64 weights judge a float32 z by float64 roundings
    weight_dtypes = [w for w in DTYPES if w != torch.float64 or w == dtype]

    @random_cases(100, backend)
    @given(placed_cases(dtype, weight_dtypes))
    def check_all(placed):
        check_placed(assembled, device, placed)

    check_all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_squeeze_gives_what_eager_gives(backend, device, dtype, layout):
    case = Case(shape=(3, 9, 5, 7), dtype=dtype, layout=layout)
    x = make(case, device)[0]["x"]
    for kind in SQUEEZES:
        z = se_kernels.squeeze(x, kind, backend=backend)
        exact = reference.squeeze(x.double(), kind)
        assert z.dtype == dtype
        assert z.shape == (3, 9)
        # one rounding to x's dtype, and the sums' own
        eps = 0.51 * torch.finfo(dtype).eps + 8 * torch.finfo(compute_dtype(x, x)).eps
        assert ((z.double() - exact).abs() <= eps * x.double().abs().amax((2, 3))).all()


@pytest.mark.sampled(every=5)
@pytest.mark.parametrize("s_shape", [(2, 5), (2, 5, 1, 1)])
@pytest.mark.parametrize("s_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_takes_any_dtype_of_gates(backend, device, dtype, s_dtype, s_shape):
    """y in x's dtype after one rounding, ds in the dtype of s."""
    x, residual, dy = (t.to(device, dtype) for t in torch.randn(3, 2, 5, 3, 4))
    s = torch.randn(s_shape).to(device, s_dtype).requires_grad_()
    y = se_kernels.scale(x, s, residual, backend=backend)
    assert y.dtype == dtype
    exact_s = s.detach().double().view(2, 5, 1, 1)
    size = (x.double() * exact_s).abs() + residual.double().abs()
    exact = x.double() * exact_s + residual.double()
    sums = torch.finfo(compute_dtype(x, s)).eps
    assert (
        (y.double() - exact).abs()
        <= 0.51 * y.double().abs() * torch.finfo(dtype).eps
        + 2 * sums * size
        + torch.finfo(dtype).smallest_normal
    ).all()
    (ds,) = torch.autograd.grad(y, s, dy)
    assert ds.shape == s.shape
    assert ds.dtype == s_dtype
    terms = dy.double() * x.double()
    allowed = 0.51 * torch.finfo(s_dtype).eps * terms.sum((2, 3)).abs()
    allowed = allowed + 8 * sums * terms.abs().sum((2, 3)) + torch.finfo(s_dtype).tiny
    assert ((ds.double().view(2, 5) - terms.sum((2, 3))).abs() <= allowed).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("squeeze", SQUEEZES)
def test_nan_and_inf_go_through(assembled, device, squeeze, layout):
    case = Case(shape=(4, 6, 3, 3), squeeze=squeeze, layout=layout, post="relu", residual=True)
    inputs, dy = make(case, device)
    for n, value in enumerate((float("nan"), float("inf"), -float("inf"))):
        inputs["x"][n, n, 1, 1] = value
    results = run(assembled, inputs, dy, **case.variant)
    expected = run(reference.squeeze_excite, inputs, dy, **case.variant)
    for name in ("y", "dx", "dresidual"):
        assert expected[name].isfinite().any()
        assert not expected[name].isfinite().all() or name == "dresidual"
        torch.testing.assert_close(
            results[name].isnan(), expected[name].isnan(), msg=f"NaN of {name}"
        )
        torch.testing.assert_close(
            results[name].isinf(), expected[name].isinf(), msg=f"Inf of {name}"
        )


@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (2, 0, 2, 2), (2, 3, 0, 2), (2, 3, 2, 0)])
def test_empty_tensors(backend, device, shape):
    x = torch.randn(shape, device=device).requires_grad_()
    y = se_kernels.squeeze_excite(x, excitation=torch.sigmoid, backend=backend)
    assert y.shape == shape
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert dx.shape == shape
    if x.numel() == 0 and 0 in shape[2:]:
        assert se_kernels.squeeze(x, backend=backend).isnan().all()  # a mean of nothing


# --- gradients -----------------------------------------------------------------------------------


@pytest.mark.sampled(every=0, on_host=11)  # interpreted, a minute each
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("post", POSTS)
@pytest.mark.parametrize("squeeze", SQUEEZES)
def test_gradcheck(assembled, device, squeeze, post, layout):
    case = Case(
        shape=(2, 3, 2, 2),
        reduced=2,
        dtype=torch.float64,
        squeeze=squeeze,
        act="silu",
        post=post,
        residual=True,
        layout=layout,
    )
    inputs, _ = make(case, device)
    leaves = [inputs[name].detach().requires_grad_() for name in NAMES]

    def block(*tensors):
        return assembled(**dict(zip(NAMES, tensors, strict=True)), **case.variant)

    assert torch.autograd.gradcheck(block, leaves)
    assert torch.autograd.gradgradcheck(block, leaves)


@pytest.mark.sampled(every=41, on_host=3)
@pytest.mark.parametrize(
    "need", [s for k in range(1, 7) for s in itertools.combinations(NAMES, k)], ids="-".join
)
def test_any_subset_of_gradients(assembled, device, need):
    for post in POSTS:
        case = Case(residual=True, post=post)
        inputs, dy = make(case, device)
        check(case, inputs, dy, run(assembled, inputs, dy, need, **case.variant))


@pytest.mark.parametrize("post", POSTS)
def test_two_passes_each_way(backend, device, post):
    """Forward and backward are the passes over x and nothing else of x's size."""
    x = torch.randn(2, 6, 5, 5, device=device).requires_grad_()
    residual = torch.randn_like(x).requires_grad_()
    fc = nn.Conv2d(6, 6, 1).to(device)
    dy = torch.ones_like(x)
    with OpsCalled(larger_than=100) as called:
        y = se_kernels.squeeze_excite(
            x, excitation=fc, residual=residual, post=post, backend=backend
        )
        assert called.names == ["squeeze", "scale"]
        assert not called.others
        called.names.clear()
        torch.autograd.grad(y, [x, residual, *fc.parameters()], dy)
        assert called.names == ["scale_backward", "squeeze_backward"]
        assert not called.others


def test_a_hook_sees_the_whole_gradient_of_x(backend, device):
    x = torch.randn(2, 4, 3, 3, device=device, dtype=torch.float64).requires_grad_()
    seen = []
    x.register_hook(seen.append)
    fc = nn.Conv2d(4, 4, 1).to(device).double()
    se_kernels.squeeze_excite(x, excitation=fc, backend=backend).square().sum().backward()
    leaf = x.detach().requires_grad_()
    (leaf * fc(leaf.mean((2, 3), keepdim=True))).square().sum().backward()
    torch.testing.assert_close(seen, [leaf.grad])
    torch.testing.assert_close(x.grad, leaf.grad)


def test_gates_that_ignore_z(backend, device):
    """A constant excitation: dx = g s, and its parameter has its gradient."""
    x = torch.randn(2, 4, 3, 3, device=device).requires_grad_()
    s = torch.randn(1, 4, 1, 1, device=device).requires_grad_()
    y = se_kernels.squeeze_excite(x, excitation=lambda z: s.expand_as(z), backend=backend)
    y.sum().backward()
    torch.testing.assert_close(x.grad, s.detach().expand_as(x))
    torch.testing.assert_close(s.grad, x.detach().sum((0, 2, 3)).view(1, 4, 1, 1))
    y = se_kernels.squeeze_excite(x, excitation=lambda z: s.detach().expand_as(z), backend=backend)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x), (s.detach().expand_as(x),))


def test_z_used_elsewhere(backend, device):
    """What the excitation keeps of z may have a gradient of its own, with or without y's."""
    x = torch.randn(2, 4, 3, 3, device=device, dtype=torch.float64).requires_grad_()
    kept = []

    def excitation(z):
        kept.append(z)
        return z.sigmoid()

    y = se_kernels.squeeze_excite(x, excitation=excitation, backend=backend)
    (only,) = torch.autograd.grad(kept[0].square().sum(), x, retain_graph=True)
    (both,) = torch.autograd.grad(kept[0].square().sum() + y.sum(), x)
    mean = x.mean((2, 3), keepdim=True)
    (exact_only,) = torch.autograd.grad(mean.square().sum(), x, retain_graph=True)
    (exact,) = torch.autograd.grad(mean.square().sum() + (x * mean.sigmoid()).sum(), x)
    torch.testing.assert_close(only, exact_only)
    torch.testing.assert_close(both, exact)


@pytest.mark.parametrize("squeeze", SQUEEZES)
def test_saved_for_backward(backend, device, squeeze):
    """Nothing of x's size beside x, and a bit per element for the ReLU; a mean keeps not even x."""
    x = torch.randn(2, 6, 5, 5, device=device).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = se_kernels.squeeze_excite(
            x, excitation=torch.sigmoid, squeeze=squeeze, post="relu", backend=backend
        )
        large = {t.data_ptr() for t in saved if t.numel() >= x.numel()}
        assert large == {x.data_ptr()} != {y.data_ptr()}
        assert [t.shape for t in saved if t.dtype == torch.uint8] == [(2, 6, 4)]  # 25 bits a row
        saved.clear()
        se_kernels.squeeze(x, squeeze, backend=backend)
        assert len(saved) == (0 if squeeze == "avg" else 1)


# --- what runs in between ------------------------------------------------------------------------


class Normed(nn.Module):
    """timm's excitation with a norm between the FCs."""

    def __init__(self, channels, reduced):
        super().__init__()
        self.fc1, self.bn = nn.Conv2d(channels, reduced, 1), nn.BatchNorm2d(reduced)
        self.fc2 = nn.Conv2d(reduced, channels, 1)

    def forward(self, z):
        return self.fc2(self.bn(self.fc1(z)).relu()).sigmoid()


def test_a_batch_norm_trains_as_in_eager(backend, device):
    torch.manual_seed(0)
    ours = Normed(8, 4).to(device).double()
    theirs = copy.deepcopy(ours)
    for _ in range(3):
        x = torch.randn(4, 8, 3, 3, device=device, dtype=torch.float64)
        leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        se_kernels.squeeze_excite(leaf, excitation=ours, backend=backend).square().sum().backward()
        (other * theirs(other.mean((2, 3), keepdim=True))).square().sum().backward()
        torch.testing.assert_close(leaf.grad, other.grad)
    for (name, ours_p), theirs_p in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert theirs_p.grad.abs().max() > 0
        torch.testing.assert_close(ours_p.grad, theirs_p.grad, msg=name)
    assert ours.bn.num_batches_tracked == 3
    torch.testing.assert_close(ours.bn.running_var, theirs.bn.running_var)


def test_autocast_reaches_the_excitation(backend, device):
    fc = nn.Conv2d(8, 8, 1).to(device)
    came = []

    def excitation(z):
        s = fc(z).sigmoid()
        came.append((z.dtype, s.dtype))
        return s

    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(2, 8, 3, 3, device=device).to(dtype)
        with torch.autocast(device, torch.bfloat16):
            y = se_kernels.squeeze_excite(x, excitation=excitation, backend=backend)
        assert y.dtype == dtype
        assert came.pop() == (dtype, torch.bfloat16)


@pytest.mark.parametrize("shape", ["(N, C)", "(N, C, 1, 1)"])
def test_what_the_excitation_gets_and_may_give(backend, device, shape):
    x = torch.randn(2, 3, 4, 4, device=device)

    def excitation(z):
        assert z.shape == (2, 3, 1, 1)
        return z.flatten(1) if shape == "(N, C)" else z

    y = se_kernels.squeeze_excite(x, excitation=excitation, backend=backend)
    torch.testing.assert_close(y, x * x.mean((2, 3), keepdim=True))


def test_compiles_without_a_graph_break(backend, device):
    torch.manual_seed(0)
    block = Normed(8, 4).to(device).double()

    def tail(x, residual):
        return se_kernels.squeeze_excite(
            x, excitation=block, residual=residual, post="relu", backend=backend
        )

    x, residual, dy = torch.randn(3, 2, 8, 5, 5, device=device, dtype=torch.float64)
    results = []
    for function in (tail, torch.compile(tail, fullgraph=True)):
        leaves = [t.clone().requires_grad_() for t in (x, residual)]
        y = function(*leaves)
        results.append([y, *torch.autograd.grad(y, [*leaves, *block.parameters()], dy)])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain)


def test_gradients_in_a_batch(assembled, device):
    """torch.autograd.functional.jacobian(vectorize=True) and the like: backward under vmap."""
    case = Case(dtype=torch.float64, act="silu", post="relu", residual=True)
    inputs, _ = make(case, device)
    leaves = [inputs[name].detach().requires_grad_() for name in NAMES]
    y = assembled(**dict(zip(NAMES, leaves, strict=True)), **case.variant)
    dys = torch.randn(3, *y.shape, dtype=torch.float64, device=device)
    together = torch.autograd.grad(y, leaves, dys, is_grads_batched=True, retain_graph=True)
    for i, dy in enumerate(dys):
        alone = torch.autograd.grad(y, leaves, dy, retain_graph=True)
        for batched, single in zip(together, alone, strict=True):
            torch.testing.assert_close(batched[i], single)


def test_transforms_see_the_definition(backend, device):
    fc = nn.Conv2d(4, 4, 1).to(device).double()
    x = torch.randn(3, 2, 4, 3, 3, device=device, dtype=torch.float64)

    def block(x):
        return se_kernels.squeeze_excite(x, excitation=fc, backend=backend)

    def phases(x):
        z = se_kernels.squeeze(x, backend=backend)
        return se_kernels.scale(x, fc(z[..., None, None]), backend=backend)

    for function in (block, phases):
        mapped = torch.func.vmap(function)(x)
        torch.testing.assert_close(mapped, torch.stack([function(image) for image in x]))
        grad = torch.func.grad(lambda x, f=function: f(x).square().sum())(x[0])
        leaf = x[0].clone().requires_grad_()
        (exact,) = torch.autograd.grad(function(leaf).square().sum(), leaf)
        torch.testing.assert_close(grad, exact)


# --- the ops -------------------------------------------------------------------------------------


@pytest.mark.sampled(every=0, on_host=3)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(backend, device, dtype, layout):
    inputs, dy = make(Case(dtype=dtype, layout=layout, residual=True), device)
    x, residual = inputs["x"], inputs["residual"]
    s, dz = torch.randn(2, 2, 5, device=device)
    check_op = torch.library.opcheck
    for kind in SQUEEZES:
        check_op(ops.squeeze, (x, kind, backend))
        check_op(ops.squeeze_backward, (dy, x, s, dz, kind, backend))
        check_op(ops.squeeze_backward, (None, x, None, dz, kind, backend))
    for post in POSTS:
        keep = post == "relu"
        for wanted in {False, keep}:
            check_op(ops.scale, (x, s, residual, post, wanted, backend))
        mask = ops.scale(x, s, residual, post, True, backend)[1] if keep else None
        # without a mask dr is dy itself
        for needs in itertools.product([False, True], [False, post == "relu"], [False, True]):
            check_op(ops.scale_backward, (dy, x, mask, s, list(needs), backend))


# --- bad input -----------------------------------------------------------------------------------

X = torch.randn(2, 4, 3, 3)
W = torch.randn(4, 4)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: se_kernels.squeeze(X[0]), ValueError, r"x: expected .*\(N, C, H, W\), got \(4, 3"),
        (lambda: se_kernels.squeeze(X, "sum"), ValueError, "squeeze: expected one of .*'sum'"),
        (lambda: se_kernels.squeeze(X.int()), TypeError, "x: expected a dtype of .*int32"),
        (lambda: se_kernels.squeeze(X[..., :0], "max"), ValueError, "x: expected H and W"),
        (lambda: se_kernels.squeeze(X, backend="fpga"), ValueError, "backend: expected one of"),
        (
            lambda: se_kernels.scale(X, W),
            ValueError,
            r"s: expected shape .*\(2, 4\[, 1, 1\]\), got",
        ),
        (lambda: se_kernels.scale(X, 2.0), TypeError, r"s: expected a torch.Tensor, got float"),
        (lambda: se_kernels.scale(X, W[:2].to("meta")), ValueError, "s: expected the device"),
        (lambda: se_kernels.scale(X, W[:2], X[:1]), ValueError, "residual: expected the shape"),
        (lambda: se_kernels.scale(X, W[:2], post="gelu"), ValueError, "post: expected one of"),
        (lambda: se_kernels.squeeze_excite(X), TypeError, "w1: expected a torch.Tensor, got None"),
        (
            lambda: se_kernels.squeeze_excite(X, excitation=3),
            TypeError,
            "excitation: expected a callable, got 3",
        ),
        (
            lambda: se_kernels.squeeze_excite(X, W, W, excitation=torch.sigmoid),
            ValueError,
            "w1: expected None beside an excitation, got Tensor",
        ),
        (
            lambda: se_kernels.squeeze_excite(X, excitation=torch.sigmoid, gate="tanh"),
            ValueError,
            "gate: expected the default, 'sigmoid', beside an excitation, got 'tanh'",
        ),
        (
            lambda: se_kernels.squeeze_excite(X, excitation=lambda z: z[:, :1]),
            ValueError,
            r"excitation\(z\): expected shape .* got \(2, 1, 1, 1\)",
        ),
        (
            lambda: se_kernels.squeeze_excite(X, excitation=lambda z: None),
            TypeError,
            r"excitation\(z\): expected a torch.Tensor, got NoneType",
        ),
        (
            lambda: se_kernels.squeeze_excite(
                X, excitation=lambda z: z[:, :1], backend="reference"
            ),
            ValueError,
            r"excitation\(z\): expected shape",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
