"""A library of ``tests/cuda_on_host``: its pretended GPU, the order of its work, its launches.

``make cuda-on-host`` builds them. SE_KERNELS_CUDA_ON_HOST names another folder of them.
"""

import contextlib
import ctypes
import importlib.util
import json
import os
import subprocess
import sysconfig
from dataclasses import astuple, dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(os.environ.get("SE_KERNELS_CUDA_ON_HOST") or ROOT / "build" / "cuda_on_host")
CUDA = FOLDER / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"


@dataclass(frozen=True)
class Gpu:
    """Small, so that small tensors are cut into many parts."""

    multiprocessors: int = 4
    l2_bytes: int = 1 << 20
    shared_bytes: int = 227 << 10  # that a block may have
    shared_bytes_in_all: int = 228 << 10  # of a multiprocessor
    threads: int = 64  # of a block


@dataclass(frozen=True)
class Moved:
    """Bytes of global memory: asked for by requests; and in whole sectors of 32, each once, and not
    read if they were written before."""

    read: int
    read_once: int
    written: int
    written_once: int


class HostGpu:
    """What the library at ``path`` pretends to run on, with ``Gpu()`` and the order of seed 1."""

    def __init__(self, path: Path):
        self.library, self._path = ctypes.CDLL(str(path)), path
        self._set_gpu, self._order = self.library.se_host_set_gpu, (1, 0)
        self._gpu = Gpu()
        self._set_gpu(*astuple(self._gpu))
        self.library.se_host_set_order(*self._order)

    @contextlib.contextmanager
    def gpu(self, gpu: Gpu):
        """Pretends to be ``gpu`` meanwhile."""
        before, self._gpu = self._gpu, gpu
        self._set_gpu(*astuple(gpu))
        try:
            yield
        finally:
            self._gpu = before
            self._set_gpu(*astuple(before))

    @contextlib.contextmanager
    def order(self, seed: int, resident: int = 0):
        """Meanwhile blocks and threads come in the order that ``seed`` draws, in turn with 0.

        ``resident`` blocks run at a time, all with 0.
        """
        before, self._order = self._order, (seed, resident)
        self.library.se_host_set_order(seed, resident)
        try:
            yield
        finally:
            self._order = before
            self.library.se_host_set_order(*before)

    @property
    def finds_races(self) -> bool:
        """Whether it was built to."""
        return hasattr(self.library, "se_host_judge_races")

    @contextlib.contextmanager
    def races(self, judgement: str):
        """Meanwhile, of a race that is found: "ignore", "fail" (the launch) or "note"."""
        judge = self.library.se_host_judge_races if self.finds_races else lambda _: None
        judge(("ignore", "fail", "note").index(judgement))
        try:
            yield
        finally:
            judge(1)

    @contextlib.contextmanager
    def counting(self):
        """Gives a ``Traffic`` of the launches meanwhile, from nothing."""
        self.library.se_host_traffic_start()
        try:
            yield Traffic(self.library, self._path)
        finally:
            self.library.se_host_traffic_stop()

    @contextlib.contextmanager
    def recording(self):
        """Meanwhile launches are only recorded: (kernel, blocks, threads, bytes of shared memory,
        bytes of the parameters) of each."""
        recorded = []

        @ctypes.CFUNCTYPE(
            None, ctypes.c_char_p, *[ctypes.c_int] * 3, ctypes.c_void_p, ctypes.c_size_t
        )
        def record(kernel, blocks, threads, shared, parameters, size):
            raw = ctypes.string_at(parameters, size)
            recorded.append((kernel.decode(), blocks, threads, shared, raw))

        self.library.se_host_set_recorder(record)
        try:
            yield recorded
        finally:
            self.library.se_host_set_recorder(None)

    def launches(self) -> int:
        """The number of launches so far."""
        return self.library.se_host_launches()

    def memsets(self) -> int:
        """The number of memsets so far, recorded ones too."""
        return self.library.se_host_memsets()

    def last_launch(self) -> str:
        """The kernel and the configuration of the last launch."""
        text = ctypes.create_string_buffer(1000)
        self.library.se_host_last_launch(text, ctypes.c_size_t(len(text)))
        return text.value.decode()


class Traffic:
    """What was counted of some launches, until counting begins anew; see docs/traffic.md."""

    def __init__(self, library: ctypes.CDLL, path: Path):
        self._library, self._path = library, path
        library.se_host_traffic_launches.restype = ctypes.c_char_p

    def launches(self) -> list[dict]:
        """A dictionary of each launch, in their order; "sites" are places in the kernel's code."""
        return json.loads(self._library.se_host_traffic_launches())

    def lines_of(self, sites: list[dict]) -> list[list[str]]:
        """Of each site its lines of the source, as "forward.cu:63", the outermost call first."""
        places = sorted({place for site in sites for place in site["at"]})
        calls = "".join(f"{place - 1:#x}\n" for place in places)  # before what it returns to
        command = ["addr2line", "-s", "-e", str(self._path)]
        found = subprocess.run(command, input=calls, capture_output=True, text=True, check=True)
        lines = (line.partition(" ")[0] for line in found.stdout.splitlines())
        line_of = dict(zip(places, lines, strict=True))
        return [[line_of[place] for place in site["at"]] for site in sites]

    def moved(self, tensor: torch.Tensor | None = None) -> Moved:
        """Bytes of the tensor's storage, or of all global memory."""
        address, size = 0, 0
        if tensor is not None:
            storage = tensor.untyped_storage()
            address, size = storage.data_ptr(), storage.nbytes()
        found = (ctypes.c_uint64 * 4)()
        self._library.se_host_traffic_of(ctypes.c_void_p(address), ctypes.c_size_t(size), found)
        return Moved(*found)


def is_on_host(backend: str | None) -> bool:
    """Whether ``backend`` is CUDA's, and runs on the stand-in."""
    return backend == "cuda" and not torch.cuda.is_available()


def lend_to_the_cuda_backend(path: Path = CUDA) -> None:
    """Backend "cuda" takes CPU tensors from here on, where the library is built."""
    if not path.exists():
        return
    from se_kernels.backends.cuda import library

    spec = importlib.util.spec_from_file_location("se_kernels._cuda", path)
    library.native = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(library.native)
    library.reason = None
