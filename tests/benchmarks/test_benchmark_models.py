"""`python -m benchmarks network --model`: SE's share, models by name, wrong ones refused."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from benchmark_commands import ENVIRONMENT_FIELDS, assert_png, run, succeed
from torch import nn

import se_kernels
from benchmarks import cost_share, drop_in, models, network, norms, paper_models, records, report
from se_kernels.models import create
from se_kernels.models import names as own_names
from se_kernels.models.shake import Mix

TIMM, TORCHVISION = "timm/test_efficientnet", "torchvision/mobilenet_v3_small"  # the smallest
SMALL = ["--image-size", 32, "--batch", 8, "--rounds", 2]
OWN = "shufflenet"  # the smallest of ours
FORMS = ["unfused", "layer", "block", "identity"]
RATIOS = {f"{form}/unfused" for form in FORMS[1:]}


@pytest.fixture(scope="module")
def libraries():
    """Skips, with the reason, where timm or torchvision cannot be imported."""
    for name in (TIMM, TORCHVISION):
        reason = models.why_not(name)
        if reason is not None:
            pytest.skip(reason)


needs_libraries = pytest.mark.usefixtures("libraries")


# --- shares ---------------------------------------------------------------------------------------


def times(rounds=40, unfused=10.0, fused=8.5, identity=8.0, noise=0.002):
    """Seconds of rounds in which the machine's speed changes up to threefold."""
    generator = np.random.default_rng(1)
    speed = generator.uniform(1, 3, rounds)
    return tuple(
        t * speed * (1 + noise * generator.standard_normal(rounds))
        for t in (unfused, identity, fused)
    )


def test_shares_are_of_the_unfused_time():
    found = cost_share.shares(*times())
    assert found["before"]["p50"] == pytest.approx(0.20, abs=0.003)
    assert found["after"]["p50"] == pytest.approx(0.05, abs=0.003)
    assert found["left"]["p50"] == pytest.approx(0.25, abs=0.02)
    for spread in found.values():
        assert spread["low"] <= spread["p50"] <= spread["high"]
    assert found["left"]["low"] < 0.25 < found["left"]["high"] < 0.5
    assert cost_share.shares(*times()[:2]).keys() == {"before"}


def test_shares_of_exact_times_have_no_spread():
    u, i, f = (np.full(7, t) for t in (4.0, 3.0, 3.5))
    found = cost_share.shares(u, i, f)
    assert set(found["before"].values()) == {0.25}
    assert found["left"] == {"p50": 0.5, "low": 0.5, "high": 0.5}


def test_few_rounds_have_no_interval():
    for rounds in (1, cost_share.FEWEST - 1, cost_share.FEWEST):
        for found in cost_share.shares(*times(rounds)).values():
            ends = [found["low"], found["high"]]
            assert (ends == [None, None]) == (rounds < cost_share.FEWEST)
            assert isinstance(found["p50"], float)


def test_a_few_disturbed_rounds_change_little():
    u, i, f = times(noise=0)
    f[::8] *= 5  # one round of eight
    assert cost_share.shares(u, i, f)["left"]["p50"] == pytest.approx(0.25)


def test_what_is_left_of_a_cost_lost_in_noise_is_not_told():
    assert cost_share.shares(*times(unfused=8.005, noise=0.05))["left"] is None
    assert cost_share.shares(*times(unfused=7.0))["left"] is None  # faster than without SE


@pytest.mark.parametrize(
    "low, high, slower, halved",
    [
        (0.3, 0.5, "no", "yes"),
        (0.45, 1.0, "no", "unclear"),
        (1.01, 1.2, "yes", "no"),
        (None, None, "unclear", "unclear"),
    ],
)
def test_the_table_says_whether_it_is_slower_and_halved(low, high, slower, halved):
    numbers = {"p20": 0.4, "p50": 0.5, "p80": 0.6, "low": low, "high": high}
    record = {
        "model": TIMM,
        "mode": "train",
        "batch": 16,
        "image_size": 32,
        "dtype": "float32",
        "layout": "nchw",
        "device": "a machine",
        "device_type": "cuda",
        "se_modules": {"se": "SEModule"},
        "skipped": {},
        "contenders": {"block": {"p20_us": 1.0, "p50_us": 1.0, "p80_us": 1.0}},
        "ratios": {"block/unfused": numbers},
        "shares": {"block": {"before": numbers, "after": numbers, "left": numbers}},
    }
    _, ratios, share = report.model_tables([record])
    (column,) = [c for c in ratios.columns if c.header == "slower"]
    assert list(column.cells) == [slower]
    (column,) = [c for c in share.columns if c.header == "halved"]
    assert list(column.cells) == [halved]


