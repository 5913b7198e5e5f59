"""Regression benchmarks of one SE block, with pytest-benchmark. No time is asserted.

pytest benchmarks --benchmark-autosave               keep a run
pytest benchmarks --benchmark-compare                this run beside the last one kept
"""

import itertools

import pytest
import torch

from . import layer
from .contenders import Layer, build, usable_backends
from .environment import last_level_cache_bytes
from .inputs import DTYPES, how_many, make_sets, make_weights

CPU = torch.device("cpu")
SHAPES = ("512x28x28:32", "2048x7x7:128")
BATCH = 4
NAMES = ("eager", *usable_backends(CPU))
ROUNDS, WARMUP = 25, 3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", layer.MODES)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("spec", SHAPES)
def test_se_block(benchmark, spec, layout, mode, name):
    point = layer.Point(layer.Shape.parse(spec), BATCH, "float32", layout, mode)
    train = mode == "train"
    generator = torch.Generator().manual_seed(0)
    w1, w2 = make_weights(point.shape.channels, point.shape.reduced, CPU, generator)
    sets = make_sets(
        point.x_shape,
        how_many(point.x_bytes, last_level_cache_bytes(CPU)),
        dtype=DTYPES[point.dtype],
        layout=layout,
        backward=train,
        device=CPU,
        generator=generator,
    )
    kinds, backends = (["eager"], []) if name == "eager" else (["fused"], [name])
    contenders = build(kinds, backends, w1, w2, dtype=DTYPES[point.dtype], layout=layout)
    checks, _ = layer.verify_point(point, contenders, sets[0], w1, w2, lambda what: None)
    assert checks
    assert all(check.passed for check in checks)

    timed = Layer(contenders[0], sets)
    turn = itertools.cycle(range(len(sets)))

    def next_set():
        k = next(turn)
        timed.prepare(k)
        return (k,), {}

    benchmark.group = str(point)
    benchmark.extra_info.update(threads=torch.get_num_threads(), torch=torch.__version__)
    with torch.set_grad_enabled(train):
        benchmark.pedantic(timed.call, setup=next_set, rounds=ROUNDS, warmup_rounds=WARMUP)
