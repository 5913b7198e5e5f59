"""The kernels' values and gradients against the definition in float64."""

import itertools
from dataclasses import replace

import pytest
import torch
from operator_cases import DTYPES, LAYOUTS, Case, check, check_against_eager, make, run

import se_kernels
from se_kernels.core.variants import ACTS, GATES, POSTS, SQUEEZES

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("poisoned_outputs")]


def check_kernel(kernel, device, case):
    inputs, dy = make(case, device)
    results = run(kernel, inputs, dy, **case.variant)
    check(case, inputs, dy, results)
    return results


@pytest.mark.skipif(
    se_kernels.available_backends()["cpu"] is not None, reason="the native core is not built"
)
def test_automatic_choice_is_the_native_backend():
    assert se_kernels.core.dispatch.choose(torch.empty(1, 1, 1, 1)) == "cpu"


@pytest.mark.sampled(every=26)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("squeeze", SQUEEZES)
def test_every_variant(kernel, device, squeeze, act, gate, dtype):
    for layout, residual, post in itertools.product(LAYOUTS, (False, True), POSTS):
        case = Case(
            shape=(2, 18, 3, 7),
            reduced=5,
            dtype=dtype,
            squeeze=squeeze,
            act=act,
            gate=gate,
            post=post,
            residual=residual,
            layout=layout,
        )
        check_kernel(kernel, device, case)


@pytest.mark.parametrize("biases", [(), ("b1",), ("b2",), ("b1", "b2")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_biases(kernel, device, dtype, biases):
    check_kernel(kernel, device, Case(dtype=dtype, biases=biases))


@pytest.mark.parametrize("act_slope", [0.0, 0.01, 0.5, -0.25, 1])
def test_act_slope(kernel, device, act_slope):
    check_kernel(kernel, device, Case(act="leaky_relu", act_slope=act_slope))


# Vectors are of 2 to 32 elements: sizes on both sides of each, as pixels and as channels.
SIZES = [
    # (N, C, H, W), R
    ((1, 1, 1, 1), 1),
    ((3, 1, 1, 1), 2),
    ((1, 7, 1, 1), 1),
    ((5, 2, 1, 3), 1),
    ((2, 33, 1, 1), 17),
    *[((2, 3, 1, p), 2) for p in (2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65)],
    *[((2, c, 2, 3), 2) for c in (2, 4, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65)],
    *[((3, 20, 2, 2), r) for r in (1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33)],
    *[((n, 12, 3, 3), 4) for n in (1, 3, 4, 5, 8, 9, 19)],
    ((1, 6, 23, 29), 2),
    ((1, 2, 61, 67), 1),  # more pixels than one partial sum takes
]


@pytest.mark.sampled(every=13)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape, reduced", SIZES)
def test_sizes(kernel, device, shape, reduced, layout, dtype):
    case = Case(shape=shape, reduced=reduced, dtype=dtype, layout=layout)
    check_kernel(kernel, device, case)
    tail = replace(case, squeeze="avgmax", residual=True, post="relu", act="silu")
    check_kernel(kernel, device, tail)


@pytest.mark.sampled(every=13)
@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_of_another_dtype(kernel, device, dtype, weight_dtype):
    for layout, squeeze in itertools.product(LAYOUTS, SQUEEZES):
        case = Case(
            shape=(5, 37, 3, 13),
            reduced=9,
            dtype=dtype,
            weight_dtype=weight_dtype,
            squeeze=squeeze,
            residual=True,
            post="relu",
            layout=layout,
        )
        check_kernel(kernel, device, case)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_of_a_convolution(kernel, device, layout):
    case = Case(layout=layout)
    inputs, dy = make(case, device)
    flat = run(kernel, inputs, dy, **case.variant)
    for name in ("w1", "w2"):
        inputs[name] = inputs[name][:, :, None, None]
    for memory_format in LAYOUTS.values():
        weights = {n: inputs[n].contiguous(memory_format=memory_format) for n in ("w1", "w2")}
        results = run(kernel, {**inputs, **weights}, dy, **case.variant)
        for name, result in results.items():
            if name in ("dw1", "dw2"):
                assert result.shape == inputs[name[1:]].shape
            assert torch.equal(result.view(flat[name].shape), flat[name]), name


# The stages of SE-ResNet-50, and one of MobileNetV3 with C and R that fill no vector.
REALISTIC = [
    ((2, 256, 56, 56), 16),
    ((2, 512, 28, 28), 32),
    ((3, 1024, 14, 14), 64),
    ((4, 2048, 7, 7), 128),
    ((3, 72, 28, 28), 18),
]


@pytest.mark.sampled(every=0, on_host=7)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape, reduced", REALISTIC)
def test_realistic_sizes_beside_eager(kernel, device, shape, reduced, layout, dtype):
    case = Case(
        shape=shape, reduced=reduced, dtype=dtype, layout=layout, residual=True, post="relu"
    )
    inputs, dy = make(case, device)
    check_against_eager(case, inputs, dy, run(kernel, inputs, dy, **case.variant))


@pytest.mark.parametrize("name", ["y", "dx", "dw1", "dw2", "db1", "db2", "dresidual"])
def test_the_judge_notices_half_a_percent(kernel, device, name):
    case = Case(shape=(2, 18, 3, 7), reduced=5, residual=True)
    inputs, dy = make(case, device)
    results = run(kernel, inputs, dy, **case.variant)
    results[name] = results[name].clone()  # dresidual is dy itself
    largest = results[name].abs().argmax()
    results[name].view(-1)[largest] *= 1.005
    with pytest.raises(AssertionError, match=f"^{name}: 1 of"):
        check(case, inputs, dy, results)
