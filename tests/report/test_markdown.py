import re

from hypothesis import given
from hypothesis import strategies as st

from aftershock.report import markdown
from aftershock.report.markdown import escaped
from aftershock.report.wording import visible


def test_sections_and_figures_are_there_with_intervals(stored, summary):
    text = markdown(stored, summary)
    for heading in ("Outcomes", "SDC rate by component", "SDC rate by bit", "Worst faults", "Reproduce and cite"):
        assert f"\n## {heading}\n" in text
    assert re.search(r"\| SDC rate \| [\d.]+\s%? ?\| .*\[", text.replace("\\", ""))
    assert summary.records_digest in text


def test_every_row_of_a_table_has_as_many_cells_as_its_header(stored, summary):
    for table in re.findall(r"(?:^\|.*\n)+", markdown(stored, summary), re.MULTILINE):
        lines = table.splitlines()
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_answers_hold_no_markup(stored, summary):
    text = markdown(stored, summary)
    assert "<script>" not in text
    assert "\\<script\\>" in text


@given(st.text())
def test_escaped_text_is_one_line_and_gives_itself_back(text):
    shown = escaped(text)
    assert len(shown.splitlines()) <= 1
    assert re.sub(r"\\(.)", r"\1", shown) == " ".join(visible(text).split())
