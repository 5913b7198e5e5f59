"""A batch norm with its block at any number of threads: right, and the same bits every time."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import pytest
import torch
from norm_cases import Case, check, make, run

from se_kernels import batch_norm_squeeze_excite
from se_kernels.core.variants import PRES

# it is not made for several threads
pytestmark = [pytest.mark.sampled(every=0), pytest.mark.native]

# large enough for several threads an image, and for whole images a thread
SHAPES = [(2, 32, 28, 28), (5, 16, 21, 21)]
CALLERS = 4


def case_of(index):
    return Case(
        SHAPES[index % 2],
        reduced=8,
        layout=("nchw", "channels_last")[index // 2 % 2],
        dtype=(torch.float32, torch.bfloat16)[index // 4 % 2],
        weight_dtype=torch.float32,
        norm_dtype=torch.float32,
        training=index % 3 != 2,
        pre=PRES[index % 4],
        post="relu",
        residual=True,
        seed=index,
    )


def equal(results, expected):
    return all(torch.equal(value, expected[name]) for name, value in results.items())


@pytest.mark.parametrize("index", range(8))
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_any_number_of_threads(norm_kernel, threads, count, index):
    """More threads than cores, images or channels included."""
    case = case_of(index)
    inputs, dy = make(case)
    with threads(count):
        results = run(norm_kernel, inputs, dy, **case.variant)
        again = run(norm_kernel, inputs, dy, **case.variant)
        assert torch.get_num_threads() == count
    check(case, inputs, dy, results)
    assert equal(again, results)


@pytest.mark.parametrize("count", [1, 2])
def test_python_threads_at_once_give_the_bits_of_one(norm_kernel, threads, count):
    cases = [case_of(index) for index in range(CALLERS)]
    drawn = [make(case) for case in cases]
    together = Barrier(CALLERS)

    def call(index, repeats=5):
        inputs, dy = drawn[index]
        inputs = {name: t.clone() for name, t in inputs.items()}
        if repeats > 1:
            together.wait(60)
        return [run(norm_kernel, inputs, dy, **cases[index].variant) for _ in range(repeats)]

    with threads(count):
        alone = [call(index, repeats=1)[0] for index in range(CALLERS)]
        with ThreadPoolExecutor(CALLERS) as pool:
            at_once = [*pool.map(call, range(CALLERS))]
    for results, expected in zip(at_once, alone, strict=True):
        assert all(equal(result, expected) for result in results)


@pytest.mark.parametrize("pre", ["identity", "silu"])
def test_no_setting_of_the_process_is_touched(monkeypatch, pre):
    """Nor for a moment: other threads would see it. The native products are in float32 anyway."""
    touched = []
    for cls in {type(torch.backends.cuda.matmul), type(torch.backends.mkldnn.matmul)}:
        write = cls.__setattr__

        def note(of, name, value, write=write):
            touched.append(name)
            write(of, name, value)

        monkeypatch.setattr(cls, "__setattr__", note)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    touched.clear()
    try:
        for training in (True, False):
            case = replace(case_of(0), training=training, pre=pre)
            inputs, dy = make(case)
            run(batch_norm_squeeze_excite, inputs, dy, **case.variant, backend="cpu")
        assert not touched
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        assert touched == ["fp32_precision"]
    finally:
        torch.set_float32_matmul_precision(before)
