"""A bar on standard error where that is a terminal; nothing elsewhere."""

import sys


class Progress:
    """``with Progress(total) as bar``, then ``bar.show(done, what)``; gone at the end."""

    WIDTH = 20

    def __init__(self, total: int):
        self.total, self.shown = max(total, 1), sys.stderr.isatty()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def show(self, done: int, what: str) -> None:
        if not self.shown:
            return
        filled = self.WIDTH * done // self.total
        bar = "#" * filled + "." * (self.WIDTH - filled)
        line = f"[{bar}] {done}/{self.total} {what}"[:100]
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
