"""The benchmarks' commands at small sizes, their arithmetic, and that wrong results are refused."""

import json
import math
import re

import numpy as np
import pytest
import torch
from benchmark_commands import ENVIRONMENT_FIELDS, assert_png, run, succeed

from benchmarks import (
    block,
    contenders,
    environment,
    inputs,
    layer,
    models,
    network,
    network_calls,
    network_verify,
    photos,
    records,
    report,
    resnet_vs_se,
    timing,
    verify,
)

CPU = torch.device("cpu")
SE = 2_514_944  # parameters of SE-ResNet-50's blocks
TINY = ["--shape", "24x5x7:3", "--batch", "2", "--rounds", "3", "--backend", "reference"]
NO_COMPILE = [arg for kind in ("eager", "fused", "copy", "clone") for arg in ("--contender", kind)]


@pytest.fixture(autouse=True)
def same_number_of_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


# --- statistics -----------------------------------------------------------------------------------


def test_percentiles_are_in_microseconds():
    assert timing.percentiles([1e-6 * n for n in range(11)]) == pytest.approx(
        {"p20_us": 2, "p50_us": 5, "p80_us": 8}
    )


def test_paired_ratio_is_the_median_within_rounds_not_a_ratio_of_medians():
    above, below = [2.0, 20.0, 9.0], [1.0, 10.0, 100.0]
    assert timing.paired_ratio(above, below) == 2.0
    assert np.median(above) / np.median(below) == 0.9


@pytest.mark.parametrize("below", [[1.0], []])
def test_paired_ratio_wants_pairs(below):
    with pytest.raises(ValueError, match="rounds"):
        timing.paired_ratio([1.0, 2.0] if below else [], below)


def test_geometric_mean():
    assert timing.geometric_mean([0.5, 2.0, 8.0]) == pytest.approx(2.0)
    assert math.isnan(timing.geometric_mean([]))


class Recorder:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def prepare(self, k):
        self.log.append(("prepare", self.name, k))

    def call(self, k):
        self.log.append(("call", self.name, k))


def test_contenders_take_turns_on_rotating_sets():
    log = []
    names = ("a", "b", "c")
    seconds = timing.in_turn(
        {name: Recorder(name, log) for name in names},
        timing.CpuClock(),
        timing.Budget(rounds=4, warmup=1),
        sets=2,
    )
    calls = [entry[1:] for entry in log if entry[0] == "call"]
    assert [name for name, _ in calls] == list(names) * 5
    assert [k for _, k in calls] == [0, 1] * 7 + [0]
    assert log[::2] == [("prepare", *call) for call in calls]
    assert {name: len(values) for name, values in seconds.items()} == dict.fromkeys(names, 4)


def test_budget_has_bounds():
    budget = timing.Budget(seconds=1.0, min_rounds=3, max_rounds=5)
    assert budget.goes_on(2, elapsed=9.0)
    assert not budget.goes_on(3, elapsed=9.0)
    assert budget.goes_on(4, elapsed=0.5)
    assert not budget.goes_on(5, elapsed=0.5)


def test_input_sets_exceed_the_cache():
    assert inputs.how_many(10, 100) == 11
    assert inputs.how_many(1000, 100) == 2
    assert inputs.how_many(1, 10**9) == inputs.MAX_SETS
    assert environment.last_level_cache_bytes(CPU) >= 2**20


