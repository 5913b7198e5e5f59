"""docs/ as a site, and the README: every page has its place, and every figure its record."""

import doctest
import json
import re
from pathlib import Path

import pytest
import torch
import torchvision

import se_kernels

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PUBLIC = [name for name in se_kernels.__all__ if callable(getattr(se_kernels, name))]
MADE_BY_OTHERS = {"Gates", "PruneReport"}  # record_gates and prune_by_gate show them


@pytest.mark.parametrize("name", sorted({*PUBLIC} - MADE_BY_OTHERS))
def test_the_example_in_the_docstring(name):
    names = dict(se_kernels=se_kernels, torch=torch, torchvision=torchvision)
    docstring = getattr(se_kernels, name).__doc__
    example = doctest.DocTestParser().get_doctest(docstring, names, name, None, None)
    assert example.examples
    result = doctest.DocTestRunner().run(example)
    assert result.failed == 0


def test_every_page_is_in_the_navigation():
    listed = re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_every_picture_is_there():
    pages = [ROOT / "README.md", *DOCS.rglob("*.md")]
    pictures = [
        page.parent / name
        for page in pages
        for name in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text())
    ]
    assert len(pictures) >= 5
    assert [picture for picture in pictures if not picture.exists()] == []


def test_the_reference_has_every_public_name():
    named = re.findall(r"^::: se_kernels\.(?:\w+\.)*(\w+)$", (DOCS / "api.md").read_text(), re.M)
    elsewhere = {"__version__", "models", "reference"}  # docs/models.md, docs/design.md
    assert sorted(named) == sorted({*se_kernels.__all__} - elsewhere)


def test_the_table_of_the_readme_is_of_the_records():
    lines = (ROOT / "benchmarks" / "results" / "network-amd-epyc.jsonl").read_text().splitlines()
    found = {
        (record["mode"], record["batch"]): record["ratios"]
        for record in map(json.loads, lines)
        if record["schema"] == 2 and record["layout"] == "nchw"
    }
    readme = (ROOT / "README.md").read_text()
    for words, point in (
        ("training step, N=16", ("train", 16)),
        ("inference, N=1", ("inference", 1)),
    ):
        row = re.search(rf"^\| {words} \|(.*)$", readme, re.M)[1]
        shown = [cell.strip(" *") for cell in row.split("|")[:3]]
        names = ("se_eager", "se_layer", "se_block")
        assert shown == [f"{found[point][f'{name}/resnet50']:.2f}" for name in names]
