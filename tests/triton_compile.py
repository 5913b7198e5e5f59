"""Compiles the Triton kernels for a compute capability; a JSON line for each. Needs no GPU.

python tests/triton_compile.py 90
"""

import functools
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import cuda_listing
import torch
import triton
from case_selection import EVERY_CASE
from sass.cubin import Function, functions
from sass.loops import contents, dividing_subroutines, find_loops
from sass.measure import UNIT
from sass.triton_launches import measure
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from se_kernels.backends.triton import launch
from se_kernels.backends.triton.kernels import (
    backward,
    forward,
    scale,
    solve,
    squeeze,
)
from se_kernels.backends.triton.launch import place_of
from se_kernels.backends.triton.plan import WARPS, Device

LOOPS_AT = 90  # the compute capability whose loops are looked at, and whose code is executed
TWO_SWEEPS = ("forward_kernel", "backward_kernel")
STAGES = ((256, 56, 16), (512, 28, 32), (1024, 14, 64), (2048, 7, 128))  # C, H = W, R
ALL = dict(biases=True, residual=True, post="relu", squeeze="avgmax", act="gelu_tanh", gate="tanh")


@dataclass
class Config:
    """One call of the block, whose kernels are compiled."""

    batch: int
    channels: int
    side: int
    reduced: int
    nhwc: bool
    dtype: torch.dtype = torch.bfloat16
    weight_dtype: torch.dtype = torch.bfloat16
    main: bool = False  # a stage of the network
    alone: bool = False  # squeeze and scale on their own, too
    variant: dict = field(default_factory=dict)

    @property
    def aligned(self) -> bool:
        rows = self.channels if self.nhwc else self.side**2
        return self.dtype.itemsize == 2 and rows % 8 == 0

    @property
    def name(self) -> str:
        layout = "nhwc" if self.nhwc else "nchw"
        what = " ".join(map(str, self.variant.values()))
        shape = f"{self.batch}x{self.channels}x{self.side}x{self.side} R{self.reduced}"
        return f"{shape} {layout} {self.dtype} {self.weight_dtype} {what}".strip()


@dataclass
class NormConfig(Config):
    """The kernels with a batch norm: a residual, a ReLU and its mask."""

    reduced: int = 16
    nhwc: bool = False
    pre: str = "identity"
    write: bool = True  # dr, else the mask is read twice
    kernels: tuple[str, ...] = ()  # of them; all where empty

    @property
    def name(self) -> str:
        return f"{super().name} {self.pre} {'dr' if self.write else 'mask'}"


def configs():
    for nhwc in (False, True):
        for channels, side, reduced in STAGES:
            yield Config(256, channels, side, reduced, nhwc, main=True)
        yield Config(1, 256, 56, 16, nhwc, main=True, alone=True)
        yield Config(8, 72, 28, 18, nhwc, weight_dtype=torch.float32)
        yield Config(32, 512, 28, 32, nhwc, weight_dtype=torch.float32, alone=True, variant=ALL)
        yield Config(32, 512, 28, 32, nhwc, torch.float32, torch.float32, variant=ALL)
        yield Config(4, 33, 7, 5, nhwc, torch.float64, torch.float64, variant=ALL)
    yield from norm_configs()


def configs_for(capability: int):
    """At LOOPS_AT each; of the others every second, each at one of the two."""
    whole = EVERY_CASE or capability == LOOPS_AT
    return (c for i, c in enumerate(configs()) if whole or i % 2 == (capability < LOOPS_AT))


def norm_configs():
    """Each kernel once, and again where its registers are the scarcest."""
    silu = dict(pre="silu", write=False)
    solve = ("solve_norm", "solve_a", "solve_s", "solve_da", "solve_gradients")
    each = ("moments", "scale", "scale_backward")
    yield NormConfig(256, 256, 56, nhwc=True, main=True, kernels=each)
    yield NormConfig(256, 256, 56, nhwc=True, kernels=solve)
    kernels = "scale_backward", "squeeze_backward", *solve
    yield NormConfig(256, 256, 56, nhwc=True, **silu, kernels=kernels)
    yield NormConfig(256, 256, 56, main=True, **silu, kernels=("squeeze",))
    float64 = torch.float64, torch.float64
    yield NormConfig(256, 33, 56, 5, False, *float64, **silu, kernels=solve)