# --- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["se_resnet50", "keras/resnet50", "timm/", "timm"])
def test_names_say_whose_they_are(name):
    with pytest.raises(models.ModelError, match="expected timm/NAME, torchvision/NAME or one of"):
        models.check(name)


def test_an_unknown_network_is_refused_with_all_there_are():
    result = run("network", "--model", "resnet5")
    assert result.exit_code == 2
    (error,) = [line for line in result.output.splitlines() if "Error" in line]
    assert all(name in error for name in own_names())
    assert "got 'resnet5' (did you mean resnet50?)" in error


@pytest.mark.parametrize("name", own_names())
def test_networks_for_small_images_are_measured_on_them(name):
    assert models.why_not(name) is None
    with torch.device("meta"):
        least = create(name, se=None).min_size
    size = models.image_size(name)
    assert (size == 32) == (least < 32)
    assert size >= least


def test_numbers_that_a_norm_sees_are_counted():
    found = [models.normed("resnet50", 64), models.normed("wrn_16_8", 40)]
    assert found == [2 * 2, 10 * 10]  # strides of 32 and 4
    assert models.normed("inception_resnet_v2", 107) == 2 * 2  # 11 * 11 before, without padding
    assert models.normed(TIMM, 65) == 3 * 3


@needs_libraries
@pytest.mark.parametrize(
    "name, near",
    [("timm/seresnet5", "timm/seresnet50"), ("torchvision/regnet_y_3_2f", "regnet_y_3_2gf")],
)
def test_unknown_names_are_refused_with_the_nearest(name, near):
    result = run("network", "--model", name, "--fuse")
    assert result.exit_code == 2
    assert "has no model" in result.output
    assert near in result.output


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_missing_library_is_an_error_that_says_what_to_install(monkeypatch, library):
    if library == "timm":
        monkeypatch.setattr(models, "import_torchvision", lambda: None)
    monkeypatch.setitem(sys.modules, library, None)
    result = run("network", "--model", "timm/seresnet50", "--fuse")
    assert result.exit_code == 2
    assert f"need {library}, which is not installed" in " ".join(result.output.split())
    assert "pip install" in result.output


@pytest.mark.parametrize(
    "args, says",
    [
        (["--fuse"], "--fuse needs a --model"),
        (["--model", TIMM, "--backend", "reference"], "set SE_KERNELS_BACKEND"),
        (["--model", TIMM, "--stride-in-3x3"], "--stride-in-3x3 is not for --model"),
        (["--model", TIMM, "--photos"], "--photos is not for --model"),
        (["--model", TIMM, "--image-size", 32, "--batch", 4], "4 numbers"),
        (["--model", "mobilenet", "--image-size", 32, "--batch", 4], "4 numbers"),
        (["--model", "mobilenet", "--backend", "reference"], "set SE_KERNELS_BACKEND"),
        (["--model", "inception_resnet_v2", "--image-size", 64], "takes images of 75 and more"),
    ],
)
@needs_libraries
def test_options_that_do_not_go_together_are_refused(args, says):
    result = run("network", *args)
    assert result.exit_code == 2
    assert says in " ".join(result.output.split())


@needs_libraries
def test_a_model_without_se_is_refused():
    result = run("network", "--model", "timm/test_resnet", "--fuse", *SMALL)
    assert result.exit_code == 1
    assert "finds no SE module to replace" in " ".join(result.output.split())


@needs_libraries
def test_images_are_of_the_models_own_size():
    assert models.image_size(TIMM) == 160
    assert models.image_size("timm/efficientnet_b1.ft_in1k") == 224
    assert models.image_size(TORCHVISION) == 224


