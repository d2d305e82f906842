"""The page and the Markdown of a diagnosis."""

import json
import re

import pytest
from synthetic_diagnosis import COMMAND, clean, divergent

from aftershock.diagnose import Diagnosis
from aftershock.errors import InputError
from aftershock.report import diagnosis_markdown, diagnosis_page, write_diagnosis


@pytest.fixture(scope="module")
def found() -> Diagnosis:
    return divergent()


@pytest.fixture(scope="module")
def html(found: Diagnosis) -> str:
    return diagnosis_page(found, COMMAND)


def test_the_page_says_the_verdict_the_cause_and_how_to_repeat_it(html):
    assert "<h1>q_rope is wrong in all layers" in html
    assert "q_rope: rope_theta" in html
    assert "500000 in the target, 10000 right" in html
    assert "0 to 2, 7" in html
    assert COMMAND in html
    assert html.count('<span class="state') == 3
    assert 'class="state not-checked"' in html


def test_the_page_escapes_what_it_quotes_and_loads_nothing(html):
    assert "&lt;b&gt;queries" in html
    assert "<b>queries" not in html
    assert "default-src 'none'" in html
    assert not re.search(r'(?:src|href)="(?!data:)', html[: html.index("<script")])


def test_the_charts_hold_every_known_ratio_and_no_other(html, found):
    specs = json.loads(re.search(r'<script type="application/json" id="specs">(.*?)</script>', html, re.DOTALL)[1])
    rows = {name: [row for data in spec["datasets"].values() for row in data] for name, spec in specs.items()}
    curve = [row for row in rows["curve"] if "point" in row]
    known = sum(one.local is not None for one in found.curve) + sum(one.free is not None for one in found.curve)
    assert len({(row["order"], row["kind"]) for row in curve}) == known
    assert {row["written"] for row in curve if row["point"] == "layer 3 q_rope" and "alone" in row["kind"]} == {"∞"}
    cells = [row for row in rows["picture"] if "point" in row]
    assert len(cells) == sum(ratio is not None for row in found.picture.ratios for ratio in row)


def test_a_clean_diagnosis_has_no_findings_and_no_empty_charts():
    page = diagnosis_page(clean(), COMMAND)
    assert "What is wrong" not in page
    assert "data-chart" not in page
    assert "no divergence: look at the stop logic" in page


def test_markdown_has_the_same_content_and_no_markup_of_others(found):
    text = diagnosis_markdown(found, COMMAND)
    assert text.startswith("# q\\_rope is wrong")
    assert "\\<b\\>queries" in text
    assert "| weights | not checked | can't be read |" in text
    assert f"    {COMMAND}" in text
    assert "| next best cause | rope\\_scaling, which leaves 7.5 |" in text


def test_three_files_are_written_and_the_json_reads_back(found, tmp_path):
    page = write_diagnosis(found, COMMAND, tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["diagnosis.json", "report.html", "report.md"]
    assert page.read_text("utf-8").startswith("<!doctype html>")
    assert Diagnosis.model_validate_json((page.parent / "diagnosis.json").read_text("utf-8")) == found


def test_a_folder_that_can_not_be_written_is_one_sentence(found, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="can't be written"):
        write_diagnosis(found, COMMAND, tmp_path / "file")
