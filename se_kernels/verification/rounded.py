"""Running error analysis: a number beside a bound of its rounding error, in units of roundings."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_Elementwise = Callable[[Tensor], Tensor]

SECOND = 2.0**-23  # ε of float32


@dataclass
class Rounded:
    """``value`` is exact, in float64; one computed with roundings of relative size ε, each sum with
    one for its terms together, is within ``error`` * ε of it: to first order, and to second where
    two that are 0 but for roundings are multiplied."""

    value: Tensor
    error: Tensor

    @classmethod
    def exact(cls, value: Tensor) -> "Rounded":
        return cls(value, torch.zeros_like(value))

    @classmethod
    def stored(cls, value: Tensor) -> "Rounded":
        """Exact but for the rounding of what was handed over."""
        return cls(value, value.abs())

    def __add__(self, other: "Rounded") -> "Rounded":
        value = self.value + other.value
        return Rounded(value, self.error + other.error + value.abs())

    def __neg__(self) -> "Rounded":
        return Rounded(-self.value, self.error)

    def __sub__(self, other: "Rounded") -> "Rounded":
        return self + -other

    def __mul__(self, other: "Rounded") -> "Rounded":
        value = self.value * other.value
        error = self.value.abs() * other.error + other.value.abs() * self.error
        return Rounded(value, error + value.abs() + SECOND * self.error * other.error)

    def __truediv__(self, number: float) -> "Rounded":
        value = self.value / number
        return Rounded(value, self.error / number + value.abs())

    def __matmul__(self, other: "Rounded") -> "Rounded":
        ours, theirs = self.value.abs(), other.value.abs()
        error = self.error @ theirs + ours @ other.error + ours @ theirs
        return Rounded(self.value @ other.value, error + SECOND * (self.error @ other.error))

    def __getitem__(self, index: slice | tuple[slice | None, ...]) -> "Rounded":
        return Rounded(self.value[index], self.error[index])

    @property
    def T(self) -> "Rounded":
        return Rounded(self.value.T, self.error.T)

    def sum(self, dims: int | tuple[int, ...]) -> "Rounded":
        return Rounded(self.value.sum(dims), (self.error + self.value.abs()).sum(dims))

    def amax(self, dims: int | tuple[int, ...]) -> "Rounded":
        return Rounded(self.value.amax(dims), self.error.amax(dims))

    def through(self, function: _Elementwise, slope: float) -> "Rounded":
        """``function``, elementwise, whose slope is at most ``slope``."""
        value = function(self.value)
        return Rounded(value, slope * self.error + value.abs())


def derivative(function: _Elementwise) -> _Elementwise:
    """Of an elementwise function."""

    def of(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(function(x).sum(), x)[0]

    return of
