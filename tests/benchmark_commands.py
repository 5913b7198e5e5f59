"""Runs the benchmarks' commands in this process, and what every result of theirs has."""

from click.testing import CliRunner

from benchmarks.cli import main

ENVIRONMENT_FIELDS = {
    "device",
    "device_type",
    "threads",
    "load",
    "variables",
    "python",
    "torch",
    "triton",
    "se_kernels",
    "commit",
    "dirty",
    "time",
    "command",
}


def run(*args):
    return CliRunner().invoke(main, [str(arg) for arg in args])


def succeed(*args):
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result.output


def assert_png(path):
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 10_000
