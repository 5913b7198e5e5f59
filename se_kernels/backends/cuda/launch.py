"""What the kernels are told of tensors: addresses, strides, sizes; the stream, the workspace."""

import functools

import torch
from torch import Tensor

from se_kernels.backends.cuda import library
from se_kernels.core.layout import OptionalTensor, walk

Sizes = tuple[int, int, int, int, int, int, bool]  # N, C, R, P, the types of x and w1, nhwc
PhaseSizes = tuple[int, int, int, int, int, bool]  # without R; the types of x and the sums


def on_elements(t: OptionalTensor) -> OptionalTensor:
    """t if it starts at a multiple of its element's size, else a copy that does."""
    return t if t is None or t.data_ptr() % t.element_size() == 0 else t.clone()


def on_vectors(t: OptionalTensor) -> OptionalTensor:
    """t with its elements side by side from a multiple of 16 bytes on."""
    if t is None:
        return None
    t = t.contiguous()
    return t if t.data_ptr() % 16 == 0 else t.clone()


def sizes_of(x: Tensor, reduced: int, w_dtype: torch.dtype, layout: str) -> Sizes:
    images, channels, height, width = x.shape
    return (
        *(images, channels, reduced, height * width),
        *(type_of(x.dtype), type_of(w_dtype)),
        layout == "nhwc",
    )


@functools.cache
def type_of(dtype: torch.dtype) -> int:
    number: int = getattr(library.native, str(dtype)[6:])  # without "torch."
    return number


def alone(sizes: Sizes) -> PhaseSizes:
    """The sizes of a phase without the FCs."""
    images, channels, _, pixels, x_type, compute_type, nhwc = sizes
    return images, channels, pixels, x_type, compute_type, nhwc


def phase(sizes: PhaseSizes, squeeze: str = "avg", post: str = "none") -> tuple[int | str, ...]:
    """What a phase needs to know, as the CPU's does; the threads are for the CPU alone."""
    return *sizes, squeeze, post, 1


def problem(
    sizes: Sizes, squeeze: str, act: str, act_slope: float, gate: str, post: str
) -> tuple[int | str | float, ...]:
    """The same for a call with the FCs."""
    return *sizes, squeeze, act, act_slope, gate, post, 1


def device_of(x: Tensor) -> int:
    return x.device.index or 0


def launch(x: Tensor, workspace: Tensor | None = None) -> tuple[int, int, int]:
    """GPU, stream and workspace of a launch."""
    on_gpu = library.native.DEVICE_TYPE == "cuda"
    stream = torch.cuda.current_stream(x.device).cuda_stream if on_gpu else 0
    return device_of(x), stream, pointer(workspace)


def workspace_of(x: Tensor, sizes: Sizes) -> Tensor:
    size = library.native.workspace_bytes(device_of(x), *sizes)
    return torch.empty(size, dtype=torch.uint8, device=x.device)


def place(t: Tensor | None) -> tuple[int, int, int, int]:
    """Address, strides of image, channel and pixel; a null address for None."""
    return (0, 0, 0, 0) if t is None else (t.data_ptr(), *walk(t))  # type: ignore[misc]


def pointer(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()
