import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser

from aftershock.report import markdown, page
from aftershock.report.content import content
from aftershock.report.markdown import escaped
from aftershock.study import summarise

LOADING = {"src", "srcset", "href", "action", "data", "poster", "background", "formaction", "xlink:href"}


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.inside.pop()

    def handle_data(self, data):
        if self.inside == ["script"]:
            self.scripts.append(data)
        elif not self.inside:
            self.text.append(data)


def test_nothing_in_the_page_names_a_place_to_load_from(html):
    loaded = [value for _, attributes in Page(html).tags for name, value in attributes.items() if name in LOADING]
    assert loaded == ["data:,"]
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_forbids_requests_and_allows_only_the_scripts_it_hashes(html):
    read = Page(html)
    policy = next(a["content"] for tag, a in read.tags if tag == "meta" and a.get("http-equiv"))
    assert "default-src 'none'" in policy
    allowed = re.search(r"script-src ([^;]*);", policy)
    assert allowed is not None
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in read.scripts[1:]]
    assert allowed[1].split() == [f"'sha256-{one}'" for one in hashes]
    assert len(read.scripts) == 3
    json.loads(read.scripts[0])


def test_outputs_prompts_and_names_are_escaped(stored, summary):
    hostile = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&\u202e]]>-->"
    golden = tuple(record.model_copy(update={"prompt": hostile, "group": hostile}) for record in stored.golden)
    item = stored.trials[0].items[0].model_copy(update={"output": hostile, "outcome": "subtle", "eligible": True})
    trial = stored.trials[0].model_copy(update={"items": (item,), "component": hostile, "faults": (hostile,)})
    environment = stored.environment.model_copy(update={"model": hostile, "device": hostile})
    attacked = dataclasses.replace(stored, golden=golden, trials=(trial,), environment=environment)
    read = Page(page(attacked, summary))
    assert [tag for tag, _ in read.tags].count("script") == 3
    assert "img" not in {tag for tag, _ in read.tags}
    assert not any(name.startswith("on") for _, attributes in read.tags for name in attributes)
    text = "".join(read.text)
    assert "<script>alert(1)</script>" in text
    assert "\u202e" not in text
    assert "\\u202e" in text


def test_every_headline_figure_has_its_interval_and_n(html):
    figures = re.findall(r'<article class="figure">(.*?)</article>', html, re.DOTALL)
    assert len(figures) == 5
    for figure in figures:
        assert re.search(r'class="interval">\[\S+, \S+\]<', figure)
        assert re.search(r'class="n">n = [\d,]+ \w+', figure)


def test_every_outcome_share_has_its_interval_and_counts(html):
    rows = re.findall(r'<tr><td><span class="badge.*?</tr>', html)
    assert len(rows) == 6
    for row in rows:
        assert re.search(r"\d%?.*\[\S+, \S+\]<td class=\"right\">[\d,]+<td class=\"right\">[\d,]+", row)


def test_the_summary_and_the_page_say_the_same(html, summary):
    text = "".join(Page(html).text).replace("\N{NO-BREAK SPACE}", " ")
    assert f"{100 * summary.sdc_rate.estimate:.2f} %" in text
    assert summary.plan_digest in text
    assert summary.records_digest in text


def test_worst_faults_come_with_the_command_that_repeats_them(html, stored):
    commands = re.findall(r"aftershock replay &#39;a study&#39; (\d+)", html)
    assert commands
    share = {trial.trial: trial.sdc_share for trial in stored.trials}
    shares = [share[int(number)] for number in commands]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == max(value for value in share.values() if value is not None)


def test_an_incomplete_study_and_a_restless_machine_say_so(stored, summary):
    partial = dataclasses.replace(stored, trials=stored.trials[:10], aa_disagreements=2)
    text = page(partial, summary)
    assert "10 of 160 planned trials" in text
    assert "2 of 48 items" in text
    assert 'role="alert"' in text


def test_a_study_without_trials_still_has_a_page(stored, summary):
    empty = dataclasses.replace(stored, trials=())
    assert "This study has no data for this chart." in page(empty, summary)


def test_the_page_stays_small(html):
    assert len(html.encode()) < 3_000_000


def test_the_same_study_gives_the_same_page(html, stored, summary):
    assert page(stored, summary) == html


def test_the_share_of_trials_that_were_proved_masked_is_one_line_of_the_page_and_the_text(stored):
    proofs = ["converged"] * 8 + ["not_activated"] * 4 + [None] * (len(stored.trials) - 12)
    trials = tuple(
        trial.model_copy(update={"proof": proof}) for trial, proof in zip(stored.trials, proofs, strict=True)
    )
    proved = dataclasses.replace(stored, trials=trials)
    summary = summarise(proved)
    ((line,),) = [[v for k, v in content(proved, summary).circumstances if k == "Trials proved masked early"]]
    assert re.match(r"2\.50\s% \[.*\] not_activated \(.*\); 5\.00\s% \[.*\] converged \(.*\); n = 160 trials \(", line)
    html = page(proved, summary)
    assert line in "".join(Page(html).text)
    assert escaped(line) in markdown(proved, summary)
    assert html.count("not_activated") == 1
    assert summary.records_digest == summarise(stored).records_digest
