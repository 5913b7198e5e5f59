"""The judge of the sweeps with a batch norm before the block, each on its own.

The judge is each sweep's equation in float64 on the very inputs. Allowed, element by element: one
rounding to the output's own dtype (0.51 of its spacing: float64 sums pass through float32 on their
way to 16 bits), and 8 roundings of the dtype of the sums relative to what is summed, every term by
its absolute value so that nothing cancels. The sums here have so few terms that 8 is ample; one
intermediate held in 16 bits would be 2^13 of them.

pre and its slope jump, so a rounding that crosses a jump would be judged an error of size one:
``make`` keeps t, and what the final ReLU sees, clear of every jump by more than any rounding.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from operator_cases import DTYPES, LAYOUTS
from random_cases import check_strides

from se_kernels.core.activations import activate
from se_kernels.core.layout import readable
from se_kernels.core.variants import PRES

ACTIVE = [pre for pre in PRES if pre != "identity"]
SHAPES = [(2, 16, 4, 6), (3, 17, 7, 7), (1, 33, 1, 1), (1, 3, 37, 29)]
DTYPES_AND_SHAPES = [(torch.float32, shape) for shape in SHAPES]
DTYPES_AND_SHAPES += [(dtype, SHAPES[1]) for dtype in DTYPES if dtype != torch.float32]
JUMPS = {"identity": (), "relu": (0.0,), "silu": (), "hardswish": (-3.0, 3.0)}
STEEPEST, BEND = 1.5, 0.5  # the largest |pre'| and, between jumps, |pre''|: hardswish's and silu's
CLEARANCE = 1 / 64  # of t from a jump
Y_CLEARANCE = 1 / 16  # of s v + residual from 0: four roundings of bfloat16


@dataclass(frozen=True)
class Case:
    shape: tuple[int, int, int, int] = (2, 5, 3, 4)  # N, C, H, W
    dtype: torch.dtype = torch.float32
    wide: bool = False  # the sums in float64 whatever dtype is
    layout: str = "nchw"
    pre: str = "identity"
    seed: int = 0

    @property
    def sums(self) -> torch.dtype:
        return torch.float64 if self.wide or self.dtype == torch.float64 else torch.float32


def make(case: Case, device: str) -> dict[str, torch.Tensor]:
    """u, dy, residual (N, C, H, W), norm (3, C), s, d (N, C), slope, offset (C,), kept: booleans
    (N, C, H, W)."""
    generator = torch.Generator().manual_seed(case.seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    images, channels = case.shape[:2]
    mean, scale, bias = 2 * normal(3, channels)
    scale = torch.where(scale < 0, scale - 0.25, scale + 0.25)  # t then leaves a jump when u does
    norm = torch.stack((mean, scale, bias)).to(case.sums)
    mean, scale, bias = norm.double()
    close, u = torch.ones((), dtype=torch.bool), None
    while close.any():
        drawn = (normal(*case.shape) + normal(1, channels, 1, 1)).to(case.dtype)
        u = drawn if u is None else torch.where(close, drawn, u)
        t = (u.double() - of(mean)) * of(scale) + of(bias)
        close = torch.zeros_like(t, dtype=torch.bool)
        for jump in JUMPS[case.pre]:
            close |= (t - jump).abs() < CLEARANCE
    s = (0.1 + torch.rand(images, channels, generator=generator)).to(case.sums)
    residual = normal(*case.shape).to(case.dtype)
    v = activate(t, case.pre)
    close = (of(s.double()) * v + residual.double()).abs() < Y_CLEARANCE
    inputs = {
        "u": u,
        "dy": normal(*case.shape).to(case.dtype),
        "residual": torch.where(close, residual + 4 * Y_CLEARANCE, residual),
        "norm": norm,
        "s": s,
        "d": normal(images, channels).to(case.sums),
        "slope": normal(channels).to(case.sums),
        "offset": normal(channels).to(case.sums),
        "kept": normal(*case.shape) > 0,
    }
    return {
        name: t.to(device).contiguous(memory_format=LAYOUTS[case.layout])
        if t.dim() == 4
        else t.to(device)
        for name, t in inputs.items()
    }


def of(t):
    """(C,) or (N, C) beside images."""
    return t[..., None, None]


def slope_of(t, pre):
    """pre'(t)."""
    leaf = t.detach().requires_grad_()
    return torch.autograd.grad(activate(leaf, pre).sum(), leaf)[0]


