"""The folder of results: what is done already, what is broken, and what was measured."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from benchmarks import records
from tools.digest import digest
from tools.gpu.steps import ROOT, Outcome

KINDS = ("stages", "kernels", "layer", "tail", "network", "model")  # a file each, no more
MEASURED = KINDS[2:]
CUT = "cut"  # by the end of the budget: to be run again


@dataclass(frozen=True)
class Results:
    """Of one device and one state of the sources; a later call goes on with them."""

    folder: Path
    device: str
    sources: str
    about: Mapping[str, str | None] = field(default_factory=dict)  # in each line of an outcome

    @classmethod
    def of(cls, folder: Path, device: str, **about: str | None) -> "Results":
        """Creates the folder; OSError where nothing can be written there."""
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
        parts = ("csrc", "se_kernels", "benchmarks", "tools", "setup.py")
        return cls(folder, device, digest([ROOT / part for part in parts]), about)

    def path(self, kind: str) -> Path:
        slug = re.sub(r"[^a-z0-9]+", "-", self.device.lower()).strip("-")
        return self.folder / f"{kind}-{slug}.jsonl"

    def read(self, kind: str) -> list[dict]:
        path = self.path(kind)
        return records.read(path) if path.exists() else []

    # ---- outcomes of steps

    def begin(self, stage: str, step: str) -> None:
        self._append(stage, step, ended="begun")

    def end(self, stage: str, step: str, outcome: Outcome) -> None:
        fields = dict(ended=outcome.ended, seconds=outcome.seconds, why=outcome.why)
        self._append(stage, step, **fields, last=outcome.last, tail=list(outcome.tail))

    def _append(self, stage: str, step: str, **fields) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        of = dict(kind="stage", device=self.device, sources=self.sources, time=now, **self.about)
        records.append(self.path("stages"), {**of, "stage": stage, "step": step, **fields})

    def outcomes(self) -> dict[tuple[str, str], dict]:
        """(stage, step) → its last line, of these sources."""
        lines = (line for line in self.read("stages") if line.get("sources") == self.sources)
        return {(line["stage"], line["step"]): line for line in lines}

    def is_done(self, stage: str, step: str) -> bool:
        """Whether it has ended; one that was begun only was killed with make gpu itself."""
        line = self.outcomes().get((stage, step))
        return line is not None and line["ended"] not in ("begun", CUT)

    # ---- kernels, as the check tells of them

    def begin_check(self, backend: str) -> None:
        """What the check has told of the backend so far is forgotten."""
        marker = dict(kind="check", backend=backend, sources=self.sources)
        records.append(self.path("kernels"), marker)

    def trials(self, backend: str) -> dict[int, dict]:
        """number → the last line of each trial of the backend, of these sources."""
        found: dict[int, dict] = {}
        current = False
        for line in self.read("kernels"):
            if line.get("backend") != backend:
                continue
            if line["kind"] == "check":
                current, found = line["sources"] == self.sources, {}
            elif line["kind"] == "kernel" and current:
                found[line["number"]] = line
        return found

    def settle(self, backend: str, verdict: str) -> None:
        """The verdict of the trial that was under way when its process ended."""
        for line in self.trials(backend).values():
            if line["verdict"] == "begun":
                records.append(self.path("kernels"), {**line, "verdict": verdict})

    def broken(self, backend: str) -> list[dict]:
        """The trials that were wrong, hung or crashed."""
        fine = ("right", "unknown", "begun")
        return [t for t in self.trials(backend).values() if t["verdict"] not in fine]

    def measured(self) -> list[dict]:
        """The records of benchmarks since the first stage of these sources."""
        since = min((line["time"] for line in self.outcomes_in_order()), default=None)
        if since is None:
            return []
        lines = (line for kind in MEASURED for line in self.read(kind))
        return [line for line in lines if line.get("time", "") >= since]

    def outcomes_in_order(self) -> list[dict]:
        return [line for line in self.read("stages") if line.get("sources") == self.sources]
