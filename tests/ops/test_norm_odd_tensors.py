"""Tensors out of the ordinary before a batch norm with its block: empty, oddly placed, not finite,
constant, huge."""

import itertools
import math
import warnings
from dataclasses import replace

import pytest
import torch
from norm_cases import DIFFERENTIABLE, RUNNING, Case, check, composed, make, run, run_eager
from operator_cases import DTYPES, LAYOUTS, storage_bytes
from placements import IMAGES, MATRICES, VECTORS

from se_kernels.core.variants import POSTS, PRES, SQUEEZES

pytestmark = [
    pytest.mark.sampled(every=0, on_host=5),
    pytest.mark.usefixtures("poisoned_outputs", "one_thread"),
]

TAIL = dict(residual=True, post="relu")

# --- no elements ---------------------------------------------------------------------------------

EMPTY = [
    ((0, 5, 3, 4), 3),
    ((2, 0, 3, 4), 3),
    ((2, 5, 0, 4), 3),
    ((2, 5, 3, 0), 3),
    ((0, 0, 0, 0), 0),
    ((0, 5, 0, 4), 3),
]


@pytest.mark.native
@pytest.mark.sampled(every=0, on_host=7)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("squeeze", SQUEEZES)
@pytest.mark.parametrize("shape, reduced", EMPTY)
def test_sizes_of_zero(norm_kernel, device, shape, reduced, squeeze, layout):
    """As the parts: nothing moves the running statistics, no gradient of the norm is NaN, and those
    of the FCs are where the mean of no pixels is."""
    if squeeze != "avg" and 0 in shape[2:]:
        pytest.skip("no maximum of no pixels, in eager too")
    for dtype, training, pre in itertools.product(DTYPES, (True, False), ("identity", "silu")):
        case = Case(
            shape,
            reduced,
            dtype,
            training=training,
            pre=pre,
            squeeze=squeeze,
            layout=layout,
            **TAIL,
        )
        inputs, dy = make(case, device)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of a variance of nothing
            results = run(norm_kernel, inputs, dy, **case.variant)
            apart = run(norm_kernel, inputs, dy, (), **case.variant)
        if shape[1] == 0:  # torch's batch norm takes no channels
            assert all(t.numel() == 0 or (t == 0).all() for t in results.values())
            continue
        expected = run_eager(case, inputs, dy)
        for name, result in (*results.items(), *apart.items()):
            assert result.shape == expected[name].shape, name
            if name in RUNNING:
                assert torch.equal(result, inputs[name])
            torch.testing.assert_close(
                result.cpu(), expected[name], rtol=0.01, atol=0.01, equal_nan=True,
                msg=lambda text, name=name, case=case: f"{name}: {text} {case}",
            )  # fmt: skip


@pytest.mark.native
def test_no_unit_in_the_middle(norm_kernel, device):
    """R of 0: the gate of b2 alone."""
    for training in (True, False):
        case = Case(reduced=0, training=training, dtype=torch.float64, act="identity", **TAIL)
        inputs, dy = make(case, device)
        check(case, inputs, dy, run(norm_kernel, inputs, dy, **case.variant))


# --- oddly placed --------------------------------------------------------------------------------

PLACED = Case((3, 17, 5, 6), reduced=4, pre="hardswish", **TAIL)


