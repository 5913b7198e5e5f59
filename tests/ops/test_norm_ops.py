"""The registered ops of the norm: opcheck, fakes that tell the shapes, dtypes and strides of the
real, and each sweep by itself against plain formulas in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from norm_cases import pre_module
from operator_cases import DTYPES
from test_ops import (
    LAYOUTS,
    UNTRACED,
    R,
    channels_last,
    described,
    described_fake,
    of_one_backend,
)

from se_kernels.core import dispatch, ops
from se_kernels.core.layout import layout_of, unpacked
from se_kernels.core.variants import POSTS, PRES
from se_kernels.verification.rounded import derivative

pytestmark = pytest.mark.sampled(every=0, on_host=5)

OPS = ("forward", "backward", "moments", "squeeze_backward", "inference")
NO_ELEMENTS = ("no image", "no pixel")


def column(t):
    return t[..., None, None]


@pytest.fixture
def arguments(backend, device):
    """Makes the arguments of each op, and of each sweep that is none, by name; ``wide``: sums in
    float64."""

    def make(layout="contiguous", pre="silu", post="relu", dtype=torch.float32, wide=False):
        torch.manual_seed(0)
        shape, view = LAYOUTS[layout]
        u = view(torch.randn(shape).to(device, dtype))
        images, channels = u.shape[:2]
        sums = torch.float64 if wide or dtype == torch.float64 else torch.float32

        def of(*sizes):
            return torch.randn(sizes).to(device, sums)

        norm, s, d, slope, offset = (
            of(3, channels),
            of(images, channels),
            of(images, channels),
            *(of(channels) for _ in range(2)),
        )
        residual, dy = torch.randn_like(u), torch.randn_like(u)
        keep = post == "relu"
        _, mask = ops.sweeps(u, backend).norm_scale(u, norm, s, residual, pre, post, keep)
        mask = mask if keep else None
        weights = of(R, channels), of(channels, R), of(R), of(channels)
        before, running = (u, of(channels), of(channels)), (of(channels), of(channels).abs())
        variant = pre, "relu", 0.01, "sigmoid"
        # an empty batch has no statistics of its own
        given = *running, None, *weights, residual, u.numel() > 0, 0.1, 1e-5, *variant, post, keep
        left = torch.cat((norm, of(1 + images, channels), s)), of(images, R)
        needs = [True, keep, False, True, True, True, False]
        made = {
            "forward": (*before, *given, backend),
            "backward": (dy, u, mask, *left, *weights[:2], True, *variant, needs, backend),
            "moments": (u, wide, backend),
            "scale": (u, norm, s, residual, pre, post, keep),
            "scale_backward": (dy, u, mask, norm, pre, keep),
            "squeeze_backward": (dy, u, mask, norm, s, d, pre, slope, offset, backend),
            "inference": (*before, *running, 1e-5, *weights, residual, *variant, post, backend),
        }
        if pre != "identity":
            made["squeeze"] = u, norm, pre
        return made

    return make


def op(name):
    return getattr(ops, f"norm_{name}")


def opcheck_all(made, **options):
    for name in OPS:
        torch.library.opcheck(op(name), made[name], **options)


@pytest.fixture
def sweeps(backend):
    return dispatch.get(backend)


@of_one_backend
@pytest.mark.parametrize(
    "layout", ["contiguous", "channels_last", "columns", "expanded over pixels", "one pixel"]
)
def test_opcheck_layouts(arguments, layout):
    """Without a mask where opcheck's copy of u lies otherwise than u: it is then of another."""
    u, *_ = arguments(layout)["moments"]
    opcheck_all(arguments(layout, post="relu" if layout_of(u.clone()) == layout_of(u) else "none"))


@of_one_backend
@pytest.mark.parametrize("layout", NO_ELEMENTS)
def test_opcheck_no_elements(arguments, layout):
    # a mean of nothing is NaN, and opcheck's comparison of a traced run holds NaN unequal
    opcheck_all(arguments(layout), **UNTRACED)


@of_one_backend
@pytest.mark.parametrize("pre, post", [*zip(PRES, POSTS * 2, strict=True)])
def test_opcheck_variants(arguments, pre, post):
    opcheck_all(arguments("channels_last", pre, post, torch.bfloat16))


@of_one_backend
def test_opcheck_optional_arguments(arguments):
    made = arguments(pre="identity")
    u, weight, bias, mean, var, _, w1, w2, b1, b2, _, _, *rest = made["forward"]
    bare = u, None, None, None, None, None, w1, w2, None, None, None, True, *rest
    torch.library.opcheck(ops.norm_forward, bare)
    means = torch.zeros(u.shape[:2], dtype=torch.float64, device=u.device)
    of_a_group = u, weight, bias, mean, var, means, w1, w2, b1, b2, None, False, *rest
    torch.library.opcheck(ops.norm_forward, of_a_group)
    dy, u, _, *given, needs, backend = made["backward"]
    for wanted in ((), (0,), (2,), (4, 6)):
        needs = [i in wanted for i in range(7)]
        torch.library.opcheck(ops.norm_backward, (dy, u, None, *given, needs, backend))
    *given, _, _, backend = made["squeeze_backward"]
    torch.library.opcheck(ops.norm_squeeze_backward, (*given, None, None, backend))
    u, _, _, mean, var, eps, w1, w2, _, _, _, *rest = made["inference"]
    bare = u, None, None, mean, var, eps, w1, w2, None, None, None, *rest
    torch.library.opcheck(ops.norm_inference, bare)


