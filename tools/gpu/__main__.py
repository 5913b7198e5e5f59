"""Checks and measurements on a GPU: `make gpu`, or `make gpu GPU_STAGES="tail sweeps"`.

    python -m tools.gpu [STAGE ...] [--results DIR] [--seconds N] [--commit HASH] [--host]

build      the CUDA kernels for this GPU, in the checkout, unless a library for it is there
smoke      every kernel once, at small and odd sizes, against the definition
network    SE-ResNet-50's training step at N = 256, autocast: eager, fused; compiled; inference
tail       the stages with batch norm, residual and ReLU, forward and backward, bfloat16
sweeps     the block by CUDA and by Triton
layer      the block against eager and torch.compile
latency    the stages at N = 1, replayed from CUDA graphs
drop_in    models of timm, before and after fuse
tests      the operator tests on the GPU
sanitize   every kernel under compute-sanitizer

In this order, each step with a limit of its own, until the budget of N seconds is spent; called
again, it goes on with what is left, as long as sources and GPU are the same. A stage that is named
is run again. What fails its check in smoke is not timed; nothing else waits for it. Every point and
every outcome is in DIR (benchmarks/results) once it is known, in six files. Needs no network.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tools.gpu import table
from tools.gpu.machine import NoGpu, ask
from tools.gpu.results import Results
from tools.gpu.run import Run
from tools.gpu.stages import GPU, HOST, stages
from tools.gpu.steps import PASSED, ROOT

FIRST_CALL = 420  # seconds; what is left then fits a second call of 240


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="make gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--seconds", type=float, default=FIRST_CALL, help="that all may take")
    parser.add_argument("--commit", help="of the sources, where there is no checkout to tell")
    parser.add_argument("--host", action="store_true", help="tiny, on the stand-in for a GPU")
    given = parser.parse_args(arguments)
    began = time.monotonic()
    sizes = HOST if given.host else GPU
    known = stages(sizes, "")
    unknown = [name for name in given.stages if name not in known]
    if unknown:
        return refuse(f"stages: expected some of {', '.join(known)}; got {unknown[0]!r}")
    try:
        machine = ask(given.host)
        about = dict(torch=machine.torch, commit=given.commit or commit_here())
        results = Results.of(given.results.resolve(), machine.name, **about)
    except NoGpu as error:
        return refuse(f"expected a GPU: {error}")
    except OSError as error:
        return refuse(f"--results: expected a folder that can be written, got {error}")
    if given.commit:
        os.environ["SE_KERNELS_COMMIT"] = given.commit
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    print(f"{machine.name}, torch {machine.torch}, sources {results.sources}", flush=True)
    plan = {
        name: steps
        for name, steps in stages(sizes, machine.capability).items()
        if name in (given.stages or known)
    }
    run = Run(results, machine, began + given.seconds, given.host)
    waiting = run.stages(plan, again=bool(given.stages))
    return report(results, waiting)


def commit_here() -> str | None:
    """Of the checkout, where this is one and git is here."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--verify", "-q", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def refuse(why: str) -> int:
    print(f"make gpu: {why}", file=sys.stderr)
    return 2


def report(results: Results, waiting: list[tuple[str, str]]) -> int:
    """The outcomes, the table, and whether all that was run is fine."""
    outcomes = results.outcomes()
    print()
    for (stage, step), line in outcomes.items():
        words = ": ".join(filter(None, (line["ended"], line.get("why"))))
        last = f"; last: {line['last']}" if line.get("last") and line["ended"] != PASSED else ""
        print(f"{stage:<9} {step:<22} {line.get('seconds', 0):5.0f} s  {words}{last}")
    if waiting:
        names = ", ".join(f"{stage} {step}" for stage, step in waiting)
        print(f"left for another call: {names}")
    measured = results.measured()
    if measured:
        print(*table.lines(measured), sep="\n")
    return 0 if all(line["ended"] in (PASSED, "left out") for line in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