@needs_libraries
@pytest.mark.parametrize("name", [TIMM, TORCHVISION])
def test_models_are_the_same_again_and_drop_nothing(name):
    model, again = (models.build(name, 10, seed=3) for _ in range(2))
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    y = model.train()(x)
    assert y.shape == (4, 10)
    torch.testing.assert_close(again.train()(x), y, rtol=0, atol=0)


def test_dropout_and_stochastic_depth_are_switched_off():
    class DropPath(nn.Module):
        drop_prob = 0.5

    class StochasticDepth(nn.Module):
        p = 0.5

    class Pool(nn.Module):
        p = 3.0  # an exponent

    class Classifier(nn.Module):
        drop_rate = 0.2

    model = nn.Sequential(nn.Dropout(), nn.Dropout2d(), DropPath(), StochasticDepth(), Pool())
    model.extend([Classifier(), Mix()])
    models.drop_nothing(model)
    dropout, dropout2d, path, depth, pool, classifier, mix = model
    a, b = torch.ones(2, 3, 1, 1), torch.zeros(2, 3, 1, 1)
    torch.testing.assert_close(mix.train()(a, b), mix.eval()(a, b), rtol=0, atol=0)
    assert (dropout.p, dropout2d.p, path.drop_prob, depth.p, classifier.drop_rate) == (0,) * 5
    assert pool.p == 3.0


@needs_libraries
def test_torchvision_is_imported_without_its_operators():
    # in a process of its own: this one has them declared
    script = "from benchmarks import models; models.check('timm/seresnet50'); print('known')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=records.RESULTS.parents[1],
    )
    assert done.stdout == "known\n", done.stderr


# --- networks -------------------------------------------------------------------------------------


def test_norms_learn_the_statistics_of_the_images():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8))
    model[3].momentum = 0.2
    nn.init.zeros_(model[3].weight)
    images = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    norms.settle(model, images, seed=0)
    trained = model.train()(images)
    assert [model[1].momentum, model[3].momentum] == [0.1, 0.2]
    assert 0.5 <= model[1].weight.min() < model[1].weight.max() <= 1.5
    assert 0 < model[3].weight.min() < model[3].weight.max() <= 1.5 * norms.BRANCH_SCALE
    # training divides by M, the statistics by M - 1, of M = 4·7·7
    torch.testing.assert_close(model.eval()(images), trained, rtol=0, atol=0.02)


def test_identity_takes_the_place_of_the_named_modules_alone():
    se = nn.Sequential(nn.Conv2d(2, 2, 1))
    other = nn.Conv2d(2, 2, 1)
    model = nn.ModuleDict({"a": nn.Sequential(se, other), "b": nn.Sequential(other, se), "c": se})
    drop_in.replace_by_identity(model, ["a.0"])
    assert isinstance(model["a"][0], nn.Identity)
    assert isinstance(model["b"][1], nn.Identity)  # shared, known by its first name
    assert isinstance(model["c"], nn.Identity)
    assert model["a"][1] is other is model["b"][0]


@needs_libraries
@pytest.mark.parametrize("name, layout", [(TIMM, "nchw"), (TORCHVISION, "channels_last")])
def test_network_of_a_model(tmp_path, name, layout):
    lines, chart = tmp_path / "model.jsonl", tmp_path / "model.png"
    command = ["network", "--model", name, "--fuse", *SMALL, "--layout", layout]
    output = succeed(*command, "--json", lines, "--plot", chart)
    found = records.read(lines)
    assert [r["mode"] for r in found] == ["inference", "train"]
    for record in found:
        assert record.keys() >= ENVIRONMENT_FIELDS
        assert (record["kind"], record["model"], record["layout"]) == ("model", name, layout)
        assert (record["batch"], record["image_size"], record["rounds"]) == (8, 32, 2)
        assert list(record["contenders"]) == FORMS
        assert record["ratios"].keys() == RATIOS
        ratio = record["ratios"]["block/unfused"]
        assert ratio["p20"] <= ratio["p50"] <= ratio["p80"]
        assert record["shares"].keys() == {"layer", "block"}
        assert record["shares"]["block"].keys() == {"before", "after", "left"}
        reported = se_kernels.fuse(models.build(name, 10, seed=0), "block")
        assert list(record["se_modules"]) == list(reported.fused)
        assert list(record["blocks"]) == list(reported.blocks) != []
        assert record["skipped"] == record["apart"] == {}
        assert {c["contender"] for c in record["verification"]} == {"layer", "block"}
    parameters = {n for n, _ in models.build(name, 10, seed=0).named_parameters()}
    checked = {c["quantity"] for c in found[1]["verification"]}
    assert checked == {"logits", *(f"gradient of {n}" for n in parameters)}
    rows = found[1]["contenders"].values()
    assert all(row["peak_bytes"] > row["weights_bytes"] > 0 for row in rows)
    assert found[1]["se_x_bytes"] > 0
    assert_png(chart)
    assert "fused over unfused" in output
    assert "SE's share of the time" in output


