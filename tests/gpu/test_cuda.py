"""The CUDA kernels: every cut of every problem, blocks in any order, on pretended GPUs of every
size. The operator tests run on the backend too."""

import pytest
import torch
from host_gpu import CUDA, Gpu, HostGpu
from hypothesis import given
from hypothesis import strategies as st
from operator_cases import DTYPES, Case, check, check_against_eager, make, run
from random_cases import check_placed, placed_cases, random_cases

import se_kernels
from se_kernels.backends import cuda
from se_kernels.backends.cuda import library
from se_kernels.verification.block_case import LAYOUTS

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(cuda.why_not() is not None, reason=f"backend cuda: {cuda.why_not()}"),
]
on_host = pytest.mark.skipif(
    library.native is None or library.native.DEVICE_TYPE != "cpu",
    reason="pretends to be other GPUs",
)

TAIL = dict(residual=True, post="relu")


@pytest.fixture(scope="module")
def device():
    return "cpu" if library.native.DEVICE_TYPE == "cpu" else "cuda"


@pytest.fixture(scope="module")
def host():
    return HostGpu(CUDA)


def kernel(*arguments, **options):
    return se_kernels.squeeze_excite(*arguments, **options, backend="cuda")


@on_host
def test_one_launch_forward_and_one_backward(host):
    """And one for the weights' gradients."""
    case = Case(shape=(8, 16, 4, 4), reduced=4, dtype=torch.bfloat16, **TAIL)
    inputs, dy = make(case)
    leaves = {n: t.requires_grad_() for n, t in inputs.items() if t is not None}
    with host.recording() as recorded:
        y = kernel(**leaves, **case.variant)
        assert [launch[0] for launch in recorded] == ["forward_local<bfloat16, nchw>"]
        y.backward(dy)
    assert [launch[0] for launch in recorded[1:]] == [
        "backward_local<bfloat16, nchw>",
        "solve_backward<float32>",
    ]


# --- every cut ----------------------------------------------------------------------------------

# float32, bfloat16: rows that are whole vectors, odd rows, one pixel, long rows
SHAPES = {
    "rows of vectors": (5, 24, 4, 8),
    "odd rows": (5, 24, 7, 7),
    "one pixel": (9, 40, 1, 1),
    "few channels": (4, 8, 9, 8),
    "long rows": (2, 8, 24, 24),
    "wide": (3, 136, 2, 4),
}
# blocks of 32 and 64 threads; room for little and for much; one multiprocessor and several
GPUS = {
    "small": Gpu(multiprocessors=2, shared_bytes=9 << 10, shared_bytes_in_all=18 << 10, threads=32),
    "one": Gpu(multiprocessors=1, l2_bytes=1 << 12, shared_bytes=48 << 10),
    "many": Gpu(multiprocessors=64, shared_bytes=14 << 10, shared_bytes_in_all=24 << 10),
    "whole blocks": Gpu(threads=256),
}


@on_host
@pytest.mark.parametrize("reduced", [0, 300])
@pytest.mark.parametrize("squeeze", ["avg", "max"])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_the_second_sweep_waits_for_the_first(host, poisoned_outputs, layout, squeeze, reduced):
    """Without a hidden number, and with more than a chunk of them."""
    case = Case(shape=(16, 40, 2, 4), reduced=reduced, squeeze=squeeze, layout=layout, **TAIL)
    inputs, dy = make(case)
    judge = check_against_eager if reduced else check  # eager's convolution has one at least
    for seed in range(1 if host.finds_races else 8):  # a race is one in any order
        with host.gpu(GPUS["one"]), host.order(seed):
            judge(case, inputs, dy, run(kernel, inputs, dy, **case.variant))


@on_host
def test_odd_rows_of_few_channels_fit_the_shared_memory(host):
    """Groups of many images by few channels, rounded up to start at 16 bytes."""
    case = Case(shape=(64, 3, 25, 25), reduced=1, dtype=torch.bfloat16, **TAIL)
    inputs, dy = make(case)
    with host.gpu(Gpu(shared_bytes=64 << 10, threads=256)):
        check_against_eager(case, inputs, dy, run(kernel, inputs, dy, **case.variant))


