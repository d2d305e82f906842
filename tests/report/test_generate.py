"""The records beside plain generate, on the page and in the text."""

import dataclasses
import re
from html import unescape

from aftershock.report import markdown, page
from aftershock.report.markdown import escaped
from aftershock.study import summarise


def rows_of(html: str) -> list[list[str]]:
    section = html[html.index("<h2>Beside plain generate</h2>") : html.index("Where, which bit, when")]
    rows = re.findall(r"<tr><td>(.*?)</tr>", section)
    return [[cell.replace("\N{NO-BREAK SPACE}", " ") for cell in re.split(r"<td[^>]*>", row)] for row in rows]


def test_both_rates_and_both_sdc_rates_stand_with_interval_and_counts(html, summary):
    found = summary.against_generate
    assert found.trials > 4
    rates = [found.disagreement, found.batch_size, found.sdc.records, found.sdc.generate]
    assert len({rate.estimate for rate in rates}) == 4
    for (_, share, interval, n), rate in zip(rows_of(html), rates, strict=True):
        assert abs(float(share.removesuffix(" %")) - 100 * rate.estimate) < 0.06
        low, high = map(float, interval.strip("[]").split(", "))
        assert low <= 100 * rate.estimate <= high
        assert n.startswith(f"{rate.n} trials, ")


def test_page_and_text_give_the_tests_and_the_conclusion(stored, html, summary):
    test, text, read = summary.against_generate.sdc, markdown(stored, summary), unescape(html)
    for part in (f"p = {test.p_value:.3g} by exchanging", f"p = {test.mcnemar_p_value:.3g},", test.conclusion[1:]):
        assert part in read
        assert escaped(part) in text


def test_a_study_without_decoded_trials_has_no_such_section(stored):
    without = dataclasses.replace(stored, generated=())
    summary = summarise(without)
    assert "plain generate" not in page(without, summary)
    assert "plain generate" not in markdown(without, summary)
