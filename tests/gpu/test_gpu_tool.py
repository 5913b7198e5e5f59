"""`make gpu` without a GPU: its stages, and what the results hold after steps that hang, crash or
are killed."""

import ast
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from host_gpu import CUDA

from benchmarks import records
from tools.digest import digest
from tools.gpu import __main__ as tool
from tools.gpu import build, run, stages, steps, table
from tools.gpu.machine import Machine, NoGpu, ask
from tools.gpu.results import KINDS, Results
from tools.gpu.stages import Step
from tools.gpu.steps import Command

ROOT = Path(__file__).resolve().parents[2]
MACHINE = Machine("a GPU", "2.13", "9.0", {"cuda": None, "triton": None, "cpu": "not a GPU's"})
HANGS = "import time; print('  verify cuda: conv2', flush=True); time.sleep(60)"
CRASHES = (
    "import os, signal; print('  cuda backward: block', flush=True);"
    " os.kill(os.getpid(), signal.SIGSEGV)"
)


def python(name, code, *arguments, seconds=30, **options):
    return Step(name, seconds, ("-c", code, *arguments), **options)


@pytest.fixture
def results(tmp_path):
    return Results.of(tmp_path / "results", MACHINE.name)


@pytest.fixture
def make_gpu(monkeypatch, tmp_path):
    """``make_gpu(plan, *arguments)`` is make gpu with these stages; the results are beside."""

    def make(plan, *arguments):
        monkeypatch.setattr(tool, "stages", lambda sizes, capability: plan)
        monkeypatch.setattr(tool, "ask", lambda host: MACHINE)
        return tool.main(["--results", str(tmp_path / "results"), *arguments])

    return make


def ended(results):
    return {step: line["ended"] for (_, step), line in results.outcomes().items()}


# --- bad input -----------------------------------------------------------------------------------


def refused(capsys, *arguments):
    assert tool.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_an_unknown_stage_is_refused(capsys, tmp_path):
    err = refused(capsys, "tail", "speed", "--results", str(tmp_path / "results"))
    assert "stages: expected some of build, smoke, network, tail, sweeps, layer" in err
    assert err.endswith("got 'speed'\n")
    assert not (tmp_path / "results").exists()


def test_without_a_gpu_nothing_is_started(capsys, tmp_path, monkeypatch):
    def none(host):
        raise NoGpu("torch finds none")

    monkeypatch.setattr(tool, "ask", none)
    err = refused(capsys, "--results", str(tmp_path / "results"))
    assert err == "make gpu: expected a GPU: torch finds none\n"
    assert not (tmp_path / "results").exists()


def test_a_folder_that_cannot_be_written_is_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "ask", lambda host: MACHINE)
    (tmp_path / "file").write_text("")
    err = refused(capsys, "--results", str(tmp_path / "file" / "results"))
    assert "--results: expected a folder that can be written, got " in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without a GPU")
def test_this_machine_has_no_gpu():
    with pytest.raises(NoGpu, match=r"torch finds none|built without CUDA"):
        ask(host=False)


# --- one command ---------------------------------------------------------------------------------


def test_a_command_passes_or_fails():
    assert steps.run(Command(("-c", "pass")), 30).ended == "passed"
    outcome = steps.run(Command(("-c", "print('why'); raise SystemExit(3)")), 30)
    assert (outcome.ended, outcome.why, outcome.tail) == ("failed", "exit code 3", ("why",))
    environment = {"A": "1"}
    code = "import os; raise SystemExit(os.environ['A'] != '1')"
    assert steps.run(Command(("-c", code), environment), 30).is_fine


def test_a_crash_names_its_signal_and_the_last_kernel():
    outcome = steps.run(Command(("-c", CRASHES)), 30)
    assert (outcome.ended, outcome.why) == ("crashed", "SIGSEGV")
    assert outcome.last == "cuda backward: block"
    lost = "print('[1/2] a'); print('RuntimeError: CUDA error: an illegal access'); exit(1)"
    outcome = steps.run(Command(("-c", lost)), 30)
    assert (outcome.ended, outcome.last) == ("crashed", "[1/2] a")


