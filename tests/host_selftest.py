"""The kernels of ``tests/cuda_on_host/selftest*.cu``, which judge the stand-in itself."""

import ctypes

import numpy as np
from host_gpu import FOLDER, HostGpu

LIBRARY = FOLDER / "selftest.so"


class LaunchError(Exception):
    """What a launch ended with."""


class Selftest(HostGpu):
    def launch(self, kernel, size=0, *, inputs=None, outputs=64, **shape):
        """Runs the kernel on arrays; gives ``outputs`` float32 numbers, -1 at first, and counters.

        shape: blocks, threads, shared_bytes.
        """
        shape = dict(blocks=1, threads=64, shared_bytes=128) | shape
        inputs = aligned(np.zeros(64) if inputs is None else inputs)
        results = aligned(np.full(outputs, -1))
        counters = np.zeros(4, np.uint32)
        error = ctypes.create_string_buffer(2000)
        self.library.se_selftest(
            kernel.encode(),
            *shape.values(),
            *(ctypes.c_void_p(array.ctypes.data) for array in (inputs, results, counters)),
            size,
            error,
            ctypes.c_size_t(len(error)),
        )
        if error.value:
            raise LaunchError(error.value.decode())
        return results, counters


def aligned(values) -> np.ndarray:
    """A float32 copy that starts at a multiple of 128 bytes."""
    array = np.empty(len(values) + 32, np.float32)
    start = -array.ctypes.data % 128 // 4
    array[start : start + len(values)] = values
    return array[start : start + len(values)]
