"""What the pages show runs: the Python blocks of a page in order, in one namespace.

A block fenced as `python demo` needs the demo model's weights and runs where they are in the cache; one fenced as
`python excerpt` goes on from the reader's own files and is only compiled.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from aftershock.faults import CATALOGUE, GRAMMAR
from demo_model import needs_demo_model

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```python(?: (?P<kind>\w+))?\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
ALL_PAGES = sorted([*DOCS.glob("*.md"), *ROOT.glob("*.md")])
PAGES = [page for page in ALL_PAGES if BLOCK.search(page.read_text(encoding="utf-8"))]


def blocks(page: Path) -> list[tuple[str | None, str]]:
    """Kind and code of every Python block."""
    return [(match["kind"], match["code"]) for match in BLOCK.finditer(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(page, [code for kind, code in blocks(page) if kind is None], tmp_path, monkeypatch)


@needs_demo_model
@pytest.mark.parametrize(
    "page", [page for page in PAGES if "demo" in {kind for kind, _ in blocks(page)}], ids=lambda page: page.stem
)
def test_demo_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(page, [code for kind, code in blocks(page) if kind in (None, "demo")], tmp_path, monkeypatch)


def run(page: Path, codes: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    threads = torch.get_num_threads()
    namespace: dict[str, Any] = {"__name__": page.stem}
    try:
        with torch.random.fork_rng(devices=[]):
            for code in codes:
                exec(compile(code, str(page), "exec"), namespace)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_is_python_of_a_known_kind(page: Path) -> None:
    for kind, code in blocks(page):
        assert kind in (None, "demo", "excerpt")
        compile(code, str(page), "exec")


def test_the_grammar_on_the_page_is_the_grammar() -> None:
    assert f"```\n{GRAMMAR}```\n" in (DOCS / "faults.md").read_text(encoding="utf-8")


def test_the_catalogue_on_the_page_is_the_catalogue() -> None:
    rows = "".join(f"| `{name}` | {model.what} | {model.source} |\n" for name, model in CATALOGUE.items())
    assert f"|---|---|---|\n{rows}\n" in (DOCS / "faults.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
