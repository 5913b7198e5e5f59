"""Python threads, torch's number of threads, and processes that fork, with a norm and without."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from operator_cases import make, run
from operators import OPERATORS
from torch.utils.data import DataLoader, Dataset

from se_kernels import SqueezeExcite
from se_kernels.core.variants import PRES, SQUEEZES

pytestmark = pytest.mark.sampled(every=0)  # it is not made for several threads

# large enough for several threads an image, and for whole images a thread
SHAPES = [(1, 64, 28, 28), (5, 32, 28, 28)]
CALLERS = 4


def case_of(index, op=OPERATORS["block"]):
    return op.case(
        shape=SHAPES[index % 2],
        reduced=8,
        layout=("nchw", "channels_last")[index // 2 % 2],
        dtype=(torch.float32, torch.bfloat16)[index // 4 % 2],
        weight_dtype=torch.float32,
        norm_dtype=torch.float32,
        pre=PRES[index % 4],
        # with a maximum the norm is a call of its own
        squeeze=SQUEEZES[index % 3] if op.image == "x" else "avg",
        post="relu",
        residual=True,
        seed=index,
    )


def equal(results, expected):
    return all(torch.equal(value, expected[name]) for name, value in results.items())


@pytest.mark.native
@pytest.mark.sampled(every=0, on_host=9)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_python_threads_at_once_give_the_bits_of_one(op, threads, count):
    cases = [case_of(index, op) for index in range(CALLERS)]
    drawn = [op.make(case) for case in cases]
    together = Barrier(CALLERS)

    def call(index, repeats=10):
        inputs, dy = drawn[index]
        inputs = {name: t.clone() for name, t in inputs.items()}
        if repeats > 1:
            together.wait(60)
        return [op.run(cases[index], inputs, dy) for _ in range(repeats)]

    with threads(count):
        alone = [call(index, repeats=1)[0] for index in range(CALLERS)]
        with ThreadPoolExecutor(CALLERS) as pool:
            at_once = [*pool.map(call, range(CALLERS))]
    for results, expected in zip(at_once, alone, strict=True):
        assert all(equal(result, expected) for result in results)


@pytest.mark.native
def test_python_threads_share_a_module(backend):
    """One module, its gradients accumulating from several threads' backward passes."""
    torch.manual_seed(0)
    se = SqueezeExcite(64, bias=True, backend=backend).double()
    batches = torch.randn(CALLERS, 2, 64, 14, 14, dtype=torch.float64)

    def step(x):
        se(x).square().sum().backward()

    for x in batches:
        step(x)
    expected = [p.grad.clone() for p in se.parameters()]
    se.zero_grad()
    with ThreadPoolExecutor(CALLERS) as pool:
        [*pool.map(step, batches)]
    for p, grad in zip(se.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-12, atol=1e-12)  # summed in another order


@pytest.mark.native
@pytest.mark.sampled(every=0, on_host=9)
@pytest.mark.parametrize("index", range(8))
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_any_number_of_threads(op, threads, count, index):
    """Right at each, more threads than cores, images or channels included, and the same twice."""
    case = case_of(index, op)
    inputs, dy = op.make(case)
    with threads(count):
        results = op.run(case, inputs, dy)
        again = op.run(case, inputs, dy)
        assert torch.get_num_threads() == count
    op.cases.check(case, inputs, dy, results)
    assert equal(again, results)


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
            op = OPERATORS["norm" if training else "frozen norm"].on("cpu")
            case = op.case(pre=pre, post="relu", residual=True)
            op.run(case, *op.make(case))
        assert not touched
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        assert touched == ["fp32_precision"]
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc")
def test_one_thread_starts_no_others(kernel):
    """With torch.set_num_threads(1) the kernels bring no thread of their own to a new process."""
    case = case_of(0)
    inputs, dy = make(case)

    def count_new_threads():
        torch.ones(1, requires_grad=True).sum().backward()  # autograd's own are not meant
        before = len(os.listdir("/proc/self/task"))
        run(kernel, inputs, dy, **case.variant)
        os._exit(len(os.listdir("/proc/self/task")) - before)

    assert in_fork(count_new_threads) == 0


# --- processes -----------------------------------------------------------------------------------


def in_fork(work, seconds=60):
    """The exit status of ``work()`` in a forked process, which is killed after ``seconds``.

    One thread there: OpenMP's team does not survive a fork, torch's own operators hang too.
    """
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            work()
        finally:
            os._exit(99)
    for _ in range(seconds * 20):
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, 9)
    os.waitpid(child, 0)
    raise AssertionError(f"the forked process did not end in {seconds} s")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_after_a_fork(kernel, threads):
    """The parent's threads have run before it forks."""
    case = case_of(1)
    inputs, dy = make(case)
    with threads(2):
        run(kernel, inputs, dy, **case.variant)
    with threads(1):
        expected = run(kernel, inputs, dy, **case.variant)

    def compare():
        os._exit(0 if equal(run(kernel, inputs, dy, **case.variant), expected) else 1)

    assert in_fork(compare) == 0
    with threads(1):
        assert equal(run(kernel, inputs, dy, **case.variant), expected)


class Excited(Dataset):
    """Images that a block has seen, in the process that loads them."""

    def __init__(self, backend):
        torch.manual_seed(0)
        self.se = SqueezeExcite(32, backend=backend)
        self.images = torch.randn(6, 1, 32, 28, 28)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        with torch.no_grad():
            return self.se(self.images[index])[0]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_in_a_data_loader(backend, threads, start):
    if backend == "cuda" and start == "spawn":
        pytest.skip("a new process does not pretend to have a GPU")
    dataset = Excited(backend)
    with threads(2):
        dataset[0]
    with threads(1):  # as in a worker
        expected = torch.stack([dataset[index] for index in range(len(dataset))])
    loader = DataLoader(
        dataset, batch_size=3, num_workers=2, multiprocessing_context=start, timeout=120
    )
    assert torch.equal(torch.cat([*loader]), expected)
