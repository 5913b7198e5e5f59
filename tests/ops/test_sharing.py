"""Sharing among threads: whole images, one image by its channels, neither ever changing a result
from run to run; and the stores that large outputs go through."""

import math
from dataclasses import replace

import pytest
import torch
from operator_cases import LAYOUTS, Case, check, make, run

from se_kernels import reference
from se_kernels.core.precision import compute_dtype

pytestmark = [
    pytest.mark.native,
    pytest.mark.sampled(every=0, on_host=0),  # they share nothing among threads
    pytest.mark.usefixtures("poisoned_outputs"),
]

# Some ten thousand elements are worth a thread, so that fewer than these are left to one.
SHARED = [
    # (N, C, H, W), R
    ((37, 96, 7, 7), 24),  # groups of images within a thread, one image left over
    ((64, 83, 5, 7), 9),  # several whole groups a thread
    ((1, 128, 37, 37), 5),  # one image, in parts
    ((3, 96, 25, 27), 7),  # one image a thread, and one for all
    ((1, 2, 300, 301), 1),  # as many channels as threads, or fewer
    ((1, 1, 400, 411), 3),
    ((1, 40000, 1, 2), 2),  # as many pixels as threads, or fewer
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("shape, reduced", SHARED)
def test_any_number_of_threads(kernel, device, threads, shape, reduced, count, layout, dtype):
    for squeeze, residual, post in [("avg", False, "none"), ("avgmax", True, "relu")]:
        case = Case(
            shape=shape,
            reduced=reduced,
            dtype=dtype,
            squeeze=squeeze,
            residual=residual,
            post=post,
            layout=layout,
        )
        inputs, dy = make(case, device)
        with threads(count):
            results = run(kernel, inputs, dy, **case.variant)
        check(case, inputs, dy, results)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("shape, reduced", SHARED)
def test_the_same_bits_in_every_run(kernel, device, threads, shape, reduced, count, layout):
    case = Case(shape=shape, reduced=reduced, squeeze="avgmax", layout=layout)
    inputs, dy = make(case, device)
    with threads(count):
        first = run(kernel, inputs, dy, **case.variant)
        for _ in range(20):
            for name, result in run(kernel, inputs, dy, **case.variant).items():
                assert torch.equal(result, first[name]), name


PARTED = Case(shape=(1, 96, 37, 37), reduced=5, squeeze="max")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("count", [2, 3])
def test_a_maximum_in_the_part_of_any_thread(kernel, device, threads, count, layout):
    case = replace(PARTED, layout=layout)
    inputs, dy = make(case, device)
    inputs["x"].round_()  # ties within a part and between parts
    with threads(count):
        check(case, inputs, dy, run(kernel, inputs, dy, **case.variant))
    for row in (0, 13, 20, 36):
        x = inputs["x"].clone()
        x[0, :, row, 7] = 9.0
        with threads(count):
            results = run(kernel, {**inputs, "x": x}, dy, **case.variant)
        check(case, {**inputs, "x": x}, dy, results)
        x[0, 3, row, 7] = math.nan
        with threads(count):
            assert kernel(**{**inputs, "x": x}, **case.variant).isnan().all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("part", [slice(0, 18), slice(20, 37)])
def test_a_part_of_nothing_but_minus_infinity(kernel, device, threads, part, layout):
    case = replace(PARTED, layout=layout)
    inputs, _ = make(case, device)
    inputs["x"][0, :, part] = -math.inf
    with threads(2):
        y = kernel(**inputs, **case.variant)
    expected = reference.squeeze_excite(**inputs, **case.variant)
    assert expected.isfinite().any()
    # sums in another order
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)


def test_small_calls_do_not_depend_on_the_number_of_threads(kernel, device, threads):
    case = Case(shape=(4, 16, 8, 8), reduced=4)
    inputs, dy = make(case, device)
    results = []
    for count in (1, 2, 4):
        with threads(count):
            results.append(run(kernel, inputs, dy, **case.variant))
    for other in results[1:]:
        for name, result in other.items():
            assert torch.equal(result, results[0][name]), name
    check(case, inputs, dy, results[0])


# 16 MB and more, where rows are long or fill whole cache lines: stores pass the caches by. Elements
# before and after the aligned part of a row are stored one at a time; here they are.
STREAMED = [
    ((8, 67, 88, 91), "nchw", torch.float32),
    ((8, 67, 125, 127), "nchw", torch.bfloat16),
    ((8, 37, 88, 91), "nchw", torch.float64),
    ((8, 131, 63, 65), "channels_last", torch.float32),
    ((8, 259, 63, 65), "channels_last", torch.float16),
    ((8, 64, 91, 93), "channels_last", torch.float32),
    ((8, 67, 91, 93), "channels_last", torch.float32),  # short odd rows: the plain stores
]


@pytest.mark.parametrize("shape, layout, dtype", STREAMED)
def test_large_outputs(kernel, device, threads, shape, layout, dtype):
    """Image by image as each image alone, which is too small to be stored so."""
    case = Case(shape=shape, reduced=3, dtype=dtype, layout=layout, residual=True, post="relu")
    inputs, dy = make(case, device)
    assert dy.numel() * dy.element_size() >= 16 << 20
    with threads(2):
        results = run(kernel, inputs, dy, **case.variant)
    for n in range(shape[0]):
        image = slice(n, n + 1)
        part = {**inputs, "x": inputs["x"][image], "residual": inputs["residual"][image]}
        alone = run(kernel, part, dy[image], need=["x", "residual"], **case.variant)
        for name, expected in alone.items():
            # sums in another order: some roundings of theirs, and one of the outputs' dtype
            sums = torch.finfo(compute_dtype(inputs["x"], inputs["w1"])).eps
            tolerance = (16 * sums + torch.finfo(dtype).eps) * expected.abs().max().item()
            result = results[name][image]
            torch.testing.assert_close(result, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_large_outputs_beside_an_offset_input(kernel, device, layout):
    """x and dy are not aligned to a vector, y and dx are."""
    case = Case(shape=(2, 128, 128, 129), reduced=3, layout=layout)
    inputs, dy = make(case, device)
    expected = run(kernel, inputs, dy, **case.variant)
    shifted = {}
    for name, t in {"x": inputs["x"], "dy": dy}.items():
        shifted[name] = t.new_empty(t.numel() + 1).as_strided(t.shape, t.stride(), 1).copy_(t)
    results = run(kernel, {**inputs, "x": shifted["x"]}, shifted["dy"], **case.variant)
    for name, result in results.items():
        # a kernel may sum in another order there: some roundings
        tolerance = 16 * torch.finfo(case.dtype).eps * expected[name].abs().max().item()
        torch.testing.assert_close(result, expected[name], rtol=0, atol=tolerance)