@pytest.mark.parametrize(
    "name, layout, images",
    [
        (OWN, "nchw", SMALL),
        ("resnet110", "channels_last", ["--rounds", 2]),  # one image of its own size
    ],
)
def test_network_of_our_own(tmp_path, name, layout, images):
    lines, chart = tmp_path / "model.jsonl", tmp_path / "model.png"
    command = ["network", "--model", name, "--layout", layout, *images]
    output = succeed(*command, "--json", lines, "--plot", chart)
    found = records.read(lines)
    assert [r["mode"] for r in found] == ["inference", "train"]
    with torch.device("meta"):
        eager = create(name, se="eager")
    for record in found:
        assert record.keys() >= ENVIRONMENT_FIELDS
        assert (record["kind"], record["model"], record["layout"]) == ("model", name, layout)
        assert list(record["contenders"]) == FORMS
        assert record["ratios"].keys() == RATIOS
        assert record["shares"].keys() == {"layer", "block"}
        assert record["shares"]["block"].keys() == {"before", "after", "left"}
        assert list(record["se_modules"]) == list(paper_models.se_modules(eager))
        assert (record["libraries"], record["skipped"]) == ({}, {})
        assert {c["contender"] for c in record["verification"]} == {"layer", "block"}
    parameters = {name for name, _ in eager.named_parameters()}
    checked = {c["quantity"] for c in found[1]["verification"]}
    assert checked == {"logits", *(f"gradient of {n}" for n in parameters)}
    rows = found[1]["contenders"].values()
    assert all(row["peak_bytes"] > row["weights_bytes"] > 0 for row in rows)
    assert found[1]["se_x_bytes"] > 0
    assert_png(chart)
    assert "fused over unfused" in output
    assert "SE's share of the time" in output


@pytest.mark.parametrize("layout", list(network.MEMORY_FORMATS))
def test_the_forms_of_our_own_have_equal_weights(layout):
    point = network.Point(2, 64, "float32", layout, "train", "mobilenet")
    settings = network.Settings(torch.device("cpu"), "reference", compiled=False)
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    built = paper_models.PaperModel().build(point, settings, images)
    assert list(built.models) == FORMS
    eager, layer, block, identity = (dict(m.named_parameters()) for m in built.models.values())
    for form in ("layer", "block"):
        modules = [built.models[form].get_submodule(n) for n in built.about["se_modules"]]
        assert {type(module) for module in modules} == {se_kernels.SqueezeExcite}
    assert eager.keys() == layer.keys() == block.keys()
    assert eager.keys() - identity.keys() == {n for n in eager if ".se." in n}
    for other in (layer, block, identity):
        for name, parameter in other.items():
            assert torch.equal(parameter, eager[name]), name
            assert parameter.stride() == eager[name].stride()
            assert parameter.data_ptr() != eager[name].data_ptr()
    identity, *others = [
        {n: b.clone() for n, b in built.models[form].named_buffers() if n.endswith("running_mean")}
        for form in ("identity", "unfused", "layer", "block")
    ]
    assert all(torch.equal(others[0][n], other[n]) for n in identity for other in others[1:])
    norms.calibrate(built.models["identity"], images)
    for name, mean in identity.items():  # already those of the images, without any gate
        assert torch.equal(built.models["identity"].get_buffer(name), mean)
    assert not torch.equal(
        identity["stage5.1.1.bn.running_mean"], others[0]["stage5.1.1.bn.running_mean"]
    )


