"""``python -m se_kernels check``: its trials, what it says of a wrong backend, and bad input."""

import io
import itertools
import json
import re
import shlex
import sys

import pytest
import torch
from host_gpu import CUDA, Gpu, HostGpu

import se_kernels
from se_kernels.__main__ import run
from se_kernels.backends import cpu
from se_kernels.backends.cuda.residency import launches_of
from se_kernels.core.variants import ACTS, GATES, POSTS, PRES, SQUEEZES
from se_kernels.verification import (
    Mismatch,
    Trial,
    block_case,
    command,
    gpu_facts,
    norm_case,
    suites,
)
from se_kernels.verification.backends import Served
from se_kernels.verification.trial import CALLS, Took

SMALL = suites.dozen(slow=True)
FEW = [SMALL[5], SMALL[11]]  # a block and a norm


@pytest.fixture
def few(monkeypatch):
    """Two small trials, of the dozen and of every kernel."""
    monkeypatch.setattr(suites, "dozen", lambda slow: FEW)
    monkeypatch.setattr(suites, "every_kernel", lambda backend, slow: FEW)


@pytest.fixture(scope="module")
def host_gpu_of_cuda():
    """The pretended GPU of backend "cuda"; skips where it has a real one, or none."""
    if torch.cuda.is_available() or not CUDA.exists():
        pytest.skip("the stand-in for CUDA is not here")
    return HostGpu(CUDA)


@pytest.fixture
def wrong_forward(monkeypatch):
    """Backend cpu gives a y that is off by 1 %."""
    right = cpu.forward

    def forward(*arguments):
        y, *rest = right(*arguments)
        return y * 1.01, *rest

    monkeypatch.setattr(cpu, "forward", forward)


# --- the trials ----------------------------------------------------------------------------------


@pytest.mark.sampled(every=5)
@pytest.mark.parametrize("number", range(len(SMALL)))
def test_every_backend_passes(backend, device, number):
    SMALL[number].verify(backend, device)


@pytest.mark.parametrize("slow", [False, True])
def test_the_dozen_has_every_variant(slow):
    cases = [trial.case for trial in suites.dozen(slow)]
    for name, values in {
        "squeeze": SQUEEZES, "act": ACTS, "gate": GATES, "post": POSTS, "layout": suites.LAYOUTS,
        "dtype": suites.DTYPES,
    }.items():  # fmt: skip
        assert {getattr(case, name) for case in cases} == {*values}, name
    norms = [case for case in cases if isinstance(case, norm_case.Case)]
    assert {case.pre for case in norms} == {*PRES}
    assert {case.training for case in norms} == {True, False}
    assert {trial.call for trial in suites.dozen(slow)} == {"block", "excitation", "norm"}


def test_every_kernel_of_the_library_is_launched(host_gpu_of_cuda):
    launched = set()
    for trial in suites.every_kernel("cuda", slow=True):
        judge = norm_case if trial.of_norm else block_case
        inputs, dy = judge.make(trial.case)
        call = CALLS[trial.call]

        def go(call=call, judge=judge, inputs=inputs, dy=dy, trial=trial):
            judge.run(call, inputs, dy, **trial.case.variant, backend="cuda")

        launched |= {launch.kernel for launch in launches_of(go)}
    block = [
        f"{direction}_local<{number}, {layout}>"
        for direction, number, layout in itertools.product(
            ("forward", "backward"),
            ("float32", "bfloat16", "float16", "any"),
            ("nchw", "nhwc"),
        )
    ]
    norm = [
        f"norm_{sweep}<{number}, {layout}>"
        for sweep, number, layout in itertools.product(
            ("moments", "squeeze", "scale", "scale_backward", "squeeze_backward"),
            ("float32", "bfloat16", "float16", "any"),
            ("nchw", "nhwc"),
        )
    ]
    solve = [
        f"solve_{part}<{number}>"
        for part, number in itertools.product(
            ("norm", "excite", "backward"), ("float32", "float64")
        )
    ]
    assert launched == {*block, *norm, *solve}


# --- what it says --------------------------------------------------------------------------------