def packed(kept, u):
    """The mask of booleans (N, C, H, W), as it lies for u."""
    rows = kept.flatten(2)
    rows = rows.transpose(1, 2) if readable(u)[0] == "nhwc" else rows
    rows = F.pad(rows, (0, -rows.shape[2] % 8)).unflatten(2, (-1, 8))
    return (rows.to(torch.uint8) << torch.arange(8, dtype=torch.uint8, device=u.device)).sum(
        3, dtype=torch.uint8
    )


class Judge:
    """(exact, scale of the rounding error) of each sweep of a case, in float64."""

    def __init__(self, case, inputs):
        self.case, self.device = case, inputs["u"].device
        self.i = {n: t.cpu() if n == "kept" else t.double().cpu() for n, t in inputs.items()}
        mean, scale, bias = self.i["norm"]
        self.away = self.i["u"] - of(mean)
        self.scale = of(scale)
        self.t = self.away * self.scale + of(bias)
        self.v = activate(self.t, case.pre)
        size = (self.away * self.scale).abs() + of(bias).abs()
        self.v_size = STEEPEST * size
        if case.pre == "identity":
            self.slope, self.slope_size = torch.ones(()), torch.ones(())
        else:
            self.slope = slope_of(self.t, case.pre)
            self.slope_size = STEEPEST + BEND * size

    def g(self, masked):
        return torch.where(self.i["kept"], self.i["dy"], 0) if masked else self.i["dy"]

    def squeeze(self):
        return self.v.mean((2, 3)), self.v_size.mean((2, 3))

    def scaled(self, residual, post):
        s = of(self.i["s"])
        y, size = s * self.v, s.abs() * self.v_size
        if residual:
            y, size = y + self.i["residual"], size + self.i["residual"].abs()
        return y.relu() if post == "relu" else y, size

    def sums(self, masked):
        g, a = self.g(masked), self.away
        dt, dt_size = g * self.slope, g.abs() * self.slope_size
        terms = [(g, g.abs()), (g * a, (g * a).abs())]
        if self.case.pre != "identity":
            slope, size = self.slope, self.slope_size
            terms = [(g * self.v, g.abs() * self.v_size), (dt, dt_size)]
            terms += [(dt * a, dt_size * a.abs()), (slope, size), (slope * a, size * a.abs())]
        return [torch.stack(kind).sum((3, 4)) for kind in zip(*terms, strict=True)]

    def du(self, masked, sloped):
        g, (s, d) = self.g(masked), (of(self.i[name]) for name in "sd")
        du = self.scale * self.slope * (g * s + d)
        size = self.scale.abs() * self.slope_size * ((g * s).abs() + d.abs())
        if sloped:
            slope, offset = of(self.i["slope"]), of(self.i["offset"])
            du = du + slope * self.away + offset
            size = size + (slope * self.away).abs() + offset.abs()
        return du, size


def check(name, result, exact, size, dtype, sums):
    assert result.dtype == dtype, name
    assert result.shape == exact.shape, name
    stored = torch.finfo(dtype)
    allowed = 0.51 * (stored.eps * exact.abs() + stored.smallest_normal * stored.eps)
    allowed = allowed + 8 * torch.finfo(sums).eps * size
    error = (result.double().cpu() - exact).abs()
    wrong = ~(error <= allowed)  # so that NaN is wrong
    if wrong.any():
        at = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{name}: {int(wrong.sum())} of {wrong.numel()} elements wrong, the first at {at}: "
            f"{result[at].item()!r}, exact {exact[at].item()!r}, allowed error "
            f"{allowed[at].item():.3g}"
        )


