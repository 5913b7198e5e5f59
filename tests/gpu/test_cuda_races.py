"""Races of CUDA kernels: each rule of PTX's memory model that orders accesses is known, and what
does not order them is a race. ``make races`` builds what finds them, and runs the kernels' tests.

Judged by kernels of its own, tests/cuda_on_host/selftest_races.cu, and by the races that the
kernels of csrc/cuda/ once had.
"""

import functools
import re

import pytest
from host_gpu import CUDA, ROOT, Gpu, HostGpu
from host_selftest import LIBRARY, LaunchError, Selftest
from mutants import Mutants
from operator_cases import Case, check, make, run
from test_cuda import kernel

pytestmark = pytest.mark.skipif(
    not (LIBRARY.exists() and Selftest(LIBRARY).finds_races), reason="`make races` finds them"
)

SOURCE = ROOT / "tests" / "cuda_on_host" / "selftest_races.cu"
READ, WRITE = "read by thread", "write by thread"


def two(first, second, where=r"byte [0-9]+ of the shared memory of block [01]"):
    """Two accesses in either order, as an expression."""
    orders = f"{first}\\b.*; {second}\\b|{second}\\b.*; {first}\\b"
    return f"race: two accesses of {where}: ({orders})"


def in_global_memory(first, second):
    return two(first, second, "global memory at 0x[0-9a-f]+")


# kernel: what it ends with, for each size that lacks something; and the sizes that lack nothing
EXPECTED = {
    "neighbours": ({0: two(READ, WRITE), 1: two(READ, WRITE)}, [2]),
    "lanes": ({0: two(f"{WRITE} 0", f"{READ} 1")}, [1]),
    "bytes": ({0: two(f"{WRITE} [0-3]", f"{WRITE} [0-3]")}, [1]),
    "counted": (
        dict.fromkeys([0, 1, 2], in_global_memory(f"{WRITE} 0 of block 0", f"{READ} 0 of block 1")),
        [3],
    ),
    "counted_for_all": (
        dict.fromkeys([0, 1, 2], in_global_memory(f"{WRITE} 63 of", f"{READ} 63 of")),
        [3],
    ),
    "last_to_come": ({0: in_global_memory(WRITE, READ)}, [1]),
    "counter_read": ({0: in_global_memory(f"atomic {WRITE} 0", f"{READ} 1")}, [1]),
}
RACES = [(name, size) for name, (races, _) in EXPECTED.items() for size in races]
CLEAN = [(name, size) for name, (_, clean) in EXPECTED.items() for size in clean]
SEEDS = (0, 1, 2, 3)


def shape_of(name):
    return dict(blocks=2) if name in ("counted", "counted_for_all", "last_to_come") else {}


@pytest.fixture(scope="module")
def selftest() -> Selftest:
    return Selftest(LIBRARY)


def launch(selftest, name, size):
    return selftest.launch(name, size, **shape_of(name), shared_bytes=512)


@pytest.mark.parametrize("name, size", RACES)
def test_what_is_not_ordered_is_a_race(selftest, name, size):
    """In every order that is drawn, though the two accesses are seldom close."""
    for seed in SEEDS:
        with selftest.order(seed), pytest.raises(LaunchError) as raised:
            launch(selftest, name, size)
        assert re.search(EXPECTED[name][0][size], str(raised.value)), str(raised.value)


@pytest.mark.parametrize("name, size", CLEAN)
def test_what_is_ordered_is_none(selftest, name, size):
    for seed in SEEDS:
        with selftest.order(seed):
            launch(selftest, name, size)


def test_every_kernel_has_a_race_and_a_twin_without():
    named = set(re.findall(r"SE_NAMED\((\w+)\)", SOURCE.read_text()))
    assert named == {*EXPECTED, "too_many_barriers"}
    assert all(races and clean for races, clean in EXPECTED.values())


def line_of(text):
    (line,) = (i for i, line in enumerate(SOURCE.read_text().splitlines(), 1) if text in line)
    return f"selftest_races.cu:{line}"


def test_a_race_names_both_lines_and_those_that_call_them(selftest):
    """And the threads, the blocks and the launch; the next launch is not harmed."""
    with selftest.order(0), pytest.raises(LaunchError) as raised:
        launch(selftest, "lanes", 0)
    write, call = line_of("void put(float* to)"), line_of("put(numbers());")
    read = line_of("p.out[0] = numbers()[0];")
    assert str(raised.value) == (
        "kernel lanes with 1 blocks of 64 threads, 512 bytes of shared memory each: race: two "
        "accesses of byte 64 of the shared memory of block 0: write by thread 0 of block 0, "
        f"{write}, called at {call}; read by thread 1 of block 0, {read}"
    )
    launch(selftest, "lanes", 1)


# --- what a kernel would be without one of its orders (mutants.py) --------------------------------


def test_an_order_is_seen_or_covered_or_neither(selftest):
    launches = {
        name: functools.partial(launch, selftest, name, size)
        for name, size in (("neighbours", 2), ("too_many_barriers", 0))
    }
    mutants = Mutants(selftest, launches)
    first, second, third = (
        f"barrier {line_of(f'block_barrier();  // the {which}')}"
        for which in ("first", "second", "third")
    )
    before_reads, after_reads = (
        f"barrier {line_of(f'if (p.size >= {size}) block_barrier();  //')}" for size in (1, 2)
    )
    assert set(mutants.places) == {first, second, third, before_reads, after_reads}
    assert mutants.users[first] == ["too_many_barriers"]
    write, read = line_of("numbers()[i] = 1;"), line_of("p.out[i] = numbers()[next];")
    assert mutants.seen(before_reads) == [f"{write} and {read}"]
    assert mutants.seen(after_reads) == [f"{read} and {line_of('numbers()[i] = 2;')}"]
    assert mutants.covered(first) == [second]
    assert mutants.covered(second) == [first]
    assert mutants.seen(first) == mutants.seen(third) == mutants.covered(third) == []
    launch(selftest, "too_many_barriers", 0)  # nothing is left out from here on
    with pytest.raises(LaunchError):
        launch(selftest, "neighbours", 1)


# --- races that the kernels once had --------------------------------------------------------------


def judge(case):
    inputs, dy = make(case)
    check(case, inputs, dy, run(kernel, inputs, dy, **case.variant))


@pytest.fixture(scope="module")
def host() -> HostGpu:
    host = HostGpu(CUDA)
    assert host.finds_races
    return host


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_gates_are_stored_by_one_split_of_the_pixels(host, layout):
    """All splits of a tile scale by the same gates; each once stored them."""
    case = Case((2, 8, 48, 48), reduced=2, layout=layout)
    with host.gpu(Gpu(shared_bytes=9 << 10, shared_bytes_in_all=18 << 10)):
        judge(case)
