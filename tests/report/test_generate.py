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
    answers = [found.answers, found.answers, found.sdc.answers, found.sdc.answers]
    for (_, share, interval, n), rate, count in zip(rows_of(html), rates, answers, strict=True):
        assert abs(float(share.removesuffix(" %")) - 100 * rate.estimate) < 0.06
        low, high = map(float, interval.strip("[]").split(", "))
        assert abs(low - 100 * rate.low) < 0.06
        assert abs(high - 100 * rate.high) < 0.06
        assert n == f"{rate.n} trials, {count} answers"


def test_page_and_text_give_the_tests_and_the_conclusion(stored, html, summary):
    found, text, read = summary.against_generate, markdown(stored, summary), unescape(html)
    test = found.sdc
    assert test.records_alone != test.generate_alone
    for part in (
        f"The answers of {found.trials} trials, ",
        f"p = {test.p_value:.3g} by exchanging",
        f"p = {test.mcnemar_p_value:.3g},",
        f"({test.records_alone} are SDC in the records alone, {test.generate_alone} by generate alone)",
        test.conclusion[1:],
    ):
        assert part in read
        assert escaped(part) in text


def test_without_an_eligible_answer_the_rates_stand_alone(stored, summary):
    found = summary.against_generate.model_copy(update={"sdc": None})
    for written in (page, markdown):
        text = written(stored, summary.model_copy(update={"against_generate": found}))
        assert "No answer counts for SDC." in text.replace("\\", "")
        assert "by generate, on the same answers" not in text


def test_a_study_without_decoded_trials_has_no_such_section(stored):
    without = dataclasses.replace(stored, generated=())
    summary = summarise(without)
    assert "plain generate" not in page(without, summary)
    assert "plain generate" not in markdown(without, summary)
