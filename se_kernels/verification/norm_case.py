"""One case of a batch norm with its block: its inputs, the runs to compare, and the judge.

The judge is ``torch.nn.BatchNorm2d``, torch's activation and ``reference.squeeze_excite``, all in
float64 on the very inputs, with its gradients and running statistics. (test_norm_reference.py holds
the definition, ``reference.batch_norm_squeeze_excite``, against the same.)

Kinks are kept clear of as in ``block_case``; here the activation after the norm has some too.
"""

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from se_kernels import reference
from se_kernels.core.activations import activate, open_gate
from se_kernels.core.precision import norm_compute_dtype
from se_kernels.verification import block_case
from se_kernels.verification.block_case import (
    ACT_BENDS,
    CLEARANCE,
    GATE_BENDS,
    JUMPS,
    S_CLEARANCE,
    Y_CLEARANCE,
    make_by,
    size_of,
)
from se_kernels.verification.judge import Mismatch, check_result
from se_kernels.verification.rounded import Rounded, derivative

DIFFERENTIABLE = ("u", "bn_weight", "bn_bias", "w1", "w2", "b1", "b2", "residual")
RUNNING = ("running_mean", "running_var")
NAMES = (*DIFFERENTIABLE, *RUNNING)

# The largest |f'| and |f''| of each pre f between its jumps, and where f or f' jumps or f is 0.
_PRE_BENDS = {"identity": (1, 0), "relu": (1, 0), "silu": (1.1, 0.5), "hardswish": (1.5, 0.34)}
_PRE_JUMPS = {"identity": (), "relu": (0.0,), "silu": (), "hardswish": (-3.0, 3.0)}


@dataclass(frozen=True)
class Case:
    """Shapes, dtypes, variant and layout; the same case always makes the same inputs."""

    shape: tuple[int, int, int, int] = (3, 5, 3, 4)  # N, C, H, W
    reduced: int = 3  # R
    dtype: torch.dtype = torch.float32
    weight_dtype: torch.dtype | None = None  # of the FCs; None: dtype
    norm_dtype: torch.dtype | None = None  # of the norm's weights and running statistics
    training: bool = True
    affine: tuple[str, ...] = ("bn_weight", "bn_bias")
    running: bool = True
    momentum: float = 0.1
    eps: float = 1e-5
    pre: str = "identity"
    squeeze: str = "avg"
    act: str = "silu"
    act_slope: float = 0.2
    gate: str = "sigmoid"
    post: str = "none"
    biases: tuple[str, ...] = ("b1", "b2")
    residual: bool = False
    layout: str = "nchw"  # of u, residual and dy
    expanded: tuple[int, ...] = ()  # dimensions of u that have stride 0
    offset: float = 0.0  # of every channel's mean, in standard deviations
    seed: int = 0

    @property
    def variant(self) -> dict:
        names = "training", "momentum", "eps", "pre", "squeeze", "act", "act_slope", "gate", "post"
        return {name: getattr(self, name) for name in names}


def make(case: Case, device="cpu") -> tuple[dict[str, Tensor | None], Tensor]:
    """The arguments of the op by name (None where absent), and dy (N, C, H, W)."""
    return make_by(_draw, _clear_of_jumps, _draw_residual, case, device, "u")


def _draw(case, generator):
    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    channels, reduced = case.shape[1], case.reduced
    sizes = [1 if i in case.expanded else size for i, size in enumerate(case.shape)]
    u = normal(*sizes) + 0.5 * normal(*sizes[:2], 1, 1) + normal(1, sizes[1], 1, 1) + case.offset
    weight_dtype = case.weight_dtype or case.dtype
    norm_dtype = case.norm_dtype or case.dtype
    weight = (normal(channels).sign() * (0.5 + normal(channels).abs())).to(norm_dtype)
    inputs = {
        "u": u.to(case.dtype).expand(case.shape),
        "bn_weight": weight if "bn_weight" in case.affine else None,
        "bn_bias": normal(channels).to(norm_dtype) if "bn_bias" in case.affine else None,
        "running_mean": (normal(channels) + case.offset).to(norm_dtype) if case.running else None,
        "running_var": (0.5 + normal(channels).abs()).to(norm_dtype) if case.running else None,
        "w1": (1.5 * normal(reduced, channels) / math.sqrt(max(channels, 1))).to(weight_dtype),
        "w2": (3 * normal(channels, reduced) / math.sqrt(max(reduced, 1))).to(weight_dtype),
        "b1": (0.5 * normal(reduced)).to(weight_dtype) if "b1" in case.biases else None,
        "b2": (0.5 * normal(channels)).to(weight_dtype) if "b2" in case.biases else None,
        "residual": None,
    }
    if not case.expanded:
        _move_off_jumps(case, inputs)
    return inputs


