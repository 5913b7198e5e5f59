"""Tests and measurements on a GPU: `make gpu`, or `make gpu GPU_STAGES="test latency"`.

    python tools/gpu.py [STAGE ...]     all stages where none is named

build      the CUDA kernels for this GPU, in the checkout
test       the GPU tests, and the operator tests on the GPU's tensors, on cuda and triton
sanitize   the CUDA kernels of bfloat16 and float64 (the others are the same templates) at small
           sizes under compute-sanitizer: memcheck, racecheck, initcheck, synccheck
layer      the stages of SE-ResNet-50 at N = 256, bfloat16 and float32, both layouts: cuda and
           triton against eager and torch.compile
tail       the stages with batch norm, residual and ReLU, forward and backward, bfloat16: cuda and
           triton against eager, eager without SE, and SE fused alone
ways       the same stages in bfloat16 on cuda, one pass in a cluster, then two sweeps
latency    the stages at N = 1, replayed from CUDA graphs
network    SE-ResNet-50's training step and inference, on cuda, then on triton
drop_in    models of timm, N = 256, before and after fuse

Within ten minutes. Speed is not measured where a check, one of the first three, has failed. Results
are appended in benchmarks/results/, and the outcome of the stages in build/gpu.json. Needs no
network.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
OUTCOME = ROOT / "build" / "gpu.json"
PASSED = "passed"
MODELS = ("seresnet50", "efficientnet_b0", "mobilenetv3_large_100", "regnety_032")
TESTS = (
    *("gpu", "cuda", "squeeze_excite", "odd_tensors", "phases", "conversions", "properties"),
    *("gradients", "norm_gpu", "norm_phases", "norm_squeeze_excite", "norm_gradients"),
)
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
BENCHMARK = ("-m", "benchmarks")
ON_GPU = ("--device", "cuda", "--save")
BOTH_LAYOUTS = ("--layout", "nchw", "--layout", "channels_last")
AGAINST_ALL = tuple(f"--contender={kind}" for kind in ("eager", "compile", "fused", "copy"))


@dataclass(frozen=True)
class Step:
    """``python *arguments``, under compute-sanitizer with a tool."""

    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    tool: str | None = None


@dataclass(frozen=True)
class Stage:
    seconds: int  # that it may take
    steps: Sequence[Step]
    checks: bool = False  # where it fails, nothing is measured


STAGES = {
    "build": Stage(
        60,
        [Step(("setup.py", "--quiet", "build_ext", "--inplace"), {"SE_KERNELS_CUDA": "ON"})],
        checks=True,
    ),
    "test": Stage(
        140,
        [
            Step(
                (
                    *("-m", "pytest", "-q", "-n", str(min(12, os.cpu_count() or 1))),
                    *("-k", "triton or cuda or gpu", "-m", "not slow"),
                    *(f"tests/test_{name}.py" for name in TESTS),
                )
            )
        ],
        checks=True,
    ),
    "sanitize": Stage(
        90,
        [
            Step(
                (
                    *("-m", "pytest", "-q", "-p", "no:cacheprovider"),
                    *("-k", "every_kernel and (bfloat16 or float64)", "tests/test_gpu.py"),
                ),
                {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},  # each tensor an allocation of its own
                tool,
            )
            for tool in TOOLS
        ],
        checks=True,
    ),
    "layer": Stage(
        120,
        [
            Step(
                (
                    *(*BENCHMARK, "layer", *ON_GPU, *BOTH_LAYOUTS, *AGAINST_ALL),
                    *("--dtype", dtype, "--batch", "256", "--seconds", "0.5"),
                )
            )
            for dtype in ("bfloat16", "float32")
        ],
    ),
    "tail": Stage(
        40,
        [
            Step(
                (
                    *(*BENCHMARK, "tail", *ON_GPU, *BOTH_LAYOUTS, "--dtype", "bfloat16"),
                    *("--batch", "256", "--mode", "forward", "--mode", "backward"),
                    *(
                        f"--contender={kind}"
                        for kind in ("eager", "plain", "layer", "fused", "copy")
                    ),
                    *("--seconds", "0.6"),
                )
            )
        ],
    ),
    "ways": Stage(
        40,
        [
            Step(
                (
                    *(*BENCHMARK, "layer", *ON_GPU, *BOTH_LAYOUTS, "--dtype", "bfloat16"),
                    *("--batch", "256", "--seconds", "0.4", "--backend", "cuda"),
                    *("--contender", "fused", "--contender", "copy"),
                ),
                {"SE_KERNELS_CUDA_WAY": way},
            )
            for way in ("cluster", "two_sweeps")
        ],
    ),
    "latency": Stage(
        30,
        [
            Step(
                (
                    *(*BENCHMARK, "layer", *ON_GPU, *BOTH_LAYOUTS, *AGAINST_ALL),
                    *("--dtype", "bfloat16", "--batch", "1", "--mode", "inference", "--graph"),
                    *("--seconds", "0.8"),
                )
            )
        ],
    ),
    "network": Stage(
        40,
        [
            Step(
                (
                    *(*BENCHMARK, "network", *ON_GPU, "--dtype", "bfloat16", "--backend", backend),
                    *("--layout", "channels_last", "--batch", "256", "--seconds", "3"),
                )
            )
            for backend in ("cuda", "triton")
        ],
    ),
    "drop_in": Stage(
        40,
        [
            Step(
                (
                    *(*BENCHMARK, "network", "--fuse", *ON_GPU, "--dtype", "bfloat16"),
                    *("--layout", "channels_last", "--batch", "256", "--mode", "train"),
                    *("--seconds", "2", *(f"--model=timm/{name}" for name in MODELS)),
                )
            )
        ],
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}")
    stages = parser.parse_args(arguments).stages or list(STAGES)
    unknown = [name for name in stages if name not in STAGES]
    if unknown:
        parser.error(f"stages: expected some of {', '.join(STAGES)}, got {', '.join(unknown)}")
    if not torch.cuda.is_available():
        built = "torch finds none" if torch.version.cuda else "this torch was built without CUDA"
        print(f"make gpu needs a GPU: {built}", file=sys.stderr)
        return 1
    device = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    print(device, flush=True)
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    os.environ.setdefault("SE_KERNELS_CUDA_ARCHS", capability)  # of the stage `build`
    outcome = run_stages(stages)
    for name, result in outcome.items():
        print(f"{name:<10} {result['seconds']:4.0f} s  {result['result']}")
    OUTCOME.parent.mkdir(exist_ok=True)
    OUTCOME.write_text(json.dumps({"device": device, "stages": outcome}, indent=2) + "\n")
    return 0 if all(is_fine(result["result"]) for result in outcome.values()) else 1


def run_stages(stages: Sequence[str]) -> dict[str, dict]:
    """Seconds and result of each stage, in the order of STAGES."""
    outcome, failed = {}, []
    for name in (name for name in STAGES if name in stages):
        began = time.monotonic()
        if failed and not STAGES[name].checks:
            result = f"failed: left out, as {failed[0]} failed"
        else:
            result = run(STAGES[name])
        if STAGES[name].checks and not is_fine(result):
            failed.append(name)
        outcome[name] = {"seconds": round(time.monotonic() - began, 1), "result": result}
    return outcome


def is_fine(result: str) -> bool:
    return not result.startswith("failed")


def run(stage: Stage) -> str:
    """ "passed", "left out: ..." where a tool is missing, or "failed: ..."."""
    end = time.monotonic() + stage.seconds
    failures = []
    for step in stage.steps:
        prefix = []
        if step.tool is not None:
            sanitizer = compute_sanitizer()
            if sanitizer is None:
                return "left out: no compute-sanitizer on PATH or in CUDA's folder"
            prefix = [sanitizer, "--tool", step.tool, "--error-exitcode", "99"]
        settings = " ".join(f"{name}={value}" for name, value in step.environment.items())
        print(*filter(None, [settings, *prefix, "python", *step.arguments]), flush=True)
        environment = {**os.environ, **step.environment, "PYTHONPATH": str(ROOT)}
        environment.pop("TRITON_INTERPRET", None)
        command = [*prefix, sys.executable, *step.arguments]
        left = max(1, end - time.monotonic())
        try:
            done = subprocess.run(command, cwd=ROOT, env=environment, timeout=left, check=False)
        except subprocess.TimeoutExpired:
            return f"failed: took longer than its {stage.seconds} s"
        if done.returncode != 0:
            what = step.tool or settings or " ".join(step.arguments[:3])
            failures.append(f"{what}, exit code {done.returncode}")
    return f"failed: {'; '.join(failures)}" if failures else PASSED


def compute_sanitizer() -> str | None:
    folders = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    path = [os.environ.get("PATH", ""), *(f"{folder}/bin" for folder in folders if folder)]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(path))


if __name__ == "__main__":
    sys.exit(main())