@pytest.mark.parametrize("quiet, expected", [(3.0, "hung"), (None, "limit")])
def test_a_hang_ends_the_whole_group(tmp_path, quiet, expected):
    """What the command itself has started is ended too."""
    child = (
        "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; "
    )
    child += f"time.sleep(60)']); open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid)); {HANGS}"
    outcome = steps.run(Command(("-c", child), quiet=quiet), 30.0 if quiet else 5.0)
    assert outcome.ended == expected
    assert outcome.last == "verify cuda: conv2"
    assert outcome.seconds < 20
    assert is_gone(int((tmp_path / "pid").read_text()))


def is_gone(pid, seconds=10):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":  # nobody has asked how it ended
            return True
        time.sleep(0.05)
    return False


# --- stages --------------------------------------------------------------------------------------


def test_a_hang_and_a_crash_stop_nothing_else(make_gpu, results, capsys):
    plan = {
        "smoke": [python("hangs", HANGS, seconds=30, quiet=3.0), python("crashes", CRASHES)],
        "tail": [python("passes", "pass"), python("fails", "exit(1)")],
        "sanitize": [python("memcheck", "pass", tool="memcheck")],
    }
    assert make_gpu(plan) == 1
    found = ended(results)
    assert {name: found[name] for name in ("hangs", "crashes", "passes", "fails")} == {
        "hangs": "hung", "crashes": "crashed", "passes": "passed", "fails": "failed",
    }  # fmt: skip
    out = capsys.readouterr().out
    assert re.search(
        r"^smoke +hangs .* hung: no line for 3 s; last: verify cuda: conv2$", out, re.M
    )
    assert re.search(r"^smoke +crashes .*SIGSEGV; last: cuda backward: block$", out, re.M)


def test_without_compute_sanitizer_its_step_is_left_out(make_gpu, results, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "compute_sanitizer", lambda: None)
    plan = {"sanitize": [python("memcheck", "exit(1)", tool="memcheck")]}
    assert make_gpu(plan) == 0
    assert ended(results) == {"memcheck": "left out"}
    sanitizer = tmp_path / "compute-sanitizer"
    sanitizer.write_text("#!/bin/sh\nexit 99\n")
    sanitizer.chmod(0o755)
    monkeypatch.setattr(run, "compute_sanitizer", lambda: str(sanitizer))
    assert make_gpu(plan, "sanitize") == 1
    assert ended(results) == {"memcheck": "failed"}


def test_a_second_call_goes_on_with_what_is_left(make_gpu, results, tmp_path, capsys):
    ran = tmp_path / "ran"
    note = f"import sys; open({str(ran)!r}, 'a').write(sys.argv[1] + ' ')"
    plan = {
        "smoke": [python("short", note, "short", seconds=10)],
        "tail": [python("long", note, "long", seconds=1000)],
        "sweeps": [python("other", note, "other", seconds=10)],
    }
    assert make_gpu(plan, "--seconds", "60") == 0
    assert ran.read_text() == "short other "
    assert "left for another call: tail long\n" in capsys.readouterr().out
    assert make_gpu(plan, "--seconds", "2000") == 0
    assert ran.read_text() == "short other long "
    assert make_gpu(plan) == 0
    assert ran.read_text() == "short other long "
    assert make_gpu(plan, "sweeps") == 0  # named: again
    assert ran.read_text() == "short other long other "


def test_what_the_budget_cut_is_run_again(results):
    runner = run.Run(results, MACHINE, until=time.monotonic() + 1)
    outcome = runner.attempt(python("cut", "import time; time.sleep(60)", seconds=30), [])
    assert (outcome.ended, outcome.why) == ("cut", "the budget ended")
    results.end("tail", "cut", outcome)
    assert not results.is_done("tail", "cut")


