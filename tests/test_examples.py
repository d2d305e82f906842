"""The examples run, with the public names alone, and show what they promise."""

import ast
import runpy
from pathlib import Path

import pytest
import torch

import aftershock
from demo_model import needs_demo_model

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Lines that an example prints when it runs in `folder`."""
    (example,) = [path for path in EXAMPLES if path.stem == name]
    monkeypatch.chdir(folder)
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(example), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    return capsys.readouterr().out.splitlines()


@needs_demo_model
def test_first_study(tmp_path, monkeypatch, capsys):
    lines = run("first_study", tmp_path, monkeypatch, capsys)
    assert lines[0].startswith("plan ")
    assert any(line.startswith("SDC rate ") for line in lines)
    assert "report: first-study/report.html" in lines
    assert (tmp_path / "first-study" / "report.html").is_file()
    assert lines[-1] == "trial 3 repeated: equal"


@needs_demo_model
def test_one_bit(tmp_path, monkeypatch, capsys):
    lines = run("one_bit", tmp_path, monkeypatch, capsys)
    answers = {line.strip().partition(": ")[0]: line.partition(": ")[2] for line in lines if ": '" in line}
    assert answers["before"] == answers["after"]
    assert "Paris" in answers["before"]
    during = [line.partition(": ")[2] for line in lines if line.startswith("  during: ")]
    assert during[0] == answers["before"]
    assert during[1] != answers["before"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_use_public_names_alone(example):
    tree = ast.parse(example.read_text(encoding="utf-8"))
    imported = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert {name for name in imported if name.startswith("aftershock")} == {"aftershock"}
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "aftershock"
    }
    assert used
    assert used <= set(aftershock.__all__)