@pytest.mark.native
@pytest.mark.sampled(every=59, on_host=13)
@pytest.mark.parametrize("name", ["u", "residual", "dy"])
@pytest.mark.parametrize("place", IMAGES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_placed_anyhow(norm_kernel, device, layout, place, name):
    """Each in every placement, beside the other two in either layout."""
    for case in (PLACED, replace(PLACED, training=False, pre="identity")):
        inputs, dy = make(case, device)
        tensors = {**inputs, "dy": dy}
        for other in ("u", "residual", "dy"):
            tensors[other] = IMAGES[layout if layout != "nchw" else "contiguous"](tensors[other])
        tensors[name] = IMAGES[place](tensors[name])
        before = storage_bytes(tensors[name])
        dy = tensors.pop("dy")
        check(case, tensors, dy, run(norm_kernel, tensors, dy, **case.variant))
        assert torch.equal(storage_bytes(dy if name == "dy" else tensors[name]), before)


@pytest.mark.native
@pytest.mark.sampled(every=13, on_host=7)
@pytest.mark.parametrize(
    "name, place",
    [
        *itertools.product(("w1", "w2"), MATRICES),
        *itertools.product(("b1", "b2", "bn_weight", "bn_bias", *RUNNING), VECTORS),
    ],
)
def test_weights_placed_anyhow(norm_kernel, device, name, place):
    for training in (True, False):
        case = replace(PLACED, training=training)
        inputs, dy = make(case, device)
        inputs[name] = (MATRICES if name in ("w1", "w2") else VECTORS)[place](inputs[name])
        check(case, inputs, dy, run(norm_kernel, inputs, dy, **case.variant))


@pytest.mark.native
@pytest.mark.parametrize("place", VECTORS)
def test_running_statistics_move_where_they_lie(norm_kernel, device, place):
    """And nothing between their numbers is written."""
    inputs, dy = make(PLACED, device)
    moved = run(norm_kernel, inputs, dy, (), **PLACED.variant)
    for name in RUNNING:
        inputs[name] = VECTORS[place](inputs[name])
    around = {name: storage_bytes(inputs[name]) for name in RUNNING}
    norm_kernel(**inputs, **PLACED.variant)
    for name in RUNNING:
        assert torch.equal(inputs[name], moved[name])
        inputs[name].copy_(make(PLACED, device)[0][name])
        assert torch.equal(storage_bytes(inputs[name]), around[name])


@pytest.mark.native
@pytest.mark.sampled(every=5, on_host=5)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("expanded", [(0,), (1,), (2,), (3,), (2, 3), (0, 2, 3), (0, 1, 2, 3)])
def test_expanded_u(norm_kernel, device, expanded, training):
    case = Case((3, 17, 5, 6), reduced=4, expanded=expanded, training=training, pre="silu")
    inputs, dy = make(case, device)
    assert all(inputs["u"].stride(i) == 0 for i in expanded)
    check(case, inputs, dy, run(norm_kernel, inputs, dy, **case.variant))


@pytest.mark.native
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("post", POSTS)
def test_expanded_dy_and_residual(norm_kernel, device, post, layout):
    case = Case((3, 17, 5, 6), reduced=4, residual=True, post=post, layout=layout)
    inputs, dy = make(case, device)
    inputs["residual"] = inputs["residual"].abs().amax((2, 3), keepdim=True).add(40)
    inputs["residual"] = inputs["residual"].expand(case.shape)  # far from the ReLU's jump
    for dims in ((0,), (1,), (2, 3), (0, 1, 2, 3)):
        index = tuple(slice(0, 1) if i in dims else slice(None) for i in range(4))
        expanded = dy[index].expand(case.shape)
        check(case, inputs, expanded, run(norm_kernel, inputs, expanded, **case.variant))


@pytest.mark.native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_lie_as_u_does(norm_kernel, device, layout, dtype):
    for training in (True, False):
        case = Case(dtype=dtype, layout=layout, training=training, **TAIL)
        inputs, dy = make(case, device)
        results = run(norm_kernel, inputs, dy, **case.variant)
        for name in ("y", "du", "dresidual"):
            assert results[name].stride() == inputs["u"].stride(), name
        with torch.no_grad():
            assert norm_kernel(**inputs, **case.variant).stride() == inputs["u"].stride()


# --- constant, and one of a kind ----------------------------------------------------------------


@pytest.mark.sampled(every=5, on_host=5)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [0.0, 3.0, -1e4])
def test_constant_channels(norm_kernel, device, value, layout):
    """No variance: t is the norm's bias, and eps alone divides in backward."""
    for pre in PRES:
        case = Case((3, 6, 4, 5), pre=pre, layout=layout)
        inputs, dy = make(case, device)
        inputs["u"][:, 1::2] = value
        results = run(norm_kernel, inputs, dy, **case.variant)
        check(case, inputs, dy, results)
        inputs["u"].fill_(value)
        check(case, inputs, dy, run(norm_kernel, inputs, dy, **case.variant))


@pytest.mark.parametrize("pre", PRES)
def test_one_number_a_channel_behind_a_frozen_norm(norm_kernel, device, pre):
    case = Case((1, 9, 1, 1), training=False, pre=pre, **TAIL)
    inputs, dy = make(case, device)
    check(case, inputs, dy, run(norm_kernel, inputs, dy, **case.variant))


# --- NaN and Inf ---------------------------------------------------------------------------------

NOT_FINITE = [math.nan, math.inf, -math.inf]


