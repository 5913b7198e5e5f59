"""Tensors out of the ordinary, as eager takes them: empty, oddly placed, not finite, tied, huge."""

import itertools
import math

import pytest
import torch
from operator_cases import DTYPES, LAYOUTS, NAMES, Case, check, eager, make, run, storage_bytes
from placements import IMAGES, MATRICES, VECTORS

from se_kernels import reference
from se_kernels.core.variants import POSTS, SQUEEZES

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("poisoned_outputs")]


def run_definition(case, inputs, dy):
    """The definition in the dtype of the inputs, on the CPU."""
    inputs = {name: None if t is None else t.cpu() for name, t in inputs.items()}
    return run(reference.squeeze_excite, inputs, dy.cpu(), **case.variant)


# --- no elements ---------------------------------------------------------------------------------

EMPTY = [
    ((0, 5, 3, 4), 3),
    ((2, 0, 3, 4), 3),
    ((2, 5, 0, 4), 3),
    ((2, 5, 3, 0), 3),
    ((2, 5, 3, 4), 0),
    ((0, 0, 0, 0), 0),
    ((0, 5, 0, 4), 3),
    ((2, 0, 3, 4), 0),
    ((2, 0, 0, 4), 3),
    ((2, 5, 0, 0), 0),
]


@pytest.mark.sampled(every=13)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("squeeze", SQUEEZES)
@pytest.mark.parametrize("shape, reduced", EMPTY)
def test_sizes_of_zero(kernel, device, shape, reduced, squeeze, layout):
    if squeeze != "avg" and 0 in shape[2:]:
        pytest.skip("no maximum of no pixels, in eager too")
    for dtype, (residual, post) in itertools.product(DTYPES, [(False, "none"), (True, "relu")]):
        case = Case(
            shape=shape,
            reduced=reduced,
            dtype=dtype,
            squeeze=squeeze,
            residual=residual,
            post=post,
            layout=layout,
        )
        inputs, dy = make(case, device)
        results = run(kernel, inputs, dy, **case.variant)
        expected = run_definition(case, inputs, dy)
        for name, result in results.items():
            assert result.shape == expected[name].shape, name
            # equal, and NaN where the mean of no pixels is; a few roundings of dtype
            tolerance = 8 * torch.finfo(dtype).eps
            torch.testing.assert_close(
                result.cpu(), expected[name], rtol=tolerance, atol=tolerance, equal_nan=True
            )


# --- oddly placed --------------------------------------------------------------------------------

TAIL = dict(residual=True, post="relu")
PLACED = Case(shape=(3, 17, 5, 6), reduced=4, squeeze="avgmax", **TAIL)


