"""No time is reported for a wrong result: contenders against a judge in float64.

A contender passes where its error is at most twice the eager one's error in the same dtype plus a
floor. The floor is there because eager's error can be near zero by luck. It is relative to the size
of what is judged, and has two parts, in eps of the dtype and in eps of the dtype that sums are
carried in:

- each number that is returned is rounded once to the dtype. Largest error: 2 eps of the largest
  number. Root mean square error: eps/4 of the result's root mean square (rounding is off by up to
  eps/2, and 0.2 eps is the root mean square of that); eps for gradients, whose terms are rounded
  too. In float64 all of this 64 times, as the judge is then rounded no finer than the contender;
- a sum of n numbers of either sign, whose rounding adds up as a random walk, is off by sqrt(n) eps.
  n = H·W + C (squeeze and excite) for dw1 and dw2; y and dx feel it through the gate, whose slope
  is at most 1/4.

The size is that of the judge's result; for dw1 and dw2, that of the same sums if their terms had
random signs, which is larger where the terms happen to cancel.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from se_kernels import reference

from .contenders import Contender
from .inputs import InputSet

EAGER_FACTOR = 2.0
CHUNK_BYTES = 2**28  # of x in float64, judged at a time


class VerificationError(Exception):
    """A contender's result is wrong; nothing may be reported."""


@dataclass(frozen=True)
class Check:
    """One comparison: ``norm`` ("max" or "rms") of a quantity's error, and what it may be."""

    contender: str
    quantity: str
    norm: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # False for NaN

    def as_dict(self) -> dict:
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.contender}: {self.norm} error of {self.quantity} is {self.error:.3g},"
            f" expected at most {self.tolerance:.3g}"
        )


@dataclass(frozen=True)
class Judge:
    """Exact results by name, and for each the size that its floor is relative to ("max", "rms")."""

    results: dict[str, Tensor]
    sizes: dict[str, dict[str, float]]


def judge_layer(s: InputSet, w1: Tensor, w2: Tensor) -> Judge:
    """y and, where the set has a dy, dx, dw1, dw2 of the definition in float64.

    ``w1`` (R,C,1,1) and ``w2`` (C,R,1,1) as the contenders have them, rounded to their dtype.
    """
    backward = s.dy is not None
    w1, w2 = (w.detach().flatten(1).double().requires_grad_(backward) for w in (w1, w2))
    images = max(1, CHUNK_BYTES // max(1, s.x[0].numel() * 8))
    ys, dxs = [], []
    squares = {"dw1": torch.zeros_like(w1), "dw2": torch.zeros_like(w2)}
    for i in range(0, s.x.shape[0], images):
        x = s.x.detach()[i : i + images].double().requires_grad_(backward)
        z = reference.squeeze(x)
        gate = reference.excite(z, w1, w2)
        y = reference.scale(x, gate)
        if backward:
            gate.retain_grad()
            y.backward(s.dy[i : i + images].double())
            dxs.append(x.grad)
            with torch.no_grad():
                de2, z2 = (gate.grad * gate * (1 - gate)).square(), z.square()
                squares["dw1"] += (de2 @ w2.square()).T @ z2
                squares["dw2"] += de2.T @ (z2 @ w1.square().T)
        ys.append(y.detach())
    results = {"y": torch.cat(ys)}
    if backward:
        results.update(dx=torch.cat(dxs), dw1=w1.grad, dw2=w2.grad)
    sizes = {name: norms(result) for name, result in results.items()}
    if backward:
        sizes.update({name: norms(square.detach().sqrt()) for name, square in squares.items()})
    return Judge(results, sizes)


def run_layer(contender: Contender, s: InputSet) -> dict[str, Tensor]:
    """The contender's results, named as the judge's."""
    s.x.grad = None
    contender.module.zero_grad(set_to_none=True)
    y = contender.forward(s.x)
    results = {"y": y.detach()}
    if s.dy is not None:
        y.backward(s.dy)
        module = contender.module
        grads = {"dx": s.x.grad, "dw1": module.fc1.weight.grad, "dw2": module.fc2.weight.grad}
        missing = [name for name, grad in grads.items() if grad is None]
        if missing:
            raise VerificationError(f"{contender.name}: no gradient {', '.join(missing)}")
        results.update(grads)
        s.x.grad = None
        module.zero_grad(set_to_none=True)
    return results


def like_input(name: str, y: Tensor, x: Tensor, layout: torch.memory_format) -> None:
    """Raise unless y has the shape, the dtype and the layout of x: else its time means nothing."""
    if y.shape != x.shape or y.dtype != x.dtype:
        raise VerificationError(
            f"{name}: expected y {tuple(x.shape)} {x.dtype}, got {tuple(y.shape)} {y.dtype}"
        )
    if not y.is_contiguous(memory_format=layout):
        raise VerificationError(f"{name}: expected y in {layout} as x, got strides {y.stride()}")


def errors(results: Mapping[str, Tensor], judge: Judge) -> dict[str, dict]:
    """quantity → {"max", "rms"} of the difference from the judge; NaN where a result is NaN."""
    found = {}
    for name, expected in judge.results.items():
        got = results[name].detach().reshape(expected.shape).double()
        found[name] = norms(got - expected)
    return found


def norms(t: Tensor) -> dict[str, float]:
    """The largest magnitude and the root mean square; zeros of nothing."""
    if t.numel() == 0:
        return {"max": 0.0, "rms": 0.0}
    return {"max": t.abs().max().item(), "rms": t.square().mean().sqrt().item()}


def floors(
    size: Mapping[str, float], dtype: torch.dtype, *, gradient: bool = False, walk: float = 0.0
) -> dict[str, float]:
    """The part of the tolerance that does not depend on eager; see the top of the file.

    ``size``: "max" and "rms" of what is judged; ``walk``: eps of the dtype that sums are carried
    in, float32 or wider.
    """
    eps = torch.finfo(dtype).eps * (64 if dtype == torch.float64 else 1)
    summed = walk * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    rms_eps = eps if gradient else eps / 4
    return {"max": (2 * eps + summed) * size["max"], "rms": (rms_eps + summed) * size["rms"]}


def compare(
    name: str,
    found: Mapping[str, dict],
    eager: Mapping[str, dict],
    judge: Judge,
    dtype: torch.dtype,
) -> list[Check]:
    """The checks of one contender from its errors and eager's.

    Raises:
        VerificationError: naming each quantity that is wrong, its error and its tolerance.
    """
    checks = []
    _, channels, height, width = judge.results["y"].shape
    walk = (height * width + channels) ** 0.5
    walks = {"y": walk / 4, "dx": walk / 4, "dw1": walk, "dw2": walk}
    for quantity, size in judge.sizes.items():
        floor = floors(size, dtype, gradient=quantity != "y", walk=walks[quantity])
        for norm, error in found[quantity].items():
            tolerance = EAGER_FACTOR * eager[quantity][norm] + floor[norm]
            checks.append(Check(name, quantity, norm, error, tolerance))
    refuse(checks)
    return checks


def refuse(checks: list[Check]) -> None:
    """Raise where a check failed."""
    failed = [str(check) for check in checks if not check.passed]
    if failed:
        raise VerificationError("; ".join(failed))
