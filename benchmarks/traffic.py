"""Traffic of the CUDA kernels, counted on the host by tests/cuda_on_host: docs/traffic.md.

Nothing is timed, and no GPU is needed.
"""

import functools
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from se_kernels.backends import cuda
from se_kernels.core.layout import empty_mask

from .block import Shape
from .environment import ROOT, Environment
from .inputs import DTYPES, MEMORY_FORMATS, make_weights
from .records import SCHEMA

STAND_IN = ROOT / "build" / "cuda_on_host_races"  # `make races`
WARP_BYTES = 512  # 16 bytes of each lane
# An H200's, but for its multiprocessors: by 8 of the 132 a few images are cut into the tiles and
# slices that 256 are by all.
GPU = {
    "multiprocessors": 8,
    "l2_bytes": 50 << 20,
    "shared_bytes": 227 << 10,
    "shared_bytes_in_all": 228 << 10,
    "threads": 256,
}
# whole groups of images
BATCHES = {"conv2": 2, "conv3": 4, "conv4": 8, "conv5": 16}
OTHER_BATCH = 8


class NotBuiltError(Exception):
    """The stand-in for CUDA that counts is not there."""


class Case:
    """The tensors of one block (N, C, H, W); whatever a kernel needs is made when it asks."""

    def __init__(self, shape: Shape, batch: int, dtype: str, layout: str):
        self.shape = shape
        self._size = (batch, shape.channels, shape.height, shape.width)
        self._dtype, self._format = DTYPES[dtype], MEMORY_FORMATS[layout]
        self._generator = torch.Generator().manual_seed(0)
        self.weights = make_weights(
            shape.channels, shape.reduced, torch.device("cpu"), self._generator
        )

    def _images(self) -> Tensor:
        noise = torch.randn(self._size, generator=self._generator)
        return noise.to(self._dtype).contiguous(memory_format=self._format)

    x = cached_property(_images)
    dy = cached_property(_images)
    residual = cached_property(_images)

    def small(self, *size: int) -> Tensor:
        return torch.rand(size, generator=self._generator)

    @cached_property
    def per_image(self) -> Tensor:  # (N, C)
        return self.small(*self._size[:2])

    @cached_property
    def hidden(self) -> Tensor:  # (N, R)
        return self.small(self._size[0], self.shape.reduced)

    @cached_property
    def norm(self) -> Tensor:  # mean, scale, bias (3, C)
        return self.small(3, self.shape.channels)

    @cached_property
    def mask(self) -> Tensor:
        return empty_mask(self.x).fill_(0xFF)


VARIANT = ("avg", "relu", 0.0, "sigmoid")


def _forward(case: Case) -> list[Tensor]:
    w1, w2 = case.weights
    y, *_ = cuda.forward(case.x, w1, w2, None, None, None, *VARIANT, "none")
    return [case.x, y]


def _forward_tail(case: Case) -> list[Tensor]:
    w1, w2 = case.weights
    y, mask, *_ = cuda.forward(case.x, w1, w2, None, None, case.residual, *VARIANT, "relu")
    return [case.x, case.residual, y, mask]


def _run_backward(case: Case, mask: Tensor | None) -> list[Tensor]:
    w1, w2 = case.weights
    s = z = case.per_image
    needs = (True, mask is not None, False, False, False, False)
    dx, dr, *_ = cuda.backward(case.dy, case.x, w1, w2, mask, z, case.hidden, s, *VARIANT, needs)
    return [case.x, case.dy, dx] + ([] if mask is None else [mask, dr])


def _backward(case: Case) -> list[Tensor]:
    return _run_backward(case, None)


def _backward_tail(case: Case) -> list[Tensor]:
    return _run_backward(case, case.mask)


def _moments(case: Case) -> list[Tensor]:
    cuda.norm_moments(case.x, False)
    return [case.x]


def _squeeze(case: Case) -> list[Tensor]:
    cuda.norm_squeeze(case.x, case.norm, "silu")
    return [case.x]


def _scale(case: Case) -> list[Tensor]:
    y, mask = cuda.norm_scale(
        case.x, case.norm, case.per_image, case.residual, "identity", "relu", True
    )
    return [case.x, case.residual, y, mask]


def _scale_backward(case: Case) -> list[Tensor]:
    dr, _ = cuda.norm_scale_backward(case.dy, case.x, case.mask, case.norm, "identity", True)
    return [case.dy, case.x, case.mask, dr]


def _squeeze_backward(case: Case) -> list[Tensor]:
    slope, offset = case.norm[0], case.norm[1]
    s = d = case.per_image
    du = cuda.norm_squeeze_backward(
        case.dy, case.x, None, case.norm, s, d, "identity", slope, offset
    )
    return [case.dy, case.x, du]


@dataclass(frozen=True)
class Kernel:
    """One launch. ``run`` gives the tensors of x's size; ``floor``: units that must cross device
    memory, a mask of 16-bit numbers being 1/16."""

    name: str
    floor: float
    run: Callable[[Case], list[Tensor]]


