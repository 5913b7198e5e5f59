"""Random input sets, several per point, taken in rotation so that no cache serves them."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MEMORY_FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
MAX_SETS = 256


@dataclass
class InputSet:
    """x (N,C,H,W) and, like it, dy for backward and the residual of a block that adds one."""

    x: Tensor
    dy: Tensor | None = None
    residual: Tensor | None = None

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return (self.x,) if self.residual is None else (self.x, self.residual)


def how_many(x_bytes: int, cache_bytes: int, cap: int = MAX_SETS) -> int:
    """So many that their x together exceed the cache; at least 2, at most ``cap``."""
    return min(cap, max(2, cache_bytes // max(1, x_bytes) + 1))


def make_sets(
    shape: tuple[int, int, int, int],
    count: int,
    *,
    dtype: torch.dtype,
    layout: str,
    backward: bool,
    residual: bool = False,
    device: torch.device,
    generator: torch.Generator,
) -> list[InputSet]:
    """``count`` sets. x is noise about a mean per image and channel, so gates differ."""
    sets = []
    for _ in range(count):
        noise: dict[str, Any] = dict(device=device, generator=generator)
        x = torch.randn(shape, **noise).add_(torch.randn(*shape[:2], 1, 1, **noise))
        x = _as(x, dtype, layout).requires_grad_(backward)
        dy = _as(torch.randn(shape, **noise), dtype, layout) if backward else None
        added = _as(torch.randn(shape, **noise), dtype, layout) if residual else None
        if added is not None:
            added.requires_grad_(backward)
        sets.append(InputSet(x, dy, added))
    return sets


def make_weights(
    channels: int, reduced: int, device: torch.device, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """w1 (R,C,1,1) and w2 (C,R,1,1), float32, scaled so that the gates spread over (0, 1)."""
    noise: dict[str, Any] = dict(device=device, generator=generator)
    w1 = torch.randn(reduced, channels, 1, 1, **noise) * math.sqrt(2 / channels)
    w2 = torch.randn(channels, reduced, 1, 1, **noise) * math.sqrt(2 / reduced)
    return w1, w2


def _as(t: Tensor, dtype: torch.dtype, layout: str) -> Tensor:
    return t.to(dtype).contiguous(memory_format=MEMORY_FORMATS[layout])