@pytest.mark.sampled(every=0, on_host=13)
@pytest.mark.parametrize("dtype, wide", [*itertools.product(DTYPES, (False, True))])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fakes_describe_the_real(arguments, layout, dtype, wide):
    for post, pre in (("relu", "silu"), ("none", "identity")):
        made = arguments(layout, pre, post, dtype, wide)
        for name in OPS:
            given = made[name]
            assert described_fake(op(name), given) == described(op(name)(*given)), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_lie_as_u_does(arguments, layout):
    """A dense u gives its own strides, as in eager; another one the nearer dense format."""
    made = arguments(layout)
    u = made["moments"][0]
    outputs = [op("forward")(*made["forward"])[0], *op("backward")(*made["backward"])[2:4]]
    outputs += [op(name)(*made[name]) for name in ("squeeze_backward", "inference")]
    adjacent_channels = "channels of channels_last", "rows of channels_last", "expanded over pixels"
    if u.is_contiguous() or u.is_contiguous(memory_format=torch.channels_last):
        expected = u.stride()
    elif layout in adjacent_channels:
        expected = channels_last(torch.empty(u.shape)).stride()
    else:
        expected = torch.empty(u.shape).stride()
    assert all(t.stride() == expected for t in outputs)


def test_they_mutate_nothing():
    for name in OPS:
        assert not op(name)._schema.is_mutable
        assert all(returned.alias_info is None for returned in op(name)._schema.returns)


# --- each by itself ------------------------------------------------------------------------------


def assert_near(result, exact, name=""):
    """Some twenty roundings relative to the largest, and half a spacing of the dtype."""
    spacing = torch.finfo(result.dtype).eps
    torch.testing.assert_close(
        result.double().cpu(),
        exact,
        rtol=0.51 * spacing if spacing > 1e-4 else 0,
        atol=(4e-6 if result.dtype != torch.float64 else 1e-14) * max(1, exact.abs().max().item()),
        msg=lambda text: f"{name}: {text}",
    )


def doubled(given):
    return [t.double().cpu() if isinstance(t, torch.Tensor) else t for t in given]


def affine(u, norm):
    mean, scale, bias = (column(t) for t in norm)
    return u - mean, (u - mean) * scale + bias


def shapes(every):
    """Of layouts, those with elements."""
    return [name for name in LAYOUTS if name not in NO_ELEMENTS][::every]