MASK = 1 / 16
KERNELS = {
    kernel.name: kernel
    for kernel in (
        Kernel("forward_local", 2, _forward),
        Kernel("forward_local_tail", 3 + MASK, _forward_tail),
        Kernel("backward_local", 3, _backward),
        Kernel("backward_local_tail", 4 + MASK, _backward_tail),
        Kernel("norm_moments", 1, _moments),
        Kernel("norm_squeeze", 1, _squeeze),
        Kernel("norm_scale", 3 + MASK, _scale),
        Kernel("norm_scale_backward", 3 + MASK, _scale_backward),
        Kernel("norm_squeeze_backward", 3, _squeeze_backward),
    )
}


@dataclass(frozen=True)
class Point:
    """What is counted: each kernel once."""

    shape: Shape
    batch: int
    dtype: str
    layout: str
    kernels: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.shape} N={self.batch} {self.dtype} {self.layout}"


def batch_of(shape: Shape) -> int:
    return BATCHES.get(shape.name, OTHER_BATCH)


@functools.cache
def stand_in():
    """tests/cuda_on_host as the backend "cuda" from here on, as what counts, and its GPU.

    SE_KERNELS_CUDA_ON_HOST names another folder of it than that of `make races`.

    Raises:
        NotBuiltError: it is not there, or does not count.
    """
    host_gpu = sys.modules.get("host_gpu")
    if host_gpu is None:
        spec = importlib.util.spec_from_file_location("host_gpu", ROOT / "tests" / "host_gpu.py")
        host_gpu = sys.modules["host_gpu"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(host_gpu)
    folder = Path(os.environ.get("SE_KERNELS_CUDA_ON_HOST") or STAND_IN)
    path = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not path.exists():
        raise NotBuiltError(f"expected {path}: `make races` builds it")
    host = host_gpu.HostGpu(path)
    if not host.finds_races:
        raise NotBuiltError(f"{path} does not observe the kernels; `make races` builds what does")
    host_gpu.lend_to_the_cuda_backend(path)
    return host, host_gpu.Gpu(**GPU)


def count(point: Point, here: Environment) -> list[dict]:
    """A record of each kernel."""
    host, gpu = stand_in()
    case = Case(point.shape, point.batch, point.dtype, point.layout)
    found = []
    with host.gpu(gpu), host.order(0):
        for name in point.kernels:
            counts = count_kernel(host, KERNELS[name], case)
            found.append(record(point, name, counts, here))
    return found


def count_kernel(host, kernel: Kernel, case: Case) -> dict:
    """The counts of its launch, without those of each place in its code."""
    with host.counting() as traffic:
        tensors = kernel.run(case)
    (launch,) = traffic.launches()
    del launch["sites"]
    return launch | figures(launch, case.x, tensors, traffic)


def figures(launch: dict, x: Tensor, tensors: list[Tensor], traffic) -> dict:
    """What the table shows, from a launch's counts; ``tensors`` are those of x's size."""
    x_bytes = x.numel() * x.element_size()
    large, all_ = [traffic.moved(t) for t in tensors], traffic.moved()
    asked = sum(moved.read + moved.written for moved in large)
    once = sum(moved.read_once + moved.written_once for moved in large)
    vectors = launch["vector_loads"], launch["vector_stores"]
    tiles = launch["tickets"] or launch["blocks"]
    return dict(
        x_bytes=x_bytes,
        tiles=tiles,
        units=asked / x_bytes,
        units_once=once / x_bytes,
        rest=(all_.read + all_.written - asked) / x_bytes,
        rest_once=(all_.read_once + all_.written_once - once) / x_bytes,
        vector_sectors=over_least("sectors", *vectors),
        other_sectors=over_least("sectors", launch["loads"], launch["stores"]),
        wavefronts=over_least("wavefronts", launch["shared_loads"], launch["shared_stores"]),
        under_way=launch["vector_loads"]["bytes"] / launch["rounds"] if launch["rounds"] else None,
        barriers_a_tile=launch["barriers"] / tiles,
        requests_a_warp=sum(launch[kind]["requests"] for kind in ACCESSES) * WARP_BYTES / x_bytes,
        shuffles_a_warp=launch["shuffles"] * WARP_BYTES / x_bytes,
    )


ACCESSES = (
    *("vector_loads", "vector_stores", "loads", "stores"),
    *("shared_loads", "shared_stores"),
)


def over_least(unit: str, *counts: dict) -> float | None:
    least = sum(count[f"least_{unit}"] for count in counts)
    return sum(count[unit] for count in counts) / least if least else None


def record(point: Point, kernel: str, counts: dict, here: Environment) -> dict:
    return {
        "schema": SCHEMA,
        "kind": "traffic",
        **here.as_dict(),
        "shape": asdict(point.shape),
        "batch": point.batch,
        "dtype": point.dtype,
        "layout": point.layout,
        "gpu": GPU,
        "kernel": kernel,
        "floor": KERNELS[kernel].floor,
        "counts": counts,
    }