def _t_jumps(case):
    """Of t = the norm of u: pre's, and 0 where the final ReLU would jump with v."""
    jumps = _PRE_JUMPS[case.pre]
    return (*jumps, 0.0) if case.post == "relu" and not case.residual else jumps


def _close(case, t):
    """Where t is close to a jump, or v so small that s * v is 0 in float16."""
    close = torch.zeros_like(t, dtype=torch.bool)
    for jump in _t_jumps(case):
        close |= (t - jump).abs() < (1 / 64 if jump == 0.0 else CLEARANCE)
    return close


def _move_off_jumps(case, inputs):
    """Moves the numbers of u whose norm is close to a jump; in training mode all move a little with
    each, so again until none is."""
    for _ in range(20):
        close = _close(case, normed(case, inputs))
        if not close.any():
            return
        step = inputs["u"].double().std().clamp(min=1e-3) / 8
        inputs["u"] = torch.where(close, inputs["u"].double() + step, inputs["u"].double())
        inputs["u"] = inputs["u"].to(case.dtype)


def normed(case, inputs):
    """t (N, C, H, W) of the case in float64, by torch's batch norm."""
    u, weight, bias, *_ = doubles(inputs).values()
    if u.numel() == 0:
        return u
    mean, var = (None if inputs[name] is None else inputs[name].double() for name in RUNNING)
    if case.training:
        var, mean = torch.var_mean(u, (0, 2, 3), correction=0)
    t = F.batch_norm(u, mean, var, weight, bias, False, 0.0, case.eps)
    return t


def _draw_residual(case, generator, inputs):
    residual = torch.randn(case.shape, generator=generator).to(case.dtype)
    if residual.numel() == 0:
        return residual
    plain = replace(case, post="none")
    scaled = composed(**copies(doubles(inputs)), **plain.variant)
    close = (scaled + residual.double()).abs() < Y_CLEARANCE
    return torch.where(close, residual + 4 * Y_CLEARANCE, residual)


def _clear_of_jumps(case, inputs) -> bool:
    t = normed(case, inputs)
    if _close(case, t).any():
        return False
    w1, w2, b1, b2 = (doubles(inputs)[name] for name in ("w1", "w2", "b1", "b2"))
    v = pre_module(case.pre)(t)
    z, size = (reference.squeeze(part, case.squeeze) for part in (v, v.abs()))
    a = F.linear(z, w1, b1)
    h = activate(a, case.act, case.act_slope)
    e = F.linear(h, w2, b2)
    s = open_gate(e, case.gate)
    gate_jumps = JUMPS.get(case.gate, ())
    if case.gate == "tanh" and case.post == "relu" and not case.residual:
        gate_jumps = (0.0,)
    checks = [(a, size_of(size, w1, b1), jump, CLEARANCE) for jump in JUMPS.get(case.act, ())]
    checks += [(e, size_of(h, w2, b2), jump, CLEARANCE) for jump in gate_jumps]
    if case.post == "relu" and not case.residual:
        checks.append((s, s.abs(), 0.0, S_CLEARANCE))
    return not any(
        bool((((v != jump) | (size > 0)) & ((v - jump).abs() < clearance)).any())
        for v, size, jump, clearance in checks
    )


def doubles(inputs):
    """All in float64 on the CPU, in the order of NAMES; dense, since backward of torch's batch norm
    reads running statistics as if they were."""
    given = {name: inputs.get(name) for name in NAMES}
    return {
        name: None if t is None else t.detach().double().cpu().contiguous()
        for name, t in given.items()
    }