def test_summary_counts_the_points_that_are_slower():
    point = block.Point(block.Shape.parse("8x2x2:2"), 1, "float32", "nchw", "train")
    found = []
    for eager in (2e-6, 8e-6, 0.5e-6):
        seconds = {"eager": [eager] * 3, "cpu": [1e-6] * 3, "copy": [0.25e-6] * 3}
        fields = block.statistics(
            layer.Layer(), point, {k: np.array(v) for k, v in seconds.items()}
        )
        found.append({"dtype": "float32", "mode": "train", **fields})
    assert found[0]["contenders"]["cpu"]["copies"] == pytest.approx(4)
    assert found[0]["floor"]["us"] == pytest.approx(2.5 * 0.25)
    # x, y, then x, dy, dx: 5 passes; both weights read twice and their gradients written: 3
    assert found[0]["floor"]["counted_bytes"] == 4 * (5 * 8 * 4 + 3 * 2 * 8 * 2)
    (row,) = [row for row in report.block_summary(found) if row["contender"] == "cpu"]
    assert row["eager_over"] == pytest.approx(2.0)
    assert row["slower_than_eager"] == 1
    assert "slower_than_compile" not in row  # which was not timed


# --- arguments ------------------------------------------------------------------------------------


def test_shapes():
    conv3 = block.Shape("conv3", 512, 28, 28, 32)
    assert block.Shape.parse("conv3") == block.Shape.parse("512x28x28") == conv3
    assert block.Shape.parse("512x28x28:8") == block.Shape("512x28x28", 512, 28, 28, 8)
    assert block.Shape.parse("8x3x4").reduced == 1
    for wrong in ("conv6", "8x3", "8x3x0", "8x3x4:0", "-8x3x4"):
        with pytest.raises(ValueError, match="CxHxW"):
            block.Shape.parse(wrong)


@pytest.mark.parametrize(
    "args, says",
    [
        (["layer", "--dtype", "int8"], "'int8' is not one of"),
        (["layer", "--backend", "tpu"], "'tpu' is not one of"),
        (["layer", "--shape", "8x3"], "CxHxW"),
        (["layer", "--batch", "0"], "x>=1"),
        (["layer", "--plot", "chart.txt"], ".png"),
        (["network", "--dtype", "float16"], "loss scaling"),
        (["network", "--image-size", "32", "--batch", "4"], "4 numbers"),
    ],
)
def test_wrong_arguments_are_refused(args, says):
    result = run(*args)
    assert result.exit_code == 2
    assert says in result.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="cuda can be used here")
def test_a_missing_device_is_refused():
    result = run("layer", "--device", "cuda")
    assert result.exit_code == 2
    assert "cuda cannot be used here" in result.output


@pytest.mark.parametrize("named", [True, False])
def test_a_missing_backend_is_refused_with_its_reason(monkeypatch, named):
    from se_kernels.backends.cpu import extension

    monkeypatch.setattr(extension, "reason", "no compiler was found")
    result = run("layer", *(["--backend", "cpu"] if named else []))
    assert result.exit_code == 2
    assert "no compiler was found" in result.output
    assert "Traceback" not in result.output


# --- layer ----------------------------------------------------------------------------------------


def test_layer_with_every_contender(tmp_path):
    lines, chart = tmp_path / "new" / "layer.jsonl", tmp_path / "layer.png"
    output = succeed("layer", *TINY, "--threads", 1, "--json", lines, "--plot", chart)
    found = records.read(lines)
    assert [r["mode"] for r in found] == ["inference", "train"]
    for record in found:
        assert record.keys() >= ENVIRONMENT_FIELDS
        assert record["kind"] == "layer"
        assert record["threads"] == 1
        assert record["command"].startswith("python -m benchmarks layer --shape 24x5x7:3")
        assert record["shape"] == dict(name="24x5x7", channels=24, height=5, width=7, reduced=3)
        assert (record["batch"], record["dtype"], record["layout"]) == (2, "float32", "nchw")
        assert record["rounds"] == 3
        assert record["input_sets"] >= 2
        assert list(record["contenders"]) == ["eager", "compile", "reference", "copy", "clone"]
        for row in record["contenders"].values():
            assert 0 < row["p20_us"] <= row["p50_us"] <= row["p80_us"]
            assert row["copies"] > 0
        assert record["ratios"]["eager"].keys() == {"compile", "reference"}
        assert record["ratios"]["compile"].keys() == {"eager", "reference"}
        assert record["floor"]["copies"] == {"inference": 1.0, "train": 2.5}[record["mode"]]
        quantities = {"inference": {"y"}, "train": {"y", "dx", "dw1", "dw2"}}[record["mode"]]
        assert {c["quantity"] for c in record["verification"]} == quantities
        assert {c["contender"] for c in record["verification"]} == {"eager", "compile", "reference"}
    assert_png(chart)
    assert "Geometric means" in output
    assert "slower" in output

    succeed("layer", *TINY, *NO_COMPILE, "--mode", "train", "--json", lines)
    assert len(records.read(lines)) == 3  # appended