def check_as_eager(case, inputs, dy, results):
    """NaN and infinities at the places where eager has them, the rest equal to 1e-4: how closely
    finite numbers agree is the subject of test_norm_squeeze_excite.py.

    An element counts where torch's parts in float32, in float64, and the block as timm computes it
    are of one mind. A gradient may be infinite for NaN and the reverse: it is a sum of products
    with numbers of an image, s Σ g v' + d Σ v', where eager adds product by product. Behind units
    that are closed eager's products are of 0 and what is not finite: sums of them do not count.
    """
    closed = ("dbn_weight", "dbn_bias", *(["du"] if case.training else []))
    uncounted = closed if case.pre in ("relu", "hardswish") else ()
    wide = {name: None if t is None else t.double().cpu() for name, t in inputs.items()}
    narrow = {name: None if t is None else t.cpu() for name, t in inputs.items()}
    judges = [
        run(composed, narrow, dy.cpu(), **case.variant),
        run(composed, wide, dy.cpu().double(), **case.variant),
        run_eager(case, inputs, dy),
    ]
    counted = 0
    for name, result in results.items():
        if name in uncounted:
            continue
        result = result.cpu().double()
        right, *others = (judge[name].double() for judge in judges)
        if name.startswith("d"):
            result, right, *others = (
                torch.where(t.isfinite(), t, math.nan) for t in (result, right, *others)
            )
        finite = right[right.isfinite()]
        scale = max(1, finite.abs().max().item()) if len(finite) else 1
        near = dict(rtol=0, atol=1e-4 * scale, equal_nan=True)
        counts = torch.stack([torch.isclose(right, o, **near) for o in others]).all(0)
        counted += int(counts.sum())
        wrong = counts & ~torch.isclose(result, right, **near)
        if wrong.any():
            at = tuple(wrong.nonzero()[0].tolist())
            raise AssertionError(
                f"{name}: {int(wrong.sum())} elements wrong, the first at {at}: "
                f"{result[at].item()}, eager {right[at].item()}; {case}"
            )
    assert counted > results["y"].numel() / 2


@pytest.mark.sampled(every=0, on_host=7)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("pre", PRES)
@pytest.mark.parametrize("training", [True, False])
def test_not_finite(norm_kernel, device, training, pre, value, layout):
    """In the norm's weight NaN alone: of an infinite one the mean of v is weight * mean, infinite,
    where eager's numbers are infinite of both signs."""
    for post in POSTS:
        case = Case(
            (2, 18, 3, 7), 5, training=training, pre=pre, post=post, residual=True, layout=layout
        )
        for name in (*DIFFERENTIABLE, *RUNNING, "dy"):
            inputs, dy = make(case, device)
            if name == "bn_weight" and not math.isnan(value):
                continue
            tensor = dy if name == "dy" else inputs[name]
            tensor[(-1,) * tensor.dim()] = value
            try:
                check_as_eager(case, inputs, dy, run(norm_kernel, inputs, dy, **case.variant))
            except AssertionError as error:
                raise AssertionError(f"{value} in {name}: {error}") from error


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", NOT_FINITE)
def test_images_beside_one_that_is_not_finite_keep_their_bits(norm_kernel, device, value, layout):
    """Behind a frozen norm."""
    for pre in PRES:
        case = Case((3, 18, 3, 7), 5, training=False, pre=pre, layout=layout, **TAIL)
        inputs, dy = make(case, device)
        clean = run(norm_kernel, inputs, dy, **case.variant)
        inputs["u"][1, 4, 1, 2] = value
        results = run(norm_kernel, inputs, dy, **case.variant)
        for name in ("y", "du", "dresidual"):
            for image in (0, 2):
                assert torch.equal(results[name][image], clean[name][image]), name


@pytest.mark.sampled(every=3, on_host=1)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_final_relu_stops_an_infinite_gradient(norm_kernel, device, layout):
    for pre in PRES:
        case = Case((2, 10, 3, 3), pre=pre, layout=layout, **TAIL)
        inputs, dy = make(case, device)
        inputs["residual"][1, 7, 2, 1] = -1000.0
        clean = run(norm_kernel, inputs, dy, **case.variant)
        dy[1, 7, 2, 1] = math.inf
        for name, result in run(norm_kernel, inputs, dy, **case.variant).items():
            assert torch.equal(result, clean[name]), name


# --- large and small -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, scale", [(torch.float16, 2e3), (torch.float32, 1e15)], ids=str)
def test_large_numbers(norm_kernel, device, dtype, scale):
    """Their squares are no float16, their cubes no float32: the norm makes them small in time."""
    for pre in ("identity", "silu"):
        case = Case(dtype=dtype, weight_dtype=torch.float32, norm_dtype=torch.float32, pre=pre)
        inputs, dy = make(case, device)
        inputs["u"] = inputs["u"] * scale
        check(case, inputs, dy, run(norm_kernel, inputs, dy, **case.variant))


@pytest.mark.parametrize("scale", [1e-3, 1e-7])
def test_small_numbers(norm_kernel, device, scale):
    """eps is not small beside their variance."""
    case = Case(pre="silu")
    inputs, dy = make(case, device)
    inputs["u"] = inputs["u"] * scale
    check(case, inputs, dy, run(norm_kernel, inputs, dy, **case.variant))
