"""The registered ops: opcheck, and fakes that tell the shapes, dtypes and strides of the real."""

import itertools

import pytest
import torch
from operator_cases import DTYPES
from torch._subclasses.fake_tensor import FakeTensorMode

from se_kernels.core import ops
from se_kernels.core.layout import layout_of
from se_kernels.core.variants import ACTS, GATES, POSTS, SQUEEZES, Variant

N, C, R, H, W = 3, 6, 4, 4, 5
RESIDUAL_RELU = Variant(post="relu")


def channels_last(t):
    return t.contiguous(memory_format=torch.channels_last)


# x as a caller may hold it: the shape of what it is taken from, and how
LAYOUTS = {
    "contiguous": ((N, C, H, W), lambda t: t),
    "channels_last": ((N, C, H, W), channels_last),
    "every other image": ((2 * N, C, H, W), lambda t: t[1::2]),
    "channels of contiguous": ((N, 2 * C, H, W), lambda t: t[:, 1 : C + 1]),
    "channels of channels_last": ((N, 2 * C, H, W), lambda t: channels_last(t)[:, 1 : C + 1]),
    "every other channel": ((N, 2 * C, H, W), lambda t: t[:, ::2]),
    "every other of channels_last": ((N, 2 * C, H, W), lambda t: channels_last(t)[:, ::2]),
    "columns": ((N, C, H, 2 * W), lambda t: t[..., :W]),
    "rows of channels_last": ((N, C, 2 * H, W), lambda t: channels_last(t)[:, :, :H]),
    "transposed": ((N, C, W, H), lambda t: t.mT),
    "images and channels swapped": ((C, N, H, W), lambda t: t.transpose(0, 1)),
    "expanded over images": ((1, C, H, W), lambda t: t.expand(N, -1, -1, -1)),
    "expanded over pixels": ((N, C, 1, 1), lambda t: t.expand(-1, -1, H, W)),
    "one pixel": ((N, C, 1, 1), lambda t: t),
    "one channel": ((N, 1, H, W), lambda t: t),
    "one image, channels_last": ((1, C, H, W), channels_last),
    "no image": ((0, C, H, W), lambda t: t),
    "no pixel": ((N, C, 0, W), lambda t: t),
}


@pytest.fixture
def forward_arguments(backend, device):
    """Makes the arguments of ``ops.inference`` and ``ops.forward``."""

    def make(
        layout="contiguous",
        variant=RESIDUAL_RELU,
        dtype=torch.float32,
        w_dtype=torch.float32,
        bias=True,
        residual=True,
    ):
        torch.manual_seed(0)
        shape, view = LAYOUTS[layout]
        x = view(torch.randn(shape).to(device, dtype))
        channels = x.shape[1]
        sizes = (R, channels), (channels, R), (R,), (channels,)
        w1, w2, b1, b2 = (torch.randn(size).to(device, w_dtype) for size in sizes)
        r = torch.randn_like(x) if residual else None
        return x, w1, w2, b1 if bias else None, b2 if bias else None, r, *variant, backend

    return make


def backward_arguments(arguments, needs=(True,) * 6):
    """Those of ``ops.backward``; needs: dx, dr, dw1, dw2, db1, db2."""
    x, w1, w2, b1, b2, residual, *variant, backend = arguments
    y, mask, z, a, s = ops.forward(*arguments)
    mask = mask if variant[-1] == "relu" else None
    has_dr = mask is not None and residual is not None
    present = True, has_dr, True, True, b1 is not None, b2 is not None
    needs = [need and there for need, there in zip(needs, present, strict=True)]
    return torch.randn_like(y), x, w1, w2, mask, z, a, s, *variant[:-1], needs, backend


def opcheck_all(arguments, **options):
    torch.library.opcheck(ops.inference, arguments, **options)
    torch.library.opcheck(ops.forward, arguments, **options)
    torch.library.opcheck(ops.backward, backward_arguments(arguments), **options)


# the ops are registered once for all backends, so that one shows all; tracing takes seconds
of_one_backend = pytest.mark.sampled(every=0, on_host=0)
UNTRACED = dict(test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))


