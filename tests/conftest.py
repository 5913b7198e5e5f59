"""Fixtures of the operator tests."""

import contextlib
import os

import pytest

# Before torch loads OpenMP: waiting threads of one worker must not spin on the cores of another.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import torchvision_stub  # noqa: F401

# Before Triton decorates a kernel: without a GPU its interpreter runs them, on the CPU.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from host_gpu import lend_to_the_cuda_backend
from interpreter import interpreted

import se_kernels

if not torch.cuda.is_available():
    lend_to_the_cuda_backend()

# Every backend but the definition itself: one registered in se_kernels joins the whole suite.
KERNELS = [name for name in se_kernels.available_backends() if name != "reference"]


def pytest_collection_modifyitems(config, items):
    """``sampled(every=n)``: on Triton each n-th case of a test only, the first too.

    Interpreted, a kernel takes some thousand times as long; compiled, each variant first takes a
    second. n shares no factor with the numbers of parameters, so every value of each parameter
    occurs. With 0 the interpreter runs none. SE_KERNELS_EVERY_CASE=1 runs all, on Triton too.
    """
    if os.environ.get("SE_KERNELS_EVERY_CASE") == "1":
        return
    seen, dropped = {}, []
    for item in items:
        marker = item.get_closest_marker("sampled")
        backend = getattr(item, "callspec", None) and item.callspec.params.get("backend")
        if marker is None or backend != "triton":
            continue
        count = seen[item.function] = seen.get(item.function, -1) + 1
        every = marker.kwargs["every"]
        if count % every if every else interpreted(backend):
            dropped.append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in set(dropped)]


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU: torch finds none")


@pytest.fixture(scope="session", params=KERNELS)
def backend(request) -> str:
    """The name of a backend with kernels; skips, with the reason, where it cannot be used."""
    reason = se_kernels.available_backends()[request.param]
    if reason is not None:
        pytest.skip(f"backend {request.param}: {reason}")
    return request.param


@pytest.fixture(scope="session")
def device(backend) -> str:
    """The device whose tensors ``backend`` takes in these tests."""
    on_gpu = backend in ("cuda", "triton") and torch.cuda.is_available()
    return "cuda" if on_gpu else "cpu"


@pytest.fixture(scope="session")
def kernel(backend):
    """``se_kernels.squeeze_excite`` on ``backend``."""

    def squeeze_excite(*args, **options):
        return se_kernels.squeeze_excite(*args, **options, backend=backend)

    return squeeze_excite


@pytest.fixture(scope="module")
def poisoned_outputs():
    """torch.empty gives NaN, so that an element which no kernel writes is noticed."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def threads():
    """``with threads(n):`` runs with n threads."""

    @contextlib.contextmanager
    def running(count):
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    return running


@pytest.fixture
def one_thread(threads):
    """For small images: threads of one test wait long for each other beside other tests."""
    with threads(1):
        yield
