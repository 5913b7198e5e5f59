"""The stand-in for CUDA: right kernels run right in every order, and each misuse is found.

Judged by kernels of its own, tests/cuda_on_host/selftest.cu.
"""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from host_gpu import ROOT, Gpu
from host_selftest import LIBRARY, LaunchError, Selftest

SANITIZED = "SE_KERNELS_SANITIZED" in os.environ

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(not LIBRARY.exists(), reason=f"`make cuda-on-host` makes {LIBRARY}"),
]


@pytest.fixture(scope="module")
def host() -> Selftest:
    return Selftest(LIBRARY)


# --- right kernels ------------------------------------------------------------------------------

ORDERS = [(seed, resident) for seed in (0, 1, 2, 3) for resident in (1, 3, 0)]


@pytest.mark.parametrize("seed, resident", ORDERS)
def test_blocks_sum_with_shuffles_and_shared_memory(host, seed, resident):
    """8 blocks of 256 threads; small integers, so that every sum is exact."""
    blocks, size = 8, 512
    numbers = np.random.default_rng(0).integers(-8, 9, (blocks, size))
    with host.order(seed, resident):
        sums, _ = host.launch(
            "block_sums", size, inputs=numbers.ravel(), outputs=blocks, blocks=blocks, threads=256
        )
    assert np.array_equal(sums, numbers.sum(1))


@pytest.mark.parametrize("seed, resident", ORDERS)
def test_tickets_are_each_taken_once_and_after_what_they_wait_for(host, seed, resident):
    with host.order(seed, resident):
        takers, counters = host.launch("tickets", 40, outputs=40, blocks=5)
    assert set(takers) <= set(range(5))
    assert list(counters) == [40 + 5, 20, 0, 0]  # taken, counted in, read too early


def takers(host, seed):
    with host.order(seed, 3):
        return tuple(host.launch("tickets", 40, outputs=40, blocks=5)[0])


def test_a_seed_draws_an_order(host):
    assert takers(host, 1) == takers(host, 1)
    assert len({takers(host, seed) for seed in range(1, 9)}) == 8
    first = {takers(host, seed)[0] for seed in range(1, 20)}
    assert len(first) > 2, "blocks start in an order that is drawn too"
    assert takers(host, 0)[0] == 0


def test_a_block_begins_with_shared_memory_that_is_not_a_number(host):
    with host.order(0, 1):  # the second block in the memory of the first
        values, _ = host.launch("unwritten", 64, outputs=2, blocks=2, shared_bytes=256)
    assert np.isnan(values).all()


def test_either_thread_of_a_race_comes_first_in_some_order(host):
    came = np.zeros((20, 64), bool)
    for seed in range(20):
        with host.order(seed), host.races("ignore"):
            came[seed] = np.isfinite(host.launch("races", shared_bytes=256)[0])
    assert came.any(0).all()
    assert not came.all(0).any()


def test_vectors_are_copied(host):
    numbers = np.arange(1000)
    copy, _ = host.launch("vectors", 1000, inputs=numbers, outputs=1000)
    assert np.array_equal(copy, numbers)


def test_launches_of_two_threads_do_not_meet(host):
    def sums(seed):
        numbers = np.random.default_rng(seed).integers(-8, 9, (8, 64))
        results, _ = host.launch("block_sums", 64, inputs=numbers.ravel(), outputs=8, blocks=8)
        return np.array_equal(results, numbers.sum(1))

    before = host.launches()
    with ThreadPoolExecutor(2) as threads:
        assert all(threads.map(sums, range(20)))
    assert host.launches() == before + 20
    assert host.last_launch().startswith("kernel block_sums with 8 blocks of 64 threads")


