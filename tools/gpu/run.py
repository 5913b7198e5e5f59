"""Runs the stages within a budget: what is done is not repeated, what is broken is not timed."""

import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tools.gpu import steps
from tools.gpu.machine import Machine, ask
from tools.gpu.results import CUT, Results
from tools.gpu.stages import DTYPE, Step
from tools.gpu.steps import Command, Outcome

ENDED_BY_A_KERNEL = ("crashed", "hung")
WORTH = 0.5  # of a step's limit has to be left for it to begin


@dataclass
class Run:
    """``until``: of ``time.monotonic``, the end of the budget. ``host``: on the stand-in."""

    results: Results
    machine: Machine
    until: float
    host: bool = False

    def stages(self, plan: Mapping[str, Sequence[Step]], again: bool) -> list[tuple[str, str]]:
        """Runs the plan; what there was no time for. ``again``: also what was done before."""
        waiting = []
        for stage, planned in plan.items():
            for step in planned:
                if not again and self.results.is_done(stage, step.name):
                    continue
                if self.left() < WORTH * step.seconds:
                    waiting.append((stage, step.name))
                    continue
                self.step(stage, step)
        return waiting

    def left(self) -> float:
        return self.until - time.monotonic()

    def step(self, stage: str, step: Step) -> Outcome:
        """Runs it and records how it ended; once more without the backend that ended it."""
        print(f"== {stage} {step.name}, at most {min(step.seconds, self.left()):.0f} s", flush=True)
        self.results.begin(stage, step.name)
        fit, reasons = self.fit(step)
        if step.backends and not fit:
            outcome = Outcome("left out", why="; ".join(reasons))
        elif step.checks:
            outcome = self.check(step)
        else:
            outcome = self.attempt(step, fit)
        self.results.end(stage, step.name, outcome)
        if stage == "build":
            self.machine = ask(self.host)
        print(f"== {stage} {step.name}: {outcome}", flush=True)
        if outcome.ended in ENDED_BY_A_KERNEL and not step.checks:
            others = [name for name in fit if name != culprit(outcome, fit)]
            if others and len(others) < len(fit) and self.left() > WORTH * step.seconds:
                name = f"{step.name}, only {' '.join(others)}"
                self.step(stage, replace(step, name=name, backends=tuple(others)))
        return outcome

    def attempt(self, step: Step, fit: Sequence[str]) -> Outcome:
        command = self.command(step, fit)
        if command is None:
            return Outcome("left out", why="no compute-sanitizer on PATH or in CUDA's folder")
        limit = min(step.seconds, self.left())
        outcome = steps.run(command, limit)
        if outcome.ended == "limit" and limit < step.seconds:
            return replace(outcome, ended=CUT, why="the budget ended")
        return outcome

    def command(self, step: Step, fit: Sequence[str], *more: str) -> Command | None:
        environment, arguments = dict(step.environment), [*step.arguments]
        if step.kind == "model":  # fused modules are not told a backend
            environment["SE_KERNELS_BACKEND"] = fit[0]
        else:
            arguments += [word for name in fit for word in ("--backend", name)]
        if step.kind is not None:
            arguments += ["--json", str(self.results.path(step.kind))]
        if self.host and step.backends:
            arguments = ["-m", "tools.gpu.on_host", *arguments]
        prefix: Sequence[str] = ()
        if step.tool is not None:
            sanitizer = compute_sanitizer()
            if sanitizer is None:
                return None
            prefix = (sanitizer, "--tool", step.tool, "--error-exitcode", "99")
        return Command([*arguments, *more], environment, prefix, step.quiet)

    # ---- backends

    def fit(self, step: Step) -> tuple[list[str], list[str]]:
        """The step's backends that are usable and whose kernels for it are not broken, and why the
        others are left out."""
        found, reasons = [], []
        for backend in step.backends:
            reason = self.why_unfit(backend, step)
            if reason is None:
                found.append(backend)
            else:
                reasons.append(f"{backend}: {reason}")
        return found[: 1 if step.one else None], reasons

    def why_unfit(self, backend: str, step: Step) -> str | None:
        missing = self.machine.missing[backend]
        built = self.results.outcomes().get(("build", "build"))
        if backend == "cuda" and built is not None and built["ended"] != steps.PASSED:
            missing = missing or f"its build: {built['ended']}"
        if missing is not None:
            return missing
        for trial in self.results.broken(backend):
            of_step = trial["call"].partition(",")[0] in step.calls and trial["dtype"] == DTYPE
            if of_step and trial["layout"] in step.layouts:
                return f"{trial['trial']}: {trial['verdict']}"
        return None

    # ---- the check of every kernel

    def check(self, step: Step) -> Outcome:
        """Goes on after a kernel that hung or crashed, with the next."""
        backend, began = step.checks, time.monotonic()
        assert backend is not None
        end = began + min(step.seconds, self.left())
        self.results.begin_check(backend)
        first, last = 1, Outcome("failed")
        total: int | None = None
        while total is None or first <= total:
            seconds = end - time.monotonic()
            if seconds <= 0:
                break
            command = self.command(step, [backend], "--from", str(first))
            assert command is not None
            last = steps.run(command, seconds)
            self.results.settle(backend, {"limit": "unknown"}.get(last.ended, str(last)))
            trials = self.results.trials(backend)
            if not trials or max(trials) < first:
                break  # it did not come to a trial
            first, total = max(trials) + 1, next(iter(trials.values()))["total"]
        return self.judged(backend, last, total, time.monotonic() - began)

    def judged(self, backend: str, last: Outcome, total: int | None, seconds: float) -> Outcome:
        if total is None:
            return replace(last, seconds=round(seconds, 1))
        trials, broken = self.results.trials(backend), self.results.broken(backend)
        known = [trial for trial in trials.values() if trial["verdict"] != "unknown"]
        why = f"{len(known)} of {total} trials"
        if broken:
            why += (
                f", {len(broken)} broken, the first: {broken[0]['trial']}: {broken[0]['verdict']}"
            )
        ended = "failed" if broken else "limit" if len(known) < total else steps.PASSED
        return Outcome(ended, round(seconds, 1), why, last.last, last.tail if broken else ())


def culprit(outcome: Outcome, fit: Sequence[str]) -> str | None:
    """The backend whose kernel was launched last."""
    named = re.search(r"verify (\w+)", outcome.last)
    if named and named[1] in fit:
        return named[1]
    return fit[0] if len(fit) == 1 else None


def compute_sanitizer() -> str | None:
    folders = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    path = [os.environ.get("PATH", ""), *(f"{folder}/bin" for folder in folders if folder)]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(path))
