"""What a GPU gives the CUDA kernels, beside what their plans assume; and its copy bandwidth."""

import statistics
import time
from collections.abc import Iterator

import torch

from se_kernels.backends.cuda.residency import Launch, launches_of
from se_kernels.core import dispatch
from se_kernels.core.layout import empty_mask
from se_kernels.verification.backends import Served
from se_kernels.verification.block_case import LAYOUTS

STAGES = {  # of SE-ResNet-50: C, H and W, R
    "conv2": (256, 56, 16),
    "conv3": (512, 28, 32),
    "conv4": (1024, 14, 64),
    "conv5": (2048, 7, 128),
}
ROUNDS, COPIES = 5, 4


def facts(of: Served) -> Iterator[tuple[str, dict]]:
    """Each in words and as a record: the copy bandwidth, and for CUDA what is resident of each
    launch at the stages of SE-ResNet-50."""
    size = 2**26 if of.device == "cpu" else 2**30
    rate = copy_bandwidth(of.device, size)
    words = f"{of.name} copies {rate / 1e9:,.0f} GB/s, bytes read plus written, {size >> 20} MiB"
    yield words, dict(kind="copy", bytes=size, gb_per_s=rate / 1e9)
    if of.backend != "cuda":
        return
    images = 4 if of.slow else 256
    yield heading(of, images), dict(kind="residency", pretended=of.slow)
    for stage in STAGES:
        for layout in LAYOUTS:
            for launch in stage_launches(stage, layout, images, of.device):
                record = dict(kind="launch", stage=stage, images=images, **launch._asdict())
                yield f"  {stage}: {described(launch)}", record


def heading(of: Served, images: int) -> str:
    pretended = ", of the pretended GPU" if of.slow else ""
    return f"resident at a time{pretended}, N={images}, bfloat16"


def copy_bandwidth(device: str, size: int) -> float:
    """Bytes read plus written a second by ``copy_``, the median of rounds; tensors of ``size``."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    on_gpu = torch.device(device).type == "cuda"
    seconds = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        for _ in range(COPIES):  # so many that waiting for their end counts little
            target.copy_(source)
        if on_gpu:
            torch.cuda.synchronize(device)
        seconds.append((time.perf_counter() - start) / COPIES)
    return 2 * size / statistics.median(seconds[1:])


def stage_launches(stage: str, layout: str, images: int, device: str) -> list[Launch]:
    """Those of the block, forward and backward with residual and ReLU, and with a
    batch norm, at one stage in bfloat16."""
    channels, side, reduced = STAGES[stage]
    half = dict(dtype=torch.bfloat16, device=device)
    single = dict(dtype=torch.float32, device=device)
    shape = (images, channels, side, side)
    x, dy, residual = (
        torch.empty(shape, **half).contiguous(memory_format=LAYOUTS[layout]) for _ in range(3)
    )
    w1, w2 = torch.empty(reduced, channels, **half), torch.empty(channels, reduced, **half)
    z, s = torch.empty(images, channels, **single), torch.empty(images, channels, **single)
    a, mask = torch.empty(images, reduced, **single), empty_mask(x)
    variant = "avg", "relu", 0.01, "sigmoid"
    cuda = dispatch.BACKENDS["cuda"]

    def both() -> None:
        cuda.forward(x, w1, w2, None, None, residual, *variant, "relu")
        needs = (True, True, False, False, False, False)
        cuda.backward(dy, x, w1, w2, mask, z, a, s, *variant, needs)

    def with_a_norm() -> None:
        _, mask, numbers, a, _ = cuda.norm_forward(
            x, None, None, None, None, None, w1, w2, None, None, residual,
            True, 0.1, 1e-5, "relu", "relu", 0.01, "sigmoid", "relu", True,
        )  # fmt: skip
        excitation, needs = ("relu", 0.01, "sigmoid"), (True, True, False, True, True, False, False)
        cuda.norm_backward(dy, x, mask, numbers, a, w1, w2, True, "relu", *excitation, needs)
        cuda.norm_scale_backward(dy, x, mask, numbers[:3], "identity", True)

    return launches_of(both) + launches_of(with_a_norm)


def described(launch: Launch) -> str:
    return (
        f"{launch.kernel}: {launch.blocks} blocks of {launch.threads} threads, "
        f"{launch.shared_bytes} bytes of shared memory; {launch.resident_blocks} blocks a "
        "multiprocessor"
    )
