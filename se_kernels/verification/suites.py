"""Which trials: the dozen of ``check``, and every kernel of a backend once."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from se_kernels.verification import block_case, norm_case
from se_kernels.verification.trial import Trial

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
DTYPES = (BF16, F32, F16, F64)  # the most used first
LAYOUTS = tuple(block_case.LAYOUTS)
NHWC = "channels_last"
TAIL = dict(residual=True, post="relu")
_Block, _Norm = block_case.Case, norm_case.Case


def dozen(slow: bool) -> list[Trial]:
    """Every squeeze, activation, gate, dtype and layout; several groups of images; rows aligned to
    16 bytes and to nothing. Small ones where kernels are ``slow``: interpreted, or on the host."""
    blocks = [
        _Block((37, 64, 28, 28), 8, BF16, layout=NHWC, **TAIL),
        _Block((33, 512, 7, 7), 32, BF16, biases=(), **TAIL),
        _Block((3, 128, 28, 28), 8, F16, weight_dtype=F32, act="hardswish", gate="hardsigmoid"),
        _Block((19, 256, 14, 14), 16, F32, squeeze="max", act="silu", layout=NHWC),
        _Block((2, 64, 56, 56), 4, F32, squeeze="avgmax", act="gelu_tanh", gate="tanh", **TAIL),
        _Block((2, 17, 5, 7), 3, BF16, act="leaky_relu", gate="relu", layout=NHWC),
        _Block((5, 32, 7, 7), 4, F64, squeeze="avgmax", act="gelu", **TAIL),
    ]
    excitations = [
        _Block((3, 96, 14, 14), 8, F32, act="identity", layout=NHWC, **TAIL),
        _Block((3, 24, 7, 7), 6, BF16, act="silu", squeeze="avgmax"),
    ]
    norms = [
        _Norm((16, 128, 14, 14), 8, BF16, norm_dtype=F32, layout=NHWC, **TAIL),
        _Norm((9, 256, 7, 7), 16, F16, pre="silu", norm_dtype=F32),
        _Norm((3, 17, 5, 7), 4, F32, pre="hardswish", act="relu", **TAIL),
        _Norm((3, 96, 14, 14), 8, BF16, training=False, pre="relu", layout=NHWC, norm_dtype=F32),
        _Norm((5, 64, 9, 9), 8, F32, training=False, **TAIL),
    ]
    trials = _trials("block", blocks) + _trials("excitation", excitations) + _trials("norm", norms)
    return [smaller(trial) for trial in trials] if slow else trials


def every_kernel(backend: str, slow: bool) -> list[Trial]:
    """Each kernel of the backend, forward and backward, at small sizes with aligned and with odd
    rows; by dtype, the most used first."""
    trials = [trial for dtype in DTYPES for trial in _of_dtype(backend, dtype)]
    return [smaller(trial) for trial in trials] if slow else trials


def _of_dtype(backend: str, dtype: torch.dtype) -> Iterator[Trial]:
    wide = dtype == F64
    # whole vectors of a row, cut into parts in channels_last; rows that start anywhere; numbers
    aligned, odd, numbers = (3, 128, 28, 28), (3, 1024, 7, 7), (3, 17, 5, 7)
    for layout in LAYOUTS:
        given = dict(dtype=dtype, layout=layout)
        for tail in ({}, TAIL):
            for shape in (aligned, odd):
                case = _Block((shape[0], 32, *shape[2:]) if wide else shape, 8, **given, **tail)
                yield Trial("block", case)
        yield Trial("block", _Block(numbers, 3, **given, **TAIL))
        yield Trial("block", _Block(aligned, 8, squeeze="avgmax", **given, **TAIL))
        yield Trial("excitation", _Block(aligned, 8, act="silu", **given, **TAIL))
        yield Trial("excitation", _Block(odd, 8, act="silu", squeeze="max", **given))
        yield Trial("norm", _Norm(aligned, 8, **given, **TAIL))
        yield Trial("norm", _Norm(odd, 8, pre="silu", **given, **TAIL))
        yield Trial("norm", _Norm(numbers, 4, pre="hardswish", **given))
        yield Trial("norm", _Norm(aligned, 8, training=False, pre="relu", **given))


def smaller(trial: Trial) -> Trial:
    """The same with few channels and pixels, its rows as aligned as before."""
    images, channels, *sides = trial.case.shape
    shape = (
        min(images, 3),
        channels if channels <= 17 else 16,
        *(s if s <= 7 else 4 for s in sides),
    )
    return replace(trial, case=replace(trial.case, shape=shape, reduced=min(trial.case.reduced, 4)))


def _trials(call: str, cases: Iterable) -> list[Trial]:
    return [Trial(call, case) for case in cases]
