"""Tests and measurements on a GPU: `make gpu`, or `make gpu GPU_STAGES="test latency"`.

    python tools/gpu.py [test] [layer] [latency] [network] [drop_in]     all where none is named

test: the GPU tests, and the operator tests on the GPU's tensors. layer: the stages of SE-ResNet-50
at N = 256, bfloat16 and float32, both layouts, against eager and torch.compile. latency: N = 1,
replayed from CUDA graphs. network: SE-ResNet-50's training step and inference. drop_in: models of
timm, N = 256, before and after fuse. Within eight minutes; results are appended in
benchmarks/results/. Speed is not measured on red tests. Needs no network.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("seresnet50", "efficientnet_b0", "mobilenetv3_large_100", "regnety_032")
TESTS = ("gpu", "squeeze_excite", "odd_tensors", "phases", "conversions", "properties", "gradients")
BENCHMARK = ["-m", "benchmarks"]
ON_GPU = ["--device", "cuda", "--save"]
BOTH_LAYOUTS = ["--layout", "nchw", "--layout", "channels_last"]
STAGES = {
    # name: seconds it may take, and its commands
    "test": (
        180,
        [
            [
                *("-m", "pytest", "-q", "-n", str(min(12, os.cpu_count() or 1))),
                *("-k", "triton or cuda or gpu", "-m", "not slow"),
                *(f"tests/test_{name}.py" for name in TESTS),
            ]
        ],
    ),
    "layer": (
        140,
        [
            [
                *(*BENCHMARK, "layer", *ON_GPU, *BOTH_LAYOUTS, "--dtype", dtype),
                *("--batch", "256", "--seconds", "1"),
                *(f"--contender={kind}" for kind in ("eager", "compile", "fused", "copy")),
            ]
            for dtype in ("bfloat16", "float32")
        ],
    ),
    "latency": (
        50,
        [
            [
                *(*BENCHMARK, "layer", *ON_GPU, *BOTH_LAYOUTS, "--dtype", "bfloat16"),
                *("--batch", "1", "--mode", "inference", "--graph", "--seconds", "1"),
                *(f"--contender={kind}" for kind in ("eager", "compile", "fused", "copy")),
            ]
        ],
    ),
    "network": (
        40,
        [
            [
                *(*BENCHMARK, "network", *ON_GPU, "--dtype", "bfloat16"),
                *("--layout", "channels_last", "--batch", "256", "--seconds", "5"),
            ]
        ],
    ),
    "drop_in": (
        70,
        [
            [
                *(*BENCHMARK, "network", "--fuse", *ON_GPU, "--dtype", "bfloat16"),
                *("--layout", "channels_last", "--batch", "256", "--mode", "train"),
                *("--seconds", "3", *(f"--model=timm/{name}" for name in MODELS)),
            ]
        ],
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description="test and measure on a GPU")
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}")
    stages = parser.parse_args().stages or list(STAGES)
    unknown = [name for name in stages if name not in STAGES]
    if unknown:
        parser.error(f"stages: expected some of {', '.join(STAGES)}, got {', '.join(unknown)}")
    if not torch.cuda.is_available():
        built = "torch finds none" if torch.version.cuda else "this torch was built without CUDA"
        print(f"make gpu needs a GPU: {built}", file=sys.stderr)
        return 1
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    results = {}
    for name in stages:
        if results.get("test", "passed") != "passed":
            results[name] = "left out: the tests failed"
            continue
        results[name] = run(name)
    for name, result in results.items():
        print(f"{name:<10} {result}")
    return 0 if all(result == "passed" for result in results.values()) else 1


def run(stage: str) -> str:
    """ "passed", or what went wrong."""
    seconds, commands = STAGES[stage]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    end = time.monotonic() + seconds
    for command in commands:
        print("python", *command, flush=True)
        left = max(1, end - time.monotonic())
        try:
            done = subprocess.run(
                [sys.executable, *command], cwd=ROOT, env=environment, timeout=left, check=False
            )
        except subprocess.TimeoutExpired:
            return f"took longer than its {seconds} s"
        if done.returncode != 0:
            return f"failed: exit code {done.returncode}"
    return "passed"


if __name__ == "__main__":
    sys.exit(main())
