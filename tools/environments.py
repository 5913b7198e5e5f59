"""Empty environments of every Python found, for tools/wheels.py and tools/matrix.py."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = range(10, 15)  # 3.10 to 3.14
UV = (sys.executable, "-m", "uv")  # unpacks a package once and links it into each environment


class Failed(Exception):
    """A step failed; the text says which."""


def pythons() -> list[str]:
    """One interpreter of each version, from PATH and pyenv's folder."""
    folders = [*map(Path, os.environ["PATH"].split(os.pathsep))]
    folders += sorted(Path.home().glob(".pyenv/versions/*/bin"))
    found: dict[int, str] = {}
    for minor in VERSIONS:
        candidates = [folder / f"python3.{minor}" for folder in folders]
        for path in filter(Path.exists, candidates):
            command = [str(path), "-c", "import sys; print(sys.version_info[:2], sys.prefix)"]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.stdout.startswith(f"(3, {minor})"):  # pyenv's shims may refuse
                found[minor] = str(path)
                break
    return [*found.values()]


class Runner:
    """Runs commands; what they print goes to a log of the name in build/logs."""

    def __init__(self, name: str):
        self.log = ROOT / "build" / "logs" / f"{name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_text("")

    def __call__(self, step: str, command: list, **environment: str) -> str:
        """The output."""
        result = subprocess.run(
            [*map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **environment},
            cwd=tempfile.gettempdir(),  # the checkout must not come before what is installed
            check=False,
        )
        with self.log.open("a") as log:
            log.write(f"\n### {step}\n{result.stdout}")
        if result.returncode != 0:
            raise Failed(f"{step} failed: {self.log} says why")
        return result.stdout

    def environment(self, python: str, folder: Path) -> Path:
        """An empty environment's Python."""
        self(
            f"an environment of {python}", [*UV, "venv", "--clear", "--seed", "-p", python, folder]
        )
        return folder / "bin" / "python"

    def install(self, python: Path, *wanted: str | Path) -> None:
        self(f"{wanted} into {python}", [*UV, "pip", "install", "--python", python, *wanted])

    def wheel(self, python: str, folder: Path, **settings: str) -> Path:
        """The checkout's wheel as it is built."""
        self(
            f"the wheel of {python}",
            [*UV, "build", "--verbose", "--wheel", "--python", python, "--out-dir", folder, ROOT],
            **{"SE_KERNELS_CPU": "ON", "SE_KERNELS_CUDA": "OFF", "VIRTUAL_ENV": "", **settings},
        )
        (built,) = folder.glob("*.whl")
        return built
