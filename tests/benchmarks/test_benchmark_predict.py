"""``python -m benchmarks predict``: worked out by hand from lines and figures made up."""

import json

import pytest
from click.testing import CliRunner

from benchmarks import instructions, predict
from benchmarks.cli import main
from benchmarks.gpus import GPUS, Gpu

# 1,000 bytes/µs to copy; 10 x 4 x 0.6 x 1,000 = 24,000 instructions/µs; waits in whole
GPU = Gpu("Made", 90, 10, 1 / 0.86, 1 / 0.9, 1 << 30)
X = 256 * 2048 * 49 * 2  # bytes of x at conv5
KIND = dict(name="first", count=80, wide_waits=2, other_waits=5, fences=1)
LINE = dict(
    operation="forward",
    stage="conv5",
    layout="nchw",
    batch=256,
    kernel="forward_local<bfloat16, nchw>",
    registers=64,
    threads=256,
    shared_bytes=0,
    blocks=80,
    group_images=1,
    instructions=240.0,
    kinds=[KIND],
)


def test_each_of_the_three_times():
    p = predict.of_line(LINE, GPU, 256)
    assert p.floor == p.memory == pytest.approx(2 * X / 1000)
    assert p.issue == pytest.approx(240 * X / 512 / 24_000)
    # 80 blocks, 4 on each of 10 multiprocessors: twice 2 x 0.8 + 5 x 0.4 + 0.6
    assert p.latency == pytest.approx(2 * 4.2)
    assert (p.time, p.limit) == (p.memory, "memory")
    assert p.eager == pytest.approx(3 * X / 1000 + 6 * 2.5)
    assert p.budget == pytest.approx(131.2)


def test_a_group_that_the_cache_cannot_hold_is_read_again():
    small = Gpu("Small", 90, 10, 1, 1, l2_bytes=300_000)
    assert predict.units_of(LINE, GPU) == 2
    assert predict.units_of(LINE, small) == 3  # two images of 200,704 bytes


def test_the_larger_time_is_named():
    assert predict.of_line(dict(LINE, instructions=1e6), GPU, 256).limit == "issue"
    slow = dict(LINE, kinds=[dict(KIND, count=10**8)])
    assert predict.of_line(slow, GPU, 256).limit == "latency"


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """A file of one line, and a folder of results."""
    file = tmp_path / "instructions.jsonl"
    file.write_text(json.dumps(dict(fingerprint="old")) + "\n" + json.dumps(LINE) + "\n")
    monkeypatch.setattr(instructions, "FILE", file)
    return tmp_path


def test_measured_over_predicted(recorded):
    result = dict(
        device="NVIDIA H200 NVL",
        batch=256,
        dtype="bfloat16",
        mode="inference",
        layout="nchw",
        shape=dict(name="conv5"),
        contenders=dict(cuda=dict(p50_us=100.0)),
    )
    others = [
        dict(result, device="NVIDIA H100"),
        dict(result, batch=1),
        dict(result, contenders={}),
    ]
    lines = "\n".join(map(json.dumps, [*others, result]))
    (recorded / "layer-nvidia-h200.jsonl").write_text(lines)
    h200 = GPUS["h200"]
    measured = predict.measured_times(h200, 256, recorded)
    assert measured == {("conv5", "nchw", "inference"): 100.0}
    found = predict.predict(h200, 256)
    (comparison,) = predict.compared(found, measured)
    assert (comparison.measured, comparison.predicted) == (100.0, found[0].time)


def test_the_command(recorded):
    out = recorded / "out.jsonl"
    result = CliRunner().invoke(main, ["predict", "--gpu", "h200", "--json", str(out)])
    assert result.exit_code == 0, result.output
    assert "Predicted, H200, N=256, bfloat16; not measured" in result.output
    assert "csrc/cuda has changed" in result.output
    (row,) = map(json.loads, out.read_text().splitlines())
    assert (row["kind"], row["gpu"], row["operation"]) == ("predicted", "h200", "forward")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--gpu", "v100"], "'v100' is not one of"),
        (["--gpu", "h200", "--operation", "sideways"], "expected of ['forward'], got ['sideways']"),
        (["--gpu", "h200", "--batch", "0"], "0 is not in the range"),
    ],
)
def test_bad_input_is_one_error(recorded, arguments, message):
    result = CliRunner().invoke(main, ["predict", *arguments])
    assert result.exit_code == 2
    assert message in result.output


def test_nothing_recorded_is_one_error(recorded):
    (recorded / "instructions.jsonl").unlink()
    result = CliRunner().invoke(main, ["predict", "--gpu", "h200"])
    assert result.exit_code == 1
    assert "expected what `make instructions` writes" in result.output
