"""The sweeps of a backend with a batch norm before the block, each judged on its own."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from norm_sweeps import (
    ACTIVE,
    DTYPES_AND_SHAPES,
    Case,
    Judge,
    cases,
    check,
    check_moments,
    check_scale,
    check_scale_backward,
    check_squeeze,
    check_squeeze_backward,
    make,
    packed,
)
from operator_cases import DTYPES, LAYOUTS, storage_bytes
from placements import IMAGES
from random_cases import check_strides, random_cases

from se_kernels import reference
from se_kernels.core import dispatch
from se_kernels.core.activations import activate
from se_kernels.core.layout import layout_of
from se_kernels.core.variants import PRES

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("poisoned_outputs")]


@pytest.fixture(scope="session")
def sweeps(backend):
    """The module with the backend's functions."""
    return dispatch.get(backend)


@pytest.mark.sampled(every=3)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype, shape", DTYPES_AND_SHAPES)
def test_moments(sweeps, device, dtype, wide, shape, layout):
    case = Case(shape, dtype, wide, layout)
    check_moments(sweeps, case, make(case, device))


@pytest.mark.sampled(every=3)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("border", [None, 0.0], ids=["even", "a dark border"])
@pytest.mark.parametrize("shape", [(2, 3, 7, 7), (1, 5, 31, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_far_from_zero(sweeps, device, dtype, shape, border, layout):
    """|mean| = 1000 standard deviations; where the border is dark, those of the rest are."""
    case = Case(shape, dtype, layout=layout)
    inputs = make(case, device)
    inputs["u"] = (inputs["u"] * 0.5 - 700).contiguous(memory_format=LAYOUTS[layout])
    if border is not None:
        inputs["u"][..., :2, :] = border
    check_moments(sweeps, case, inputs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_moments_of_a_constant(sweeps, device, layout):
    case = Case((2, 3, 9, 11), layout=layout)
    u = torch.full(case.shape, 1 / 3, device=device).contiguous(memory_format=LAYOUTS[layout])
    check_moments(sweeps, case, {"u": u})


@pytest.mark.sampled(every=11, on_host=5)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pre", ACTIVE)
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype, shape", DTYPES_AND_SHAPES)
def test_squeeze(sweeps, device, dtype, wide, pre, shape, layout):
    case = Case(shape, dtype, wide, layout, pre)
    check_squeeze(sweeps, case, make(case, device))


@pytest.mark.sampled(every=31, on_host=5)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "residual, post, keep",
    [
        (False, "none", False),
        (True, "none", False),
        (True, "relu", False),
        (False, "relu", True),
        (True, "relu", True),
    ],
)
@pytest.mark.parametrize("pre", PRES)
@pytest.mark.parametrize("dtype, shape", DTYPES_AND_SHAPES)
def test_scale(sweeps, device, dtype, shape, pre, residual, post, keep, layout):
    case = Case(shape, dtype, layout=layout, pre=pre)
    check_scale(sweeps, case, make(case, device), residual, post, keep)


@pytest.mark.sampled(every=23, on_host=5)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("masked, write", [(False, False), (False, True), (True, True)])
@pytest.mark.parametrize("pre", PRES)
@pytest.mark.parametrize("dtype, shape", DTYPES_AND_SHAPES)
def test_scale_backward(sweeps, device, dtype, shape, pre, write, masked, layout):
    case = Case(shape, dtype, layout=layout, pre=pre)
    check_scale_backward(sweeps, case, make(case, device), masked, write)


@pytest.mark.sampled(every=23, on_host=5)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("masked, sloped", [(False, False), (False, True), (True, True)])
@pytest.mark.parametrize("pre", PRES)
@pytest.mark.parametrize("dtype, shape", DTYPES_AND_SHAPES)
def test_squeeze_backward(sweeps, device, dtype, shape, pre, sloped, masked, layout):
    case = Case(shape, dtype, layout=layout, pre=pre)
    check_squeeze_backward(sweeps, case, make(case, device), masked, sloped)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_cases(sweeps, backend, device, dtype):
    @random_cases(40, backend)
    @given(cases(dtype), st.sampled_from(list(IMAGES)), st.sampled_from(list(IMAGES)), st.data())
    def check_all(case, place, other, data):
        inputs = make(case, device)
        inputs["u"] = IMAGES[place](inputs["u"])
        for name in ("dy", "residual"):
            inputs[name] = IMAGES[other](inputs[name])
        masked, some, post = (data.draw(st.booleans()) for _ in range(3))
        check_moments(sweeps, case, inputs)
        if case.pre != "identity":
            check_squeeze(sweeps, case, inputs)
        check_scale(sweeps, case, inputs, some, "relu" if post else "none", post)
        check_scale_backward(sweeps, case, inputs, masked, some)
        check_squeeze_backward(sweeps, case, inputs, masked, some)

    check_all()


# --- how tensors lie -----------------------------------------------------------------------------


@pytest.mark.sampled(every=11, on_host=3)
@pytest.mark.parametrize("place", IMAGES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("placed", ["u", "dy and residual"])
def test_images_placed_anyhow(sweeps, device, placed, layout, place):
    """What lies around them is NaN, and stays what it is."""
    case = Case((2, 9, 5, 6), layout=layout, pre="silu")
    inputs = make(case, device)
    for name in ("u",) if placed == "u" else ("dy", "residual"):
        inputs[name] = IMAGES[place](inputs[name])
    before = {name: storage_bytes(t) for name, t in inputs.items()}
    check_scale(sweeps, case, inputs, True, "relu", True)
    check_scale_backward(sweeps, case, inputs, True, True)
    check_squeeze_backward(sweeps, case, inputs, True, True)
    if placed == "u":
        check_moments(sweeps, case, inputs)
        check_squeeze(sweeps, case, inputs)
    for name, memory in before.items():
        assert torch.equal(storage_bytes(inputs[name]), memory), f"{name} was modified"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 3, 1, 7), (1, 8, 2, 4), (1, 9, 3, 3), (2, 15, 1, 17)]
)
def test_bits_beside_the_mask_are_zero(sweeps, device, shape, layout):
    """y > 0 everywhere: full bytes, and the last of a row as far as it goes."""
    case = Case(shape, layout=layout)
    inputs = make(case, device)
    inputs["residual"] = inputs["residual"].fill_(1e3)
    args = (inputs[name] for name in ("u", "norm", "s", "residual"))
    _, mask = sweeps.norm_scale(*args, case.pre, "relu", True)
    pixels = shape[2] * shape[3]
    rows, length = (pixels, shape[1]) if layout_of(inputs["u"]) == "nhwc" else (shape[1], pixels)
    full = [255] * (length // 8) + [2 ** (length % 8) - 1] * (length % 8 > 0)
    assert mask.tolist() == [[full] * rows] * shape[0]


def test_what_is_not_needed_is_not_read(sweeps, device):
    """u beside pre="identity" and no slope: nothing but its shape and strides."""
    case = Case()
    inputs = make(case, device)
    exact = Judge(case, inputs).du(False, False)
    inputs["u"] = torch.full_like(inputs["u"], torch.nan)
    arguments = (inputs[name] for name in ("dy", "u"))
    small = (inputs[name] for name in ("norm", "s", "d"))
    du = sweeps.norm_squeeze_backward(*arguments, None, *small, case.pre, None, None)
    check("du", du, *exact, case.dtype, case.sums)


@pytest.mark.sampled(every=5)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pre", PRES)
def test_the_same_bits_every_time(sweeps, device, pre, layout):
    """Of a channel that is cut into parts, too."""
    case = Case((1, 2, 20, 50), layout=layout, pre=pre)
    inputs = make(case, device)
    u, dy, norm, s, d = (inputs[name] for name in ("u", "dy", "norm", "s", "d"))

    def run():
        y, mask = sweeps.norm_scale(u, norm, s, None, pre, "relu", True)
        _, sums = sweeps.norm_scale_backward(dy, u, mask, norm, pre, False)
        du = sweeps.norm_squeeze_backward(dy, u, mask, norm, s, d, pre, *inputs["norm"][:2])
        z = () if pre == "identity" else (sweeps.norm_squeeze(u, norm, pre),)
        return *sweeps.norm_moments(u, False), *z, y, mask, sums, du

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)


# --- what is not finite --------------------------------------------------------------------------

NOT_FINITE = (torch.nan, torch.inf, -torch.inf)


def alike(name, result, exact):
    """NaN where the other is, infinite where it is and of its sign."""
    result = result.double().cpu()
    assert not exact.isfinite().all(), name
    assert exact.isfinite().any(), name
    odd = torch.where(exact.isfinite(), 0, exact)
    torch.testing.assert_close(
        torch.where(result.isfinite(), 0, result), odd, rtol=0, atol=0, equal_nan=True, msg=name
    )


@pytest.mark.sampled(every=3)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pre", PRES)
def test_nan_and_inf_of_u(sweeps, device, pre, layout):
    """One of an image, at its first pixel and elsewhere; the fourth image has none."""
    case = Case((4, 5, 4, 4), layout=layout, pre=pre)
    inputs = make(case, device)
    for n, value in enumerate(NOT_FINITE):
        inputs["u"][n, 0, 0, 0] = value
        inputs["u"][n, 3, 2, 1] = value
    judge = Judge(case, inputs)
    u, norm, s = (inputs[name] for name in ("u", "norm", "s"))
    mean, m2 = sweeps.norm_moments(u, False)
    alike("mean", mean, judge.i["u"].mean((2, 3)))
    alike("m2", m2, judge.i["u"].var((2, 3)))
    if pre != "identity":
        alike("z", sweeps.norm_squeeze(u, norm, pre), judge.squeeze()[0])
    y, mask = sweeps.norm_scale(u, norm, s, None, pre, "relu", True)
    alike("y", y, judge.scaled(False, "relu")[0])
    before, _ = judge.scaled(False, "none")
    assert torch.equal(mask, packed(~(before <= 0).to(device), u))
    if pre != "hardswish":  # whose slope at NaN eager itself gives now as 1, now as NaN
        dy = torch.ones_like(u)
        _, sums = sweeps.norm_scale_backward(dy, u, None, norm, pre, False)
        judge.i["dy"] = torch.ones_like(judge.i["dy"])
        alike("sums", sums, judge.sums(False)[0])
        small = (inputs[name] for name in ("s", "d", "slope", "offset"))
        s, d, slope, offset = small
        du = sweeps.norm_squeeze_backward(dy, u, None, norm, s, d, pre, slope, offset)
        alike("du", du, judge.du(False, True)[0])


@pytest.mark.sampled(every=5)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("pre", ["relu", "hardswish"])
def test_closed_units_stop_any_gradient(sweeps, device, pre, value, layout):
    """Of pre, and of the final ReLU: select, not multiply."""
    case = Case((2, 5, 3, 4), layout=layout, pre=pre)
    inputs = make(case, device)
    closed = (Judge(case, inputs).slope == 0).to(device)
    assert closed.any()
    u, norm, s, d = (inputs[name] for name in ("u", "norm", "s", "d"))
    small = norm, s, d, pre, inputs["slope"], inputs["offset"]
    clean, dirty = torch.where(closed, 0, inputs["dy"]), torch.where(closed, value, inputs["dy"])
    clean, dirty = (t.contiguous(memory_format=LAYOUTS[layout]) for t in (clean, dirty))
    open_mask = packed(~closed, u)
    for mask, kinds in ((None, slice(1, None)), (open_mask, slice(None))):  # g v is not finite
        _, expected = sweeps.norm_scale_backward(clean, u, mask, norm, pre, False)
        dr, sums = sweeps.norm_scale_backward(dirty, u, mask, norm, pre, mask is not None)
        assert torch.equal(sums[kinds], expected[kinds])
        assert torch.equal(dr, clean if mask is not None else dr)
        du = sweeps.norm_squeeze_backward(dirty, u, mask, *small)
        assert torch.equal(du, sweeps.norm_squeeze_backward(clean, u, mask, *small))


# --- all of them ---------------------------------------------------------------------------------


@pytest.mark.sampled(every=11, on_host=3)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("affine, residual", [(False, True), (True, False)])
@pytest.mark.parametrize("pre", PRES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_inference(sweeps, device, dtype, pre, residual, affine, layout):
    """Against twice eager's error in the same dtype, 4 spacings of the largest value beside."""
    case = Case((2, 6, 5, 4), dtype, layout=layout, pre=pre)
    inputs = make(case, device)
    torch.manual_seed(0)
    mean, var = torch.randn(6), torch.rand(6) + 0.1
    affinity = (torch.randn(6) + 1, torch.randn(6)) if affine else (None, None)
    weights = torch.randn(3, 6), torch.randn(6, 3), torch.randn(3), torch.randn(6)
    small = [None if t is None else t.to(device, dtype) for t in (*affinity, mean, var, *weights)]
    added = inputs["residual"] if residual else None
    y = sweeps.norm_inference(
        inputs["u"], *small[:4], 1e-3, *small[4:], added, pre, "silu", 0.0, "sigmoid", "relu"
    )
    assert y.dtype == dtype
    check_strides(inputs["u"], y, "y")

    def eager(dtype):
        def cast(t):
            return None if t is None else t.to(dtype)

        bn_weight, bn_bias, mean, var, w1, w2, b1, b2 = map(cast, small)
        t = F.batch_norm(cast(inputs["u"]), mean, var, bn_weight, bn_bias, eps=1e-3)
        v = activate(t, pre)
        s = reference.excite(v.mean((2, 3)), w1, w2, b1, b2, act="silu")
        return reference.scale(v, s, cast(added), "relu")

    exact = eager(torch.float64)
    error, baseline = ((t.double() - exact).abs().max() for t in (y, eager(dtype)))
    assert error <= 2 * baseline + 4 * torch.finfo(dtype).eps * exact.abs().max()
