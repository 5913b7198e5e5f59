"""Logits and gradients of whole networks against the eager network in float64.

Rounding grows through fifty layers, and the sign at a ReLU may flip on it, so the measure is again
what the eager network's own rounding does in the same dtype (see ``verify.py``).

Logits may be off by four times eager's error plus a floor of a few eps. Four and not two: rounding
in early layers moves all logits of an image together, so that a network's error is a few draws
where a layer's is many. Twice eager's was exceeded by chance once in 120 draws.

A gradient is judged for each parameter by its relative root mean square error, against three times
the worst of eager's: which signs flip, and so which parameter is hit, is chance. Some gradients are
zero (of a shift that the next norm takes away) and what is computed is rounding alone: their errors
are relative to the median gradient.

Where few signs decide, as in ResNet-110 and MobileNet, three times are exceeded by chance on one
set of images in ten: one flip more. So gradients that are refused are judged on other images as
well, ``TRIES`` sets in all, and the least error of the network is held against the least of
eager's: what is wrong is wrong on each of them, and eager shows its true rounding on some. Logits
get no second try.

In float32 that is sharp: eager's logits are off by 1e-6 and its gradients by up to 1 %. Under
bfloat16 autocast eager's own gradients are off by half, and only gross errors are found (beyond
0.9; a missing gradient is off by 1); the layer benchmark judges the gradients of bfloat16.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from .network_calls import Network
from .verify import Check, VerificationError, floors, norms, refuse

LOGITS_FACTOR = 4.0
GRADIENT_FACTOR = 3.0
ZERO = 1e-9  # of the median gradient: float64's own rounding of sums that cancel stays below it
MISSING = 0.9  # an error as large as the gradient itself is no rounding
GRADIENT_FLOOR_EPS = 4.0
LEAST_FLOOR_EPS = (
    1000.0  # in float32 and float64: even least errors were 4 times apart, 6e-5 and 2e-5
)
TRIES = 8
EAGER = "eager, the measure"


class GradientError(VerificationError):
    """A gradient is off by more than its tolerance, the logits are not."""


class Least:
    """Of several sets of images: the relative errors of the gradients on the one where the worst of
    them is least, for eager and for each network that is held against it."""

    def __init__(self) -> None:
        self.errors: dict[str, np.ndarray] = {}

    def update(self, name: str, errors: np.ndarray) -> np.ndarray:
        """``errors``, one for each gradient, of one more set; returns those of the least."""
        if name not in self.errors or _worst(errors) < _worst(self.errors[name]):
            self.errors[name] = errors
        return self.errors[name]


def _worst(errors: np.ndarray) -> float:
    """The largest; NaN is less than all, and so never given up for another set's."""
    return -1.0 if np.isnan(errors).any() else float(errors.max())


def outputs(network: Network, images: Tensor, labels: Tensor, train: bool) -> dict[str, Tensor]:
    """``logits`` (N, classes) and, when training, each parameter's gradient, by its name."""
    model = network.model
    if not train:
        return {"logits": network.logits(images)}
    model.zero_grad(set_to_none=True)
    logits, loss = network.loss(images, labels)
    loss.backward()
    results = {"logits": logits.detach()}
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            raise VerificationError(f"{network.name}: no gradient of {name}")
        results[name] = parameter.grad
    model.zero_grad(set_to_none=True)
    return results


def check_outputs(
    contender: str,
    got: Mapping[str, Tensor],
    eager: Mapping[str, Tensor],
    judge: Mapping[str, Tensor],
    dtype: torch.dtype,
    least: Least | None = None,
) -> list[Check]:
    """The checks of the logits and of each gradient.

    ``least``: what earlier sets of images gave, for the gradients.

    Raises:
        VerificationError: naming what is wrong, its error and its tolerance; where that is but a
            gradient, a GradientError.
    """
    expected = judge["logits"]
    floor = floors(norms(expected), dtype)
    checks = [
        Check(contender, "logits", norm, error, LOGITS_FACTOR * eager_error + floor[norm])
        for (norm, error), eager_error in zip(
            norms(got["logits"].double() - expected).items(),
            norms(eager["logits"].double() - expected).values(),
            strict=True,
        )
    ]
    refuse(checks)
    names = [name for name in judge if name != "logits"]
    if names:
        sizes = gradient_sizes([judge[n] for n in names])
        least = Least() if least is None else least
        errors, eager_errors = (
            least.update(
                name, np.array([norms(result[n].double() - judge[n])["rms"] for n in names]) / sizes
            )
            for name, result in ((contender, got), (EAGER, eager))
        )
        eps = torch.finfo(dtype).eps
        worst = float(eager_errors.max())
        tolerance = min(GRADIENT_FACTOR * worst, max(MISSING, 1.5 * worst))
        tolerance += eps * (GRADIENT_FLOOR_EPS if dtype.itemsize < 4 else LEAST_FLOOR_EPS)
        gradients = [
            Check(contender, f"gradient of {name}", "rms", float(error), tolerance)
            for name, error in zip(names, errors, strict=True)
        ]
        try:
            refuse(gradients)
        except VerificationError as error:
            raise GradientError(str(error)) from None
        checks += gradients
    return checks


def gradient_sizes(gradients: Sequence[Tensor]) -> np.ndarray:
    """What each one's error is relative to: its root mean square, or the median of those where it
    is zero but for rounding; 1 where all are."""
    sizes = np.array([norms(gradient)["rms"] for gradient in gradients])
    median = np.median(sizes)
    sizes = np.where(sizes > ZERO * median, sizes, median)
    return np.where(sizes > 0, sizes, 1.0)