def copies(inputs):
    """With running statistics of their own, since a call moves them."""
    own = {n: t.detach().clone() for n, t in inputs.items() if n in RUNNING and t is not None}
    return {**inputs, **own}


def run(function, inputs, dy, need=None, **options) -> dict[str, Tensor]:
    """``function``'s y, as "du", "dw1" and so on the gradients of the inputs in ``need``, and in
    training mode the running statistics after the call; those of ``inputs`` stay as they are.

    ``need`` defaults to every differentiable input that is there. Inputs keep memory and strides.
    """
    if need is None:
        need = [name for name in DIFFERENTIABLE if inputs.get(name) is not None]
    leaves = {name: None if t is None else t.detach() for name, t in copies(inputs).items()}
    wanted = [leaves[name].requires_grad_() for name in need]
    y = function(**leaves, **options)
    grads = torch.autograd.grad(y, wanted, dy) if wanted else ()
    results = {"y": y.detach(), **{f"d{n}": grad for n, grad in zip(need, grads, strict=True)}}
    if options.get("training"):
        results |= {name: leaves[name] for name in RUNNING if leaves.get(name) is not None}
    return results


def composed(
    u, bn_weight, bn_bias, running_mean, running_var, w1, w2, b1=None, b2=None, *,
    training, momentum, eps, pre, squeeze, act, act_slope, gate, residual=None, post,
    excited=reference.squeeze_excite,
):  # fmt: skip
    """The same of parts: ``torch.nn.BatchNorm2d``, torch's activation, the block's definition."""
    channels, tracks = u.shape[1], running_mean is not None
    norm = nn.BatchNorm2d(channels, eps, momentum, track_running_stats=tracks).train(training)
    given = dict(
        weight=u.new_ones(channels) if bn_weight is None else bn_weight,
        bias=u.new_zeros(channels) if bn_bias is None else bn_bias,
    )
    if tracks:
        given |= dict(running_mean=running_mean, running_var=running_var)
    v = pre_module(pre)(functional_call(norm, given, u))
    variant = dict(squeeze=squeeze, act=act, act_slope=act_slope, gate=gate, post=post)
    return excited(v, w1, w2, b1, b2, residual=residual, **variant)


def pre_module(pre: str) -> nn.Module:
    modules = {"relu": nn.ReLU(), "silu": nn.SiLU(), "hardswish": nn.Hardswish()}
    return {"identity": nn.Identity(), **modules}[pre]


def run_judge(case: Case, inputs, dy, need=None) -> dict[str, Tensor]:
    """What ``run`` would give without a rounding. In training the mean is subtracted first: torch's
    is some ulps off, which 1 / sqrt(eps) enlarges where a channel is nearly constant."""
    given = flat(doubles(inputs))
    if not case.training or given["u"].numel() == 0:
        return run(composed, given, dense(dy), need, **case.variant)
    near = given["u"].mean((0, 2, 3), keepdim=True).nan_to_num(0, 0, 0)
    results = run(composed, given | dict(u=given["u"] - near), dense(dy), need, **case.variant)
    if "running_mean" in results:
        results["running_mean"] += case.momentum * near.flatten()
    return results


def dense(dy):
    """dy in float64 on the CPU, contiguous: from some others torch's batch norm reads wrongly."""
    return dy.double().cpu().contiguous()


def flat(inputs):
    """The FCs' weights as matrices."""
    return {n: t.flatten(1) if n in ("w1", "w2") else t for n, t in inputs.items()}


