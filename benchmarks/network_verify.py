"""Logits and gradients of whole networks against the eager network in float64.

Rounding grows through fifty layers, and the sign at a ReLU may flip on it, so the measure is again
what the eager network's own rounding does in the same dtype (see ``verify.py``): logits within
twice its error plus a floor of a few eps. A gradient is judged for each parameter by its relative
root mean square error, against three times the worst of eager's: which signs flip, and so which
parameter is hit, is chance.

In float32 that is sharp: eager's logits are off by 1e-6 and its gradients by up to 1 %. Under
bfloat16 autocast eager's own gradients are off by half, and only gross errors are found (beyond
0.9; a missing gradient is off by 1); the layer benchmark judges the gradients of bfloat16.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from .network_calls import Network
from .verify import EAGER_FACTOR, Check, VerificationError, floors, norms, refuse

GRADIENT_FACTOR = 3.0
MISSING = 0.9  # an error as large as the gradient itself is no rounding
GRADIENT_FLOOR_EPS = 4.0


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
) -> list[Check]:
    """The checks of the logits and of each gradient.

    Raises:
        VerificationError: naming what is wrong, its error and its tolerance.
    """
    expected = judge["logits"]
    floor = floors(norms(expected), dtype)
    checks = [
        Check(contender, "logits", norm, error, EAGER_FACTOR * eager_error + floor[norm])
        for (norm, error), eager_error in zip(
            norms(got["logits"].double() - expected).items(),
            norms(eager["logits"].double() - expected).values(),
            strict=True,
        )
    ]
    names = [name for name in judge if name != "logits"]
    if names:
        errors, eager_errors = (
            np.array([relative_error(result[n], judge[n]) for n in names])
            for result in (got, eager)
        )
        eps = torch.finfo(dtype).eps * (64 if dtype == torch.float64 else 1)
        worst = float(eager_errors.max())
        tolerance = min(GRADIENT_FACTOR * worst, max(MISSING, 1.5 * worst))
        tolerance += GRADIENT_FLOOR_EPS * eps
        checks += [
            Check(contender, f"gradient of {name}", "rms", float(error), tolerance)
            for name, error in zip(names, errors, strict=True)
        ]
    refuse(checks)
    return checks


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Of the root mean squares; 0/0 is 0."""
    error, size = norms(got.double() - expected)["rms"], norms(expected)["rms"]
    return error / size if size > 0 else error