def test_outcomes_tell_versions_and_commit(make_gpu, results):
    assert make_gpu({"tail": [python("nchw", "pass")]}, "--commit", "abc123") == 0
    for line in results.read("stages"):
        assert (line["device"], line["torch"], line["commit"]) == ("a GPU", "2.13", "abc123")
    os.environ.pop("SE_KERNELS_COMMIT")


def test_the_commit_is_that_of_make_gpu_where_there_is_no_checkout(monkeypatch, tmp_path):
    from benchmarks import environment

    monkeypatch.setenv("SE_KERNELS_COMMIT", "abc123")
    assert environment.git_state(tmp_path) == ("abc123", None)
    monkeypatch.delenv("SE_KERNELS_COMMIT")
    assert environment.git_state(tmp_path) == (None, None)


def test_other_sources_are_run_anew(results):
    results.end("tail", "nchw", steps.Outcome("passed"))
    assert results.is_done("tail", "nchw")
    assert not replace(results, sources="others").is_done("tail", "nchw")


KILLED = """
import sys
from tools.gpu import __main__ as tool
from tools.gpu.machine import Machine
from tools.gpu.stages import Step
point = '''
import os, pathlib, sys, time
sys.path.insert(0, ".")
from benchmarks import records
pathlib.Path(sys.argv[2]).write_text(str(os.getpid()))
for k in range(20):
    records.append(pathlib.Path(sys.argv[1]), {"kind": "tail", "k": k, "pad": "x" * 2000})
    time.sleep(0.02)
'''
points, pid = sys.argv[1:3]
steps = [Step(f"step {n}", 30, ("-c", point, points, pid)) for n in range(3)]
tool.stages = lambda sizes, capability: {"tail": steps}
tool.ask = lambda host: Machine("a GPU", "2.13", "9.0", {})
sys.exit(tool.main(sys.argv[3:]))
"""


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_any_moment_it_loses_one_point_at_most(tmp_path, seed):
    points, pid = tmp_path / "points.jsonl", tmp_path / "pid"
    arguments = [str(points), str(pid), "--results", str(tmp_path / "results")]
    command = [sys.executable, "-c", KILLED, *arguments]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}"}
    started = dict(cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    process = subprocess.Popen(command, **started)
    while not points.exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(random.Random(seed).uniform(0, 1))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert is_gone(int(pid.read_text())), "a step lives on"
    lines = points.read_bytes().splitlines()
    written = [json.loads(line) for line in lines[:-1]]  # whole, but for the last perhaps
    assert len(records.read(points)) >= len(written) >= 1
    assert [line["k"] for line in written] == [k % 20 for k in range(len(written))]

    results = Results.of(tmp_path / "results", "a GPU")
    before = ended(results)
    assert [*before.values()].count("begun") == 1
    assert subprocess.run(command, check=False, **started).returncode == 0
    assert ended(results) == {f"step {n}": "passed" for n in range(3)}
    repeated = 3 - [*before.values()].count("passed")
    assert len(records.read(points)) >= len(written) + 20 * repeated


# --- what is broken is not timed -----------------------------------------------------------------


def trial(backend, verdict, number=1, **fields):
    of = dict(kind="kernel", call="block", dtype="bfloat16", layout="nchw")
    return {**of, "backend": backend, "number": number, "trial": "t", "verdict": verdict, **fields}


@pytest.mark.parametrize(
    "broken, options, fit",
    [
        (trial("cuda", "right"), {}, ["cuda", "triton"]),
        (trial("cuda", "unknown"), {}, ["cuda", "triton"]),
        (trial("cuda", "wrong: y"), {}, ["triton"]),
        (trial("triton", "hung: t"), {}, ["cuda"]),
        (trial("cuda", "wrong: y", layout="channels_last"), {}, ["cuda", "triton"]),
        (trial("cuda", "wrong: y", dtype="float16"), {}, ["cuda", "triton"]),
        (trial("cuda", "wrong: y", call="norm"), {}, ["cuda", "triton"]),
        (trial("cuda", "wrong: y", call="norm"), {"calls": ("norm",)}, ["triton"]),
    ],
)
def test_a_broken_kernel_leaves_out_what_uses_it(results, broken, options, fit):
    results.begin_check(broken["backend"])
    records.append(results.path("kernels"), broken)
    given = dict(backends=("cuda", "triton"), calls=("block",), layouts=("nchw",)) | options
    found, reasons = run.Run(results, MACHINE, 0).fit(python("step", "pass", **given))
    assert found == fit
    assert len(reasons) == 2 - len(fit)


def test_a_backend_that_is_missing_or_not_built_is_left_out(results):
    step = python("step", "pass", backends=("cuda", "cpu"))
    assert run.Run(results, MACHINE, 0).fit(step) == (["cuda"], ["cpu: not a GPU's"])
    results.end("build", "build", steps.Outcome("failed"))
    assert run.Run(results, MACHINE, 0).fit(step)[0] == []


def test_a_step_without_a_fit_backend_is_left_out_with_the_reason(make_gpu, results):
    assert make_gpu({"tail": [python("nchw", "exit(1)", backends=("cpu",))]}) == 0
    (line,) = (line for line in results.read("stages") if line["ended"] == "left out")
    assert line["why"] == "cpu: not a GPU's"


def test_a_step_that_a_kernel_ended_is_repeated_without_its_backend(make_gpu, results):
    code = (
        "import os, sys, signal\n"
        "if 'cuda' in sys.argv:\n"
        "    print('  verify cuda: conv2', flush=True); os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    assert make_gpu({"tail": [python("nchw", code, backends=("cuda", "triton"))]}) == 1
    assert ended(results) == {"nchw": "crashed", "nchw, only triton": "passed"}


CHECK = """
import json, os, signal, sys, time
first, path = int(sys.argv[sys.argv.index("--from") + 1]), sys.argv[sys.argv.index("--json") + 1]
for number in range(first, 6):
    print(f"[{number}/5] cuda trial {number}", flush=True)
    for verdict in ("begun", "right"):
        record = dict(kind="kernel", backend="cuda", number=number, total=5, trial=f"t{number}")
        record |= dict(call="block", dtype="bfloat16", layout="nchw")
        with open(path, "a") as file:
            file.write(json.dumps({**record, "verdict": verdict}) + "\\n")
        if verdict == "begun" and number == 2:
            time.sleep(60)
        if verdict == "begun" and number == 4:
            os.kill(os.getpid(), signal.SIGSEGV)
"""


def test_the_check_goes_on_after_a_hang_and_a_crash(make_gpu, results):
    given = dict(backends=("cuda",), checks="cuda", kind="kernels", quiet=3.0)
    assert make_gpu({"smoke": [python("cuda", CHECK, **given)]}) == 1
    verdicts = {n: t["verdict"].partition(":")[0] for n, t in results.trials("cuda").items()}
    assert verdicts == {1: "right", 2: "hung", 3: "right", 4: "crashed", 5: "right"}
    line = results.outcomes()["smoke", "cuda"]
    assert line["why"].startswith("5 of 5 trials, 2 broken, the first: t2: hung: no line for 3 s")


def test_a_check_that_its_limit_ends_breaks_nothing(make_gpu, results):
    given = dict(backends=("cuda",), checks="cuda", kind="kernels", seconds=6)
    assert make_gpu({"smoke": [python("cuda", CHECK, **given)]}) == 1
    assert results.broken("cuda") == []
    assert results.outcomes()["smoke", "cuda"]["why"] == "1 of 5 trials"


# --- the plan ------------------------------------------------------------------------------------

PLAN = stages.stages(stages.GPU, "9.0")


def limit(names):
    return sum(step.seconds for name in names for step in PLAN[name])


def test_two_calls_have_room_for_all_stages():
    first = ("build", "smoke", "network", "tail", "sweeps")
    assert tuple(PLAN)[:5] == first
    assert limit(first) <= tool.FIRST_CALL == 420
    assert limit(PLAN.keys() - {*first}) <= 240


def test_stages_are_described():
    assert re.findall(r"^(\w+) {2,}\w", tool.__doc__, re.M) == [*PLAN]


@pytest.mark.parametrize("sizes", [stages.GPU, stages.HOST], ids=["gpu", "host"])
def test_names_are_unlike_and_results_have_a_file(sizes):
    for name, planned in stages.stages(sizes, "9.0").items():
        names = [step.name for step in planned]
        assert len({*names}) == len(names), name
        assert {step.kind for step in planned} <= {*KINDS, None}
    assert len(KINDS) <= 6


@pytest.mark.parametrize("sizes", [stages.GPU, stages.HOST], ids=["gpu", "host"])
def test_commands_exist(sizes, monkeypatch, results):
    pytest.importorskip("click")
    pytest.importorskip("timm")
    from benchmarks.cli import main

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    runner = run.Run(results, MACHINE, 0)
    for step in (step for planned in stages.stages(sizes, "9.0").values() for step in planned):
        command = runner.command(replace(step, tool=None), [*step.backends[:1]])
        module, *options = command.arguments[1:]
        if module == "benchmarks":
            name, *options = options
            context = main.commands[name].make_context(name, options)  # raises on a bad option
            assert context.params["json_path"].parent == results.folder
            assert context.params["device"].type == sizes.device
        elif module == "pytest":
            files = [option for option in options if option.endswith(".py")]
            assert files
            assert [file for file in files if not (ROOT / file).exists()] == []
        else:
            assert module in ("se_kernels", "tools.gpu.build")


def test_cuda_and_triton_are_measured():
    assert [step.backends for step in PLAN["sweeps"]] == [("cuda",), ("triton",)]


# --- the build -----------------------------------------------------------------------------------


def test_what_a_build_lacks_is_said_first(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(build, "PACKAGE", tmp_path)
    monkeypatch.setattr(build, "nvcc", lambda: None)
    monkeypatch.setattr(build, "tool", lambda name: None if name == "ninja" else "/bin/sh")
    monkeypatch.setattr(build.subprocess, "run", lambda *_, **__: pytest.fail("built"))
    assert build.main(["9.0"]) == 1
    out = capsys.readouterr().out
    assert "missing: nvcc" in out
    assert "missing: ninja" in out
    assert "missing: cmake" not in out


def test_a_library_that_was_brought_is_kept_where_it_fits(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "PACKAGE", tmp_path)
    loads = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(build.subprocess, "run", lambda *_, **__: loads)
    library, info = tmp_path / "_cuda.so", tmp_path / "_build_info.py"
    assert build.why_stale(library, "9.0") == "no _cuda.so"
    library.write_text("")
    assert "came without" in build.why_stale(library, "9.0")
    info.write_text("CUDA_ARCHS = {'code': ['80', '90'], 'ptx': []}\nCUDA_SOURCES = 'others'\n")
    assert build.why_stale(library, "9.0") == "_cuda.so is of other sources"
    sources = digest([ROOT / "csrc"])
    info.write_text(f"CUDA_ARCHS = {{'code': ['80', '90']}}\nCUDA_SOURCES = {sources!r}\n")
    assert build.why_stale(library, "9.0") is None
    assert build.why_stale(library, "8.6") is None  # runs code for 8.0
    assert build.why_stale(library, "10.0") == "_cuda.so is for 80, 90"
    loads.returncode, loads.stderr = 1, "Traceback\nImportError: no such symbol\n"
    assert build.why_stale(library, "9.0").endswith("loaded: ImportError: no such symbol")


def test_setup_names_the_sources_as_make_gpu_does():
    """setup.py has to stand alone, so the digest is there once more."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    (function,) = (node for node in tree.body if getattr(node, "name", "") == "_digest")
    names = {"hashlib": hashlib, "Path": Path}
    exec(ast.unparse(function), names)
    assert names["_digest"](ROOT / "csrc") == digest([ROOT / "csrc"])


def test_a_digest_is_of_names_and_contents(tmp_path):
    (tmp_path / "a.cu").write_text("1")
    before = digest([tmp_path])
    (tmp_path / "_build_info.py").write_text("1")
    (tmp_path / "notes.log").write_text("1")
    assert digest([tmp_path]) == before
    (tmp_path / "a.cu").write_text("2")
    changed = digest([tmp_path])
    (tmp_path / "a.cu").rename(tmp_path / "b.cu")
    assert len({before, changed, digest([tmp_path])}) == 3


# --- the table -----------------------------------------------------------------------------------


def block_record(shape, us):
    return dict(
        kind="layer", shape={"name": shape}, batch=256, dtype="bfloat16", layout="nchw",
        mode="inference", graph=False, variables={}, floor={"us": 100.0},
        contenders={name: {"p50_us": us * f} for name, f in (("eager", 3), ("cuda", 1))},
        ratios={"eager": {"cuda": 3.0}},
    )  # fmt: skip


def test_the_worst_five_points_come_first():
    found = [*table.lines([block_record(f"s{us}", us) for us in (100.0, 400, 300, 200, 700, 600)])]
    assert found[0].split() == [
        "what",
        "floor",
        "us",
        "us",
        "over",
        "floor",
        "eager/it",
        "compile/it",
    ]
    assert [line.split()[0] for line in found[1:6]] == [
        "s700.0"[:4],
        "s600",
        "s400",
        "s300",
        "s200",
    ]
    assert found[1].split()[-5:] == ["100.0", "700.0", "7.00", "3.00", "-"]
    assert found[6].startswith("layer inference bfloat16 nchw N=256 cuda, all 6 ")
    assert found[6].split()[-5:-3] == ["600.0", "2,300.0"]
    assert len(found) == 7


def test_networks_stand_over_the_one_without_se():
    times = dict(resnet50=100.0, se_eager=120.0, se_block=96.0, se_block_compiled=90.0)
    record = dict(
        kind="network", image_size=224, batch=256, dtype="bfloat16", layout="channels_last",
        mode="train", backend="cuda", contenders={n: {"p50_us": t} for n, t in times.items()},
    )  # fmt: skip
    rows = {line.split("channels_last ")[1].split()[0]: line.split()[-5:] for line in
            [*table.lines([record])][1:]}  # fmt: skip
    assert rows["se_block"] == ["100.0", "96.0", "0.96", "1.25", "0.94"]
    assert rows["se_eager"] == ["100.0", "120.0", "1.20", "1.00", "-"]


# --- on the host ---------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without a GPU")
@pytest.mark.skipif(not CUDA.exists(), reason="the stand-in for CUDA is not here")
def test_a_run_on_the_host(monkeypatch, tmp_path):
    """The stand-in serves the commands of make gpu, whose points and outcomes are kept."""
    pytest.importorskip("click")
    monkeypatch.setattr(stages, "FUSED", ("cuda",))  # Triton's interpreter takes its time
    (step,) = stages.stages(stages.HOST, "9.0")["latency"]
    plan = {"latency": [step]}
    monkeypatch.setattr(tool, "stages", lambda sizes, capability: plan)
    assert tool.main(["--host", "latency", "--results", str(tmp_path)]) == 0
    results = Results.of(tmp_path, "host stand-in")
    assert ended(results) == {"latency": "passed"}
    measured = results.measured()
    assert {record["layout"] for record in measured} == {"channels_last", "nchw"}
    assert all({"eager", "cuda", "copy"} == {*record["contenders"]} for record in measured)
