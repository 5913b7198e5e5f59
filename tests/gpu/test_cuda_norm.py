"""The CUDA sweeps with a batch norm: every cut of every shape, blocks in any order, on pretended
GPUs of every size. norm_sweeps.py judges each sweep on this backend too."""

import pytest
import torch
from host_gpu import CUDA, Gpu, HostGpu
from hypothesis import given
from hypothesis import strategies as st
from norm_sweeps import (
    Case,
    cases,
    check_moments,
    check_scale,
    check_scale_backward,
    check_squeeze,
    check_squeeze_backward,
    make,
)
from operator_cases import DTYPES
from random_cases import random_cases

from se_kernels.backends import cuda
from se_kernels.backends.cuda import library

pytestmark = [
    pytest.mark.native,
    pytest.mark.usefixtures("poisoned_outputs"),
    pytest.mark.skipif(cuda.why_not() is not None, reason=f"backend cuda: {cuda.why_not()}"),
]
on_host = pytest.mark.skipif(
    library.native is None or library.native.DEVICE_TYPE != "cpu", reason="pretends to be GPUs"
)

# rows of whole vectors, that start anywhere (with and without a last half of eight), of few pixels,
# in several parts, of several blocks of channels
SHAPES = {
    "rows of vectors": (3, 12, 4, 8),
    "odd rows": (3, 16, 7, 7),
    "rows of half an eight": (2, 10, 6, 6),
    "no image starts at eight": (3, 9, 5, 5),
    "few pixels": (5, 24, 1, 3),
    "in parts": (2, 8, 24, 48),
    "odd rows in parts": (1, 2, 45, 47),
    "wide": (2, 200, 3, 3),
}
# blocks of one, two and eight warps; room for little and for much
GPUS = {
    "small": Gpu(multiprocessors=2, shared_bytes=9 << 10, shared_bytes_in_all=18 << 10, threads=32),
    "many": Gpu(multiprocessors=64, shared_bytes=14 << 10, shared_bytes_in_all=24 << 10),
    "whole blocks": Gpu(threads=256),
}
LAYOUTS = ("nchw", "channels_last")


@pytest.fixture(scope="module")
def host():
    return HostGpu(CUDA)


def check_all(case, inputs, masked=True, some=True, post="relu"):
    """Each sweep once: with a mask, with a residual, dr, slope and offset, or without."""
    check_moments(cuda, case, inputs)
    if case.pre != "identity":
        check_squeeze(cuda, case, inputs)
    check_scale(cuda, case, inputs, some, post, post == "relu")
    check_scale_backward(cuda, case, inputs, masked, some)
    check_squeeze_backward(cuda, case, inputs, masked, some)


@on_host
@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_right_on_every_gpu(host, shape, dtype, layout, gpu):
    for pre in ("identity", "hardswish"):
        case = Case(SHAPES[shape], dtype, layout=layout, pre=pre)
        with host.gpu(GPUS[gpu]):
            check_all(case, make(case, "cpu"))


GPU = st.builds(
    Gpu,
    multiprocessors=st.sampled_from([1, 2, 132]),
    shared_bytes=st.sampled_from([24 << 10, 64 << 10]),  # plan.h: 24 KB at 256 threads
    shared_bytes_in_all=st.just(100 << 10),
    threads=st.sampled_from([32, 64, 256]),
)


@on_host
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_cases_on_random_gpus_in_random_orders(host, dtype):
    @random_cases(60, "cuda")
    @given(cases(dtype), GPU, st.integers(0, 100), st.sampled_from([1, 2, 0]), st.booleans())
    def judge(case, gpu, seed, resident, more):
        with host.gpu(gpu), host.order(seed, resident):
            check_all(case, make(case, "cpu"), more, more, "relu" if more else "none")

    judge()


@on_host
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pre", ["identity", "silu"])
def test_the_same_bits_in_every_order(host, pre, layout):
    """Parts of a row are merged by whichever block comes last."""
    case = Case(SHAPES["in parts"], layout=layout, pre=pre)
    inputs = make(case, "cpu")

    def run():
        u, norm = inputs["u"], inputs["norm"]
        z = () if pre == "identity" else (cuda.norm_squeeze(u, norm, pre),)
        return (
            *cuda.norm_moments(u, False),
            *z,
            *cuda.norm_scale_backward(inputs["dy"], u, None, norm, pre, True),
        )

    with host.gpu(GPUS["many"]):
        with host.order(0):
            first = run()
        for seed in range(1, 6):
            with host.order(seed, resident=(1, 3, 0)[seed % 3]):
                for result, expected in zip(run(), first, strict=True):
                    assert torch.equal(result, expected), f"seed {seed}"


@on_host
def test_one_launch_a_sweep(host):
    case = Case(SHAPES["in parts"], torch.bfloat16, layout="channels_last")
    inputs = make(case, "cpu")
    u, dy, norm, s, d = (inputs[name] for name in ("u", "dy", "norm", "s", "d"))
    sweeps = {
        "norm_moments": lambda: cuda.norm_moments(u, False),
        "norm_squeeze": lambda: cuda.norm_squeeze(u, norm, "relu"),
        "norm_scale": lambda: cuda.norm_scale(u, norm, s, dy, "relu", "relu", True),
        "norm_scale_backward": lambda: cuda.norm_scale_backward(dy, u, None, norm, "relu", True),
        "norm_squeeze_backward": lambda: cuda.norm_squeeze_backward(
            dy, u, None, norm, s, d, "relu", None, None
        ),
    }
    for name, sweep in sweeps.items():
        before = host.launches()
        sweep()
        assert host.launches() == before + 1
        assert f"kernel {name}<bfloat16, nhwc> with" in host.last_launch()
