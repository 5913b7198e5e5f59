"""Traffic of CUDA kernels without a GPU: what the stand-in counts (docs/traffic.md), and ceilings.

The counts are judged by kernels of known traffic, tests/cuda_on_host/selftest_traffic.cu.
"""

import functools
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from benchmark_commands import ENVIRONMENT_FIELDS
from host_gpu import CUDA, ROOT, Gpu, HostGpu
from host_selftest import LIBRARY, Selftest

from benchmarks import records
from benchmarks.block import STAGES, Shape
from benchmarks.inputs import MEMORY_FORMATS
from benchmarks.traffic import BATCHES, GPU, KERNELS, MASK, Case, count_kernel
from se_kernels.backends import cuda

pytestmark = pytest.mark.skipif(
    not (LIBRARY.exists() and Selftest(LIBRARY).finds_races), reason="`make races` counts it"
)


@pytest.fixture(scope="module")
def count():
    """``count(kernel, size, **shape)``: the traffic of that launch, of one warp by default."""
    host = Selftest(LIBRARY)

    def counted(kernel, size=0, **shape):
        options = dict(inputs=np.zeros(4096), outputs=4096, threads=32, shared_bytes=1 << 15)
        with host.counting() as traffic:
            host.launch(kernel, size, **options | shape)
        (launch,) = traffic.launches()
        return launch

    return counted


def counts(requests, lanes, bytes, units, least, unit="sectors"):
    return {
        "requests": requests,
        "lanes": lanes,
        "bytes": bytes,
        unit: units,
        f"least_{unit}": least,
    }


# --- global memory: sectors of 32 bytes ---------------------------------------------------------


def test_vectors_side_by_side_take_the_fewest_sectors(count):
    """512 numbers by two warps: two rounds each of 32 lanes x 16 bytes, 16 sectors."""
    launch = count("copies_vectors", 512, threads=64)
    assert launch["vector_loads"] == launch["vector_stores"] == counts(4, 128, 2048, 64, 64)
    assert launch["loads"] == launch["stores"] == counts(0, 0, 0, 0, 0)


def test_misaligned_numbers_take_a_sector_more(count):
    """128 bytes from the fourth on lie in 5 sectors."""
    launch = count("copies_from_the_second")
    assert launch["loads"] == counts(1, 32, 128, 5, 4)
    assert launch["stores"] == counts(1, 32, 128, 4, 4)


@pytest.mark.parametrize("stride, sectors", [(1, 4), (2, 8), (3, 12), (8, 32), (9, 32)])
def test_strided_numbers_take_each_a_part_of_a_sector(count, stride, sectors):
    """32 numbers from the first to the last: ceil(32 * stride / 8) sectors, at most one each."""
    launch = count("copies_every_so_many", stride)
    assert launch["loads"] == launch["stores"] == counts(1, 32, 128, sectors, 4)


@pytest.mark.parametrize("lanes, sectors", [(1, 1), (5, 1), (9, 2), (33, 5)])
def test_a_warp_in_part(count, lanes, sectors):
    """33: the second warp with one lane is a request of its own."""
    launch = count("copies_so_many", lanes, threads=64)
    requests = 1 + (lanes > 32)
    assert launch["loads"] == counts(requests, lanes, 4 * lanes, sectors, sectors)


def test_a_number_for_all_lanes_is_asked_for_once(count):
    launch = count("copies_the_first")
    assert launch["loads"] == counts(1, 32, 4, 1, 1)


def test_lanes_that_go_round_more_often_do_not_shift_the_others(count):
    """Three rows of three requests of all lanes, then one of the two that go round again."""
    launch = count("copies_rows", 2)
    bytes = 3 * (3 * 128 + 2 * 4)
    assert launch["loads"] == counts(12, 3 * (96 + 2), bytes, 3 * (12 + 1), 3 * (12 + 1))


