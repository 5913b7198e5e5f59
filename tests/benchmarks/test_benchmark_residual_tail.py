"""`python -m benchmarks tail`: its contenders, its judge, its floors, wrong results refused."""

import pytest
import torch
from benchmark_commands import ENVIRONMENT_FIELDS, assert_png, run, succeed
from torch import nn

from benchmarks import block, contenders, inputs, records, residual_tail, verify
from benchmarks.residual_tail import ResidualTail

CPU = torch.device("cpu")
TINY = ["--shape", "24x5x7:3", "--batch", "2", "--rounds", "2"]
REFERENCE = ["--backend", "reference"]
NO_COMPILE = [
    arg for kind in ("eager", "plain", "layer", "fused", "copy") for arg in ("--contender", kind)
]
QUANTITIES = {"y", "dx", "dr", "dbn_weight", "dbn_bias", "running_mean", "running_var"}


def make(mode="train", dtype="float32", layout="nchw", batch=2, shape="24x5x7:3"):
    """A point, an input set and weights, as a run has them."""
    point = block.Point(block.Shape.parse(shape), batch, dtype, layout, mode)
    generator = torch.Generator().manual_seed(0)
    options = dict(dtype=inputs.DTYPES[dtype], layout=layout, backward=point.trains, device=CPU)
    (s,) = inputs.make_sets(point.x_shape, 1, residual=True, generator=generator, **options)
    return point, s, residual_tail.make_tail_weights(point, CPU, generator)


def test_tail_with_every_contender(monkeypatch, tmp_path):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module, **_: compiled.append(module) or module)
    lines, chart = tmp_path / "tail.jsonl", tmp_path / "residual_tail.png"
    output = succeed("tail", *TINY, *REFERENCE, "--json", lines, "--plot", chart)
    found = records.read(lines)
    assert [r["mode"] for r in found] == ["inference", "forward", "backward", "train"]
    assert len(compiled) == 2 * len(found)
    computing = ["eager", "compile", "plain", "plain_compile", "layer_reference", "reference"]
    for record in found:
        assert record.keys() >= ENVIRONMENT_FIELDS
        assert record["kind"] == "tail"
        assert list(record["contenders"]) == [*computing, "copy", "clone"]
        for row in record["contenders"].values():
            assert 0 < row["p20_us"] <= row["p50_us"] <= row["p80_us"]
        for base in ("eager", "compile", "plain", "plain_compile"):
            assert record["ratios"][base].keys() == set(computing) - {base}
        floor = {"inference": 3, "forward": 4, "backward": 6, "train": 10}[record["mode"]]
        assert record["floor"]["copies"] == floor / 2
        for name in computing:
            checked = {c["quantity"] for c in record["verification"] if c["contender"] == name}
            se = set() if name.startswith("plain") else {"dw1", "dw2"}
            assert checked == ({"y"} if record["mode"] == "inference" else QUANTITIES | se)
    assert_png(chart)
    assert "floors" in output


def test_tail_in_both_layouts_and_every_dtype(tmp_path):
    lines = tmp_path / "tail.jsonl"
    backend = [] if "cpu" in contenders.usable_backends(CPU) else REFERENCE
    modes = ["--mode", "inference", "--mode", "train"]
    pairs = {"nchw": ("float32", "bfloat16"), "channels_last": ("float16", "float64")}
    for layout, dtypes in pairs.items():
        given = ["--layout", layout, *(arg for dtype in dtypes for arg in ("--dtype", dtype))]
        succeed("tail", *TINY, *backend, *NO_COMPILE, "--json", lines, *modes, *given)
    assert len(records.read(lines)) == 2 * 2 * 2


def test_counted_bytes():
    point, _, _ = make("backward", "bfloat16", shape="8x2x3:2", batch=3)
    # dy, u, dr; dr, u, du: 6 passes of 2 bytes; w1 and w2 read, their gradients written
    assert ResidualTail.costs["backward"].bytes(point) == 2 * (6 * 3 * 8 * 6 + 2 * 2 * 8 * 2)


