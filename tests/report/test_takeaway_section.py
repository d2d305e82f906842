"""The section on published takeaways, in HTML and Markdown."""

import re

import pytest

from aftershock.report import markdown, page
from aftershock.report.markdown import escaped
from aftershock.report.takeaways import takeaway_content
from aftershock.study import summarise, takeaways
from planted_study import faults, study, weight


@pytest.fixture(scope="module")
def telling():
    return study(faults(weight("down"), 120, 0.5) + faults(weight("up"), 120, 0.1))


def test_every_tested_takeaway_has_a_row_and_the_others_a_reason(telling):
    found = takeaways((telling,))
    said = takeaway_content(found)
    tested = {one.number for one in found if one.tested}
    assert {1, 9} <= tested
    assert [row.number for row in said.rows] == sorted(tested)
    assert len(said.rows) + len(said.reasons) == 17
    numbers = re.findall(r"\d+", said.untested)
    assert {int(number) for number in numbers} == set(range(1, 18)) - tested
    for row in said.rows:
        assert 0 <= row.low <= row.at <= row.high <= 1
        assert (row.low > 0.5) == (row.interval.startswith("[+"))


def test_the_report_has_the_section_where_something_could_be_tested(telling):
    summary = summarise(telling)
    html, text = page(telling, summary), markdown(telling, summary)
    assert "<h2>Seventeen published takeaways</h2>" in html
    assert '<span class="verdict holds"' in html
    assert "## Seventeen published takeaways" in text
    for row in takeaway_content(summary.takeaways).rows:
        assert row.claim in html
        assert f"| {row.number} | {escaped(row.claim)} | {row.label} | {row.verdict} |" in text


def test_it_is_left_out_where_nothing_could():
    silent = study(faults(weight(), 10, 0.5))
    summary = summarise(silent)
    assert takeaway_content(summary.takeaways) is None
    assert "published takeaways" not in page(silent, summary)
    assert "published takeaways" not in markdown(silent, summary)


def test_one_section_can_speak_of_several_studies(telling):
    said = takeaway_content(takeaways((telling, telling)))
    (row,) = [row for row in said.rows if row.number == 9]
    assert row.n == "240 / 240"
    assert row.verdict == "holds"