@of_one_backend
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "no pixel"])
def test_opcheck_layouts(forward_arguments, layout):
    """Without a mask if opcheck's copy of x lies otherwise than x: its mask is then another."""
    x, *_ = forward_arguments(layout)
    post = "relu" if layout_of(x.clone()) == layout_of(x) else "none"
    traced = layout in ("contiguous", "channels_last", "columns", "expanded over pixels")
    opcheck_all(forward_arguments(layout, Variant(post=post)), **({} if traced else UNTRACED))


@of_one_backend
def test_opcheck_no_pixel(forward_arguments):
    # z is a mean of nothing, NaN, and opcheck's comparison of a traced run holds NaN unequal
    opcheck_all(forward_arguments("no pixel"), **UNTRACED)


@of_one_backend
@pytest.mark.parametrize(
    "dtype, w_dtype",
    [
        *zip(DTYPES, DTYPES, strict=True),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float64),
        (torch.float64, torch.bfloat16),
    ],
)
def test_opcheck_dtypes(forward_arguments, dtype, w_dtype):
    opcheck_all(forward_arguments("channels_last", dtype=dtype, w_dtype=w_dtype), **UNTRACED)


@of_one_backend
@pytest.mark.parametrize(
    "variant",
    [
        *(Variant(squeeze=squeeze) for squeeze in SQUEEZES),
        *(Variant(act=act, act_slope=0.2) for act in ACTS[1:]),
        *(Variant(gate=gate) for gate in GATES[1:]),
    ],
    ids=lambda variant: "-".join(map(str, variant)),
)
def test_opcheck_variants(forward_arguments, variant):
    opcheck_all(forward_arguments(variant=variant), **UNTRACED)


@of_one_backend
@pytest.mark.parametrize("post", POSTS)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_opcheck_optional_arguments(forward_arguments, bias, residual, post):
    opcheck_all(forward_arguments(variant=Variant(post=post), bias=bias, residual=residual))


@of_one_backend
@pytest.mark.parametrize("alone", range(6), ids=["dx", "dr", "dw1", "dw2", "db1", "db2"])
def test_opcheck_one_gradient_needed(forward_arguments, alone):
    needs = [index == alone for index in range(6)]
    torch.library.opcheck(ops.backward, backward_arguments(forward_arguments(), needs), **UNTRACED)


def described(outputs):
    outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
    return [(tuple(t.shape), t.dtype, t.device.type, t.stride()) for t in outputs]


def described_fake(op, arguments):
    with FakeTensorMode() as mode:
        faked = [mode.from_tensor(t) if isinstance(t, torch.Tensor) else t for t in arguments]
        return described(op(*faked))


@pytest.mark.sampled(every=23, on_host=11)
@pytest.mark.parametrize("dtype, w_dtype", [*itertools.product(DTYPES, DTYPES[:2])])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fakes_describe_the_real(forward_arguments, layout, dtype, w_dtype):
    arguments = forward_arguments(layout, dtype=dtype, w_dtype=w_dtype)
    real = described(ops.forward(*arguments))
    assert described_fake(ops.forward, arguments) == real
    assert described(ops.inference(*arguments)) == real[:1]
    assert described_fake(ops.inference, arguments) == real[:1]
    for needs in ((True,) * 6, (True, False) * 3, (False, True) * 3):
        given = backward_arguments(arguments, needs)
        assert described_fake(ops.backward, given) == described(ops.backward(*given))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_lie_as_x_does(forward_arguments, layout):
    """A dense x gives its own strides, as in eager; another one the nearer dense format."""
    arguments = forward_arguments(layout)
    x = arguments[0]
    y, *_ = ops.forward(*arguments)
    dx, dr, *_ = ops.backward(*backward_arguments(arguments))
    adjacent_channels = "channels of channels_last", "rows of channels_last", "expanded over pixels"
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        expected = x.stride()
    elif layout in adjacent_channels:
        expected = channels_last(torch.empty(x.shape)).stride()
    else:
        expected = torch.empty(x.shape).stride()
    assert y.stride() == dx.stride() == dr.stride() == expected


def test_ops_mutate_nothing():
    for op in (ops.inference, ops.forward, ops.backward):
        assert not op._schema.is_mutable
        assert all(returned.alias_info is None for returned in op._schema.returns)