@on_host
@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_right_on_every_gpu(host, poisoned_outputs, shape, dtype, layout, gpu):
    for squeeze, tail in (("avg", {}), ("avg", TAIL), ("avgmax", TAIL)):
        case = Case(
            shape=SHAPES[shape], reduced=5, dtype=dtype, squeeze=squeeze, layout=layout, **tail
        )
        inputs, dy = make(case)
        with host.gpu(GPUS[gpu]):
            check(case, inputs, dy, run(kernel, inputs, dy, **case.variant))


@on_host
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_cut_fits_in_24_kb_of_shared_memory(host, dtype, layout):
    """With 256 threads per block; a launch that asks for more is an error, recorded or run."""
    gpu = Gpu(multiprocessors=1, shared_bytes=24 << 10, threads=256)
    for shape in ((2, 10444, 1, 1), (2, 2048, 7, 7), (2, 3, 130, 130), (2, 520, 3, 3)):
        x = torch.zeros(shape, dtype=dtype).contiguous(memory_format=LAYOUTS[layout])
        x.requires_grad_()
        w1 = torch.zeros(5, shape[1], dtype=dtype, requires_grad=True)
        w2 = torch.zeros(shape[1], 5, dtype=dtype, requires_grad=True)
        with host.gpu(gpu), host.recording() as recorded:
            kernel(x, w1, w2).sum().backward()
            kernel(x, w1, w2, squeeze="avgmax", residual=x, post="relu").sum().backward()
            for pre in ("identity", "silu"):
                y = se_kernels.batch_norm_squeeze_excite(
                    x, None, None, None, None, w1, w2, training=True, pre=pre, backend="cuda"
                )
                y.sum().backward()
        assert len(recorded) == 2 * 3 + 7 + 8


GPU = st.builds(
    Gpu,
    multiprocessors=st.sampled_from([1, 2, 7, 132]),
    l2_bytes=st.sampled_from([1 << 10, 1 << 14, 1 << 20]),
    shared_bytes=st.sampled_from([12 << 10, 20 << 10, 64 << 10]),
    shared_bytes_in_all=st.sampled_from([24 << 10, 40 << 10, 100 << 10]),
    threads=st.sampled_from([32, 64]),
)


@on_host
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_cases_on_random_gpus_in_random_orders(host, poisoned_outputs, dtype):
    @random_cases(60, "cpu")
    @given(
        placed_cases(dtype, weight_dtypes=[torch.float32]),
        GPU,
        st.integers(0, 100),
        st.sampled_from([1, 2, 0]),
    )
    def judge(placed, gpu, seed, resident):
        with host.gpu(gpu), host.order(seed, resident):
            check_placed(kernel, "cpu", placed)

    judge()


@on_host
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_the_same_bits_in_every_order(host, layout):
    case = Case(shape=(9, 24, 6, 8), reduced=6, layout=layout, **TAIL)
    inputs, dy = make(case)
    with host.gpu(GPUS["many"]):
        with host.order(0):
            first = run(kernel, inputs, dy, **case.variant)
        for seed in range(1, 9):
            with host.order(seed, resident=(1, 3, 0)[seed % 3]):
                for name, result in run(kernel, inputs, dy, **case.variant).items():
                    assert torch.equal(result, first[name]), f"{name}, seed {seed}"


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_a_stage_of_the_paper_at_its_own_size(device, layout):
    """conv5 of SE-ResNet-50, two images: 256 threads a block on a GPU."""
    case = Case(shape=(2, 2048, 7, 7), reduced=128, dtype=torch.bfloat16, layout=layout, **TAIL)
    inputs, dy = make(case, device)
    check(case, inputs, dy, run(kernel, inputs, dy, **case.variant))
