"""The command line: ``python -m se_kernels check``."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from se_kernels.core import dispatch
from se_kernels.verification import gpu_facts, suites
from se_kernels.verification.backends import Served, devices, served
from se_kernels.verification.judge import Mismatch
from se_kernels.verification.launches import Announced
from se_kernels.verification.progress import Progress
from se_kernels.verification.trial import Trial


@dataclass
class Tally:
    """What became of the trials of one backend on one device."""

    of: Served
    total: int
    right: int = 0
    wrong: list[str] = field(default_factory=list)  # the command of each, and what was wrong
    seconds: float = 0.0
    compiling: float = 0.0
    lost: bool = False  # the device, to this process


def run(arguments: Sequence[str]) -> int:
    """0: all is right; 1: something is wrong; 2: the arguments are."""
    parser = argparse.ArgumentParser(prog="python -m se_kernels check", description=__doc__)
    parser.add_argument("--backend", action="append", metavar="NAME", help="repeatable")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda or cuda:1, say")
    parser.add_argument(
        "--every-kernel", action="store_true", help="each kernel once, its name before its launch"
    )
    parser.add_argument(
        "--from", type=int, default=1, dest="first", metavar="N", help="of a backend's trials"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="append a line for each trial")
    given = parser.parse_args(arguments)
    try:
        here, reasons = chosen(given.backend, given.device)
        log = Log(given.json)
    except (ValueError, OSError) as error:
        print(f"python -m se_kernels check: {error}", file=sys.stderr)
        return 2
    check = every_kernel if given.every_kernel else dozen
    with log:
        tallies = check(here, log, given.first)
    for line in table(tallies, reasons):
        print(line)
    failures = [failure for tally in tallies for failure in tally.wrong]
    for failure in failures:
        print(f"\n{failure}")
    return 1 if failures else 0


def chosen(backends: list[str] | None, device: str | None) -> tuple[list[Served], dict[str, str]]:
    """What is to be checked, and why the other backends are not; ValueError in one line."""
    unknown = [name for name in backends or () if name not in dispatch.BACKENDS]
    if unknown:
        names = ", ".join(dispatch.BACKENDS)
        raise ValueError(f"--backend: expected one of {names}; got {unknown[0]!r}")
    on = devices()
    if device is not None:
        on = [name for name in on if name == device or name == f"{device}:0"]
        if not on:
            raise ValueError(f"--device: expected one of {', '.join(devices())}; got {device!r}")
    found, reasons = served(list(dict.fromkeys(backends or dispatch.BACKENDS)), on)
    if backends and reasons:
        name, reason = next(iter(reasons.items()))
        raise ValueError(f"--backend {name}: {reason.splitlines()[0]}")
    return found, reasons


def dozen(here: list[Served], log: "Log", first: int) -> list[Tally]:
    trials = {of: suites.dozen(of.slow)[first - 1 :] for of in here}
    tallies, done = [], 0
    with Progress(sum(map(len, trials.values()))) as bar:
        for of in here:
            tally = Tally(of, len(trials[of]))
            for number, trial in enumerate(trials[of], first):
                bar.show(done, f"{of.backend} on {of.device}: {trial}")
                if not tally.lost:
                    attempt(tally, trial, log, number)
                done += 1
            tallies.append(tally)
    return tallies


def every_kernel(here: list[Served], log: "Log", first: int) -> list[Tally]:
    tallies = []
    for of in here:
        trials = suites.every_kernel(of.backend, of.slow)
        tally = Tally(of, len(trials))
        if first == 1:
            tell_facts(of, log)
        for number, trial in enumerate(trials[first - 1 :], first):
            print(f"[{number}/{len(trials)}] {of.backend} {trial}", flush=True)
            log.append(tally, number, trial, "begun")
            with Announced(of, str(trial)):
                verdict = attempt(tally, trial, log, number)
            print(f"  {verdict}", flush=True)
            if tally.lost:
                break
        tallies.append(tally)
    return tallies


def tell_facts(of: Served, log: "Log") -> None:
    """Prints and logs them; a fact that cannot be had stops no trial."""
    try:
        for words, record in gpu_facts.facts(of):
            print(words, flush=True)
            log.write(of, record)
    except Exception as error:
        print(f"no further facts: {type(error).__name__}: {error}", flush=True)


def attempt(tally: Tally, trial: Trial, log: "Log", number: int) -> str:
    """The verdict, which is counted and logged."""
    of, start = tally.of, time.perf_counter()
    try:
        took = trial.verify(of.backend, of.device, again=not of.slow)
    except Exception as error:  # of a kernel that cannot run, too
        kind = "" if isinstance(error, Mismatch) else f"{type(error).__name__}: "
        verdict = f"wrong: {kind}{' '.join(str(error).split())}"
        tally.wrong.append(f"{trial.command(of.backend, of.device)}\n  {verdict}")
        tally.lost = is_lost(of.device)
    else:
        verdict = "right"
        tally.right += 1
        if of.backend == "triton" and not of.slow:
            tally.compiling += max(0.0, took.first - took.again)
    tally.seconds += time.perf_counter() - start
    log.append(tally, number, trial, verdict)
    return verdict


def is_lost(device: str) -> bool:
    """Whether this process can do no more on it: a GPU after an illegal access, say."""
    try:
        torch.ones(1, device=device).item()
    except RuntimeError:
        return True
    return False


class Log:
    """Lines of JSON, each in the file before the next trial begins; none without a path."""

    def __init__(self, path: Path | None):
        self.file = None if path is None else path.open("a", encoding="utf-8")

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()

    def append(self, tally: Tally, number: int, trial: Trial, verdict: str) -> None:
        case = trial.case
        named = dict(kind="kernel", number=number, total=tally.total, trial=str(trial))
        named |= dict(call=trial.call, dtype=str(case.dtype)[6:])
        self.write(tally.of, named | dict(layout=case.layout, verdict=verdict))

    def write(self, of: Served, record: dict[str, object]) -> None:
        if self.file is None:
            return
        record = dict(backend=of.backend, device=of.name, torch=torch.__version__, **record)
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()


def table(tallies: list[Tally], reasons: dict[str, str]) -> list[str]:
    rows = [("backend", "device", "right", "wrong", "seconds", "compiling")]
    for tally in tallies:
        compiles = tally.of.backend == "triton" and not tally.of.slow
        rows.append(
            (
                *(tally.of.backend, tally.of.name, str(tally.right), str(len(tally.wrong))),
                f"{tally.seconds - tally.compiling:.1f}",
                f"{tally.compiling:.1f}" if compiles else "-",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(t.ljust(w) for t, w in zip(row, widths, strict=True)) for row in rows]
    lines += [
        f"{t.of.name} was lost to {t.of.backend}: the rest not run" for t in tallies if t.lost
    ]
    lines += [f"{name:<{widths[0]}}  left out: {r.splitlines()[0]}" for name, r in reasons.items()]
    return [line.rstrip() for line in lines]