@pytest.mark.skipif("cpu" not in contenders.usable_backends(CPU), reason="no native core")
def test_layer_native_in_both_layouts_and_reduced_precision(tmp_path):
    lines = tmp_path / "layer.jsonl"
    small = [arg for arg in TINY if arg not in ("--backend", "reference")]
    pairs = {"nchw": ("float32", "bfloat16"), "channels_last": ("float16", "float64")}
    for layout, dtypes in pairs.items():
        given = [arg for dtype in dtypes for arg in ("--dtype", dtype)]
        succeed("layer", *small, *NO_COMPILE, "--json", lines, "--layout", layout, *given)
    found = records.read(lines)
    assert len(found) == 2 * 2 * 2
    assert all("cpu" in record["contenders"] for record in found)


def test_copies_are_left_out_where_no_copy_was_timed(tmp_path):
    lines, chart = tmp_path / "layer.jsonl", tmp_path / "layer.png"
    kinds = ["--contender", "eager", "--contender", "fused"]
    succeed("layer", *TINY, *kinds, "--mode", "inference", "--json", lines, "--plot", chart)
    (record,) = records.read(lines)
    assert list(record["contenders"]) == ["eager", "reference"]
    assert "copies" not in record["contenders"]["eager"]
    assert "us" not in record["floor"]
    assert_png(chart)


class Wrong(torch.nn.Module):
    """Right, but for the step given; ``fc1`` and ``fc2`` are where gradients are looked up."""

    def __init__(self, module, spoil):
        super().__init__()
        self.fc1, self.fc2 = module.fc1, module.fc2
        self.module, self.spoil = [module], spoil

    def forward(self, x):
        return self.spoil(self.module[0](x), x)


WRONG = {
    "y": lambda y, x: y * 1.01,
    "nan": lambda y, x: torch.where(y == y.max(), torch.nan, y),
    "dx": lambda y, x: y.detach() + (y - y.detach()) * 1.01,
    "shape": lambda y, x: y[:1],
    "dtype": lambda y, x: y.double(),
    "layout": lambda y, x: y.contiguous(memory_format=torch.channels_last),
    "gradient": lambda y, x: y.detach() + x - x.detach(),
}


@pytest.mark.parametrize("spoilt", WRONG)
def test_a_wrong_contender_is_not_timed_and_the_others_are(monkeypatch, tmp_path, spoilt):
    right = layer.fused_se
    monkeypatch.setattr(layer, "fused_se", lambda *args: Wrong(right(*args), WRONG[spoilt]))
    lines, chart = tmp_path / "layer.jsonl", tmp_path / "layer.png"
    result = run("layer", *TINY, *NO_COMPILE, "--json", lines, "--plot", chart)
    assert result.exit_code == 1
    assert "Error: 24x5x7 R3 N=2" in result.output
    assert re.search(r"reference: .*; not timed", " ".join(result.output.split()))
    found = records.read(lines)
    assert len(found) > 0
    refusing = [record for record in found if "refused" in record]
    assert len(refusing) > 0
    for record in refusing:
        assert [*record["refused"]] == ["reference"]
        assert "reference" not in record["contenders"]
        assert {"eager", "copy"} <= {*record["contenders"]}
    assert not chart.exists()


