"""What only a GPU can tell of a batch norm with its block: captured graphs, streams, compiling
around the kernels, and the same bits in every run."""

import pytest
import torch
from norm_cases import DIFFERENTIABLE, RUNNING, Case, check, copies, make, run
from operator_cases import LAYOUTS

import se_kernels

pytestmark = pytest.mark.gpu

TAIL = dict(residual=True, post="relu")
MIXED = dict(
    dtype=torch.bfloat16, weight_dtype=torch.float32, norm_dtype=torch.float32, gate="sigmoid"
)
# several groups of images; rows that are aligned to 16 bytes, to 8, and to one element
CASES = [
    Case((37, 64, 28, 28), 8, **MIXED, **TAIL),
    Case((19, 256, 14, 14), 16, pre="silu"),
    Case((33, 512, 7, 7), 32, **MIXED, pre="relu", **TAIL),
    Case((5, 64, 28, 28), 4, training=False, pre="hardswish", **TAIL),
]
IDS = ["x".join(map(str, case.shape)) for case in CASES]


def on_gpu(case, layout):
    case = Case(**{**vars(case), "layout": layout})
    return case, *make(case, "cuda")


@pytest.fixture(params=[n for n in ("triton", "cuda") if n in se_kernels.available_backends()])
def gpu_kernel(request):
    reason = se_kernels.available_backends()[request.param]
    if reason is not None:
        pytest.skip(reason)

    def block(*arguments, **options):
        return se_kernels.batch_norm_squeeze_excite(*arguments, **options, backend=request.param)

    return block


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_right_and_the_same_bits_in_thirty_runs(gpu_kernel, case, layout):
    """With other work on the device now and then, so that programs meet in other orders."""
    case, inputs, dy = on_gpu(case, layout)
    first = run(gpu_kernel, inputs, dy, **case.variant)
    check(case, inputs, dy, first)
    noise = torch.randn(1024, 1024, device="cuda")
    for round_ in range(30):
        if round_ % 3 == 0:
            with torch.cuda.stream(torch.cuda.Stream()):
                noise = noise @ noise.T / 1024
        for name, result in run(gpu_kernel, inputs, dy, **case.variant).items():
            assert torch.equal(result, first[name]), f"{name}, run {round_}"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_captured_graph_replays(gpu_kernel, case, layout):
    """Forward and backward in one graph, replayed with other numbers in the same memory; the
    running statistics move with each replay."""
    case, inputs, dy = on_gpu(case, layout)
    leaves = {
        name: t.detach().clone().requires_grad_(name in DIFFERENTIABLE)
        for name, t in inputs.items()
        if t is not None
    }
    wanted = [leaves[name] for name in DIFFERENTIABLE if name in leaves]

    def step():
        y = gpu_kernel(**leaves, **case.variant)
        return y, *torch.autograd.grad(y, wanted, dy)

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
        moved = [leaves[name].clone() for name in RUNNING]
        with torch.no_grad():
            for name in RUNNING:
                leaves[name].copy_(other[name])
        expected = step()
        assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
        for name, value in zip(RUNNING, moved, strict=True):
            assert torch.equal(leaves[name], value)
            assert torch.equal(value, other[name]) != case.training


def test_nothing_waits_for_the_gpu(gpu_kernel):
    """No value is read back: the host runs ahead, forward and backward, in every mode."""
    drawn = [on_gpu(case, "channels_last") for case in CASES]
    for case, inputs, dy in drawn:
        run(gpu_kernel, inputs, dy, **case.variant)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        for case, inputs, dy in drawn:
            run(gpu_kernel, inputs, dy, **case.variant)
            with torch.no_grad():
                gpu_kernel(**copies(inputs), **case.variant)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_several_streams_at_once(gpu_kernel):
    drawn = [on_gpu(case, "nchw") for case in CASES]
    expected = [run(gpu_kernel, inputs, dy, **case.variant) for case, inputs, dy in drawn]
    streams = [torch.cuda.Stream() for _ in drawn]
    torch.cuda.synchronize()
    for _ in range(10):
        results = []
        for stream, (case, inputs, dy) in zip(streams, drawn, strict=True):
            with torch.cuda.stream(stream):
                results.append(run(gpu_kernel, inputs, dy, **case.variant))
        torch.cuda.synchronize()
        for got, right in zip(results, expected, strict=True):
            assert all(torch.equal(got[name], value) for name, value in right.items())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiled_around(gpu_kernel, layout):
    """Between the sweeps the compiler fuses N x C numbers: some roundings of them."""
    case, inputs, dy = on_gpu(CASES[1], layout)
    compiled = torch.compile(gpu_kernel, fullgraph=True)
    check(case, inputs, dy, run(compiled, inputs, dy, **case.variant))


@pytest.mark.parametrize("tf32", [False, True])
def test_autocast_and_tf32_leave_float32_weights_exact(gpu_kernel, tf32, monkeypatch):
    """The products of N x C numbers are in full float32, whatever torch may round its own to."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", tf32)
    case, inputs, dy = on_gpu(Case((32, 64, 14, 14), 8, **MIXED, pre="silu"), "nchw")
    with torch.autocast("cuda", torch.bfloat16):
        results = run(gpu_kernel, inputs, dy, **case.variant)
    check(case, inputs, dy, results)