@needs_libraries
def test_without_fuse_only_the_share_is_told(tmp_path):
    lines = tmp_path / "model.jsonl"
    output = succeed("network", "--model", TIMM, *SMALL, "--mode", "inference", "--json", lines)
    (record,) = records.read(lines)
    assert list(record["contenders"]) == ["unfused", "identity"]
    assert record["shares"].keys() == {"unfused"}
    assert record["shares"]["unfused"].keys() == {"before"}
    assert "fused over unfused" not in output


@needs_libraries
def test_compiled_forms_take_their_turns_too(monkeypatch, tmp_path):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    lines, chart = tmp_path / "model.jsonl", tmp_path / "model.png"
    command = ["network", "--model", TIMM, "--fuse", "--compile", *SMALL, "--mode", "train"]
    succeed(*command, "--json", lines, "--plot", chart)
    (record,) = records.read(lines)
    assert list(record["contenders"]) == [
        name for form in FORMS for name in (form, f"{form}_compiled")
    ]
    assert len(compiled) == len(FORMS)
    assert "block_compiled/unfused_compiled" in record["ratios"]
    assert record["shares"].keys() == {"layer", "block", "layer_compiled", "block_compiled"}
    verified = {c["contender"] for c in record["verification"]}
    assert verified == set(record["contenders"]) - {"unfused", "identity"}
    assert_png(chart)


WRONG = {  # not the same for all images: the next norm would take a common factor away
    "logits": lambda y: y * torch.linspace(0.99, 1.01, len(y)).reshape(-1, 1, 1, 1),
    "gradient": lambda y: y.detach() + (y - y.detach()) * 1.01,
    "nan": lambda y: torch.where(y == y.max(), math.nan, y),
}


@needs_libraries
@pytest.mark.parametrize(
    "name, spoilt", [(TIMM, "logits"), (TORCHVISION, "gradient"), (TIMM, "nan")]
)
def test_a_wrong_fused_model_is_not_timed_and_the_others_are(monkeypatch, tmp_path, name, spoilt):
    right = se_kernels.fuse

    def wrong(model, level):
        fused = right(model, level)
        last = model.get_submodule(list(fused.fused)[-1])
        last.register_forward_hook(lambda module, args, y: WRONG[spoilt](y))
        return fused

    monkeypatch.setattr(se_kernels, "fuse", wrong)
    lines = tmp_path / "model.jsonl"
    result = run("network", "--model", name, "--fuse", *SMALL, "--mode", "train", "--json", lines)
    assert result.exit_code == 1
    assert "layer: " in result.output
    (record,) = records.read(lines)
    assert [*record["refused"]] == ["layer", "block"]  # whose SE module is hooked, too
    assert "layer" not in record["contenders"]
    assert {"unfused", "identity"} <= {*record["contenders"]}


# where one sign flips, eager's own gradients may be off by a tenth on some sets of images
WRONG_OWN = {**WRONG, "gradient": lambda y: y.detach() + (y - y.detach()) * 1.5}


@pytest.mark.parametrize("spoilt", WRONG_OWN)
def test_a_wrong_network_of_our_own_is_refused(monkeypatch, tmp_path, spoilt):
    right = paper_models.create

    def wrong(name, classes, se):
        network = right(name, classes, se=se)
        if se == "fused":
            last = network.get_submodule(
                [n for n, _ in network.named_modules() if n.endswith(".se")][-1]
            )
            last.register_forward_hook(lambda module, args, y: WRONG_OWN[spoilt](y))
        return network

    monkeypatch.setattr(paper_models, "create", wrong)
    lines = tmp_path / "model.jsonl"
    result = run("network", "--model", OWN, *SMALL, "--mode", "train", "--json", lines)
    assert result.exit_code == 1
    assert "block: " in result.output
    (record,) = records.read(lines)
    assert [*record["refused"]] == ["block"]
    assert "block" not in record["contenders"]
    assert {"unfused", "identity"} <= {*record["contenders"]}
