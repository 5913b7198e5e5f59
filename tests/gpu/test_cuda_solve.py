"""The solve between the sweeps on CUDA: tiles of images, channels and the hidden layer in part and
whole, sums in several parts, blocks in any order. test_cuda_norm.py has the sweeps."""

import functools

import pytest
import torch
from host_gpu import CUDA, Gpu, HostGpu
from norm_cases import Case, check, make, run

from se_kernels import batch_norm_squeeze_excite
from se_kernels.backends import cuda
from se_kernels.backends.cuda import library

pytestmark = [
    pytest.mark.native,
    pytest.mark.usefixtures("poisoned_outputs", "one_thread"),
    pytest.mark.skipif(cuda.why_not() is not None, reason=f"backend cuda: {cuda.why_not()}"),
    pytest.mark.skipif(
        library.native is None or library.native.DEVICE_TYPE != "cpu", reason="pretends to be GPUs"
    ),
]

kernel = functools.partial(batch_norm_squeeze_excite, backend="cuda")

# N, C, H, W and R; a tile is 64 images, channels or numbers of the hidden layer
SIZES = {
    "one tile": ((3, 9, 1, 3), 5),
    "whole tiles": ((64, 64, 1, 1), 64),
    "tiles in part": ((66, 131, 1, 2), 67),
}
# sums in one part, and in as many as there can be
GPUS = {"small": Gpu(multiprocessors=1, shared_bytes=9 << 10), "large": Gpu(multiprocessors=132)}


@pytest.fixture(scope="module")
def host():
    return HostGpu(CUDA)


def judge(case):
    inputs, dy = make(case)
    check(case, inputs, dy, run(kernel, inputs, dy, **case.variant))


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("size", SIZES)
def test_right_whatever_the_tiles(host, size, gpu):
    shape, reduced = SIZES[size]
    with host.gpu(GPUS[gpu]):
        for options in (
            dict(post="relu", residual=True),
            dict(pre="hardswish", act="relu", biases=(), layout="channels_last"),
            dict(dtype=torch.float64, training=False, pre="silu", gate="tanh"),
        ):
            judge(Case(shape, reduced, **options))


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_weights_of_any_type(host, weights):
    shape, reduced = SIZES["tiles in part"]
    for dtype in (torch.bfloat16, torch.float64):
        judge(Case(shape, reduced, dtype=dtype, weight_dtype=weights, norm_dtype=torch.float32))


@pytest.mark.parametrize("pre", ["identity", "silu"])
def test_the_same_bits_in_every_order(host, pre):
    """Parts of a sum are added in their order, whoever comes first."""
    shape, reduced = SIZES["tiles in part"]
    case = Case(shape, reduced, pre=pre, post="relu", residual=True)
    inputs, dy = make(case)
    with host.gpu(GPUS["large"]):
        with host.order(0):
            first = run(kernel, inputs, dy, **case.variant)
        for seed, resident in ((1, 1), (2, 3), (3, 0)):
            with host.order(seed, resident):
                results = run(kernel, inputs, dy, **case.variant)
            for name, result in results.items():
                assert torch.equal(result, first[name]), f"{name}, seed {seed}"


def test_weight_gradients_are_full_float32(host):
    """Of integers below 2^12, whose products tf32 would round."""
    generator = torch.Generator().manual_seed(0)
    images, channels, reduced = 66, 131, 67

    def drawn(*size):
        return torch.randint(-1500, 1500, size, generator=generator).float()

    de, z, da, h = (drawn(images, n) for n in (channels, channels, reduced, reduced))
    dw1, dw2 = torch.empty(reduced, channels), torch.empty(channels, reduced)
    db1, db2 = torch.empty(reduced), torch.empty(channels)
    x, tensors = torch.empty(images, channels, 1, 1), (de, da, h, z, dw1, dw2, db1, db2)
    library.native.weight_gradients(*(0, 0, None), False, x, dw1, *tensors)
    exact = da.double().T @ z.double(), de.double().T @ h.double(), da.sum(0), de.sum(0)
    # a product of 22 bits and a sum of 66 of them: 1e-7 of the largest, an ulp, is a few units
    for result, expected in zip((dw1, dw2, db1, db2), exact, strict=True):
        assert (result - expected).abs().max() <= 4 * 2.0**-24 * 66 * 1500**2