class Recorder:
    """Stands in for a kernel: keeps the arguments of its launch."""

    def __init__(self, kernel):
        self.kernel, self.launched = kernel, None

    def __getitem__(self, grid):
        return self.launch

    def launch(self, *arguments, **constants):
        self.launched = arguments, constants


def launches(config: Config):
    """(kernel, arguments, constants) of each launch, as the launchers make them."""
    calls = norm_calls(config) if isinstance(config, NormConfig) else block_calls(config)
    wanted = [f"{k}_kernel" for k in getattr(config, "kernels", ())] or [n for _, n in calls]
    calls = {(module, name): run for (module, name), run in calls.items() if name in wanted}
    for (module, name), run in calls.items():
        kernels = {n: getattr(m, n) for m, n in calls if m is module}
        recorders = {n: Recorder(kernel) for n, kernel in kernels.items()}
        vars(module).update(recorders)
        try:
            run()
        finally:
            vars(module).update(kernels)
        yield kernels[name], *recorders[name].launched


def placed(config: Config):
    """The layout of an image of ``config``, and (tensor, stride of image, stride of row)."""
    shape = (config.batch, config.channels, config.side, config.side)
    x = torch.empty(shape, device="meta", dtype=config.dtype)
    memory_format = torch.channels_last if config.nhwc else torch.contiguous_format
    layout = "nhwc" if config.nhwc else "nchw"
    return layout, place_of(x.contiguous(memory_format=memory_format), layout)


def block_calls(config: Config):
    meta = functools.partial(torch.empty, device="meta")
    layout, place = placed(config)
    w1 = meta(config.reduced, config.channels, dtype=config.weight_dtype)
    w2 = w1.new_empty(config.channels, config.reduced)
    biases = (w1[:, 0], w2[:, 0]) if config.variant.get("biases") else (None, None)
    wide = torch.float64 in (config.dtype, config.weight_dtype)
    small = meta(config.batch, config.channels, dtype=torch.float64 if wide else torch.float32)
    a = small.new_empty(config.batch, config.reduced)
    residual = place if config.variant.get("residual") else None
    mask = small.to(torch.uint8) if config.variant.get("post") == "relu" else None
    names = dict(squeeze="avg", act="relu", act_slope=0.0, gate="sigmoid", post="none")
    variant = [config.variant.get(name, default) for name, default in names.items()]
    dr = None if mask is None else residual
    calls = {
        (forward, "forward_kernel"): lambda: forward.run_forward(
            layout, place, residual, place, mask, w1, w2, *biases, small, a, small, *variant
        ),
        (backward, "backward_kernel"): lambda: backward.run_backward(
            layout, place, place, place, dr, mask, w1, w2, a, small, *variant[:-1]
        ),
        (solve, "solve_gradients_kernel"): lambda: solve.run_gradients(
            a, small, a, small, (w1, w2, *biases), None, *variant[1:3]
        ),
    }
    if config.alone:
        kind, post = variant[0], variant[-1]
        none = "identity"
        calls |= {
            (squeeze, "squeeze_kernel"): lambda: squeeze.run_squeeze(
                layout, place, None, small.dtype, kind, none
            ),
            (squeeze, "squeeze_backward_kernel"): lambda: squeeze.run_squeeze_backward(
                layout,
                place,
                place,
                place,
                None,
                None,
                small,
                small,
                None,
                small,
                small,
                kind,
                none,
            ),
            (scale, "scale_kernel"): lambda: scale.run_scale(
                layout, place, residual, place, mask, None, small, none, post
            ),
            (scale, "scale_backward_kernel"): lambda: scale.run_scale_backward(
                layout, place, place, place, dr, mask, None, small, 1, small.dtype, "avg", none
            ),
        }
    return calls


