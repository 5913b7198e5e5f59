"""What is being measured at the moment, on standard error."""

from collections.abc import Callable, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


@contextmanager
def progress(points: Sequence[object]):
    """Gives ``start(point) -> on_step``: a bar on a terminal; elsewhere a line per point, and one
    per step of it but for rounds."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(console, len(points))
        return
    columns = (
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=len(points))
        done = -1

        def start(point: object) -> Callable[[str], None]:
            nonlocal done
            done += 1
            bar.update(task, completed=done, description=str(point))
            return lambda what: bar.update(task, description=f"{point}: {what}")

        yield start


def _lines(console: Console, total: int):
    done = 0

    def start(point: object) -> Callable[[str], None]:
        nonlocal done
        done += 1
        say(f"[{done}/{total}] {point}")
        return lambda what: None if what.startswith("round ") else say(f"  {what}: {point}")

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    return start