@pytest.mark.parametrize("se", [True, False])
@pytest.mark.parametrize("mode", ["inference", "train"])
def test_the_judge_is_torchs_norm_and_the_eager_block(mode, se):
    point, s, weights = make(mode, "float64", "channels_last")
    judge = residual_tail.judge(s, weights, point.trains, se)
    (eager,) = residual_tail.build(["eager" if se else "plain"], [], weights, point)
    results = verify.run(eager, s)
    assert results.keys() == judge.results.keys() == judge.sizes.keys() == judge.walks.keys()
    for name, expected in judge.results.items():
        got = results[name].reshape(expected.shape)
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    if point.trains:
        assert eager.module.bn.num_batches_tracked == 1


def test_what_is_verified_is_clear_of_the_corner_of_the_relu():
    generator = torch.Generator().manual_seed(0)
    for dtype, margin in ((torch.float32, 1e-3), (torch.bfloat16, 0.125), (torch.float16, 2**-6)):
        sums = [margin * 8 * torch.randn(2, 8, 9, 9, generator=generator) for _ in range(2)]
        residual = torch.randn(2, 8, 9, 9, generator=generator).to(dtype)
        before = residual.double()
        near = torch.stack([total.abs() < margin for total in sums]).any(0)
        assert near.any()
        residual_tail.clear_of_the_corner(residual, sums)
        moved = residual.double() - before
        assert all(((total + moved).abs() >= margin).all() for total in sums)
        assert near.sum() <= (moved != 0).sum() < residual.numel() / 2


@pytest.mark.parametrize("mode", ["inference", "forward", "backward", "train"])
def test_what_is_timed(mode):
    point, s, weights = make(mode)
    (eager,) = residual_tail.build(["eager"], [], weights, point)
    calls = []
    eager.module.register_forward_hook(lambda *_: calls.append("forward"))
    eager.module.bn.register_full_backward_hook(lambda *_: calls.append("backward"))
    timed = contenders.Call(eager, [s], mode, cache_bytes=64)
    with torch.set_grad_enabled(point.trains):
        for _ in range(2):
            calls.clear()
            timed.prepare(0)
            assert calls == (["forward"] if mode == "backward" else [])
            calls.clear()
            timed.call(0)
            expected = {"train": ["forward", "backward"], "backward": ["backward"]}
            assert calls == expected.get(mode, ["forward"])


class Wrong(nn.Module):
    """Right, but for the step given; ``bn`` and ``se`` are where gradients are looked up."""

    def __init__(self, module, spoil):
        super().__init__()
        self.bn, self.se = module.bn, module.se
        self.module, self.spoil = [module], spoil

    def train(self, mode=True):
        self.module[0].train(mode)
        return super().train(mode)

    def forward(self, u, residual):
        return self.spoil(self.module[0](u, residual), self.bn, residual)


def gradients(y, by):
    return y.detach() + (y - y.detach()) * by


def spoil_statistics(y, bn, r):
    bn.running_var.mul_(1.001)
    return y


WRONG = {
    "y": lambda y, bn, r: y * 1.01,
    "gradients": lambda y, bn, r: gradients(y, 1.01),
    "dr": lambda y, bn, r: y + gradients(r, 0.01) - r.detach(),
    "running_var": spoil_statistics,
    "no gradient": lambda y, bn, r: y.detach() + r - r.detach(),
}


@pytest.mark.parametrize("spoilt", WRONG)
def test_a_wrong_contender_is_not_timed_and_the_others_are(monkeypatch, tmp_path, spoilt):
    right = residual_tail.fused_tail
    monkeypatch.setattr(
        residual_tail, "fused_tail", lambda *args: Wrong(right(*args), WRONG[spoilt])
    )
    lines = tmp_path / "tail.jsonl"
    args = [*TINY, *REFERENCE, *NO_COMPILE, "--mode", "forward", "--json", lines]
    result = run("tail", *args)
    assert result.exit_code == 1
    assert "reference: " in result.output
    if spoilt in ("dr", "running_var", "no gradient"):
        assert spoilt in result.output
    for record in records.read(lines):
        assert [*record["refused"]] == ["reference"]
        assert "reference" not in record["contenders"]
        assert "eager" in record["contenders"]


def test_graphs_are_for_inference_on_a_gpu():
    result = run("tail", "--graph", "--mode", "forward")
    assert result.exit_code == 2
    assert "--mode inference alone" in result.output
