"""The same numbers lying differently in memory: every way a test may pass a tensor.

What lies around and between the elements is NaN, so that a stray read shows in the result.
"""

import math

import torch
from torch import Tensor


def _inside(t: Tensor, sizes, index, memory_format=torch.contiguous_format) -> Tensor:
    """t as the part ``index`` of a larger tensor of ``sizes``."""
    larger = torch.full(sizes, math.nan, dtype=t.dtype, device=t.device)
    part = larger.contiguous(memory_format=memory_format)[index]
    assert part.shape == t.shape
    return part.copy_(t)


def _at_offset(t: Tensor, memory_format) -> Tensor:
    """t one element into its storage: aligned to its element and to nothing more."""
    dense = t.contiguous(memory_format=memory_format)
    storage = torch.full((t.numel() + 2,), math.nan, dtype=t.dtype, device=t.device)
    return storage.as_strided(t.shape, dense.stride(), 1).copy_(t)


def _permuted(t: Tensor, order) -> Tensor:
    """t whose dimensions lie in memory in ``order``, the outermost first."""
    back = sorted(range(t.dim()), key=order.__getitem__)
    return t.permute(order).contiguous().permute(back)


_LAST = torch.channels_last
_ALL = slice(None)


def _sizes(t, **grown):
    return [grown.get(letter, size) for letter, size in zip("nchw", t.shape, strict=True)]


# name -> t (N, C, H, W) placed so
IMAGES = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=_LAST),
    "offset": lambda t: _at_offset(t, torch.contiguous_format),
    "channels_last, offset": lambda t: _at_offset(t, _LAST),
    "every other image": lambda t: _inside(t, _sizes(t, n=2 * t.shape[0]), (slice(0, None, 2),)),
    "some channels": lambda t: _inside(
        t, _sizes(t, c=t.shape[1] + 3), (_ALL, slice(2, t.shape[1] + 2))
    ),
    "some channels_last channels": lambda t: _inside(
        t, _sizes(t, c=t.shape[1] + 3), (_ALL, slice(2, t.shape[1] + 2)), _LAST
    ),
    "every other channels_last channel": lambda t: _inside(
        t, _sizes(t, c=2 * t.shape[1]), (_ALL, slice(0, None, 2)), _LAST
    ),
    "a window": lambda t: _inside(
        t,
        _sizes(t, h=t.shape[2] + 2, w=t.shape[3] + 3),
        (..., slice(1, t.shape[2] + 1), slice(2, t.shape[3] + 2)),
    ),
    "a channels_last window": lambda t: _inside(
        t,
        _sizes(t, h=t.shape[2] + 2, w=t.shape[3] + 3),
        (..., slice(1, t.shape[2] + 1), slice(2, t.shape[3] + 2)),
        _LAST,
    ),
    "some rows": lambda t: _inside(
        t, _sizes(t, h=t.shape[2] + 2), (..., slice(1, t.shape[2] + 1), _ALL)
    ),
    "every other column": lambda t: _inside(
        t, _sizes(t, w=2 * t.shape[3]), (..., slice(0, None, 2))
    ),
    "columns before rows": lambda t: _permuted(t, (0, 1, 3, 2)),
    "channels_last, columns before rows": lambda t: _permuted(t, (0, 3, 2, 1)),
    "channels before images": lambda t: _permuted(t, (1, 0, 2, 3)),
    "images innermost": lambda t: _permuted(t, (1, 2, 3, 0)),
}

# name -> w (rows, columns) placed so; the last two have shape (rows, columns, 1, 1)
MATRICES = {
    "contiguous": lambda w: w.contiguous(),
    "transposed": lambda w: w.t().contiguous().t(),
    "a block": lambda w: _inside(
        w, (w.shape[0] + 1, w.shape[1] + 2), (slice(1, None), slice(1, w.shape[1] + 1))
    ),
    "every other row": lambda w: _inside(w, (2 * w.shape[0], w.shape[1]), (slice(0, None, 2),)),
    "offset": lambda w: _at_offset(w, torch.contiguous_format),
    "of a convolution": lambda w: w[:, :, None, None],
    "of a channels_last convolution": lambda w: w[:, :, None, None].contiguous(memory_format=_LAST),
}

# name -> b (size) placed so
VECTORS = {
    "contiguous": lambda b: b.contiguous(),
    "every third": lambda b: _inside(b, (3 * b.shape[0],), (slice(0, None, 3),)),
    "offset": lambda b: _at_offset(b, torch.contiguous_format),
}
