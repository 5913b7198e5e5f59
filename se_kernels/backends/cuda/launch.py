"""What the kernels are told of tensors: addresses, strides, sizes; the stream, the workspace."""

import functools

import torch

from se_kernels.backends.cuda import library
from se_kernels.core.layout import walk


def on_elements(*tensors):
    """Each tensor where it starts at a multiple of its element's size, else a copy that does."""
    return tuple(
        t if t is None or t.data_ptr() % t.element_size() == 0 else t.clone() for t in tensors
    )


def on_vectors(*tensors):
    """Each tensor with its elements side by side from a multiple of 16 bytes on."""
    contiguous = (None if t is None else t.contiguous() for t in tensors)
    return tuple(t if t is None or t.data_ptr() % 16 == 0 else t.clone() for t in contiguous)


def sizes_of(x, reduced, w_dtype, layout):
    images, channels, height, width = x.shape
    return (
        *(images, channels, reduced, height * width),
        *(type_of(x.dtype), type_of(w_dtype)),
        layout == "nhwc",
    )


@functools.cache
def type_of(dtype):
    return getattr(library.native, str(dtype)[6:])  # without "torch."


def alone(sizes):
    """The sizes of a phase without the FCs."""
    images, channels, _, *rest = sizes
    return images, channels, *rest


def device_of(x):
    return x.device.index or 0


def launch(x, workspace=None):
    """GPU, stream and workspace of a launch."""
    on_gpu = library.native.DEVICE_TYPE == "cuda"
    stream = torch.cuda.current_stream(x.device).cuda_stream if on_gpu else 0
    return device_of(x), stream, pointer(workspace)


def workspace_of(x, sizes):
    size = library.native.workspace_bytes(device_of(x), *sizes)
    return torch.empty(size, dtype=torch.uint8, device=x.device)


def place(t):
    """Address, strides of image, channel and pixel; a null address for None."""
    return (0, 0, 0, 0) if t is None else (t.data_ptr(), *walk(t))


def pointer(t):
    return 0 if t is None else t.data_ptr()
