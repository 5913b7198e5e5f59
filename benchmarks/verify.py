"""Nothing is timed whose result is wrong: contenders against a judge in float64.

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
  is at most 1/4. With a norm in training mode n = H·W + N + C, its sums made image by image, and
  all quantities feel it through the statistics, but for the residual's gradient. The norm's own
  gradients are sums that PyTorch makes in one run over the batch: n = N·H·W, and four times as
  much, since a part of their terms, dz/P, is equal and its rounding no random walk.

The size is that of the judge's result; for gradients of weights, that of the same sums if their
terms had random signs, which is larger where the terms happen to cancel (for the norm's, the larger
of the two).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from .contenders import Contender
from .inputs import InputSet

EAGER_FACTOR = 2.0
CHUNK_BYTES = 2**28  # of x in float64, judged at a time


class VerificationError(Exception):
    """A contender's result is wrong, or it cannot run; it may not be timed."""


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
    """Exact results by name; for each the size that its floor is relative to ("max", "rms"), and
    its random walk, in eps of the dtype that sums are carried in."""

    results: dict[str, Tensor]
    sizes: dict[str, dict[str, float]]
    walks: dict[str, float]

    @classmethod
    def of(
        cls,
        results: dict[str, Tensor],
        walks: Mapping[str, float],
        sizes: Mapping[str, dict[str, float]] | None = None,
    ) -> "Judge":
        """The sizes are those of the results, where none are given."""
        of_results = {name: norms(result) for name, result in results.items()}
        return cls(results, of_results | dict(sizes or {}), {name: walks[name] for name in results})


class WeightSizes:
    """The size of the sums that dw1 and dw2 are, had their terms random signs."""

    def __init__(self, w1: Tensor, w2: Tensor):
        self.w1, self.w2 = w1.detach(), w2.detach()
        self.squares = {"dw1": torch.zeros_like(self.w1), "dw2": torch.zeros_like(self.w2)}

    def add(self, z: Tensor, gate: Tensor) -> None:
        """The terms of some images: z (N,C), and a sigmoid gate (N,C) that has its gradient."""
        with torch.no_grad():
            assert gate.grad is not None
            de2, z2 = (gate.grad * gate * (1 - gate)).square(), z.square()
            self.squares["dw1"] += (de2 @ self.w2.square()).T @ z2
            self.squares["dw2"] += de2.T @ (z2 @ self.w1.square().T)

    def norms(self) -> dict[str, dict[str, float]]:
        return {name: norms(square.sqrt()) for name, square in self.squares.items()}


def run(contender: Contender, s: InputSet) -> dict[str, Tensor]:
    """The contender's results, named as the judge's."""
    y = contender.forward(*s.inputs)
    results = {"y": y.detach()}
    if s.dy is not None:
        leaves = contender.leaves(s)
        grads = torch.autograd.grad(y, tuple(leaves.values()), s.dy, allow_unused=True)
        results.update(zip(leaves, grads, strict=True))
        missing = [name for name, grad in results.items() if grad is None]
        if missing:
            raise VerificationError(f"{contender.name}: no gradient {', '.join(missing)}")
        results.update(
            {q: contender.module.get_buffer(b).clone() for q, b in contender.buffers.items()}
        )
    return results


@contextmanager
def able_to_run(name: str) -> Iterator[None]:
    """VerificationError, in one line, for what is raised meanwhile; memory may run out."""
    try:
        yield
    except (VerificationError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise VerificationError(f"{name} cannot run: {reason}") from error


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
    for quantity, size in judge.sizes.items():
        gradient = quantity.startswith("d")
        floor = floors(size, dtype, gradient=gradient, walk=judge.walks[quantity])
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
