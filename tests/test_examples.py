"""The examples run as a reader runs them, and fail when they should."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import se_kernels

for module in ("click", "matplotlib", "rich", "sklearn"):
    pytest.importorskip(module)

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments):
    package = Path(se_kernels.__file__).parents[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")]),
        "COLUMNS": "200",
        "NO_COLOR": "1",
    }
    return subprocess.run(
        [sys.executable, ROOT / "examples" / "digits.py", *map(str, arguments)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_digits(tmp_path):
    plot = tmp_path / "digits.png"
    result = run("--plot", plot)
    assert result.returncode == 0, result.stdout + result.stderr
    accuracies = [float(percent) for percent in re.findall(r"([\d.]+)%", result.stdout)]
    accuracies = accuracies[-2:]  # after those of the progress bars
    assert min(accuracies) > 97
    # See examples/digits.py: rounding, amplified by 420 steps.
    largest = re.search(r"largest difference between the loss curves: (\S+)", result.stdout)
    assert float(largest[1]) < 0.05
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert plot.stat().st_size > 10_000


def test_digits_fails_without_enough_training(tmp_path):
    result = run("--epochs", 1, "--plot", tmp_path / "digits.png", "--fused-backend", "reference")
    assert result.returncode == 1
    assert "expected over 97%" in result.stdout
    assert "loss curves differ" not in result.stdout


def test_digits_refuses_an_unknown_backend(tmp_path):
    plot = tmp_path / "digits.png"
    result = run("--plot", plot, "--fused-backend", "abacus")
    assert result.returncode == 2
    assert "expected one of " in result.stderr
    assert "got 'abacus'" in result.stderr
    assert not plot.exists()
