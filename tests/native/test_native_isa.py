"""Every instruction set that the CPU kernels are built for, each in a process of its own."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

import se_kernels
from se_kernels.backends import cpu

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(cpu.why_not() is not None, reason=f"no native core: {cpu.why_not()}"),
]

TESTS = Path(__file__).parents[1]
INSTRUCTION_SETS = ("baseline", "avx2", "avx512")

# Values, gradients and conversions in every dtype; not all variants, whose code is common.
SUBSET = [
    *([] if "SE_KERNELS_SANITIZED" in os.environ else ["ops/test_conversions.py"]),
    "ops/test_squeeze_excite.py::test_sizes",
    "ops/test_squeeze_excite.py::test_weights_of_another_dtype",
    "ops/test_odd_tensors.py::test_nan_anywhere_is_the_maximum",
    "ops/test_odd_tensors.py::test_ties_of_a_maximum_share_its_gradient_evenly",
    "ops/test_sharing.py::test_large_outputs",
]


def run_python(isa, *arguments):
    package = Path(se_kernels.__file__).parents[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")]),
        "SE_KERNELS_CPU_ISA": isa,
        "MALLOC_PERTURB_": "165",  # glibc: fresh memory, the kernels' scratch too, is not zero
    }
    environment.pop("PYTEST_ADDOPTS", None)
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        cwd=Path(sys.prefix),  # not the checkout, which would hide another copy of the package
        capture_output=True,
        text=True,
        timeout=500,
    )


@functools.cache
def instruction_set(isa):
    program = "from se_kernels.backends import cpu; print(cpu.instruction_set())"
    result = run_python(isa, "-c", program)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_instruction_set(isa):
    if isa == cpu.instruction_set():
        pytest.skip(f"the other tests run {isa}")
    if instruction_set(isa) != isa:
        pytest.skip(f"this processor, or this build, has no {isa}")
    tests = [str(TESTS / name) for name in SUBSET]
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "pythonpath=", "-k", "cpu"]
    result = run_python(isa, "-m", "pytest", *options, *tests)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert " passed" in result.stdout


def test_the_widest_is_chosen_and_a_lower_one_can_be_named():
    widest = cpu.instruction_set()
    assert widest in INSTRUCTION_SETS
    named = {isa: instruction_set(isa) for isa in INSTRUCTION_SETS}
    assert named["baseline"] == "baseline"
    # one that is not here gives the next lower one that is
    order = INSTRUCTION_SETS.index
    assert all(order(chosen) <= order(isa) for isa, chosen in named.items())


@pytest.mark.parametrize("isa", ["", "AVX2"])
def test_an_unknown_name_gives_what_runs_anywhere(isa):
    assert instruction_set(isa) == "baseline"
