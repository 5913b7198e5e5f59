"""One case of the block: its inputs, the runs to compare, and the judge.

The judge is ``reference.squeeze_excite`` in float64 on the very inputs, with its gradients.

Kinks. ReLU, leaky ReLU, hardswish, hard sigmoid and the final ReLU have gradients that jump, so a
rounding that crosses a jump would be judged an error of size one. ``make`` draws inputs that stay
clear of every jump by more than any rounding: x is kept away from 0, a and e from the jumps of act
and gate and s from 0 (drawn again otherwise), the residual from -s * x. Ties of a maximum need no
such care: x is the same numbers in both runs, so whatever ties in one ties in the other.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from se_kernels import reference
from se_kernels.core.activations import activate, open_gate
from se_kernels.core.precision import compute_dtype
from se_kernels.functional import squeeze_excite
from se_kernels.verification.judge import Mismatch, NoInputs, check_result

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
NAMES = ("x", "w1", "w2", "b1", "b2", "residual")

CLEARANCE = 1e-3  # between a or e and a jump; float32 roundings of them are below 1e-4
X_CLEARANCE = 1 / 64  # with the next: no s * x that the final ReLU lets pass is 0 in float16
S_CLEARANCE = 1e-5
Y_CLEARANCE = 1 / 16  # of s * x + residual from the final ReLU's jump: four bfloat16 roundings

JUMPS = {
    "relu": (0.0,),
    "leaky_relu": (0.0,),
    "hardswish": (-3.0, 3.0),
    "hardsigmoid": (-3.0, 3.0),
}

# The largest |f'| and |f''| of each act and gate f, between its jumps.
ACT_BENDS = {
    "relu": (1, 0),
    "silu": (1.1, 0.5),
    "gelu": (1.13, 0.8),
    "gelu_tanh": (1.13, 0.8),
    "hardswish": (1.5, 0.34),
    "leaky_relu": (1, 0),
    "identity": (1, 0),
}
GATE_BENDS = {"sigmoid": (0.25, 0.1), "hardsigmoid": (0.17, 0), "tanh": (1, 0.8), "relu": (1, 0)}


@dataclass(frozen=True)
class Case:
    """Shapes, dtypes, variant and layout; the same case always makes the same inputs."""

    shape: tuple[int, int, int, int] = (2, 5, 3, 4)  # N, C, H, W
    reduced: int = 3  # R
    dtype: torch.dtype = torch.float32
    weight_dtype: torch.dtype | None = None  # None: dtype
    squeeze: str = "avg"
    act: str = "relu"
    act_slope: float = 0.2
    gate: str = "sigmoid"
    post: str = "none"
    biases: tuple[str, ...] = ("b1", "b2")
    residual: bool = False
    layout: str = "nchw"  # of x, residual and dy
    expanded: tuple[int, ...] = ()  # dimensions of x that have stride 0
    seed: int = 0

    @property
    def variant(self) -> dict:
        return {key: getattr(self, key) for key in ("squeeze", "act", "act_slope", "gate", "post")}


def make(case: Case, device="cpu") -> tuple[dict[str, Tensor | None], Tensor]:
    """The arguments of the block by name (None where absent), and dy (N, C, H, W)."""
    return make_by(_draw, _clear_of_jumps, _draw_residual, case, device, "x")


def make_by(draw, is_clear, draw_residual, case, device, images):
    """The same of any op with a block in it; ``images``: what it calls its x."""
    generator = torch.Generator().manual_seed(case.seed)
    for _ in range(500):
        inputs = draw(case, generator)
        if is_clear(case, inputs):
            break
    else:
        raise NoInputs(f"no draw stayed clear of the jumps: {case}")
    if case.residual:
        inputs["residual"] = draw_residual(case, generator, inputs)
    dy = torch.randn(case.shape, generator=generator).to(case.dtype)
    memory_format = LAYOUTS[case.layout]
    inputs = {name: None if t is None else t.to(device) for name, t in inputs.items()}
    if not case.expanded:
        inputs[images] = inputs[images].contiguous(memory_format=memory_format)
    if case.residual:
        inputs["residual"] = inputs["residual"].contiguous(memory_format=memory_format)
    return inputs, dy.to(device).contiguous(memory_format=memory_format)


def _draw(case, generator):
    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    channels, reduced = case.shape[1], case.reduced
    sizes = [1 if i in case.expanded else size for i, size in enumerate(case.shape)]
    x = normal(*sizes) + normal(*sizes[:2], 1, 1)  # z and e then reach past every jump
    x = torch.where(x.abs() < X_CLEARANCE, X_CLEARANCE, x)
    weight_dtype = case.weight_dtype or case.dtype
    inputs = {
        "x": x.to(case.dtype).expand(case.shape),
        "w1": (1.5 * normal(reduced, channels) / math.sqrt(max(channels, 1))).to(weight_dtype),
        "w2": (3 * normal(channels, reduced) / math.sqrt(max(reduced, 1))).to(weight_dtype),
        "b1": (0.5 * normal(reduced)).to(weight_dtype) if "b1" in case.biases else None,
        "b2": (0.5 * normal(channels)).to(weight_dtype) if "b2" in case.biases else None,
        "residual": None,
    }
    return inputs


def _draw_residual(case, generator, inputs):
    residual = torch.randn(case.shape, generator=generator).to(case.dtype)
    scaled = reference.squeeze_excite(**_doubles(inputs), **{**case.variant, "post": "none"})
    close = (scaled + residual.double()).abs() < Y_CLEARANCE
    return torch.where(close, residual + 4 * Y_CLEARANCE, residual)


def _clear_of_jumps(case, inputs) -> bool:
    _, w1, w2, b1, b2, _ = _doubles(inputs).values()
    z = reference.squeeze(inputs["x"].double(), case.squeeze)
    a = F.linear(z, w1, b1)
    h = activate(a, case.act, case.act_slope)
    e = F.linear(h, w2, b2)
    s = open_gate(e, case.gate)
    gate_jumps = JUMPS.get(case.gate, ())
    if case.gate == "tanh" and case.post == "relu" and not case.residual:
        gate_jumps = (0.0,)  # where s, and so y, changes sign
    checks = [(a, size_of(z, w1, b1), jump, CLEARANCE) for jump in JUMPS.get(case.act, ())]
    checks += [(e, size_of(h, w2, b2), jump, CLEARANCE) for jump in gate_jumps]
    if case.post == "relu" and not case.residual:
        checks.append((s, s.abs(), 0.0, S_CLEARANCE))
    # exactly on the jump is well defined where it comes from exact zeros, in any precision; terms
    # that cancel to it do so before rounding only
    return not any(
        bool((((v != jump) | (size > 0)) & ((v - jump).abs() < clearance)).any())
        for v, size, jump, clearance in checks
    )


def size_of(v, w, b):
    """Σ |terms| of the linear map: 0 where all of them are."""
    return F.linear(v.abs(), w.abs(), None if b is None else b.abs())


def _doubles(inputs):
    return {name: None if t is None else t.detach().double().cpu() for name, t in inputs.items()}


def run(function, inputs, dy, need=None, **options) -> dict[str, Tensor]:
    """``function``'s y and, as "dx", "dw1" and so on, the gradients of the inputs in ``need``.

    ``need`` defaults to every input that is there. Inputs keep their memory and strides.
    """
    need = [name for name in NAMES if inputs.get(name) is not None] if need is None else need
    leaves = {name: None if t is None else t.detach() for name, t in inputs.items()}
    wanted = [leaves[name].requires_grad_() for name in need]
    y = function(**leaves, **options)
    grads = torch.autograd.grad(y, wanted, dy) if wanted else ()
    return {"y": y.detach(), **{f"d{n}": grad for n, grad in zip(need, grads, strict=True)}}


def run_judge(case: Case, inputs, dy, need=None) -> dict[str, Tensor]:
    """What ``run`` would give without a rounding: the definition in float64."""
    return run(reference.squeeze_excite, _doubles(inputs), dy.double().cpu(), need, **case.variant)


def rounding_scales(case: Case, inputs, dy) -> dict[str, Tensor]:
    """What the rounding error of each output is proportional to.

    The block with every term taken by its absolute value, so that nothing cancels, and with the
    error of a and e carried on through the slopes of act and gate.
    """
    x, w1, w2, b1, b2, residual = (
        0 if t is None else t.abs().flatten(1) if name in ("w1", "w2") else t.abs()
        for name, t in _doubles(inputs).items()
    )
    dy = dy.double().cpu().abs()
    act_slope, act_bend = ACT_BENDS[case.act]
    act_slope = max(act_slope, abs(case.act_slope))
    gate_slope, gate_bend = GATE_BENDS[case.gate]
    z = x.mean((2, 3)) if case.squeeze == "avg" else x.amax((2, 3))
    a = z @ w1.T + b1
    h = act_slope * a
    e = h @ w2.T + b2
    s = (1 + gate_slope * e)[:, :, None, None]
    de = (dy * x).sum((2, 3)) * (gate_slope + gate_bend * e)
    da = (de @ w2) * (act_slope + act_bend * a)
    dz = (da @ w1)[:, :, None, None]
    if case.squeeze == "avg":
        dz = dz / (x.shape[2] * x.shape[3])
    scales = {"y": s * x + residual, "dx": dy * s + dz, "dresidual": dy}
    scales |= {"dw1": da.T @ z, "dw2": de.T @ h, "db1": da.sum(0), "db2": de.sum(0)}
    return scales


def check(case: Case, inputs, dy, results) -> None:
    """Raises Mismatch unless ``results`` of ``run`` are the judge's, but for roundings, element by
    element. The sums here have so few terms that 8 roundings of each are ample."""
    need = [name[1:] for name in results if name != "y"]
    exact, scales = run_judge(case, inputs, dy, need), rounding_scales(case, inputs, dy)
    sums = compute_dtype(inputs["x"], inputs["w1"])
    for name, result in results.items():
        origin = inputs["x" if name == "y" else name[1:]]
        check_result(name, result, origin, exact[name], scales[name], sums, case)


def check_against_eager(case: Case, inputs, dy, results) -> None:
    """Raises Mismatch where ``results`` are further from the judge than twice what eager is.

    In maximum norms, an output at a time, for sums too long for ``check``. Eager in the same dtype
    rounds every intermediate; 4 spacings at the largest value cover an eager run that is exact.
    """
    exact = run_judge(case, inputs, dy)
    rounded = run(eager, inputs, dy, **case.variant)
    for name, result in results.items():
        expected = exact[name].view(result.shape)
        error, baseline = (
            (t.double().cpu() - expected).abs().max() for t in (result, rounded[name])
        )
        floor = 4 * torch.finfo(result.dtype).eps * expected.abs().max()
        if not error <= 2 * baseline + floor:  # so that NaN is wrong
            raise Mismatch(
                f"{name}: error {error:.3g}, eager's {baseline:.3g}, floor {floor:.3g}; {case}"
            )


def eager(x, w1, w2, b1=None, b2=None, *, squeeze, act, act_slope, gate, residual=None, post):
    """The block as timm's SEModule computes it, every step in x's dtype."""
    pooled = x.mean((2, 3), keepdim=True) if squeeze != "max" else x.amax((2, 3), keepdim=True)
    if squeeze == "avgmax":
        pooled = 0.5 * pooled + 0.5 * x.amax((2, 3), keepdim=True)
    activate, open_gate = act_module(act, act_slope), gate_module(gate)
    h = activate(F.conv2d(pooled, w1.view(*w1.shape[:2], 1, 1), b1))
    y = x * open_gate(F.conv2d(h, w2.view(*w2.shape[:2], 1, 1), b2))
    y = y if residual is None else y + residual
    return F.relu(y) if post == "relu" else y


def with_excitation(
    x, w1, w2, b1=None, b2=None, *, residual=None, squeeze, act, act_slope, gate, post, backend=None
):
    """The block with its FCs as the ``excitation`` of the library's squeeze and scale."""

    def excite(z):
        dtype = compute_dtype(z, w1)
        weights = (
            None if t is None else t.to(dtype).flatten(1) if t.dim() > 1 else t.to(dtype)
            for t in (w1, w2, b1, b2)
        )
        variant = dict(act=act, act_slope=act_slope, gate=gate)
        return reference.excite(z.flatten(1).to(dtype), *weights, **variant)[..., None, None]

    return squeeze_excite(
        x, excitation=excite, squeeze=squeeze, residual=residual, post=post, backend=backend
    )


def act_module(act: str, act_slope: float = 0.01) -> nn.Module:
    return {
        "relu": nn.ReLU(),
        "silu": nn.SiLU(),
        "gelu": nn.GELU(),
        "gelu_tanh": nn.GELU(approximate="tanh"),
        "hardswish": nn.Hardswish(),
        "leaky_relu": nn.LeakyReLU(act_slope),
        "identity": nn.Identity(),
    }[act]


def gate_module(gate: str) -> nn.Module:
    return {
        "sigmoid": nn.Sigmoid(),
        "hardsigmoid": nn.Hardsigmoid(),
        "tanh": nn.Tanh(),
        "relu": nn.ReLU(),
    }[gate]