def test_one_per_cent_is_refused_in_bfloat16(monkeypatch):
    right = layer.fused_se
    monkeypatch.setattr(layer, "fused_se", lambda *args: Wrong(right(*args), WRONG["y"]))
    args = ("--shape", "64x14x14", "--batch", 2, "--backend", "reference", "--rounds", 1)
    result = run("layer", *args, *NO_COMPILE, "--dtype", "bfloat16")
    assert result.exit_code == 1
    assert re.search("reference: rms error of y .* expected at most", result.output)


def test_a_contender_that_cannot_run_is_an_error_in_one_line(monkeypatch):
    def fail(y, x):
        raise RuntimeError("no such kernel\nand more")

    right = layer.fused_se
    monkeypatch.setattr(layer, "fused_se", lambda *args: Wrong(right(*args), fail))
    result = run("layer", *TINY, *NO_COMPILE)
    assert result.exit_code == 1
    assert "reference cannot run: RuntimeError: no such kernel; not timed" in (
        " ".join(result.output.split())
    )


def test_the_judge_is_the_same_in_chunks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    w1, w2 = inputs.make_weights(12, 3, CPU, generator)
    options = dict(dtype=torch.float32, layout="nchw", backward=True, device=CPU)
    (s,) = inputs.make_sets((5, 12, 3, 4), 1, generator=generator, **options)
    whole = layer.judge(s, w1, w2)
    monkeypatch.setattr(verify, "CHUNK_BYTES", 2 * 12 * 12 * 8)  # two images
    chunked = layer.judge(s, w1, w2)
    for name, result in whole.results.items():
        torch.testing.assert_close(chunked.results[name], result, rtol=1e-12, atol=1e-12)
        assert chunked.sizes[name] == pytest.approx(whole.sizes[name])


def test_fresh_gradients_of_each_call():
    generator = torch.Generator().manual_seed(0)
    w1, w2 = inputs.make_weights(8, 2, CPU, generator)
    options = dict(dtype=torch.float32, layout="nchw", backward=True, device=CPU)
    sets = inputs.make_sets((1, 8, 3, 3), 1, generator=generator, **options)
    (eager,) = layer.build(["eager"], [], w1, w2, dtype=torch.float32, layout="nchw")
    timed = contenders.Call(eager, sets, "train")
    gradients = []
    for _ in range(2):
        timed.prepare(0)
        _, found = timed.call(0)
        gradients.append(found)
    assert [g.shape for g in gradients[0]] == [sets[0].x.shape, w1.shape, w2.shape]
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)  # the same, not the sum


# --- networks -------------------------------------------------------------------------------------


def test_network(tmp_path):
    lines, chart = tmp_path / "network.jsonl", tmp_path / "network.png"
    small = ["--image-size", 32, "--batch", 8, "--rounds", 2, "--backend", "reference"]
    output = succeed("network", *small, "--json", lines, "--plot", chart)
    found = records.read(lines)
    assert [r["mode"] for r in found] == ["inference", "train"]
    for record in found:
        assert record.keys() >= ENVIRONMENT_FIELDS
        assert list(record["contenders"]) == ["resnet50", "se_eager", "se_layer", "se_block"]
        assert record["ratios"].keys() == {
            "se_eager/resnet50",
            *("se_layer/resnet50", "se_block/resnet50"),
            *("se_eager/se_layer", "se_eager/se_block"),
        }
        assert record["backend"] == "reference"
        assert {c["contender"] for c in record["verification"]} == {"se_layer", "se_block"}
        assert [row["ratio"] for row in record["paper"]] == pytest.approx([1.10, 1.018], abs=5e-4)
    inference, train = found
    assert not any("peak_bytes" in row for row in inference["contenders"].values())
    held = {name: row["weights_bytes"] for name, row in train["contenders"].items()}
    assert held["resnet50"] == 4 * (2 * 25_557_032 + 53_120) + 8 * 53  # momentum; statistics
    assert held["se_eager"] == held["se_layer"] == held["se_block"] == held["resnet50"] + 8 * SE
    assert all(row["peak_bytes"] > row["weights_bytes"] for row in train["contenders"].values())
    # 32×32: the blocks' outputs are 8×8, 4×4, 2×2 and 1×1
    x = 3 * 256 * 64 + 4 * 512 * 16 + 6 * 1024 * 4 + 3 * 2048
    assert train["se_x_bytes"] == 8 * 4 * x
    quantities = {c["quantity"] for c in train["verification"]}
    assert {
        "logits",
        "gradient of conv1.weight",
        "gradient of layer4.2.se.fc2.weight",
    } <= quantities
    assert_png(chart)
    assert "peak MB" in output
    for number in ("190", "209", "1.100", "164", "167", "1.018"):
        assert number in output