def test_bytes_of_a_tensor_are_asked_for_and_come_once():
    host = Selftest(LIBRARY)
    with host.counting() as traffic:
        host.launch("copies_the_first", threads=64)
    moved = traffic.moved()
    assert (moved.read, moved.read_once) == (2 * 4, 32)  # by two warps, in one sector
    assert (moved.written, moved.written_once) == (64 * 4, 64 * 4)


# --- shared memory: wavefronts of 32 banks of 4 bytes -------------------------------------------


@pytest.mark.parametrize(
    "stride, wavefronts", [(0, 1), (1, 1), (2, 2), (3, 1), (8, 8), (32, 32), (33, 1)]
)
def test_bank_conflicts_of_numbers(count, stride, wavefronts):
    """As many as lanes meet in a bank, gcd(stride, 32); with 0 all want one word."""
    launch = count("touches_floats", stride)
    expected = counts(1, 32, 128, wavefronts, 1, "wavefronts")
    assert launch["shared_loads"] == launch["shared_stores"] == expected


@pytest.mark.parametrize("stride, wavefronts", [(1, 1), (2, 1), (4, 2), (64, 32)])
def test_halves_of_a_word_do_not_meet(count, stride, wavefronts):
    """Lanes stride / 2 words apart."""
    launch = count("touches_halves", stride)
    assert launch["shared_loads"] == counts(1, 32, 64, wavefronts, 1, "wavefronts")


