"""Regression benchmarks of one SE block, with pytest-benchmark. No time is asserted.

pytest benchmarks --benchmark-autosave               keep a run
pytest benchmarks --benchmark-compare                this run beside the last one kept
"""

import itertools

import pytest
import torch

from . import block
from .contenders import Call, usable_backends
from .environment import last_level_cache_bytes
from .inputs import DTYPES, how_many, make_sets
from .layer import Layer

CPU = torch.device("cpu")
SHAPES = ("512x28x28:32", "2048x7x7:128")
BATCH = 4
NAMES = ("eager", *usable_backends(CPU))
ROUNDS, WARMUP = 25, 3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", list(Layer.costs))
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("spec", SHAPES)
def test_se_block(benchmark, spec, layout, mode, name):
    point = block.Point(block.Shape.parse(spec), BATCH, "float32", layout, mode)
    generator = torch.Generator().manual_seed(0)
    sets = make_sets(
        point.x_shape,
        how_many(point.x_bytes, last_level_cache_bytes(CPU)),
        dtype=DTYPES[point.dtype],
        layout=layout,
        backward=point.trains,
        device=CPU,
        generator=generator,
    )
    kinds, backends = (["eager"], []) if name == "eager" else (["fused"], [name])
    settings = block.Settings(CPU, kinds, backends)
    built = Layer().build(point, settings, sets, generator)
    checks, _ = block.verify_point(point, built, sets[0], lambda what: None)
    assert checks
    assert all(check.passed for check in checks)

    timed = Call(built.contenders[0], sets, mode)
    turn = itertools.cycle(range(len(sets)))

    def next_set():
        k = next(turn)
        timed.prepare(k)
        return (k,), {}

    benchmark.group = str(point)
    benchmark.extra_info.update(threads=torch.get_num_threads(), torch=torch.__version__)
    with torch.set_grad_enabled(point.trains):
        benchmark.pedantic(timed.call, setup=next_set, rounds=ROUNDS, warmup_rounds=WARMUP)