def test_a_right_backend(few, capsys):
    assert run(["check", "--backend", "cpu"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["backend", "device", "right", "wrong", "seconds", "compiling"]
    assert row.split()[:4] == ["cpu", "cpu", "2", "0"]


def test_a_wrong_backend_fails_with_the_call_on_one_line(few, wrong_forward, capsys):
    assert run(["check", "--backend", "cpu"]) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[1].split()[:4] == ["cpu", "cpu", "1", "1"]
    (line,) = [line for line in out.splitlines() if "python -c" in line]
    assert re.search(r"^  wrong: y: \d+ of \d+ elements wrong, the first at \(", out, re.M)
    words = shlex.split(line.removeprefix("TRITON_INTERPRET=1 "))
    assert words[:2] == ["python", "-c"]
    with pytest.raises(Mismatch, match="y: "):
        exec(words[2], {})


@pytest.mark.parametrize("trial", [*SMALL[::4], Trial("block", block_case.Case())])
def test_the_call_on_one_line_is_the_trial(trial, monkeypatch):
    seen = []
    monkeypatch.setattr(Trial, "verify", lambda self, *where: seen.append((self, where)))
    exec(shlex.split(trial.command("cpu", "cpu").removeprefix("TRITON_INTERPRET=1 "))[2], {})
    assert seen == [(trial, ("cpu", "cpu"))]


def test_other_bits_in_a_second_call_are_wrong(monkeypatch):
    right, calls = cpu.forward, []

    def forward(*arguments):
        y, *rest = right(*arguments)
        calls.append(1)
        return torch.nextafter(y, y + len(calls) - 1), *rest

    monkeypatch.setattr(cpu, "forward", forward)
    trial = Trial("block", block_case.Case())
    with pytest.raises(Mismatch, match="y: expected the same bits in a second call"):
        trial.verify("cpu", "cpu")
    calls.clear()
    trial.verify("cpu", "cpu", again=False)


def test_of_every_kernel_the_name_comes_before_the_launch(few, monkeypatch, capsys, tmp_path):
    def backward(*_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(cpu, "backward", backward)
    log = tmp_path / "kernels.jsonl"
    command_line = ["check", "--every-kernel", "--backend", "cpu", "--json", str(log)]
    assert run(command_line) == 1
    lines = capsys.readouterr().out.splitlines()
    begin = lines.index(f"[1/2] cpu {FEW[0]}")
    assert lines[begin + 1 : begin + 4] == [
        f"  cpu forward: {FEW[0]}",
        f"  cpu backward: {FEW[0]}",
        "  wrong: RuntimeError: no such kernel",
    ]
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert records[0]["kind"] == "copy"
    assert [(r["number"], r["verdict"].partition(":")[0]) for r in records[1:]] == [
        *((1, "begun"), (1, "wrong"), (2, "begun"), (2, "right")),
    ]
    assert run([*command_line, "--from", "2"]) == 0
    assert f"[2/2] cpu {FEW[1]}" in capsys.readouterr().out


def test_after_a_device_is_lost_no_trial_begins(few, wrong_forward, monkeypatch, capsys):
    monkeypatch.setattr(command, "is_lost", lambda device: True)
    for more in ([], ["--every-kernel"]):
        assert run(["check", "--backend", "cpu", *more]) == 1
        out = capsys.readouterr().out
        assert "cpu was lost to cpu: the rest not run" in out
        assert re.search(r"^cpu +cpu +0 +1 ", out, re.M)


def test_triton_compiles_apart(few, monkeypatch, capsys):
    monkeypatch.setattr(Trial, "verify", lambda *_, **__: Took(first=3.0, again=1.0))
    monkeypatch.setattr(Served, "slow", False)
    tallies = command.dozen([Served("triton", "cpu")], command.Log(None), 1)
    assert tallies[0].compiling == 4.0
    assert command.table(tallies, {})[1].split()[-1] == "4.0"


def test_a_bar_on_a_terminal(few, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run(["check", "--backend", "cpu"]) == 0
    assert "[####################]" not in terminal.getvalue()
    assert f"[##########..........] 1/2 cpu on cpu: {FEW[1]}"[:100] in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\033[K")


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--backend", "fpga"], "--backend: expected one of cpu, cuda, triton; got 'fpga'"),
        (["--device", "tpu"], "--device: expected one of cpu"),
        (["--json", "/nowhere/at/all.jsonl"], "/nowhere/at/all.jsonl"),
    ],
)
def test_bad_input_is_one_line(arguments, expected, capsys):
    assert run(["check", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert expected in err


def test_an_unknown_option_is_refused(capsys):
    with pytest.raises(SystemExit) as raised:
        run(["check", "--frobnicate"])
    assert raised.value.code == 2


def test_another_word_than_check_is_refused(capsys):
    assert run(["chek"]) == 2
    assert "got 'chek'" in capsys.readouterr().err


def test_a_named_backend_that_is_missing_is_bad_input(monkeypatch, capsys):
    monkeypatch.setattr(cpu, "why_not", lambda: "never built\nat all")
    assert run(["check", "--backend", "cpu"]) == 2
    assert capsys.readouterr().err.endswith("--backend cpu: never built\n")


def test_backends_that_are_missing_are_named(few, monkeypatch, capsys):
    for module in se_kernels.core.dispatch.BACKENDS.values():
        monkeypatch.setattr(module, "why_not", lambda: "never built")
    assert run(["check"]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split(maxsplit=1)[1] for row in rows] == ["left out: never built"] * 3


# --- what a GPU gives the kernels ----------------------------------------------------------------


def test_what_is_resident_is_asked_without_a_launch(host_gpu_of_cuda):
    launches = host_gpu_of_cuda.launches()
    facts = dict(gpu_facts.facts(Served("cuda", "cpu")))
    assert host_gpu_of_cuda.launches() == launches
    assert any("of the pretended GPU, N=4, bfloat16" in words for words in facts)
    records = [record for record in facts.values() if record["kind"] == "launch"]
    assert {record["stage"] for record in records} == {*gpu_facts.STAGES}
    gpu = Gpu()
    for record in records:
        kernel, needs = record["kernel"], record["shared_bytes"] + 1024
        by_memory, by_threads = gpu.shared_bytes_in_all // needs, 2048 // record["threads"]
        assert record["resident_blocks"] == min(by_memory, by_threads), kernel
    x, w1, w2 = torch.ones(2, 8, 4, 4), torch.ones(2, 8), torch.ones(8, 2)
    se_kernels.squeeze_excite(x, w1, w2, backend="cuda")  # launched again from here on
    assert host_gpu_of_cuda.launches() == launches + 1


def test_a_fact_that_cannot_be_had_stops_nothing(few, monkeypatch, capsys):
    def facts(of):
        yield "one", {}
        raise RuntimeError("not asked")

    monkeypatch.setattr(gpu_facts, "facts", facts)
    assert run(["check", "--every-kernel", "--backend", "cpu"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == ["one", "no further facts: RuntimeError: not asked"]
