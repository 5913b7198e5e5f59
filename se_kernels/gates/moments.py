"""Means and spreads of gates over many images, none of which is kept."""

from collections.abc import Mapping

import torch
from torch import Tensor


class Moments:
    """For every SE block the mean and the standard deviation of s over images, by channel."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[int, Tensor, Tensor]] = {}

    def add(self, gates: Mapping[str, Tensor]) -> None:
        """``gates``: name → s (N, C). Summed in float64."""
        for name, s in gates.items():
            s = s.double()
            count, first, second = self._sums.get(name, (0, 0, 0))
            self._sums[name] = (count + len(s), first + s.sum(0), second + s.square().sum(0))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._sums)

    def count(self, name: str) -> int:
        """Images; where a block is called several times for one, calls of one image."""
        return self._sums[name][0]

    def mean(self, name: str) -> Tensor:
        """(C,), float64."""
        count, first, _ = self._sums[name]
        return first / count

    def deviation(self, name: str) -> Tensor:
        """(C,), float64: the root mean square of s - mean."""
        count, first, second = self._sums[name]
        return (second / count - (first / count).square()).clamp(min=0).sqrt()

    def distance(self, name: str, constant: float | None) -> float:
        """The root mean square over images and channels of s - constant; None: - mean."""
        bias = 0 if constant is None else self.mean(name) - constant
        return torch.sqrt((self.deviation(name).square() + bias**2).mean()).item()
