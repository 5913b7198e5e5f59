"""The suite over Python and torch: `make matrix`.

    python -m tools.matrix [--python PATH ...] [--torch REQUIREMENT ...] [PYTEST ARGUMENT ...]

The native core is built once for each CPython from 3.10 on that is found. Then, in an empty
environment with each torch, `python -m se_kernels check` and pytest must pass; without arguments
the tests marked quick. A table at the end, and an error if something failed.
"""

import argparse
import os
import tempfile
from pathlib import Path

from tools.environments import ROOT, Failed, Runner, pythons

TORCHES = ("torch==2.11.0", "torch==2.13.0", "torch==2.14.1")
ROOMS = ("ops", "autograd", "modules", "surgery")  # of the tests marked quick
run = Runner("matrix")


def suite(python: str, wheel: Path, torch: str, arguments: list[str]) -> str:
    """What pytest says at the end."""
    with tempfile.TemporaryDirectory() as empty:
        own = run.environment(python, Path(empty))
        run.install(own, torch, wheel)
        run("the check", [own, "-m", "se_kernels", "check"])
        run("the tests' packages", [own, ROOT / "tools" / "dev_env.py", "bench", "test"])
        site = run("where", [own, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
        said = run(
            f"the suite of {python} with {torch}",
            [
                *(own, "-m", "pytest", "-q", "--rootdir", ROOT, "-c", ROOT / "pyproject.toml"),
                *("-p", "no:cacheprovider", "-o", "pythonpath=", *arguments),
            ],
            PYTHONPATH=os.pathsep.join([site.strip(), str(ROOT)]),  # not the checkout's package
        )
    return said.strip().splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description="the suite over Python and torch")
    parser.add_argument("--python", nargs="+", help="interpreters; by default all that are found")
    parser.add_argument("--torch", nargs="+", default=TORCHES, help="by default the supported ones")
    options, arguments = parser.parse_known_args()
    tests = arguments or ["-m", "quick", *(str(ROOT / "tests" / room) for room in ROOMS)]
    failed = False
    print(f"all output: {run.log}", flush=True)
    for python in options.python or pythons():
        with tempfile.TemporaryDirectory() as folder:
            try:
                wheel = run.wheel(python, Path(folder))
            except Failed as error:
                failed = True
                print(f"{python}: {error}", flush=True)
                continue
            for torch in options.torch:
                try:
                    verdict = suite(python, wheel, torch, tests)
                except Failed as error:
                    failed, verdict = True, str(error)
                print(f"{python} {torch}: {verdict}", flush=True)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