def norm_calls(config: NormConfig):
    layout, place = placed(config)
    wide = torch.float64 in (config.dtype, config.weight_dtype)
    shape, sums = (config.batch, config.channels), torch.float64 if wide else torch.float32
    small = torch.empty(shape, device="meta", dtype=sums)
    mask, norm, dr = small.to(torch.uint8), small, place if config.write else None
    affine, pixels = config.pre == "identity", config.side**2
    sums = small.new_empty(2 if affine else 5, config.batch, 1, config.channels)
    kept, slope = None if config.write else mask, small[0]
    post = "relu"
    numbers, means = small.new_empty(4 + 2 * config.batch, config.channels), sums[0].double()
    a = small.new_empty(config.batch, config.reduced)
    w1 = torch.empty(config.reduced, config.channels, device="meta", dtype=config.weight_dtype)
    w2, channels = w1.new_empty(config.channels, config.reduced), slope.float()
    running = channels, channels, channels, channels, channels.double()
    excited = "silu", 0.0, "sigmoid"
    of_norm = numbers, sums, 1, pixels, affine, w1, small, slope, slope, slope

    def excite():
        parts = None if affine else sums[0]
        solve.run_excite(numbers, parts, 1, w1, w2, w1[:, 0], w2[:, 0], a, *excited)

    return {
        (solve, "solve_norm_kernel"): lambda: solve.run_solve_norm(
            numbers, (means, means, 1, pixels), *running, 0.1, 1e-5, pixels, True, affine
        ),
        (solve, "solve_a_kernel"): excite,
        (solve, "solve_s_kernel"): excite,
        (solve, "solve_da_kernel"): lambda: solve.run_excite_backward(
            numbers, sums, 1, w2, a, small, a, affine, *excited
        ),
        (solve, "solve_gradients_kernel"): lambda: solve.run_gradients(
            a, small, a, None, (w1, w2, w1[:, 0], w2[:, 0]), of_norm, *excited[:2]
        ),
        (squeeze, "moments_kernel"): lambda: squeeze.run_moments(layout, place, small.dtype),
        (squeeze, "squeeze_kernel"): lambda: squeeze.run_squeeze(
            layout, place, norm, small.dtype, "avg", config.pre
        ),
        (squeeze, "squeeze_backward_kernel"): lambda: squeeze.run_squeeze_backward(
            layout,
            place,
            place,
            place,
            kept,
            norm,
            small,
            small,
            small,
            None,
            None,
            "avg",
            config.pre,
        ),
        (scale, "scale_kernel"): lambda: scale.run_scale(
            layout, place, place, place, mask, norm, small, config.pre, post
        ),
        (scale, "scale_backward_kernel"): lambda: scale.run_scale_backward(
            layout,
            place,
            place,
            None,
            dr,
            mask,
            norm,
            None,
            2 if affine else 5,
            small.dtype,
            "avg",
            config.pre,
        ),
    }


