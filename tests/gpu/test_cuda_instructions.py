"""What the CUDA kernels execute: `make cuda`, from the code for compute capability 9.0.

The machine code is run block by block (tests/sass), so it is also a test of what nvcc made of the
sources: its results are compared with the definition.
"""

import os
from functools import cache

import host_gpu
import numpy as np
import pytest
import torch
from host_gpu import CUDA, Gpu, HostGpu
from sass import launches, record
from sass.machine import Machine
from sass.memory import ProcessMemory

from benchmarks import instructions
from se_kernels.backends.cuda import block

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("SE_KERNELS_CUDA_BUILD") is None, reason="only for `make cuda`"
    ),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
ROUNDING = 0.02  # of a count: nvcc's releases schedule differently


@cache
def host() -> HostGpu:
    host_gpu.lend_to_the_cuda_backend()
    return HostGpu(CUDA)


@cache
def code() -> record.Code:
    paths = record.objects()
    assert paths, "expected the object files of `make cuda`"
    return record.Code(paths)


@cache
def recorded() -> dict[tuple, dict]:
    _, lines = instructions.recorded()
    return {tuple(line[k] for k in ("operation", "stage", "layout")): line for line in lines}


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("side", [8, 7])
def test_the_machine_code_computes_the_block(layout, side, monkeypatch):
    """Forward, every block of the launch in turn. y is rounded once, so it may be
    off by half a unit in the last of 8 bits; s, in float32, by the sums' order."""
    n, channels, reduced = 3, 16, 4
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, channels, side, side, generator=generator).bfloat16()
    x = x.to(memory_format=torch.channels_last) if layout == "nhwc" else x
    w1 = torch.randn(reduced, channels, generator=generator)
    w2 = torch.randn(channels, reduced, generator=generator)
    spaces = []

    def workspace_of(*arguments, make=block.workspace_of):
        spaces.append(make(*arguments).zero_())
        return spaces[-1]

    here = host()
    monkeypatch.setattr(block, "workspace_of", workspace_of)
    with here.gpu(Gpu(threads=256)), here.recording() as found:
        outputs = block.forward(x, w1, w2, None, None, None, *launches.PLAIN)
    y, _, z, a, s = outputs
    for out in (y, z, a, s):
        out.fill_(float("nan"))
    launch = launches.Launch(*found[0])
    function = code().functions[record.kernel_named(launch.kernel, x.dtype, layout, False)]
    tensors = [(t.data_ptr(), t.numel() * t.element_size()) for t in (x, w1, w2, *outputs, *spaces)]
    memory = ProcessMemory(tensors)
    for index in range(launch.blocks):
        Machine(function.code, launch, memory, index, function.tables).run()

    wide = x.double()
    mean = wide.mean((2, 3))
    gate = torch.sigmoid(torch.relu(mean @ w1.double().T) @ w2.double().T)
    torch.testing.assert_close(s.double(), gate, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        y.double(), wide * gate[:, :, None, None], rtol=2**-8 + 1e-4, atol=1e-6
    )
    assert torch.isfinite(z).all()
    assert torch.isfinite(a).all()


def test_the_recorded_instructions_are_of_these_kernels():
    """`make instructions` after a change of csrc/cuda."""
    assert instructions.recorded()[0] == instructions.fingerprint()


CASES = [
    ("forward", "conv4", "nhwc"),
    ("forward", "conv5", "nchw"),
    ("forward tail", "conv4", "nchw"),
    ("forward", "conv3", "nhwc"),
    ("backward", "conv4", "nchw"),
    ("backward tail", "conv4", "nhwc"),
    ("norm_moments", "conv4", "nhwc"),
    ("norm_scale", "conv5", "nchw"),
    ("norm_scale_backward", "conv4", "nchw"),
    ("norm_squeeze_backward", "conv4", "nhwc"),
]


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_no_kernel_executes_more_than_recorded(case):
    """Today's counts are the ceilings; benchmarks/instructions.py has the budgets."""
    with np.errstate(all="ignore"):
        line = record.record_one(code(), host(), *case)
    before = recorded()[case]
    print(line["kernel"], line["instructions"], "budget", instructions.OPERATIONS[case[0]].budget)
    for name in ("instructions", "divisions", "shuffles", "barriers", "local"):
        assert line[name] <= before[name] * (1 + ROUNDING) + 0.01, name
    assert line["resident"] >= before["resident"]


def test_nothing_recorded_touches_local_memory():
    assert [key for key, line in recorded().items() if line["local"]] == []


def test_inner_loops_over_x_divide_nowhere():
    """Of the loops that are run, those that load or store 16 bytes a lane."""
    dividing = {
        line["kernel"]
        for line in recorded().values()
        for loop in line["loops"]
        if loop["per_wide"] is not None and loop["divisions"]
    }
    assert dividing == set()
