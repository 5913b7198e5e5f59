"""The kernels' own arithmetic: 16-bit floats read and written bit by bit, and the sigmoid.

With R = 0 the gate's argument is b2 alone, so gate="relu" scales by a number of one's choice, and
NaN or Inf in x does not spread.
"""

import pytest
import torch

from se_kernels.core.layout import layout_of

pytestmark = pytest.mark.usefixtures("poisoned_outputs")

SIXTEEN_BITS = [torch.bfloat16, torch.float16]
# (C, P) of n numbers: rows of a vector and more, rows shorter than any vector, and (in the second
# and third) rows along the channels
FORMS = {
    "long rows": lambda n: (n // 512, 512),
    "short rows": lambda n: (n // 3, 3),
    "along channels": lambda n: (n, 1),
}


def scale_by(kernel, x, b2, gate="relu"):
    """gate(b2)_c * x of x (C, P)."""
    channels = x.shape[0]
    w1, w2 = b2.new_empty(0, channels), b2.new_empty(channels, 0)
    with torch.no_grad():
        return kernel(x[None, :, :, None], w1, w2, b2=b2, gate=gate)[0, :, :, 0]


def same_bits(result, expected):
    """Equal bit for bit, where not both NaN."""
    both_nan = result.isnan() & expected.isnan()
    unsigned = {2: torch.int16, 4: torch.int32, 8: torch.int64}[result.element_size()]
    return bool(((result.view(unsigned) == expected.view(unsigned)) | both_nan).all())


def every_pattern(dtype):
    return torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)


@pytest.mark.sampled(every=0)
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_every_bit_pattern_survives(kernel, device, dtype, form, weight_dtype):
    """y = 1 * x through both conversions, for all 65536 x."""
    patterns = every_pattern(dtype).repeat(3).to(device)
    x = patterns.view(*FORMS[form](patterns.numel()))
    y = scale_by(kernel, x, torch.ones(x.shape[0], dtype=weight_dtype, device=device))
    assert int(y.isnan().sum()) == int(x.isnan().sum()) > 0
    assert same_bits(y, x)


@pytest.mark.sampled(every=0, on_host=0)  # 65536 images
@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
@pytest.mark.parametrize("memory_format", ["nchw", "nhwc"])
def test_every_bit_pattern_is_squeezed(backend, device, dtype, memory_format):
    """z of one pixel is x itself: through a = z (C = 1, one image a pattern), y = relu(a)."""
    x = every_pattern(dtype).view(-1, 1, 1, 1).to(device)
    if memory_format == "nchw":  # three equal pixels a row
        x = x.expand(-1, 1, 1, 3).contiguous()
    assert layout_of(x) == memory_format
    one = torch.ones(1, 1, device=device)
    _, _, z, a, _ = torch.ops.se_kernels.forward(
        x, one, one, None, None, None, "max", "identity", 0.01, "relu", "none", backend
    )
    assert same_bits(z[:, 0], x[:, 0, 0, 0].float())
    assert same_bits(a, z + 0)


def halves(dtype):
    """Every number of ``dtype`` >= 0, every midpoint of two, and the float32 beside each."""
    finite = every_pattern(dtype)[:32768]
    finite = finite[finite.isfinite()].double()
    beyond = 2 * finite[-1] - finite[-2]  # where infinity would be, were it a number
    middles = ((finite + torch.cat([finite[1:], beyond[None]])) / 2).float()
    exact = torch.cat([finite.float(), middles])
    up = torch.nextafter(exact, torch.tensor(torch.inf))
    down = torch.nextafter(exact, torch.tensor(0.0))
    return torch.cat([exact, up, down])


def random_floats(count):
    bits = torch.randint(0, 0x7F800000, (count,), generator=torch.Generator().manual_seed(1))
    return bits.to(torch.int32).view(torch.float32)


@pytest.mark.sampled(every=0, on_host=0)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_rounding_of_float32(kernel, device, dtype, form):
    """y = s * (±1), s any float32 >= 0: rounded to nearest, ties to even, as torch's own cast."""
    values = torch.cat([halves(dtype), random_floats(100_000), torch.tensor([torch.inf])])
    pixels = {"long rows": 67, "short rows": 3, "along channels": 1}[form]
    for sign in (1, -1):
        x = torch.full((values.numel(), pixels), sign, dtype=dtype, device=device)
        y = scale_by(kernel, x, values.to(device))
        expected = (sign * values).to(dtype)[:, None].expand(-1, pixels)
        assert same_bits(y.cpu(), expected)


@pytest.mark.native
@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_some_roundings_and_patterns(kernel, device, dtype):
    """A thirtieth of the two above, for a backend that takes its time."""
    values = halves(dtype)[::97].to(device)
    y = scale_by(kernel, torch.ones(values.numel(), 1, dtype=dtype, device=device), values)
    assert same_bits(y[:, 0], values.to(dtype))
    x = every_pattern(dtype)[::31].to(device)[None]
    assert same_bits(scale_by(kernel, x, torch.ones(1, device=device)), x)


@pytest.mark.sampled(every=0, on_host=0)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_of_float64(kernel, device, dtype, form):
    """To 16 bits by way of float32, as torch's own cast does."""
    generator = torch.Generator().manual_seed(2)
    noise = torch.rand(100_000, generator=generator, dtype=torch.float64)
    values = torch.cat([halves(torch.float16).double(), noise, (40 * noise - 20).exp()])
    pixels = {"long rows": 67, "short rows": 3, "along channels": 1}[form]
    x = torch.ones(values.numel(), pixels, dtype=dtype, device=device)
    y = scale_by(kernel, x, values.to(device))
    expected = values.float().to(dtype)[:, None].expand(-1, pixels)
    assert same_bits(y.cpu(), expected)


def units_in_the_last_place(result, exact):
    """|result - exact| in spacings of result's dtype at exact."""
    info = torch.finfo(result.dtype)
    exponent = torch.floor(torch.log2(exact))
    spacing = torch.pow(torch.tensor(2.0, dtype=torch.float64), exponent) * info.eps
    return (result.double() - exact).abs() / spacing


@pytest.mark.sampled(every=0)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sigmoid(kernel, device, dtype):
    """Within 4 units in the last place over [-87, 90]; below, where 1 / (1 + exp(-e)) is no longer
    a normal float32, within the smallest normal one."""
    e = torch.cat([torch.linspace(-90, 90, 200_003), torch.linspace(-1e-3, 1e-3, 1001)]).to(dtype)
    exact = torch.sigmoid(e.double())
    smallest = torch.finfo(torch.float32).smallest_normal
    whole_vectors, fewer = [slice(None)], [slice(i, i + 3) for i in range(0, e.numel(), 997)]
    for part in whole_vectors + fewer:
        x = torch.ones(len(e[part]), 1, dtype=dtype, device=device)
        s = scale_by(kernel, x, e[part].to(device), gate="sigmoid")[:, 0].cpu()
        units = units_in_the_last_place(s, exact[part])
        assert ((units <= 4) | (e[part] < -87)).all()
        assert ((units <= 4) | ((s.double() - exact[part]).abs() <= smallest)).all()


def test_sigmoid_at_the_ends(kernel, device):
    e = torch.tensor([-torch.inf, -1000, -104, -0.0, 0.0, 40, 1000, torch.inf, torch.nan])
    e = e.repeat(8)  # whole vectors
    s = scale_by(kernel, torch.ones(e.numel(), 1, device=device), e.to(device), gate="sigmoid")
    expected = torch.sigmoid(e)
    torch.testing.assert_close(
        s[:, 0].cpu(), expected, rtol=1e-6, atol=torch.finfo(torch.float32).smallest_normal,
        equal_nan=True,
    )  # fmt: skip