def source(kernel, arguments, constants) -> tuple[ASTSource, dict]:
    """What the compiler is given for a launch: pointers are aligned to 16 bytes, sizes unknown."""
    types = {
        torch.float32: "*fp32",
        torch.float64: "*fp64",
        torch.bfloat16: "*bf16",
        torch.float16: "*fp16",
        torch.int32: "*i32",
        torch.uint8: "*u8",
    }
    signature, attributes, fixed = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        value = constants[name] if name in constants else arguments[index]
        if isinstance(value, torch.Tensor):
            signature[name] = types[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif value is None or name in constants:
            signature[name], fixed[name] = "constexpr", value
        else:
            signature[name] = "fp64" if isinstance(value, float) else "i32"
    options = {k: v for k, v in constants.items() if k not in kernel.arg_names}
    return ASTSource(kernel, signature, constexprs=fixed, attrs=attributes), options


def resources(ptx: str, capability: int) -> dict:
    """Registers and spilled bytes, as the assembler that Triton takes for this GPU reports them."""
    assembler = get_ptxas(capability).path
    target = f"sm_{capability}a" if capability >= 90 else f"sm_{capability}"
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "kernel.ptx"
        file.write_text(ptx)
        command = [assembler, "-v", f"--gpu-name={target}", file, "-o", f"{file}.cubin"]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill", told)))
    return dict(registers=int(re.search(r"Used (\d+) registers", told)[1]), spilled_bytes=spilled)


def function_of(cubin: bytes) -> Function:
    """The kernel of a cubin, the code that Triton runs."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "kernel.cubin"
        file.write_bytes(cubin)
        (function,) = functions(cuda_listing.cuobjdump(), file).values()
    return function


def inner_loops(function: Function) -> list[dict]:
    """What an iteration of each innermost loop holds."""
    divides = dividing_subroutines(function.code)
    return [
        vars(contents(function.code, loop.body, divides))
        for loop in find_loops(function.code)
        if loop.is_inner and len(loop.body) > 1
    ]


# x, y, dy, dx, dr and the residual are read with an eviction policy and written past the cache
IMAGE_ACCESS = re.compile(r"(?:ld\.global\S*evict\S*|st\.global\.cs\S*|st\.global\S*evict\S*)")


def accesses(ptx: str) -> dict:
    found = IMAGE_ACCESS.findall(ptx)
    wide = [a for a in found if a.endswith((".v4.b32", ".v2.b64", ".b128"))]
    return dict(wide=len(wide), narrow=sorted({a for a in found if a not in wide}))


def meetings(ptx: str) -> dict:
    """The atomics that order memory, and those among them with no barrier before and after.

    Before: nothing else since the last one. After: none of the block's own accesses without one.
    """
    release = re.compile(r"(?:atom|red)\S*\.(?:acq_rel|release)\.")
    acquire = re.compile(r"(?:atom|ld)\S*\.(?:acquire|acq_rel)\.")
    marks = re.compile(
        r"bar\.sync|barrier\.sync|\b(?:ld|st|atom|red)\.\S*global\S*|\bbra\b|\bret\b|^\$L__BB\w+:",
        re.MULTILINE,
    )
    order = ["start", *(m[0] for m in marks.finditer(ptx)), "end"]
    bare = []
    for before, mark, after in zip(order, order[1:], order[2:], strict=False):
        if release.search(mark) and "bar" not in before:
            bare.append(f"{before}, {mark}")
        if acquire.search(mark) and re.match("ld|st|red", after) and not acquire.search(after):
            bare.append(f"{mark}, {after}")
    return dict(
        releases=len(release.findall(ptx)),
        acquires=len(acquire.findall(ptx)),
        without_barrier=bare,
    )


def main(capability: int) -> None:
    launch.device_of = lambda x: Device()
    target = GPUTarget("cuda", capability, 32)
    for config in configs_for(capability):
        for kernel, arguments, constants in launches(config):
            built, options = source(kernel, arguments, constants)
            assert options["num_warps"] == WARPS
            result = triton.compile(built, target=target, options=options)
            ptx = result.asm["ptx"]
            told = dict(
                name=f"{kernel.__name__} {config.name}",
                main=config.main,
                aligned=config.aligned,
                shared=result.metadata.shared,
                **resources(ptx, capability),
                **accesses(ptx),
                **meetings(ptx),
            )
            if config.main and capability == LOOPS_AT:
                function = function_of(result.asm["cubin"])
                told["inner_loops"] = inner_loops(function)
                if kernel.__name__ in TWO_SWEEPS and config.batch > 1:
                    pieces = config.batch * config.channels * config.side**2 * 2 / UNIT
                    shared = result.metadata.shared
                    measured = measure(function, kernel, arguments, constants, shared)
                    told["instructions"] = round(measured.total / pieces, 1)
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
