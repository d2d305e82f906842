"""The page and the Markdown of a diagnosis."""

import json
import math
import re

import pytest

from aftershock.diagnose import CurvePoint, Diagnosis, Finding, Picture, Rung, Subject, Suspect
from aftershock.errors import InputError
from aftershock.report import diagnosis_markdown, diagnosis_page, write_diagnosis

COMMAND = "aftershock diagnose --reference demo:smollm2-135m --target bundle"
POINTS = tuple(
    f"layer {layer} {kind}" for layer in range(30) for kind in ("q", "k", "q_rope", "attention", "o", "down")
)


def local(point: str) -> float:
    return math.inf if point == "layer 3 q_rope" else 40.0 if point.endswith("q_rope") else 0.95


def divergent(verdict: str = "q_rope is wrong in all layers: rope_theta is 500000, not 10000") -> Diagnosis:
    columns = tuple(
        f"{request}: {start}-{start + 7}" for request, length in ((0, 64), (1, 160)) for start in range(0, length, 8)
    )
    shown = POINTS[:18]
    return Diagnosis(
        verdict=verdict,
        divergent=True,
        understood=True,
        subject=Subject(target="m in e 1", reference="m in t 2", dtype="bfloat16", requests=2, tokens=224),
        findings=(
            Finding(
                component="q_rope",
                cause="rope_theta",
                evidence="<b>queries</b> turn by other angles",
                layers=tuple(range(30)),
                parameter="rope_theta",
                found=500000.0,
                reference=10000.0,
                before=40.1,
                after=0.98,
                runner_up="rope_scaling",
                runner_up_after=7.5,
            ),
            Finding(component="sampler", cause="top_k", evidence="said, not shown", confirmed=False),
        ),
        suspects=(Suspect(component="q_rope", layers=(0, 1, 2, 7), ratio=40.1, where="grows with the position"),),
        rungs=(
            Rung(name="tokens", state="agrees", said="ids are the reference's"),
            Rung(name="weights", state="not checked", said="can't be read"),
            Rung(name="activations", state="differs", said="q_rope"),
        ),
        threshold=2.0,
        curve=tuple(
            CurvePoint(point=point, local=local(point), free=None if "k" in point else 1.0 + n / 10)
            for n, point in enumerate(POINTS)
        ),
        picture=Picture(
            points=shown,
            columns=columns,
            ratios=tuple(
                tuple(None if place == 4 else local(point) * (1 + place / 4) for place in range(len(columns)))
                for point in shown
            ),
        ),
        alignment="180 points by value",
        unmatched=tuple(f"model.extra.{number}" for number in range(50)),
        reproduce="request 0, from token 1 on",
        invisible=("a window of 4,096 tokens: the longest prompt has 160",),
    )


def clean() -> Diagnosis:
    return divergent("no divergence: look at the stop logic").model_copy(
        update={"divergent": False, "findings": (), "suspects": (), "curve": (), "picture": None, "unmatched": ()}
    )


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