def check_moments(sweeps, case, inputs):
    u = inputs["u"]
    mean, m2 = sweeps.norm_moments(u, case.wide)
    exact = u.double().cpu()
    exact_mean = exact.mean((2, 3))
    exact_m2 = (exact - of(exact_mean)).square().sum((2, 3))
    # 32 roundings of up to 1,240 squares, one after the other, and those of the means: a part's
    # own distance from the whole's is √(m2 / P) or so; and what is left where m2 is 0
    eps, pixels = torch.finfo(case.sums).eps, u.shape[2] * u.shape[3]
    far = 2 * exact_mean.abs() * (pixels * exact_m2).sqrt()
    left = pixels * eps * (2 * exact_mean).square()
    size = exact.abs().mean((2, 3))
    check("mean", mean.double(), exact_mean, size, torch.float64, case.sums)
    check("m2", m2.double(), exact_m2, 4 * exact_m2 + (far + left) / 8, torch.float64, case.sums)
    assert (m2 >= 0).all()


def check_squeeze(sweeps, case, inputs):
    z = sweeps.norm_squeeze(inputs["u"], inputs["norm"], case.pre)
    check("z", z, *Judge(case, inputs).squeeze(), case.sums, case.sums)


def check_scale(sweeps, case, inputs, residual, post, keep):
    u, norm, s = (inputs[name] for name in ("u", "norm", "s"))
    added = inputs["residual"] if residual else None
    y, mask = sweeps.norm_scale(u, norm, s, added, case.pre, post, keep)
    judge = Judge(case, inputs)
    exact, size = judge.scaled(residual, post)
    check("y", y, exact, size, case.dtype, case.sums)
    check_strides(u, y, "y")
    assert mask.dtype == torch.uint8
    if keep:
        before, _ = judge.scaled(residual, "none")
        expected = packed(~(before <= 0).to(u.device), u)
        assert torch.equal(mask, expected)
        assert mask.is_contiguous()
    else:
        assert mask.numel() == 0


def check_scale_backward(sweeps, case, inputs, masked, write):
    u, dy, norm, kept = (inputs[name] for name in ("u", "dy", "norm", "kept"))
    mask = packed(kept, u) if masked else None
    dr, sums = sweeps.norm_scale_backward(dy, u, mask, norm, case.pre, write)
    judge = Judge(case, inputs)
    check("sums", sums, *judge.sums(masked), case.sums, case.sums)
    if write:
        assert dr.dtype == case.dtype
        assert torch.equal(dr.double().cpu(), judge.g(masked))
        check_strides(u, dr, "dr")
    else:
        assert dr.numel() == 0


def check_squeeze_backward(sweeps, case, inputs, masked, sloped):
    u, dy, norm, s, d = (inputs[name] for name in ("u", "dy", "norm", "s", "d"))
    mask = packed(inputs["kept"], u) if masked else None
    slope, offset = (inputs[name] if sloped else None for name in ("slope", "offset"))
    du = sweeps.norm_squeeze_backward(dy, u, mask, norm, s, d, case.pre, slope, offset)
    check("du", du, *Judge(case, inputs).du(masked, sloped), case.dtype, case.sums)
    check_strides(u, du, "du")


# --- right numbers -------------------------------------------------------------------------------


@st.composite
def cases(draw, dtype):
    sides = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 31, 33]))
    windows = [(1, 1), (1, 16), (17, 1), (7, 7), (4, 8), (3, 11), (9, 25)]
    return Case(
        shape=(draw(st.integers(1, 4)), draw(sides), *draw(st.sampled_from(windows))),
        dtype=dtype,
        wide=draw(st.booleans()),
        layout=draw(st.sampled_from(list(LAYOUTS))),
        pre=draw(st.sampled_from(PRES)),
        seed=draw(st.integers(0, 2**20)),
    )