def test_a_wrong_network_is_not_timed_and_the_others_are(monkeypatch, tmp_path):
    right = resnet_vs_se.se_resnet50

    def wrong(fused, **options):
        model = right(fused=fused, **options)
        if fused == "block":
            model.layer3[2].se.register_forward_hook(lambda module, args, y: y * 1.01)
        return model

    monkeypatch.setattr(resnet_vs_se, "se_resnet50", wrong)
    lines = tmp_path / "network.jsonl"
    small = ["--image-size", 32, "--batch", 2, "--rounds", 1, "--backend", "reference"]
    result = run("network", *small, "--mode", "inference", "--json", lines)
    assert result.exit_code == 1
    assert "se_block: max error of logits" in result.output
    (record,) = records.read(lines)
    assert [*record["refused"]] == ["se_block"]
    assert [*record["contenders"]] == ["resnet50", "se_eager", "se_layer"]
    assert "se_layer/resnet50" in record["ratios"]


def test_a_wrong_gradient_is_refused():
    generator = torch.Generator().manual_seed(0)
    judge = {
        name: torch.randn(5, 4, generator=generator, dtype=torch.float64)
        for name in ("logits", "a", "b")
    }
    eager = {name: (t * (1 + 1e-3)).float() for name, t in judge.items()}
    network_verify.check_outputs("right", eager, eager, judge, torch.float32)
    for name, spoil in (("a", 1.01), ("b", 0.0), ("b", math.nan)):
        with pytest.raises(
            verify.VerificationError, match=f"wrong: rms error of gradient of {name}"
        ):
            network_verify.check_outputs(
                "wrong", {**eager, name: eager[name] * spoil}, eager, judge, torch.float32
            )
    half = {name: (t * 1.5).to(torch.bfloat16) for name, t in judge.items()}
    missing = {**half, "a": torch.zeros(5, 4)}
    with pytest.raises(verify.VerificationError, match="gradient of a"):
        network_verify.check_outputs("wrong", missing, half, judge, torch.bfloat16)