def rounding_errors(case: Case, inputs, dy) -> dict[str, Tensor]:
    """By how many roundings of the sums' dtype, to first order, each output may be off."""
    given = flat(doubles(inputs))
    u, w1, w2 = (Rounded.exact(given[name]) for name in ("u", "w1", "w2"))
    count, pixels = u.value.numel() // u.value.shape[1], u.value[0, 0].numel()
    mean, var = (None if given[name] is None else Rounded.stored(given[name]) for name in RUNNING)
    if case.training:
        var, mean = torch.var_mean(u.value, (0, 2, 3), correction=0)
        mean = Rounded(mean, u.value.abs().mean((0, 2, 3)))
        var = Rounded(var, 2 * var + 2.0**-23 * mean.error.square())  # the mean's own: once squared
    rstd = torch.rsqrt(var.value + case.eps)
    rstd = Rounded(rstd, rstd.pow(3) * var.error / 2 + rstd)[:, None, None]
    weight = 1 if given["bn_weight"] is None else given["bn_weight"]
    weight = Rounded.exact(weight * torch.ones_like(mean.value))[:, None, None]

    def added(t, name, index=slice(None)):
        return t if given[name] is None else t + Rounded.exact(given[name])[index]

    pre, act, gate = (
        pre_module(case.pre),
        partial(activate, act=case.act, act_slope=case.act_slope),
        partial(open_gate, gate=case.gate),
    )
    pre_slope, pre_bend = _PRE_BENDS[case.pre]
    act_slope, act_bend = ACT_BENDS[case.act]
    act_slope = max(act_slope, abs(case.act_slope))
    gate_slope, gate_bend = GATE_BENDS[case.gate]

    x = (u - mean[:, None, None]) * rstd
    t = added(x * weight, "bn_bias", (slice(None), None, None))
    v = t.through(pre, pre_slope)
    z = v.sum((2, 3)) / pixels if case.squeeze == "avg" else v.amax((2, 3))
    a = added(z @ w1.T, "b1")
    h = a.through(act, act_slope)
    e = added(h @ w2.T, "b2")
    s = e.through(gate, gate_slope)
    y = added(s[:, :, None, None] * v, "residual")

    dy = dy.double().cpu()
    g = Rounded.exact(torch.where(y.value > 0, dy, 0) if case.post == "relu" else dy)
    de = (g * v).sum((2, 3)) * e.through(derivative(gate), gate_bend)
    da = (de @ w2) * a.through(derivative(act), act_bend)
    dz = (da @ w1)[:, :, None, None]
    d = dz / pixels if case.squeeze == "avg" else dz
    dt = (g * s[:, :, None, None] + d) * t.through(derivative(pre), pre_bend)
    d_bias, d_weight = dt.sum((0, 2, 3)), (dt * x).sum((0, 2, 3))
    du = dt
    if case.training:
        du = dt - (d_bias[:, None, None] + x * d_weight[:, None, None]) / count
    results = dict(y=y, du=weight * rstd * du, dbn_weight=d_weight, dbn_bias=d_bias, dresidual=g)
    results |= dict(dw1=da.T @ z, dw2=de.T @ h, db1=da.sum(0), db2=de.sum(0))
    if case.training and case.running:
        share, kept = (
            Rounded.exact(u.value.new_tensor(part)) for part in (case.momentum, 1 - case.momentum)
        )
        unbiased = Rounded(var.value * count, var.error * count) / (count - 1)
        for name, new in (("running_mean", mean), ("running_var", unbiased)):
            results[name] = new * share + Rounded.stored(given[name]) * kept
    return {name: result.error for name, result in results.items()}


def check(case: Case, inputs, dy, *runs) -> None:
    """Raises Mismatch unless the results of each ``run``, the first of which has all that the
    others have, are the judge's but for roundings, element by element: 8 times the error that one
    rounding an operation of the dtype of the sums brings."""
    need = [name[1:] for name in runs[0] if name != "y" and name not in RUNNING]
    exact, errors = run_judge(case, inputs, dy, need), rounding_errors(case, inputs, dy)
    if exact.keys() != runs[0].keys():
        raise Mismatch(f"expected {', '.join(exact)}, got {', '.join(runs[0])}; {case}")
    sums = norm_compute_dtype(inputs["u"], inputs["bn_weight"], inputs["w1"])
    for name, result in (pair for results in runs for pair in results.items()):
        origin = inputs["u" if name == "y" else name if name in RUNNING else name[1:]]
        check_result(name, result, origin, exact[name], errors[name], sums, case, near_zero=1e-30)


def run_eager(case: Case, inputs, dy) -> dict[str, Tensor]:
    """``run`` of ``composed`` with every step in u's dtype, the block as timm computes it."""
    inputs = {name: None if t is None else t.detach().cpu() for name, t in inputs.items()}
    return run(composed, inputs, dy.cpu().contiguous(), excited=block_case.eager, **case.variant)
