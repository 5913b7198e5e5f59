"""One command, in a process group of its own that is ended as a whole."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TAIL_LINES = 12  # of the output, kept in the outcome of a step that failed
# lines that name what is launched next: of a check, of a benchmark
NAMES = re.compile(r"\[\d+/\d+\] |  (judge |verify |(cpu|cuda|triton) \w+: )")
PASSED = "passed"


@dataclass(frozen=True)
class Command:
    """``arguments`` of python; ``quiet``: seconds without a line after which it hangs."""

    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    prefix: Sequence[str] = ()
    quiet: float | None = None

    def __str__(self) -> str:
        settings = (f"{name}={value}" for name, value in self.environment.items())
        return " ".join([*settings, *self.prefix, "python", *self.arguments])


@dataclass(frozen=True)
class Outcome:
    """``ended``: "passed", "failed", "crashed", "hung", "limit", or "left out"."""

    ended: str
    seconds: float = 0.0
    why: str = ""
    last: str = ""  # the name that was printed last
    tail: tuple[str, ...] = ()

    @property
    def is_fine(self) -> bool:
        return self.ended in (PASSED, "left out")

    def __str__(self) -> str:
        words = f"{self.ended}: {self.why}" if self.why else self.ended
        return f"{words}; last: {self.last}" if self.last and not self.is_fine else words


class Watched:
    """Reads the output of a process, line by line, and shows it."""

    def __init__(self, stream):
        self.stream, self.heard = stream, time.monotonic()
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.name = ""
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        for line in self.stream:
            print(line, end="", flush=True)
            self.heard = time.monotonic()
            self.tail.append(line.rstrip())
            if NAMES.match(line):
                self.name = line.strip()

    def last(self) -> str:
        return self.name or next((line for line in reversed(self.tail) if line), "")


def run(command: Command, seconds: float) -> Outcome:
    """Runs it for so many seconds at most. Whatever happens, no process of its group is left."""
    print(f"+ {command}", flush=True)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    if "TRITON_INTERPRET" not in command.environment:
        environment.pop("TRITON_INTERPRET", None)
    began = time.monotonic()
    process = subprocess.Popen(
        [*command.prefix, sys.executable, *command.arguments],
        cwd=ROOT,
        env={**environment, **command.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=_end_with_the_parent,
    )
    watched = Watched(process.stdout)
    try:
        ended, why = _wait(process, watched, command, began + seconds, seconds)
    finally:
        _end(process)
        watched.thread.join(timeout=2)
    tail = () if ended == PASSED else tuple(watched.tail)
    return Outcome(ended, round(time.monotonic() - began, 1), why, watched.last(), tail)


def _wait(process, watched: Watched, command: Command, end: float, seconds: float):
    """(ended, why) of the process."""
    while True:
        try:
            code = process.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            now = time.monotonic()
            if command.quiet is not None and now > watched.heard + command.quiet:
                return "hung", f"no line for {command.quiet:g} s"
            if now > end:
                return "limit", f"took longer than its {seconds:.0f} s"
            continue
        if code == 0:
            return PASSED, ""
        if code < 0:
            return "crashed", signal.Signals(-code).name
        if any("CUDA error" in line for line in watched.tail):
            return "crashed", f"exit code {code}, CUDA error"
        return "failed", f"exit code {code}"


def _end(process: subprocess.Popen) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _end_with_the_parent() -> None:
    """Of the child: to be killed where make gpu is, so that nothing holds the GPU afterwards."""
    set_parent_death_signal = 1
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
