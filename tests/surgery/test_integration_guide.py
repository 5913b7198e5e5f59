"""Each block of docs/integration.md and docs/libraries/ runs, and would notice a wrong `fuse`."""

import os
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import se_kernels

for module in ("onnx", "onnxscript", "torchvision", "timm", "transformers"):
    # RuntimeError: torchvision, where it was built for another CUDA than torch
    pytest.importorskip(module, exc_type=(ImportError, RuntimeError))
markdown_it = pytest.importorskip("markdown_it")

ROOT = Path(__file__).resolve().parents[2]
GUIDES = (ROOT / "docs" / "integration.md", *sorted((ROOT / "docs" / "libraries").glob("*.md")))


class ExcitationSteps(NamedTuple):
    heading: str
    code: str
    guide: Path
    line: int  # of the guide, from 0
    command: str | None  # that runs the block as a script; None runs it here


def blocks() -> list[ExcitationSteps]:
    """The Python blocks; a shell block with a command belongs to the Python block before it."""
    found, heading = [], None
    for guide in GUIDES:
        for token, following in pairwise(
            [*markdown_it.MarkdownIt().parse(guide.read_text()), None]
        ):
            if token.type == "heading_open":
                heading = following.content
            elif token.type == "fence" and token.info == "python":
                found.append(ExcitationSteps(heading, token.content, guide, token.map[0] + 1, None))
            elif token.type == "fence" and token.info == "shell":
                found[-1] = found[-1]._replace(command=token.content.strip())
    return found


BLOCKS = blocks()
HERE = [block for block in BLOCKS if block.command is None]
SCRIPTS = [block for block in BLOCKS if block.command is not None]
COMPILED = [block for block in HERE if "torch.compile(" in block.code]


def heading_of(block):
    return block.heading


def run(block):
    """In this process, in the current folder; a traceback names the guide's line."""
    torch.manual_seed(0)
    try:
        code = compile("\n" * block.line + block.code, str(block.guide), "exec")
        exec(code, {"__name__": "integration"})
    finally:
        torch.compiler.reset()


def test_every_section_has_its_block():
    wanted = {"torch.compile", "torch.export", "ONNX"}
    headings = [block.heading for block in BLOCKS]
    assert {guide.stem for guide in GUIDES} == {
        "integration",
        "timm",
        "torchvision",
        "transformers",
    }
    assert {block.guide for block in BLOCKS} == set(GUIDES)
    assert wanted < set(headings)
    assert len(headings) == len(set(headings))
    assert [block.heading for block in SCRIPTS] == ["DistributedDataParallel"]
    assert len(COMPILED) == 1


@pytest.mark.parametrize("block", HERE, ids=heading_of)
def test_block(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(block)


@pytest.mark.parametrize("block", SCRIPTS, ids=heading_of)
def test_script(block, tmp_path):
    program, *arguments, script = shlex.split(block.command)
    assert program == "torchrun"
    # torchvision beside a CPU build of torch, as conftest.py does for the other blocks
    (tmp_path / script).write_text(f"import torchvision_stub\n{block.code}")
    package = Path(se_kernels.__file__).parents[1]
    path = [str(package), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",  # no name of this machine to be resolved
    }
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *arguments, script],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "process 0 of 2: gradients agree" in result.stdout
    assert "process 1 of 2: gradients agree" in result.stdout


@pytest.fixture
def swapped_channels(monkeypatch):
    """Whatever is fused gives its channels in the reverse order."""

    def reverse(function):
        return lambda *args, **options: function(*args, **options).flip(1)

    def fuse(model, level="layer", fuse=se_kernels.fuse):
        report = fuse(model, level)
        for name in report.blocks or report.fused:
            module = model.get_submodule(name)
            module.register_forward_hook(lambda _module, _inputs, y: y.flip(1))
        return report

    # BatchNormSqueezeExcite calls it, since it is no longer the one that a fused call stands for
    layer = se_kernels.SqueezeExcite
    monkeypatch.setattr(layer, "forward", reverse(layer.forward))
    monkeypatch.setattr(se_kernels, "squeeze_excite", reverse(se_kernels.squeeze_excite))
    monkeypatch.setattr(se_kernels, "fuse", fuse)


# the compiled block compares as the one for timm does, and takes long
@pytest.mark.parametrize("block", [b for b in HERE if b not in COMPILED], ids=heading_of)
@pytest.mark.usefixtures("swapped_channels")
def test_block_notices_a_wrong_result(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError):
        run(block)
