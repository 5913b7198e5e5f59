"""Fixtures of the operator tests."""

import contextlib
import os
from pathlib import Path

import pytest

# Before torch loads OpenMP: waiting threads of one worker must not spin on the cores of another.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import torchvision_stub  # noqa: F401

# Before Triton decorates a kernel: without a GPU its interpreter runs them, on the CPU.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from case_selection import EVERY_CASE, select
from host_gpu import is_on_host, lend_to_the_cuda_backend
from interpreter import interpreted
from operators import OPERATORS, Operator

import se_kernels

if not torch.cuda.is_available():
    lend_to_the_cuda_backend()

QUICK_ROOMS = ("ops", "autograd", "modules", "surgery")
# these compile, start processes or load whole networks
NOT_QUICK = (
    "test_compile",
    "test_norm_compile",
    "test_distributed",
    "test_norm_distributed",
    "test_fuse_models",
    "test_integration_guide",
    "test_op_gradients",
    "test_tools_of_torch",
)

# Every backend but the definition itself: one registered in se_kernels joins the whole suite.
KERNELS = [name for name in se_kernels.available_backends() if name != "reference"]


def pytest_collection_modifyitems(config, items):
    """Keeps the cases that ``case_selection`` chooses, for each test and backend.

    ``sampled(every=n, on_host=m)`` lets one in n run on Triton at most: interpreted, a kernel takes
    some thousand times as long; compiled, each variant first takes a second. With 0 the interpreter
    runs none. One in m on the stand-in for CUDA. Of the ``slow`` none. SE_KERNELS_EVERY_CASE=1 runs
    all.
    """
    mark_quick(items)
    if EVERY_CASE:
        return
    groups = {}
    for item in items:
        if item.get_closest_marker("slow"):
            continue
        backend = getattr(item, "callspec", None) and item.callspec.params.get("backend")
        key = item.location[0], item.function, getattr(item, "cls", None), backend
        groups.setdefault(key, []).append(item)
    kept = set()
    for (*_, backend), cases in groups.items():
        marker = cases[0].get_closest_marker("sampled")
        sampling = marker.kwargs if marker is not None and backend is not None else {"every": 1}
        kept.update(select(cases, one_in(backend, **sampling)))
    dropped = [item for item in items if item not in kept]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item in kept]


def mark_quick(items) -> None:
    """Marks ``quick`` the first case of each test of the ops, layers and surgery, on the CPU."""
    seen = set()
    for item in items:
        path = Path(item.location[0])
        backend = getattr(item, "callspec", None) and item.callspec.params.get("backend")
        test = path, item.function
        if path.parent.name not in QUICK_ROOMS or path.stem in NOT_QUICK or test in seen:
            continue
        if backend in (None, "cpu") and not item.get_closest_marker("slow"):
            seen.add(test)
            item.add_marker("quick")


def one_in(backend: str, every: int, on_host: int = 1) -> int:
    """One case in how many ``backend`` runs; none with 0."""
    if backend == "triton":
        return every if every != 0 or interpreted(backend) else 1
    return on_host if is_on_host(backend) else 1


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


@pytest.fixture
def installed_backend(backend) -> str:
    """``backend``, where other processes have it too."""
    if is_on_host(backend):
        pytest.skip("backend cuda: the stand-in is lent to the processes of the tests only")
    return backend


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


@pytest.fixture(scope="session")
def norm_kernel(backend):
    """``se_kernels.batch_norm_squeeze_excite`` on ``backend``."""

    def batch_norm_squeeze_excite(*args, **options):
        return se_kernels.batch_norm_squeeze_excite(*args, **options, backend=backend)

    return batch_norm_squeeze_excite


@pytest.fixture(scope="session", params=OPERATORS)
def op(request, backend) -> Operator:
    """The block, or it behind a norm, on ``backend``."""
    return OPERATORS[request.param].on(backend)


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