@pytest.mark.sampled(every=31, on_host=11)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", shapes(1))
def test_moments(arguments, layout, dtype):
    drawn, wide, backend = arguments(layout, dtype=dtype)["moments"]
    for shift in (0, 1000) if dtype != torch.bfloat16 else (0,):
        u = drawn + shift if shift else drawn
        means, m2 = ops.norm_moments(u, wide, backend)
        exact = u.double().cpu()
        # of float32 numbers the mean to within half of its spacing, the squares as without a shift
        half = 0.51 * torch.finfo(torch.float32).eps * shift if dtype == torch.float32 else 0
        error = (means.cpu() - exact.mean((2, 3))).abs().max()
        assert error <= half + (1e-6 if dtype != torch.float64 else 1e-12)
        squares = (exact - column(exact.mean((2, 3)))).square().sum((2, 3))
        torch.testing.assert_close(m2.cpu(), squares, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pre", PRES[1:])
@pytest.mark.parametrize("layout", shapes(3))
def test_squeeze(arguments, sweeps, layout, pre):
    given = arguments(layout, pre)["squeeze"]
    u, norm, *_ = doubled(given)
    assert_near(sweeps.norm_squeeze(*given), pre_module(pre)(affine(u, norm)[1]).mean((2, 3)))


@pytest.mark.sampled(every=23, on_host=11)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pre", PRES)
@pytest.mark.parametrize("layout", shapes(2))
def test_scale_and_its_mask(arguments, sweeps, layout, pre, dtype):
    given = arguments(layout, pre, dtype=dtype)["scale"]
    y, mask = sweeps.norm_scale(*given)
    u, norm, s, residual, *_ = doubled(given)
    exact = pre_module(pre)(affine(u, norm)[1]) * column(s) + residual
    assert_near(y, F.relu(exact))
    clear = exact.abs() > 1e-5  # of float32 roundings
    assert torch.equal(unpacked(mask, given[0]).cpu()[clear], (exact > 0)[clear])
    row = u.shape[1] if layout_of(given[0]) == "nhwc" else u.shape[2] * u.shape[3]
    past_the_end = mask[..., -1].cpu() >> torch.tensor((row - 1) % 8 + 1)
    assert past_the_end.count_nonzero() == 0
    without = sweeps.norm_scale(*given[:6], False)
    assert_near(without[0], F.relu(exact))  # in other vectors: not of the same bits
    assert without[1].numel() == 0


@pytest.mark.sampled(every=23, on_host=11)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("pre", PRES)
@pytest.mark.parametrize("layout", shapes(2))
def test_scale_backward(arguments, sweeps, layout, pre, masked):
    dy, u, mask, norm, pre, _ = arguments(layout, pre)["scale_backward"]
    mask = mask if masked else None
    for write in (False, masked):
        dr, sums = sweeps.norm_scale_backward(dy, u, mask, norm, pre, write)
        g = dy if mask is None else torch.where(unpacked(mask, u), dy, 0)
        assert torch.equal(dr, g) if write else dr.numel() == 0
        x, t = affine(*doubled((u, norm)))
        g, v, slope = g.double().cpu(), pre_module(pre)(t), derivative(pre_module(pre))(t)
        terms = (
            (g, g * x) if pre == "identity" else (g * v, g * slope, g * slope * x, slope, slope * x)
        )
        assert sums.shape == (len(terms), *u.shape[:2])
        for index, term in enumerate(terms):
            assert_near(sums[index], term.sum((2, 3)), f"sum {index}")


@pytest.mark.sampled(every=23, on_host=11)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("pre", PRES)
@pytest.mark.parametrize("layout", shapes(2))
def test_squeeze_backward(arguments, layout, pre, masked):
    g, u, mask, norm, s, d, pre, slope, offset, backend = arguments(layout, pre)["squeeze_backward"]
    mask = mask if masked else None
    for training in (True, False):
        if not training:
            slope = offset = None
        du = ops.norm_squeeze_backward(g, u, mask, norm, s, d, pre, slope, offset, backend)
        x, t = affine(*doubled((u, norm)))
        kept = g if mask is None else torch.where(unpacked(mask, u), g, 0)
        dv = kept.double().cpu() * column(s.double().cpu()) + column(d.double().cpu())
        exact = column(norm[1].double().cpu()) * dv * derivative(pre_module(pre))(t)
        if training:
            exact = exact + column(slope.double().cpu()) * x + column(offset.double().cpu())
        assert_near(du, exact)


def test_u_is_not_needed_behind_a_frozen_norm_without_pre(arguments):
    """Its values are not read: NaN there does no harm."""
    g, u, mask, norm, s, d, pre, *_, backend = arguments(pre="identity")["squeeze_backward"]
    given = mask, norm, s, d, pre, None, None, backend
    du = ops.norm_squeeze_backward(g, u, *given)
    assert torch.equal(ops.norm_squeeze_backward(g, torch.full_like(u, torch.nan), *given), du)


@pytest.mark.sampled(every=3, on_host=1)
@pytest.mark.parametrize("pre", ["relu", "hardswish"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_closed_unit_stops_an_infinite_gradient(arguments, backend, sweeps, layout, pre):
    """As torch's select does, no product with 0: in du and in the sums behind pre."""
    dy, u, _, norm, *_ = arguments(layout, pre)["scale_backward"]
    *_, s, d, _, slope, offset, _ = arguments(layout, pre)["squeeze_backward"]
    at = 1, 2, 3, 1
    norm[:, 2] = norm.new_tensor([0.0, 1.0, 0.0])
    u[at] = -100.0
    clean = [sweeps.norm_scale_backward(dy, u, None, norm, pre, False)[1]]
    clean += [ops.norm_squeeze_backward(dy, u, None, norm, s, d, pre, slope, offset, backend)]
    dy[at] = torch.inf
    sums = sweeps.norm_scale_backward(dy, u, None, norm, pre, False)[1]
    du = ops.norm_squeeze_backward(dy, u, None, norm, s, d, pre, slope, offset, backend)
    assert torch.equal(sums[1:], clean[0][1:])
    assert torch.equal(du, clean[1])


@pytest.mark.parametrize("pre", PRES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_mask_stops_an_infinite_gradient(arguments, backend, sweeps, layout, pre):
    dy, u, mask, norm, _, _ = arguments(layout, pre)["scale_backward"]
    *_, s, d, _, slope, offset, _ = arguments(layout, pre)["squeeze_backward"]
    shut = ~unpacked(mask, u)
    assert shut.any()
    runs = []
    for value in (0.0, torch.inf, torch.nan):
        dy[shut] = value
        runs.append(
            [
                *sweeps.norm_scale_backward(dy, u, mask, norm, pre, True),
                ops.norm_squeeze_backward(dy, u, mask, norm, s, d, pre, slope, offset, backend),
            ]
        )
    for others in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], others, strict=True))


@pytest.mark.sampled(every=1, on_host=1)
def test_nan_keeps_its_bit(arguments, sweeps):
    """What is not a number is not below 0: its gradient goes on, as behind torch's ReLU."""
    for layout in ("contiguous", "channels_last"):
        u, *rest = arguments(layout)["scale"]
        u[2, 3, 1, 4] = torch.nan
        y, mask = sweeps.norm_scale(u, *rest)
        assert y[2, 3, 1, 4].isnan()
        assert unpacked(mask, u)[2, 3, 1, 4]