@pytest.mark.parametrize(
    "kernel, bytes, stride, wavefronts",
    [
        ("touches_doubles", 8, 1, 2),
        ("touches_doubles", 8, 2, 4),  # 16 lanes, 16 bytes apart: two meet
        ("touches_doubles", 8, 16, 32),  # every lane in the same two banks
        ("touches_vectors", 16, 1, 4),
        ("touches_vectors", 16, 2, 8),  # 8 lanes, 32 bytes apart: two meet
        ("touches_vectors", 16, 8, 32),
        ("touches_vectors", 16, 0, 4),  # one vector for all, in each phase
    ],
)
def test_phases_of_wider_numbers(count, kernel, bytes, stride, wavefronts):
    """16 lanes at a time for 8 bytes, 8 for 16: 128 bytes where no two meet."""
    launch = count(kernel, stride)
    expected = counts(1, 32, 32 * bytes, wavefronts, bytes // 4, "wavefronts")
    assert launch["shared_loads"] == launch["shared_stores"] == expected


# --- the rest -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [1, 2, 4])
def test_bytes_under_way_are_those_before_the_first_use(count, ahead):
    launch = count("loads_ahead", ahead, threads=64)
    assert launch["rounds"] == 2 * 2  # of each warp
    assert launch["vector_loads"]["bytes"] == 2 * 2 * ahead * 32 * 16


def test_barriers_and_shuffles(count):
    """16 blocks of 8 warps, of the code of block_sums."""
    launch = count("block_sums", 512, blocks=16, threads=256)
    assert launch["shuffles"] == 16 * 8 * 5  # masks 16 to 1
    assert launch["barriers"] == 16


def test_tickets_and_atomics(count):
    """Each of 5 blocks takes one ticket too many; half of the 40 count in."""
    launch = count("tickets", 40, blocks=5, threads=64)
    assert (launch["tickets"], launch["atomics"]) == (45, 45 + 20)
    assert launch["polls"] >= 20  # each of the others asks once at least


def test_places_in_the_code_add_up():
    """copies_rows stores in one line of one function, called from one line of the kernel."""
    host = Selftest(LIBRARY)
    with host.counting() as traffic:
        host.launch("copies_rows", 2, threads=32, inputs=np.zeros(512), outputs=512)
    (launch,) = traffic.launches()
    sites = [site for site in launch["sites"] if site["writes"]]
    assert [site["requests"] for site in sites] == [launch["stores"]["requests"]]
    (lines,) = traffic.lines_of(sites)
    source = (ROOT / "tests" / "cuda_on_host" / "selftest_traffic.cu").read_text().splitlines()
    called, stored = (source[int(line.partition("selftest_traffic.cu:")[2]) - 1] for line in lines)
    assert "copy_row(p.in" in called
    assert "out[i * thread_count()]" in stored


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_counts_do_not_depend_on_the_order(seed):
    host, case = HostGpu(CUDA), Case(Shape.parse("16x7x7:4"), 3, "bfloat16", "nchw")

    def counted(seed):
        with host.gpu(Gpu(threads=128)), host.order(seed):
            counts = count_kernel(host, KERNELS["forward_local"], case)
        # how often a block asks in vain, and who comes last, is a matter of order
        return {name: counts[name] for name in counts if name not in ("polls", "units_once")}

    assert counted(seed) == counted(0)


# --- the kernels --------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("stage", STAGES)
def test_the_table_has_the_tiles_of_256_images_on_an_h200(stage, layout):
    shape, host = Shape.parse(stage), HostGpu(CUDA)

    def tiles(batch, multiprocessors):
        x = torch.empty(
            (batch, shape.channels, shape.height, shape.width),
            dtype=torch.bfloat16,
            memory_format=MEMORY_FORMATS[layout],
        )
        gpu = Gpu(**GPU | {"multiprocessors": multiprocessors})
        with host.gpu(gpu):
            words = cuda.explain(x, torch.empty(shape.reduced, shape.channels))
        return re.findall("[0-9]+ tiles per image", words)

    assert len(tiles(256, 132)) == 1
    assert tiles(BATCHES[stage], GPU["multiprocessors"]) == tiles(256, 132)


def test_the_command_counts_and_shows_each_kernel(tmp_path):
    path, kernels = tmp_path / "traffic.jsonl", ["forward_local", "norm_scale"]
    command = [sys.executable, "-m", "benchmarks", "traffic", "--shape", "32x8x8:2", "--batch", "2"]
    options = [f"--kernel={name}" for name in kernels]
    done = subprocess.run(
        [*command, *options, "--layout", "nchw", "--json", path],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    lines = records.read(path)
    assert [line["kernel"] for line in lines] == kernels
    for line in lines:
        assert line.keys() >= ENVIRONMENT_FIELDS | {"schema", "kind", "batch", "dtype", "layout"}
        assert line["gpu"] == GPU
        assert line["counts"]["x_bytes"] == 2 * 32 * 8 * 8 * 2
        assert line["kernel"] in done.stdout
    assert [line["counts"]["units"] for line in lines] == [3, 3 + MASK]


# Few channels and one multiprocessor, cut into the tiles of the stages of such rows. Rows of 28x28
# start at 16 bytes in nchw; the others lie flat. Of 256 channels a warp has 32 columns of 8.
SHAPES = {
    "28x28": ("64x28x28:4", 4),
    "14x14": ("64x14x14:4", 8),
    "7x7": ("64x7x7:4", 16),
    "wide": ("256x7x7:4", 4),
}
LAYOUTS = ["nchw", "channels_last"]


@pytest.fixture(scope="module")
def counts_of():
    """``counts_of(kernel, layout, rows)`` in bfloat16, as in the table; each is counted once."""
    host = HostGpu(CUDA)
    gpu = Gpu(**GPU | {"multiprocessors": 1})

    @functools.cache
    def case(layout, rows):
        shape, batch = SHAPES[rows]
        return Case(Shape.parse(shape), batch, "bfloat16", layout)

    @functools.cache
    def counted(kernel, layout, rows):
        with host.gpu(gpu), host.order(0):
            return count_kernel(host, KERNELS[kernel], case(layout, rows))

    return counted


# Read again by the second sweep, out of the L2: x forward, g backward.
AGAIN = {name: 1 for name in KERNELS if "local" in name}


@pytest.mark.parametrize("rows", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_tensors_of_x_s_size_cross_as_often_as_they_must(counts_of, kernel, layout, rows):
    counts = counts_of(kernel, layout, rows)
    most = KERNELS[kernel].floor
    padding = 0.01  # of the mask's rows, to whole bytes
    assert counts["units_once"] <= most + padding
    # flat: eight numbers of a mask lie in two bytes
    masked = kernel in ("norm_scale_backward", "backward_local_tail")
    twice = MASK if masked and rows != "28x28" else 0
    # the moments' shift: the mean of four numbers of a tile's channel, out of the L1
    shape = Shape.parse(SHAPES[rows][0])
    samples = 4 / (shape.height * shape.width) if kernel == "norm_moments" else 0
    assert counts["units"] <= counts["units_once"] + AGAIN.get(kernel, 0) + twice + samples
    assert counts["vector_sectors"] == 1  # lanes side by side, from whole sectors on


# Two lanes meet in a bank, the goal is none: flat rows of 16-bit numbers that start anywhere;
# channels_last, eight numbers a lane. 32 such lanes side by side: all eight meet.
@pytest.mark.parametrize("rows", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_wavefronts_of_shared_memory(counts_of, kernel, layout, rows):
    counts = counts_of(kernel, layout, rows)
    most = 1 if layout == "nchw" and rows == "28x28" else 2
    for kind in ("shared_loads", "shared_stores"):
        widest = 8 if (kind, layout, rows) == ("shared_stores", "channels_last", "wide") else most
        if kind == "shared_stores" and "local" in kernel:  # with the FCs' partial sums
            widest = max(widest, 6 if most == 1 else 3)
        found = counts[kind]
        assert found["wavefronts"] <= widest * found["least_wavefronts"], kind


GOAL_BARRIERS = 6  # of a block, a tile


@pytest.mark.parametrize("rows", ["28x28", "14x14", "7x7"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_barriers_of_a_tile(counts_of, kernel, layout, rows):
    assert counts_of(kernel, layout, rows)["barriers_a_tile"] <= GOAL_BARRIERS


# 48 KB of a multiprocessor's, where it has two blocks of 8 warps.
GOAL_UNDER_WAY = 3072
UNDER_WAY = {
    # four loads of 512 bytes, or two of each tensor, but a row of 98 keeps 32 lanes for three
    ("forward_local", "nchw", "28x28"): 1568,
    ("backward_local", "nchw", "28x28"): 1176,
    ("norm_moments", "nchw", "28x28"): 1568,
    # an image at a time: 196 and 98 loads of one by 256 threads
    ("forward_local", "nchw", "14x14"): 448,
    ("backward_local", "nchw", "14x14"): 672,
    ("norm_moments", "nchw", "14x14"): 1568,
    ("forward_local", "nchw", "7x7"): 392,
    ("backward_local", "nchw", "7x7"): 588,
    ("norm_moments", "nchw", "7x7"): 784,
    # pixels by 32 rows of 8 columns: the last round is short
    ("forward_local", "channels_last", "28x28"): 1672,
    ("backward_local", "channels_last", "28x28"): 1505,
    ("norm_moments", "channels_last", "28x28"): 1672,
    ("forward_local", "channels_last", "14x14"): 1568,
    ("backward_local", "channels_last", "14x14"): 1505,
    ("norm_moments", "channels_last", "14x14"): 1568,
    ("forward_local", "channels_last", "7x7"): 784,
    ("backward_local", "channels_last", "7x7"): 1176,
    ("norm_moments", "channels_last", "7x7"): 784,
}


@pytest.mark.parametrize("kernel, layout, rows", UNDER_WAY)
def test_bytes_that_a_warp_has_under_way(counts_of, kernel, layout, rows):
    """The least that there must be: today's, up to the goal."""
    least = min(UNDER_WAY[kernel, layout, rows], GOAL_UNDER_WAY)
    assert counts_of(kernel, layout, rows)["under_way"] >= least
