"""What only a GPU can tell: captured graphs, streams, compiling around the kernels, and the same
bits in every run. The operator tests run on its tensors too; `make gpu` runs both, after each
kernel once (`python -m se_kernels check --every-kernel`)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from operator_cases import LAYOUTS, Case, check, make, run

import se_kernels

pytestmark = pytest.mark.gpu

TAIL = dict(residual=True, post="relu")
# several groups of images; rows that are aligned to 16 bytes, to 8, and to one element
CASES = [
    Case(shape=(37, 64, 28, 28), reduced=8, dtype=torch.bfloat16, **TAIL),
    Case(shape=(19, 256, 14, 14), reduced=16, dtype=torch.float32, **TAIL),
    Case(shape=(33, 512, 7, 7), reduced=32, dtype=torch.bfloat16, **TAIL),
    Case(shape=(1, 64, 56, 56), reduced=4, squeeze="avgmax", **TAIL),
]


def on_gpu(case, layout):
    case = Case(**{**vars(case), "layout": layout})
    return case, *make(case, "cuda")


@pytest.fixture(params=[n for n in ("triton", "cuda") if n in se_kernels.available_backends()])
def gpu_kernel(request):
    reason = se_kernels.available_backends()[request.param]
    if reason is not None:
        pytest.skip(reason)

    def block(*arguments, **options):
        return se_kernels.squeeze_excite(*arguments, **options, backend=request.param)

    return block


def test_a_gpu_is_served_by_kernels():
    x = torch.empty(1, 1, 1, 1, device="cuda")
    assert se_kernels.core.dispatch.choose(x) in ("cuda", "triton")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: "x".join(map(str, case.shape)))
def test_the_same_bits_in_a_hundred_runs(gpu_kernel, case, layout):
    """With other work on the device now and then, so that programs meet in other orders."""
    case, inputs, dy = on_gpu(case, layout)
    first = run(gpu_kernel, inputs, dy, **case.variant)
    noise = torch.randn(1024, 1024, device="cuda")
    for round_ in range(100):
        if round_ % 3 == 0:
            with torch.cuda.stream(torch.cuda.Stream()):
                noise = noise @ noise.T / 1024
        for name, result in run(gpu_kernel, inputs, dy, **case.variant).items():
            assert torch.equal(result, first[name]), f"{name}, run {round_}"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: "x".join(map(str, case.shape)))
def test_a_captured_graph_replays(gpu_kernel, case, layout):
    """Forward and backward in one graph, replayed with other numbers in the same memory."""
    case, inputs, dy = on_gpu(case, layout)
    leaves = {n: t.detach().clone().requires_grad_() for n, t in inputs.items() if t is not None}

    def step():
        y = gpu_kernel(**leaves, **case.variant)
        return y, *torch.autograd.grad(y, [*leaves.values()], dy)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # compiles
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in (1, 2, 3):
        other, _ = make(Case(**{**vars(case), "seed": seed}), "cuda")
        with torch.no_grad():
            for name, leaf in leaves.items():
                leaf.copy_(other[name])
        graph.replay()
        expected = step()
        assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


def test_several_streams_at_once(gpu_kernel):
    drawn = [on_gpu(case, "nchw") for case in CASES]
    expected = [run(gpu_kernel, inputs, dy, **case.variant) for case, inputs, dy in drawn]
    streams = [torch.cuda.Stream() for _ in drawn]
    torch.cuda.synchronize()
    for _ in range(20):
        results = []
        for stream, (case, inputs, dy) in zip(streams, drawn, strict=True):
            with torch.cuda.stream(stream):
                results.append(run(gpu_kernel, inputs, dy, **case.variant))
        torch.cuda.synchronize()
        for got, right in zip(results, expected, strict=True):
            assert all(torch.equal(got[name], value) for name, value in right.items())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiled_around(gpu_kernel, layout):
    case, inputs, dy = on_gpu(CASES[0], layout)
    compiled = torch.compile(gpu_kernel, fullgraph=True)
    results = run(compiled, inputs, dy, **case.variant)
    expected = run(gpu_kernel, inputs, dy, **case.variant)
    for name in ("y", "dx", "dresidual"):
        assert torch.equal(results[name], expected[name]), name


@pytest.mark.parametrize("tf32", [False, True])
def test_autocast_and_tf32_leave_float32_weights_exact(gpu_kernel, tf32, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", tf32)
    case = Case(shape=(32, 64, 14, 14), reduced=8, dtype=torch.bfloat16, weight_dtype=torch.float32)
    inputs, dy = make(case, "cuda")
    with torch.autocast("cuda", torch.bfloat16):
        results = run(gpu_kernel, inputs, dy, **case.variant)
    check(case, inputs, dy, results)


def test_more_than_2_to_the_31_elements(gpu_kernel):
    """(2, 2, 32800, 32800) in bfloat16: offsets past 2^32 bytes in either layout."""
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GB of the GPU's memory")
    for memory_format in LAYOUTS.values():
        x = torch.ones(2, 2, 32800, 32800, dtype=torch.bfloat16, device="cuda")
        x = x.contiguous(memory_format=memory_format)
        x[1, 1] = 2
        w1, w2 = torch.eye(2, device="cuda"), torch.eye(2, device="cuda")
        with torch.no_grad():
            y = gpu_kernel(x, w1, w2, gate="relu")
        assert [y[n, c].float().mean().item() for n in (0, 1) for c in (0, 1)] == [1, 1, 1, 4]
        assert [y[n, c, -1, -1].item() for n in (0, 1) for c in (0, 1)] == [1, 1, 1, 4]
        del x, y


# --- backend "cuda" -----------------------------------------------------------------------------


@pytest.fixture
def cuda_kernel():
    reason = se_kernels.available_backends()["cuda"]
    if reason is not None:
        pytest.skip(reason)

    def block(*arguments, **options):
        return se_kernels.squeeze_excite(*arguments, **options, backend="cuda")

    return block


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_current_gpu_stays_the_current_one(gpu_kernel, layout):
    """Tensors of another, on a stream of that one, forward and backward."""
    last = torch.cuda.device_count() - 1
    case = Case(**{**vars(CASES[0]), "layout": layout})
    inputs, dy = make(case, f"cuda:{last}")
    with torch.cuda.device(0):
        check(case, inputs, dy, run(gpu_kernel, inputs, dy, **case.variant))
        assert torch.cuda.current_device() == 0
        stream = torch.cuda.Stream(device=last)
        stream.wait_stream(torch.cuda.current_stream(last))
        with torch.cuda.stream(stream):
            results = run(gpu_kernel, inputs, dy, **case.variant)
        stream.synchronize()
        assert torch.cuda.current_device() == 0
    check(case, inputs, dy, results)


def test_a_launch_that_fails_names_the_kernel_and_its_configuration(cuda_kernel):
    """In a process of its own, whose GPU is lost to it after an assertion on the device."""
    script = (
        "import torch, se_kernels\n"
        "x, w1, w2 = torch.ones(8, 64, 8, 8), torch.ones(4, 64), torch.ones(64, 4)\n"
        "x, w1, w2 = x.cuda(), w1.cuda(), w2.cuda()\n"
        "call = lambda: se_kernels.squeeze_excite(x, w1, w2, backend='cuda')\n"
        "call()\n"
        "torch._assert_async(torch.zeros(1, device='cuda'))\n"
        "try:\n"
        "    torch.cuda.synchronize()\n"
        "except RuntimeError:\n"
        "    call()\n"
    )
    environment = {**os.environ}
    environment["PYTHONPATH"] = str(Path(se_kernels.__file__).parent.parent)
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120
    )
    assert result.returncode != 0
    assert re.search(
        r"RuntimeError: kernel forward_local<float32, nchw> with \d+ blocks of \d+ threads, "
        r"\d+ bytes of shared memory each: .*assert",
        result.stderr,
    ), result.stderr
