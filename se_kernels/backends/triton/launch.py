"""What both launchers need: the tensors where they lie, the plan, the counters."""

import functools
import math
from contextlib import nullcontext

import torch

from se_kernels.backends.triton.plan import SUMMED_BLOCKS, SUMMED_NUMBERS, Device, Plan, choose


@functools.cache
def _properties(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    return Device(properties.multi_processor_count, properties.L2_cache_size)


def device_of(x) -> Device:
    return _properties(x.device.index) if x.is_cuda else Device()


def on_device(x):
    """A context in which x's GPU is the current one."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def plan_of(x, w1, layout: str) -> Plan:
    images, channels, height, width = x.shape
    return choose(
        images,
        channels,
        height * width,
        w1.shape[0],
        x.element_size(),
        w1.element_size(),
        layout == "nhwc",
        device_of(x),
    )


def counters_of(plan: Plan, x) -> torch.Tensor:
    """Tickets, then a group's squeezed blocks, its excited parts, and each block's own parts.

    Zeroed on the current stream, for this launch alone: a captured graph zeroes its own, and
    launches on several streams share nothing.
    """
    count = 1 + plan.groups * (2 + plan.blocks)
    return torch.zeros(count, dtype=torch.int32, device=x.device)


def unit_of(extent: int, places, itemsize: int) -> int:
    """Elements, at most 16 bytes of them, that divide every stride and the contiguous extent."""
    strides = [stride for _, image, row in places for stride in (image, row)]
    return math.gcd(16 // itemsize, extent, *strides)


def constants(plan: Plan, layout: str, unit: int, unit_w: int) -> dict:
    """The tile's compile-time constants, as every kernel names them."""
    return dict(
        NHWC=layout == "nhwc",
        UNIT=unit,
        UNIT_W=unit_w,
        G=plan.images,
        BLOCK_C=plan.channels,
        ROWS=plan.rows,
        BLOCK_P=plan.block_pixels,
        BLOCK_R=plan.reduced,
        BLOCK_S=plan.split_block,
        BLOCK_T=SUMMED_BLOCKS,
        BLOCK_I=SUMMED_NUMBERS,
    )