@pytest.mark.parametrize(
    "wrong_on, quantity",
    [((0, 1), None), (range(12), "gradient"), ((0,), "logits"), ((1,), None), ((0,), "NaN")],
)
def test_gradients_are_judged_anew_on_other_images_and_logits_are_not(wrong_on, quantity):
    """A network whose gradient, or whose logits, are wrong on some of the batches."""

    class Sometimes(torch.nn.Linear):
        calls = 0

        def forward(self, images):
            y = super().forward(images.flatten(1))
            wrong, self.calls = self.calls in wrong_on, self.calls + 1
            if wrong and quantity == "logits":
                return y * 1.01
            if wrong and quantity == "NaN":
                y.register_hook(lambda dy: dy * math.nan)
            elif wrong:
                return y + 0.5 * (y - y.detach())
            return y

    torch.manual_seed(0)
    right = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5))
    wrong = Sometimes(12, 5)
    wrong.load_state_dict(right[1].state_dict())
    twin = torch.nn.Sequential(torch.nn.Identity(), wrong)  # the same names
    networks = {
        name: network_calls.Network(name, model, model, None, None)
        for name, model in {"eager": right, "fused": twin}.items()
    }
    batches = [(torch.randn(2, 3, 2, 2), torch.tensor([1, 4])) for _ in range(12)]
    judges = {"eager": "eager", "fused": "eager"}

    def verified():
        return network.verify_networks(
            networks, judges, batches, 2, torch.float32, True, lambda what: None
        )

    if quantity is None:
        checks, _, refused = verified()
        assert refused == {}
        assert {c.quantity for c in checks} == {
            "logits",
            "gradient of 1.weight",
            "gradient of 1.bias",
        }
        assert len(checks) == 2 + 2  # the largest and the root mean square of the logits
    else:
        what = "gradient" if quantity == "NaN" else quantity
        _, _, refused = verified()
        assert list(refused) == ["fused"]
        assert re.search(rf"fused: .* error of {what}", refused["fused"])
    tries = network_verify.TRIES
    expected = {"logits": 1, "gradient": tries, "NaN": tries, None: 3 if 0 in wrong_on else 1}
    assert wrong.calls == expected[quantity]


def test_the_least_error_is_held_against_eagers_least():
    least = network_verify.Least()
    least.update("eager", np.array([0.2, 0.1]))
    assert least.update("fused", np.array([0.5, 0.1])).max() == 0.5
    assert least.update("eager", np.array([0.3, 0.0])).max() == 0.2
    assert least.update("fused", np.array([0.0, 0.4])).max() == 0.4
    assert least.update("eager", np.array([0.1, 0.1])).max() == 0.1
    assert np.isnan(least.update("fused", np.array([math.nan, 0.0]))).any()
    assert np.isnan(least.update("fused", np.array([0.0, 0.0]))).any()


def test_a_gradient_that_is_zero_but_for_rounding_hides_no_other():
    generator = torch.Generator().manual_seed(0)
    judge = {
        name: torch.randn(5, 4, generator=generator, dtype=torch.float64)
        for name in ("logits", "a", "b", "shift")
    }
    judge["shift"] *= 1e-17
    eager = {name: (t * (1 + 1e-5)).float() for name, t in judge.items()}
    eager["shift"] = torch.full((5, 4), 1e-7)  # 1e10 times the gradient itself
    network_verify.check_outputs("right", eager, eager, judge, torch.float32)
    for name, spoilt in (("a", eager["a"] * 1.01), ("shift", torch.full((5, 4), 1e-2))):
        got = {**eager, name: spoilt}
        with pytest.raises(verify.VerificationError, match=f"gradient of {name}"):
            network_verify.check_outputs("wrong", got, eager, judge, torch.float32)


def test_photos(tmp_path):
    lines = tmp_path / "photos.jsonl"
    output = succeed("photos", "--backend", "reference", "--json", lines)
    (record,) = records.read(lines)
    assert record["kind"] == "photos"
    assert record["batch"] == 2
    assert record["largest_difference"] <= record["tolerance"] < record["between_photos"] / 10
    assert "tolerance" in output


def test_photos_are_refused_where_the_fused_network_differs(monkeypatch):
    right = resnet_vs_se.se_resnet50

    def wrong(fused, **options):
        model = right(fused=fused, **options)
        if fused == "block":
            model.fc.register_forward_hook(lambda module, args, y: y + 1e-4)
        return model

    monkeypatch.setattr(resnet_vs_se, "se_resnet50", wrong)
    result = run("photos", "--backend", "reference")
    assert result.exit_code == 1
    assert "se_block on photographs" in result.output


def test_photographs_are_normalised_and_cropped():
    grey = np.full((30, 40, 3), 255, dtype=np.uint8)
    x = photos.prepare(grey)
    assert x.shape == (1, 3, 224, 224)
    expected = (1 - torch.tensor(photos.MEAN)) / torch.tensor(photos.STD)
    torch.testing.assert_close(x[0, :, 100, 100], expected, rtol=0, atol=1e-5)
    assert x.std(dim=(2, 3)).max() < 1e-5


