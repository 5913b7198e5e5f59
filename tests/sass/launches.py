"""The launches of the CUDA backend for a problem on some GPU, as the stand-in records them."""

from dataclasses import dataclass

import torch
from host_gpu import Gpu, HostGpu

from sass.machine import Launch
from se_kernels.backends.cuda import block, launch, norm
from se_kernels.core.layout import empty_mask

REDUCTION = 16
PLAIN = ("avg", "relu", 0.0, "sigmoid", "none")
TAIL = ("avg", "relu", 0.0, "sigmoid", "relu")


@dataclass
class Recorded:
    """The launches of a call, and its tensors: (address, bytes)."""

    launches: list[Launch]
    tensors: list[tuple[int, int]]
    keep: list[torch.Tensor]
    workspace: int  # its address, 0 without one


def record(host: HostGpu, gpu: Gpu, operation: str, shape, layout, dtype) -> Recorded:
    """Of ``operation`` for x of ``shape`` (N, C, H, W), the FCs in float32."""
    n, channels = shape[:2]
    reduced = channels // REDUCTION

    def image():  # not written to: its pages are never touched
        if layout == "nchw":
            return torch.zeros(shape, dtype=dtype)
        return torch.zeros(n, *shape[2:], channels, dtype=dtype).permute(0, 3, 1, 2)

    def small(*size):
        return torch.zeros(size or (n, channels))

    w1, w2, a = small(reduced, channels), small(channels, reduced), small(n, reduced)
    x, s, kept = image(), small(), []

    def workspace(make):
        def made(*arguments):
            space = make(*arguments)
            if space is not None:
                kept.append(space.zero_())
            return space

        return made

    make, callers = launch.workspace_of, (launch, block)
    try:
        for caller in callers:
            caller.workspace_of = workspace(make)
        with host.gpu(gpu), host.recording() as recorded:
            rest = _call(operation, image, small, x, w1, w2, a, s)
    finally:
        for caller in callers:
            caller.workspace_of = make
    keep = [x, w1, w2, a, s, *kept, *rest]
    return Recorded(
        [Launch(*one) for one in recorded],
        [(t.data_ptr(), t.numel() * t.element_size()) for t in keep],
        keep,
        kept[0].data_ptr() if kept else 0,
    )


def _call(operation, image, small, x, w1, w2, a, s):
    """Runs an operation; the tensors it reads and writes beside x, the FCs, a and s."""
    if operation.startswith("forward"):
        tail = operation.endswith("tail")
        residual = image() if tail else None
        out = block.forward(x, w1, w2, None, None, residual, *(TAIL if tail else PLAIN))
        return [*out, *([residual] if tail else [])]
    if operation.startswith("backward"):
        tail = operation.endswith("tail")
        dy, mask = image(), empty_mask(x) if tail else None
        needs = (True, tail, False, False, False, False)
        out = block.backward(dy, x, w1, w2, mask, small(), a, s, *PLAIN[:-1], needs)
        return [dy, *([mask] if tail else []), *out]
    constants, channels = small(3, x.shape[1]), small(x.shape[1])
    if operation == "norm_moments":
        return [*norm.norm_moments(x, False)]
    if operation == "norm_scale":
        residual = image()
        out = norm.norm_scale(x, constants, s, residual, "identity", "relu", True)
        return [constants, residual, *out]
    _, mask = norm.norm_scale(x, constants, s, None, "identity", "relu", True)
    dy, d = image(), small()
    if operation == "norm_scale_backward":
        return [
            constants,
            mask,
            dy,
            *norm.norm_scale_backward(dy, x, mask, constants, "identity", True),
        ]
    du = norm.norm_squeeze_backward(dy, x, None, constants, s, d, "identity", channels, channels)
    return [constants, mask, dy, d, channels, du]