@pytest.mark.sampled(every=17)
@pytest.mark.parametrize("name", ["x", "residual", "dy"])
@pytest.mark.parametrize("place", IMAGES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_placed_anyhow(kernel, device, layout, place, name):
    """Each in every placement, beside the other two in either layout."""
    inputs, dy = make(PLACED, device)
    tensors = {**inputs, "dy": dy}
    for other in ("x", "residual", "dy"):
        tensors[other] = IMAGES[layout](tensors[other]) if layout != "nchw" else tensors[other]
    tensors[name] = IMAGES[place](tensors[name])
    before = storage_bytes(tensors[name])
    dy = tensors.pop("dy")
    check(PLACED, tensors, dy, run(kernel, tensors, dy, **PLACED.variant))
    assert torch.equal(storage_bytes(dy if name == "dy" else tensors[name]), before)


@pytest.mark.sampled(every=7)
@pytest.mark.parametrize(
    "name, place",
    [
        *itertools.product(("w1", "w2"), MATRICES),
        *itertools.product(("b1", "b2"), VECTORS),
    ],
)
def test_weights_placed_anyhow(kernel, device, name, place):
    inputs, dy = make(PLACED, device)
    inputs[name] = (VECTORS if name in ("b1", "b2") else MATRICES)[place](inputs[name])
    check(PLACED, inputs, dy, run(kernel, inputs, dy, **PLACED.variant))


@pytest.mark.sampled(every=11)
@pytest.mark.parametrize("squeeze", SQUEEZES)
@pytest.mark.parametrize("expanded", [(0,), (1,), (2,), (3,), (2, 3), (0, 2, 3), (0, 1, 2, 3)])
def test_expanded_x(kernel, device, expanded, squeeze):
    case = Case(shape=(3, 17, 5, 6), reduced=4, squeeze=squeeze, expanded=expanded)
    inputs, dy = make(case, device)
    assert all(inputs["x"].stride(i) == 0 for i in expanded)
    check(case, inputs, dy, run(kernel, inputs, dy, **case.variant))


@pytest.mark.sampled(every=5)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("post", POSTS)
def test_expanded_dy_and_residual(kernel, device, post, layout):
    case = Case(shape=(3, 17, 5, 6), reduced=4, residual=True, post=post, layout=layout)
    inputs, dy = make(case, device)
    inputs["residual"] = inputs["residual"].abs().amax((2, 3), keepdim=True).add(20)
    inputs["residual"] = inputs["residual"].expand(case.shape)  # far from the ReLU's jump
    for dims in ((0,), (1,), (2, 3), (0, 1, 2, 3)):
        index = tuple(slice(0, 1) if i in dims else slice(None) for i in range(4))
        expanded = dy[index].expand(case.shape)
        check(case, inputs, expanded, run(kernel, inputs, expanded, **case.variant))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_backward_of_a_sum(kernel, device, layout):
    """dy is then one number, expanded."""
    case = Case(layout=layout)
    inputs, dy = make(case, device)
    leaves = {n: None if t is None else t.detach().requires_grad_() for n, t in inputs.items()}
    y = kernel(**leaves, **case.variant)
    y.sum().backward()
    grads = {f"d{name}": t.grad for name, t in leaves.items() if t is not None}
    check(case, inputs, torch.ones_like(dy), {"y": y.detach(), **grads})


@pytest.mark.sampled(every=5)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_lie_as_x_does(kernel, device, layout, dtype):
    case = Case(dtype=dtype, layout=layout, residual=True, post="relu")
    inputs, dy = make(case, device)
    results = run(kernel, inputs, dy, **case.variant)
    for name in ("y", "dx", "dresidual"):
        assert results[name].stride() == inputs["x"].stride(), name
    with torch.no_grad():
        assert kernel(**inputs, **case.variant).stride() == inputs["x"].stride()


@pytest.mark.sampled(every=0)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pointers_that_are_not_even_aligned_to_an_element(kernel, device, dtype, layout):
    if device != "cpu":
        pytest.skip("torch makes such tensors on the CPU alone")
    case = Case(shape=(3, 17, 5, 7), reduced=5, dtype=dtype, layout=layout, residual=True)
    inputs, dy = make(case)
    tensors = {name: misaligned(t) for name, t in {**inputs, "dy": dy}.items()}
    assert all(t.data_ptr() % t.element_size() == 1 for t in tensors.values())
    dy = tensors.pop("dy")
    check(case, tensors, dy, run(kernel, tensors, dy, **case.variant))


def misaligned(t):
    order = sorted(range(t.dim()), key=t.stride, reverse=True)
    dense = t.permute(order).contiguous()
    memory = bytearray(1) + bytearray(dense.view(-1).view(torch.uint8).numpy().tobytes())
    lifted = torch.frombuffer(memory, dtype=t.dtype, offset=1, count=t.numel())
    if lifted.data_ptr() % t.element_size() != 1:
        pytest.skip("bytearray's memory is itself not aligned")
    return lifted.view(dense.shape).permute(sorted(range(t.dim()), key=order.__getitem__))


# --- NaN and Inf ---------------------------------------------------------------------------------

NOT_FINITE = [math.nan, math.inf, -math.inf]
# every act and every gate; the pairs do not matter
NOT_FINITE_VARIANTS = [
    ("relu", "sigmoid"),
    ("silu", "hardsigmoid"),
    ("gelu", "tanh"),
    ("gelu_tanh", "relu"),
    ("hardswish", "sigmoid"),
    ("leaky_relu", "hardsigmoid"),
    ("identity", "tanh"),
    ("identity", "relu"),
    ("identity", "sigmoid"),
    ("identity", "hardsigmoid"),
]


def check_as_eager(case, inputs, dy, results):
    """NaN and infinities at the places where eager has them, the rest equal to 1e-4: how closely
    finite numbers agree is the subject of test_squeeze_excite.py.

    Eager is not of one mind about everything: gelu(inf) is NaN in float32 and inf in float64. An
    element counts where the definition in either dtype and timm's composition are.
    """
    inputs = {name: None if t is None else t.cpu() for name, t in inputs.items()}
    wide = {name: None if t is None else t.double() for name, t in inputs.items()}
    judges = [
        run(reference.squeeze_excite, inputs, dy.cpu(), **case.variant),
        run(reference.squeeze_excite, wide, dy.cpu().double(), **case.variant),
        run(eager, inputs, dy.cpu(), **case.variant),
    ]
    for name, result in results.items():
        right, *others = (judge[name].double() for judge in judges)
        finite = right[right.isfinite()]
        scale = max(1, finite.abs().max().item()) if len(finite) else 1
        near = dict(rtol=0, atol=1e-4 * scale, equal_nan=True)
        counts = torch.stack([torch.isclose(right, o, **near) for o in others]).all(0)
        wrong = counts & ~torch.isclose(result.cpu().double(), right, **near)
        if wrong.any():
            at = tuple(wrong.nonzero()[0].tolist())
            raise AssertionError(
                f"{name}: {int(wrong.sum())} elements wrong, the first at {at}: "
                f"{result[at].item()}, eager {right[at].item()}; {case}"
            )


@pytest.mark.sampled(every=91, on_host=13)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("squeeze", SQUEEZES)
@pytest.mark.parametrize("act, gate", NOT_FINITE_VARIANTS)
def test_not_finite(kernel, device, act, gate, squeeze, value, layout):
    for post in POSTS:
        case = Case(
            shape=(2, 18, 3, 7),
            reduced=5,
            squeeze=squeeze,
            act=act,
            gate=gate,
            post=post,
            residual=True,
            layout=layout,
        )
        for name in (*NAMES, "dy"):
            inputs, dy = make(case, device)
            tensor = dy if name == "dy" else inputs[name]
            tensor[(-1,) * tensor.dim()] = value
            check_as_eager(case, inputs, dy, run(kernel, inputs, dy, **case.variant))


@pytest.mark.sampled(every=9)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("squeeze", ["max", "avgmax"])
@pytest.mark.parametrize("pixel", [0, 1, 4, 20, 34, 35, 36])
def test_nan_anywhere_is_the_maximum(kernel, device, squeeze, pixel, layout):
    """A maximum of whole vectors must not lose the NaN of a lane, whatever follows it."""
    case = Case(shape=(1, 3, 1, 37), reduced=2, squeeze=squeeze, layout=layout)
    inputs, dy = make(case, device)
    inputs["x"][0, 1, 0, pixel] = math.nan
    results = run(kernel, inputs, dy, **case.variant)
    assert results["y"].isnan().all()
    check_as_eager(case, inputs, dy, results)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_overflow_gives_infinities(kernel, device, dtype):
    largest = torch.finfo(dtype).max
    x = torch.tensor([largest, -largest, 1.0], dtype=dtype, device=device).view(1, 3, 1, 1)
    w1, w2 = torch.zeros(1, 3, device=device), torch.zeros(3, 1, device=device)
    y = kernel(x, w1, w2, b2=torch.full((3,), 2.0, device=device), gate="relu")
    assert y.flatten().tolist() == [math.inf, -math.inf, 2.0]


# --- ties ----------------------------------------------------------------------------------------


@pytest.mark.sampled(every=31)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("squeeze", ["max", "avgmax"])
@pytest.mark.parametrize("pixels", [1, 3, 16, 37, 200])
def test_ties_of_a_maximum_share_its_gradient_evenly(
    kernel, device, pixels, squeeze, dtype, layout
):
    case = Case(shape=(2, 19, 1, pixels), reduced=3, dtype=dtype, squeeze=squeeze, layout=layout)
    inputs, dy = make(case, device)
    inputs["x"].round_()  # a handful of distinct values: ties in nearly every channel
    inputs["x"][:, 0] = 0.5  # nothing but ties
    results = run(kernel, inputs, dy, **case.variant)
    check(case, inputs, dy, results)


def test_ties_by_hand(kernel, device):
    """s = 2 z, y = s x: with x = (3, 1, 3), dz = 2 Σ x dy = 14, of which each 3 gets half."""
    x = torch.tensor([3.0, 1.0, 3.0], device=device).view(1, 1, 1, 3)
    inputs = {"x": x, "w1": x.new_full((1, 1), 2.0), "w2": x.new_ones(1, 1)}
    dy = torch.ones_like(x)
    results = run(kernel, inputs, dy, need=["x"], squeeze="max", act="identity", gate="relu")
    assert results["y"].flatten().tolist() == [18.0, 6.0, 18.0]
    assert results["dx"].flatten().tolist() == [13.0, 6.0, 13.0]


# --- huge ----------------------------------------------------------------------------------------


@pytest.mark.sampled(every=0)
@pytest.mark.parametrize(
    "strides",
    [(2**31 + 32, 30, 6, 1), (32, 2**30 + 64, 6, 1), (2**31 + 96, 1, 18, 3)],
    ids=["images", "channels", "images of channels_last"],
)
def test_places_2_to_the_31_elements_apart(kernel, device, strides, monkeypatch):
    """In 4.3 GB, of which the pages between are never touched."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    layout = "channels_last" if strides[1] == 1 else "nchw"
    case = Case((2, 3, 5, 6), reduced=2, dtype=torch.bfloat16, layout=layout, **TAIL)
    inputs, dy = make(case, device)
    memory = torch.empty(2**31 + 2**20, dtype=case.dtype, device=device)
    apart = {**inputs, "dy": dy}
    for i, name in enumerate(("x", "residual", "dy")):
        apart[name] = memory.as_strided(case.shape, strides, 4096 * i).copy_(apart[name])
    dy = apart.pop("dy")
    check(case, apart, dy, run(kernel, apart, dy, **case.variant))


@pytest.mark.sampled(every=0, on_host=0)
@pytest.mark.slow
def test_more_than_2_to_the_31_elements(kernel, device, monkeypatch):
    """(1, 2, 32800, 32800) in bfloat16, 4.3 GB: indices past 2^31 in either layout, and past 2^30
    pixels a channel. All zeros (pages never touched) but for planted values. About 9 GB at most.

    act and gate leave positive numbers alone and w1 = P, so a = (Σ x of channel 0, of channel 1).
    """
    if device != "cpu":
        pytest.skip("sized for the memory of the CPU")
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    side = 32800
    pixels = side * side
    assert 2 * pixels > 2**31
    for memory_format in LAYOUTS.values():
        memory = torch.zeros(2 * pixels, dtype=torch.bfloat16)
        if memory_format is torch.channels_last:
            x = memory.view(1, side, side, 2).permute(0, 3, 1, 2)
        else:
            x = memory.view(1, 2, side, side)
        planted = {(0, 0, 0, 0): 4.0, (0, 0, -1, -1): 12.0, (0, 1, 0, 0): 2.0, (0, 1, -1, -1): 6.0}
        for at, value in planted.items():
            x[at] = value
        w1 = torch.eye(2) * pixels
        w2 = torch.tensor([[0.125, 0.0], [0.0, 0.5]])  # s = (2, 4)
        x.requires_grad_()
        w1.requires_grad_()
        y = kernel(x, w1, w2, gate="relu")
        assert {at: y[at].item() for at in planted} == {
            (0, 0, 0, 0): 8.0,
            (0, 0, -1, -1): 24.0,
            (0, 1, 0, 0): 8.0,
            (0, 1, -1, -1): 24.0,
        }
        assert y[:, :, 1:-1:997, 1:-1:991].count_nonzero() == 0

        # dy = x: ds = (160, 40), da = (20, 20), dz / P = (20, 20) with w1 = P
        dx, dw1 = torch.autograd.grad(y, (x, w1), x.detach())
        del y
        assert {at: dx[at].item() for at in planted} == {
            (0, 0, 0, 0): 4 * 2 + 20,
            (0, 0, -1, -1): 12 * 2 + 20,
            (0, 1, 0, 0): 2 * 4 + 20,
            (0, 1, -1, -1): 6 * 4 + 20,
        }
        assert (dx[:, :, 1:-1:997, 1:-1:991] == 20).all()
        z = torch.tensor([16.0, 8.0]) / pixels
        right = torch.outer(torch.tensor([20.0, 20.0]), z)
        torch.testing.assert_close(dw1, right, rtol=1e-6, atol=0)
        del x, dx, memory


@pytest.mark.parametrize("act", ["gelu", "gelu_tanh", "hardswish", "silu"])
def test_a_gradient_through_nan_is_nan(kernel, device, act):
    """As of torch's vectorised activations; its scalar hardswish lets the gradient pass."""
    case = Case(shape=(1, 16, 2, 2), reduced=16, act=act, gate="relu")
    inputs, dy = make(case, device)
    inputs["b1"] = torch.full_like(inputs["b1"], math.nan)
    assert run(kernel, inputs, dy, **case.variant)["db1"].isnan().all()
