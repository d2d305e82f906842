"""The page of a campaign."""

import pytest

from aftershock.report import write_joint_report
from aftershock.study import Member, check_settings, run_campaign, summarise_campaign
from tiny_study import tiny_tables


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    folder = tmp_path_factory.mktemp("campaign")
    tables = tiny_tables(folder)
    swept = {**tables, "faults": {"draw": "uniform"}, "sweep": {"sites": [["weight"], ["activation"]]}}
    spoilt = {**tables, "task": {"spec": str(folder / "<b>absent</b>.jsonl")}}
    own = {"plain": tables, "swept": swept, "spoilt": spoilt, "later": tables}
    members = [Member(name, check_settings(table, name)) for name, table in own.items()]
    running = run_campaign(members, folder / "out")
    for _ in range(3):
        next(running)
    running.close()
    return folder / "out"


def test_the_page_has_every_study_with_its_rates_and_a_link_to_its_own(campaign):
    html = write_joint_report(summarise_campaign(campaign), campaign).read_text("utf-8")
    assert "2 studies, 24 faults" in html
    for name in ("plain", "swept"):
        assert f'<a href="{name}/report.html">{name}</a>' in html
    assert "<th>weight<th>activation" in html
    assert html.count("3 of 3, n") == html.count("no reference") == 0


def test_what_did_not_run_is_told_and_escaped(campaign):
    html = write_joint_report(summarise_campaign(campaign), campaign).read_text("utf-8")
    assert "&lt;b&gt;absent&lt;/b&gt;.jsonl" in html
    assert "<b>absent" not in html
    assert "Still to run: later" in html


def test_the_page_runs_no_script_and_loads_nothing(campaign):
    html = write_joint_report(summarise_campaign(campaign), campaign).read_text("utf-8")
    assert "<script" not in html
    assert "default-src 'none'" in html


def test_markdown_has_the_same_rows(campaign):
    write_joint_report(summarise_campaign(campaign), campaign)
    text = (campaign / "report.md").read_text("utf-8")
    assert text.startswith("# 2 studies, 24 faults")
    assert "| plain |" in text
    assert "**spoilt** refused: " in text
    assert "| study | weight | activation |" in text