# --- traffic ------------------------------------------------------------------------------------


def test_traffic_needs_the_stand_in_for_cuda(monkeypatch, tmp_path):
    monkeypatch.setenv("SE_KERNELS_CUDA_ON_HOST", str(tmp_path))
    result = run("traffic")
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: expected {tmp_path}")
    assert "`make races` builds it" in result.output


# --- quick, records -------------------------------------------------------------------------------


def test_quick_ends_with_three_numbers_and_the_chart(monkeypatch, tmp_path):
    monkeypatch.setattr("benchmarks.cli.QUICK_STAGES", ["16x5x5:4", "8x4x4:2"])
    monkeypatch.setattr(models, "IMAGE_SIZE", 64)
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    chart, lines = tmp_path / "quick.png", tmp_path / "quick.jsonl"
    said = succeed("quick", "--backend", "reference", "--plot", chart, "--json", lines)
    assert_png(chart)
    *blocks, step = map(json.loads, lines.read_text().splitlines())
    assert [record["kind"] for record in blocks] == ["layer", "layer"]
    numbers = [
        math.prod(record["ratios"][baseline]["reference"] for record in blocks) ** 0.5
        for baseline in ("eager", "compile")
    ] + [step["ratios"]["se_block/resnet50"]]
    *_, heading, eager, compiled, network, _, where = said.splitlines()
    assert heading.startswith("Three numbers, on ")
    assert [line.split()[0] for line in (eager, compiled, network)] == [f"{n:.2f}" for n in numbers]
    assert where == f"Chart: {chart}"


def test_records_refuse_what_json_has_no_word_for(tmp_path):
    path = tmp_path / "r.jsonl"
    with pytest.raises(ValueError, match="JSON"):
        records.append(path, {"p50_us": math.nan})
    assert not path.exists()
    records.append(path, {"a": 1})
    records.append(path, {"a": 2})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"a": 1}, {"a": 2}]


def test_a_record_that_was_cut_short_costs_no_other(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"a": 1}\n{"b": ')
    assert records.read(path) == [{"a": 1}]
    records.append(path, {"c": 3})
    assert records.read(path) == [{"a": 1}, {"c": 3}]


@pytest.mark.parametrize("ends", [KeyboardInterrupt, torch.OutOfMemoryError])
def test_every_point_is_written_once_it_is_known(monkeypatch, tmp_path, ends):
    """What happens to a later point costs none of those before it, nor another after it."""
    lines, written, right = tmp_path / "layer.jsonl", [], block.measure

    def measure(subject, point, *rest):
        written.append(len(records.read(lines)) if lines.exists() else 0)
        if len(written) == 3:
            raise ends
        return right(subject, point, *rest)

    monkeypatch.setattr(block, "measure", measure)
    batches = [option for n in (1, 2, 3, 4) for option in ("--batch", n)]
    kinds = ["--contender", "eager", "--contender", "copy", "--mode", "inference"]
    result = run("layer", "--shape", "8x2x2", *batches, *kinds, "--rounds", 1, "--json", lines)
    assert written == ([0, 1, 2] if ends is KeyboardInterrupt else [0, 1, 2, 2])
    assert len(records.read(lines)) == (2 if ends is KeyboardInterrupt else 3)
    if ends is not KeyboardInterrupt:
        assert result.exit_code == 1
        assert "N=3 nchw float32 inference: out of memory" in " ".join(result.output.split())


def test_default_path_is_named_after_the_device():
    path = records.default_path("layer", "AMD EPYC 7763 64-Core Processor")
    assert path.parts[-3:] == (
        "benchmarks",
        "results",
        "layer-amd-epyc-7763-64-core-processor.jsonl",
    )
