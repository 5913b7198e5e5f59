"""What every call of the native library takes: tensors that it can read, the GPU, the stream."""

import torch
from torch import Tensor

from se_kernels.backends.cuda import library
from se_kernels.core.layout import OptionalTensor


def on_elements(t: OptionalTensor) -> OptionalTensor:
    """t if it starts at a multiple of its element's size, else a copy that does."""
    return t if t is None or t.data_ptr() % t.element_size() == 0 else t.clone()


def on_vectors(t: OptionalTensor) -> OptionalTensor:
    """t with its elements side by side from a multiple of 16 bytes on."""
    if t is None:
        return None
    t = t.contiguous()
    return t if t.data_ptr() % 16 == 0 else t.clone()


def device_of(x: Tensor) -> int:
    return x.device.index or 0


def launch(x: Tensor, workspace: Tensor | None = None) -> tuple[int, int, Tensor | None]:
    """GPU, stream and workspace of a launch."""
    on_gpu = library.native.DEVICE_TYPE == "cuda"
    stream = torch.cuda.current_stream(x.device).cuda_stream if on_gpu else 0
    return device_of(x), stream, workspace


def workspace_of(x: Tensor, size: int) -> Tensor | None:
    """``size`` bytes beside x, None for none."""
    return torch.empty(size, dtype=torch.uint8, device=x.device) if size else None


def phase_workspace(x: Tensor, nhwc: bool, sums: torch.dtype) -> Tensor | None:
    """The workspace of a phase without a norm, its sums in that dtype."""
    wide = sums == torch.float64
    return workspace_of(x, library.native.phase_workspace_bytes(device_of(x), nhwc, x, wide))


def norm_workspace(u: Tensor, nhwc: bool, sums: torch.dtype) -> Tensor | None:
    """The workspace of a sweep with a norm, its sums in that dtype."""
    wide = sums == torch.float64
    return workspace_of(u, library.native.norm_workspace_bytes(device_of(u), nhwc, u, wide))
