"""The tolerance rule: a result beside the exact one, element by element."""

import torch
from torch import Tensor


class Mismatch(AssertionError):
    """A result is not the judge's, by more than its roundings."""


class NoInputs(AssertionError):
    """A case for which no draw stays clear of every jump: it can be judged by nobody."""


def check_result(
    name: str,
    result: Tensor,
    like: Tensor,
    exact: Tensor,
    roundings: Tensor,
    sums: torch.dtype,
    case: object,
    near_zero: float = 0.0,
) -> None:
    """Raises Mismatch unless ``result`` has the shape, dtype and device of ``like`` and is
    ``exact``, in float64 on the CPU, but for roundings.

    Allowed: one rounding to the result's own dtype (0.51 of its spacing: float64 sums pass through
    float32 on their way to 16 bits), and 8 roundings in ``sums``, the dtype of the sums, of what
    ``roundings`` says they are relative to. An intermediate held in 16 bits would be 2^13 of them.
    ``near_zero``: beside the smallest number, what the judge's own roundings make of an exact 0.
    """
    for of in ("shape", "dtype", "device"):
        got, expected = getattr(result, of), getattr(like, of)
        if got != expected:
            raise Mismatch(f"{name}: expected {of} {expected}, got {got}; {case}")
    stored = torch.finfo(result.dtype)
    smallest = stored.smallest_normal * stored.eps + near_zero
    exact = exact.view(result.shape)
    allowed = 0.51 * (stored.eps * exact.abs() + smallest)
    allowed = allowed + 8 * torch.finfo(sums).eps * roundings.view(result.shape)
    error = (result.double().cpu() - exact).abs()
    wrong = ~(error <= allowed)  # so that NaN is wrong
    if wrong.any():
        at = tuple(wrong.nonzero()[0].tolist())
        raise Mismatch(
            f"{name}: {int(wrong.sum())} of {wrong.numel()} elements wrong, the first at {at}: "
            f"{result[at].item()!r}, exact {exact[at].item()!r}, allowed error "
            f"{allowed[at].item():.3g}; {case}"
        )