def test_conversions_round_as_eager_does(host):
    """Every number of 16 bits, and float32 numbers at, below and above the middle of each two."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    positive = halves[:0x7C00].astype(np.float32)
    middles = np.append((positive[1:] + positive[:-1]) / 2, [65520])
    middles = np.concatenate([middles, np.nextafter(middles, 0), np.nextafter(middles, np.inf)])
    brains = np.arange(1 << 16, dtype=np.uint32) << 16
    brains = np.concatenate([brains + low for low in (0, 0x7FFF, 0x8000, 0x8001)])
    with np.errstate(invalid="ignore"):  # signalling NaNs among them
        halves = halves.astype(np.float32)
    brains = brains.astype(np.uint32).view(np.float32)
    numbers = np.concatenate([halves, middles, -middles, brains], dtype=np.float32)
    size = len(numbers)
    results, counters = host.launch("conversions", size, inputs=numbers, outputs=3 * size)
    assert counters[0] == 0, "pairs differ from single numbers"
    words = results[:size].view(np.uint32)
    exact = torch.from_numpy(numbers)
    for dtype, bits, widened in (
        (torch.float16, words & 0xFFFF, results[size : 2 * size]),
        (torch.bfloat16, words >> 16, results[2 * size :]),
    ):
        expected = exact.to(dtype)
        got = torch.from_numpy(bits.astype(np.uint16).view(np.int16)).view(dtype)
        assert torch.equal(got.isnan(), exact.isnan())
        numeric = ~exact.isnan()
        assert torch.equal(got[numeric].view(torch.int16), expected[numeric].view(torch.int16))
        wide = torch.from_numpy(widened.copy())
        assert torch.equal(wide.isnan(), exact.isnan())
        assert torch.equal(
            wide[numeric].view(torch.int32), expected[numeric].float().view(torch.int32)
        )


# --- misuse -------------------------------------------------------------------------------------

# Each kernel of selftest.cu that is wrong, in blocks of 64 threads with 128 bytes of shared memory.
MISUSES = {
    "returns_before_a_barrier": "divergent barrier: .* returned",
    "waits_at_different_places": "deadlock.* 32 threads at a block_barrier, 32 .* shuffle_xor",
    "shuffles_without_a_lane": "divergent shuffle: thread 33",
    "shuffles_beyond_the_warp": "expected a mask from 0 to 31, got 32",
    "loads_misaligned": "load_keep: the address is not a multiple of 16 bytes",
    "stores_misaligned": "store_stream: the address is not a multiple of 16 bytes",
    "throws": "thread 7 of block . threw: seven",
    "asserts": "thread 9 of block .: assertion 'thread_index\\(\\) != 9' failed",
}


@pytest.mark.parametrize("kernel", MISUSES)
def test_misuse_is_an_error_that_names_the_launch(host, kernel):
    with host.order(0), pytest.raises(LaunchError) as raised:
        host.launch(kernel, 128, blocks=2)
    message = str(raised.value)
    assert message.startswith(f"kernel {kernel} with 2 blocks of 64 threads, 128 ")
    assert re.search(MISUSES[kernel], message), message
    # and the next launch is not harmed
    host.launch("vectors")


def test_a_wait_for_a_block_that_cannot_start_is_a_deadlock(host):
    wait = dict(kernel="waits_for_the_last_block", blocks=3)
    with host.order(0, 3):
        host.launch(**wait)
    with host.order(0, 2), pytest.raises(LaunchError, match=r"deadlock.*1 threads ask in vain"):
        host.launch(**wait)


PAST = dict(kernel="writes_past_its_shared_memory", size=128)


@pytest.mark.skipif(SANITIZED, reason="AddressSanitizer ends the process at the write")
def test_a_write_past_the_shared_memory_is_found_at_the_end(host):
    with pytest.raises(LaunchError, match="block 0 wrote past its shared memory"):
        host.launch(**PAST)


@pytest.mark.skipif(not SANITIZED, reason="needs AddressSanitizer")
def test_a_write_past_the_shared_memory_is_found_by_the_sanitizer():
    script = f"import test_cuda_on_host as t; t.Selftest(t.LIBRARY).launch(**{PAST!r})"
    path = os.pathsep.join([str(ROOT / "tests"), *sys.path])
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr
    assert "0 bytes to the right of 128-byte region" in result.stderr


@pytest.mark.parametrize(
    "shape, expected",
    [
        (dict(blocks=0), "a block"),
        (dict(threads=48), "whole warps"),
        (dict(threads=1056), "1024 threads at most"),
        (dict(shared_bytes=1025), "1024 bytes of shared memory at most"),
    ],
    ids=str,
)
def test_impossible_configurations(host, shape, expected):
    before = host.launches()
    with host.gpu(replace(Gpu(), shared_bytes=1024)):
        host.launch("vectors", shared_bytes=1024)
        with pytest.raises(LaunchError, match=f"invalid configuration: expected.*{expected}"):
            host.launch("vectors", **shape)
    assert host.launches() == before + 1
