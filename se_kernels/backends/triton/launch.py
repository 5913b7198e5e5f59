"""What the launchers need: the tensors where they lie, the plan, the counters."""

import functools
import math
from contextlib import nullcontext

import torch

from se_kernels.backends.triton.plan import (
    SUMMED_BLOCKS,
    SUMMED_NUMBERS,
    TRACKING_REGISTERS,
    WARPS,
    Device,
    Plan,
    choose,
    choose_sweep,
)
from se_kernels.backends.triton.target import HIP
from se_kernels.core.layout import walk


@functools.cache
def _properties(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    size = properties.multi_processor_count, properties.L2_cache_size
    return Device(*size, tf32=not HIP and properties.major >= 8)


def device_of(x) -> Device:
    return _properties(x.device.index) if x.is_cuda else Device()


def on_device(x):
    """A context in which x's GPU is the current one."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def plan_of(x, w1, layout: str) -> Plan:
    """The plan of the block."""
    images, channels, height, width = x.shape
    sizes = images, channels, height * width, w1.shape[0], x.element_size(), w1.element_size()
    return choose(*sizes, layout == "nhwc", device_of(x))


def plan_sweep(x, layout: str, block_bytes: tuple[int, int], sums) -> Plan:
    """The plan of a sweep over the whole batch, its sums in that dtype; its block is smaller where
    a number takes two registers."""
    if sums == torch.float64:
        block_bytes = tuple(size * x.element_size() // 8 for size in block_bytes)
    images, channels, height, width = x.shape
    sizes = images, channels, height * width, x.element_size()
    return choose_sweep(*sizes, layout == "nhwc", device_of(x), block_bytes)


def counters_of(plan: Plan, like) -> torch.Tensor:
    """int32: tickets, then of each group its squeezed blocks, its excited parts, and, where the
    pixels are split, the parts of each block.

    Zeroed on the current stream, for this launch alone: a captured graph zeroes its own, and
    launches on several streams share nothing.
    """
    count = 1 + plan.groups * (2 + (plan.blocks if plan.split > 1 else 0))
    return torch.zeros(count, dtype=torch.int32, device=like.device)


def place_of(t, layout: str):
    """The tensor and its strides from image to image and from row to row; None for None."""
    if t is None:
        return None
    image, channel, pixel = walk(t)
    return t, image, pixel if layout == "nhwc" else channel


def unit_of(layout: str, places) -> int:
    """Elements, at most 16 bytes of them, that divide every stride and the contiguous extent.

    ``places``: (tensor, stride of image, stride of row), or None.
    """
    places = [place for place in places if place is not None]
    t = places[0][0]
    extent = t.shape[1] if layout == "nhwc" else t.shape[2] * t.shape[3]
    strides = [stride for _, image, row in places for stride in (image, row)]
    return math.gcd(16 // t.element_size(), extent, *strides)


def options(registers: int | None = None) -> dict:
    """How the compiler is to build a kernel.

    ``registers``: of a thread, at most. None leaves it to the assembler, which stops at 64, for
    eight programs a multiprocessor, even where it then spills. AMD's compiler takes no such limit.
    """
    limit = {} if HIP else dict(maxnreg=registers)
    return dict(num_warps=WARPS, enable_fp_fusion=True, **limit)


def registers_for(squeeze: str, otherwise: int | None) -> int | None:
    """Of a kernel that tracks maxima and ties where the squeeze has them."""
    return otherwise if squeeze == "avg" else TRACKING_REGISTERS


def sweep_constants(plan: Plan, layout: str, unit: int) -> dict:
    """The tile's compile-time constants, as every kernel names them."""
    return dict(
        NHWC=layout == "nhwc",
        UNIT=unit,
        BLOCK_C=plan.channels,
        ROWS=plan.rows,
        BLOCK_P=plan.block_pixels,
    )


def constants(plan: Plan, layout: str, unit: int) -> dict:
    """Those of the fused kernels, which are compiled for the images of a group too."""
    cut = sweep_constants(plan, layout, unit)
    return dict(G=plan.images, BLOCK_S=plan.split_block, **cut)


def excitation_constants(plan: Plan, w1) -> dict:
    """Those of the FCs; w1 (R, C)."""
    return dict(
        UNIT_W=math.gcd(16 // w1.element_size(), w1.shape[0], w1.shape[1]),
        BLOCK_R=plan.reduced,
        BLOCK_T=SUMMED_BLOCKS,
        BLOCK_I=SUMMED_NUMBERS,
        PRECISION="tf32x3" if plan.tensor_cores else "",
    )


def excitation_of(act: str, act_slope: float) -> dict:
    """δ, as every kernel names it."""
    return dict(ACT=act, SLOPE=float(act_slope) if act == "leaky_relu" else 0.0)


def triton_type(dtype: torch.dtype):
    """Of the sums."""
    import triton.language as tl  # late: Triton may be absent

    return tl.float64 if dtype == torch.float64 else tl.float32


def precision_of(x) -> str:
    """How products of float32 are taken on x's device, as ``tl.dot`` names it."""
    return "tf32x3" if device_of(x).tf32 else "ieee"


def solve_constants(x, **sizes: int) -> dict:
    """By name what each size is a multiple of, 8 or 1, and how products are taken."""
    units = {name: 8 if size % 8 == 0 else 1 for name, size in sizes.items()}
    return dict(**units, PRECISION=precision_of(x))


def parts_of(plan: Plan, x, dtype, *kinds) -> torch.Tensor:
    """What a sweep leaves of each part of the pixels: (*kinds, N, splits, C)."""
    return x.new_empty(*kinds, x.shape[0], plan.split, x.shape[1], dtype=dtype)


def alone(plan: Plan, x) -> tuple[int, ...]:
    """N, C, P, blocks, splits, span, G: the sizes that a phase on its own is told."""
    images, channels, height, width = x.shape
    return images, channels, height * width, plan.blocks, plan.split, plan.span, plan.images
