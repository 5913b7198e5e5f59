"""examples/digits: it learns, goes on where it was stopped, and notices a wrong gradient."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import se_kernels
from se_kernels.core.autograd import BatchNormSqueezeExciteFunction

for module in ("click", "matplotlib", "PIL", "rich", "sklearn"):
    pytest.importorskip(module)

testing = importlib.import_module("click.testing")
ImageFolder = importlib.import_module("se_kernels.analysis").ImageFolder
digits = importlib.import_module("examples.digits.__main__")

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--size", 8, "--blocks", 1, "--width", 8, "--seeds", 1)


@pytest.fixture(autouse=True)
def _same_threads(threads):
    with threads(torch.get_num_threads()):  # the command sets them
        yield


def run(output, *arguments):
    arguments = [str(a) for a in ("--output", output, *SMALL, *arguments)]
    return testing.CliRunner().invoke(digits.main, arguments)


def succeed(output, *arguments) -> dict[str, dict]:
    """Each contender's record, and the losses of its checkpoint."""
    result = run(output, *arguments)
    assert result.exit_code == 0, result.output
    return records(output)


def records(output):
    found = {}
    for line in (output / "runs.jsonl").read_text().splitlines():
        record = json.loads(line)
        path = output / "checkpoints" / f"{record['contender']}-{record['seed']}.pt"
        record["loss"] = torch.load(path, weights_only=True)["curves"]["loss"]
        found[record["contender"]] = record
    return found


def assert_same_curves(runs, expected):
    assert runs.keys() == expected.keys()
    for contender, record in expected.items():
        for curve in ("loss", "train_error", "test_error"):
            # float64, over some tens of steps that amplify a rounding of 1e-16
            torch.testing.assert_close(
                runs[contender][curve], record[curve], rtol=1e-9, atol=1e-12, msg=curve
            )


def test_it_learns_and_draws(tmp_path):
    runs = succeed(tmp_path, "--epochs", 12)
    assert len(runs) == 3
    for contender, record in runs.items():
        # chance is 90 %; 14 steps an epoch leave less than a tenth of it after twelve
        assert record["test_error"][-1] < 9, contender
        assert len(record["train_error"]) == len(record["test_error"]) == 12
    assert runs["se_resnet_eager"]["parameters"] > runs["resnet"]["parameters"]
    picture = (tmp_path / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000


def test_it_goes_on_where_it_was_stopped(tmp_path):
    settings = ("--epochs", 3, "--dtype", "float64")
    expected = succeed(tmp_path / "whole", *settings)
    stopped = succeed(tmp_path / "parts", *settings, "--stop-after", 1)
    assert all(len(record["test_error"]) == 1 for record in stopped.values())
    assert_same_curves(succeed(tmp_path / "parts", *settings), expected)


@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch was built without gloo"
)
def test_two_processes_are_one_with_the_joint_batch(tmp_path):
    settings = ("--epochs", 1, "--dtype", "float64", "--contender", "se_resnet_fused")
    arguments = ["--standalone", "--nproc-per-node=2", "-m", "examples.digits"]
    arguments += ["--output", tmp_path / "two", *SMALL, *settings]
    package = Path(se_kernels.__file__).parents[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(package), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",  # no name of this machine to be resolved
        "CUDA_VISIBLE_DEVICES": "",  # two processes would want two GPUs
    }
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *map(str, arguments)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    runs = records(tmp_path / "two")
    assert all(record["processes"] == 2 for record in runs.values())
    assert_same_curves(runs, succeed(tmp_path / "one", *settings))


def test_trained_networks_are_pruned_and_their_images_written(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    runs = succeed(tmp_path, "--epochs", 2, "--contender", "se_resnet_fused")
    error = runs["se_resnet_fused"]["test_error"][-1]
    prune = importlib.import_module("examples.digits.prune")
    arguments = ["--output", str(tmp_path), "--tolerance", "0", "--tolerance", "1"]
    result = testing.CliRunner().invoke(prune.main, arguments)
    assert result.exit_code == 0, result.output
    none, every = [line for line in result.output.splitlines() if "se_resnet_fused-0" in line]
    assert "0 of 3" in none
    assert f"{error:.2f} → {error:.2f}" in none
    assert "3 of 3" in every
    result = testing.CliRunner().invoke(prune.main, [*arguments, "--contender", "vgg"])
    assert result.exit_code == 2
    assert "--output: expected checkpoints of vgg" in result.output

    images = importlib.import_module("examples.digits.images")
    result = testing.CliRunner().invoke(images.main, [str(tmp_path / "png"), "--size", "8"])
    assert result.exit_code == 0, result.output
    found = ImageFolder(tmp_path / "png", size=8, resize=8, mean=(0.5,), std=(0.5,))
    assert found.classes == tuple("0123456789")
    _, test_images = digits.data.load(8, torch.float32)
    written = torch.cat([pixels for _, pixels in found.batches()])
    expected = test_images.pixels[test_images.labels.argsort(stable=True)]
    torch.testing.assert_close(written, expected, rtol=0, atol=1 / 255 + 1e-6)  # half of 2 / 255


def test_it_notices_a_wrong_gradient(tmp_path, monkeypatch):
    backward = BatchNormSqueezeExciteFunction.backward

    def wrong(ctx, dy, *of_others):
        joint, du, *others = backward(ctx, dy, *of_others)
        return joint, du + 1e-3 * dy, *others

    monkeypatch.setattr(BatchNormSqueezeExciteFunction, "backward", staticmethod(wrong))
    both = ("--contender", "se_resnet_eager", "--contender", "se_resnet_fused")
    result = run(tmp_path, "--epochs", 1, "--dtype", "float64", *both)
    assert result.exit_code == 1
    assert "expected a difference of at most" in result.output


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--backend", "abacus"), "expected one of "),
        (("--batch", 1000), "expected at most the 898 images, got 1000"),
        (("--contender", "vgg"), "'vgg' is not one of"),
        (("--size", 4), "4 is not in the range"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    result = run(tmp_path / "output", *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "output").exists()


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    one = ("--contender", "resnet", "--epochs", 1)
    succeed(tmp_path, *one)
    result = run(tmp_path, *one, "--width", 4)
    assert result.exit_code == 2
    assert "width: expected 8, as in the checkpoint" in result.output
    assert "got 4; choose another --output" in result.output
