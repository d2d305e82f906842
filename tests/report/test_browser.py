"""The page in a real browser: its charts draw, it needs no network, and it asks for none."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import pytest
from synthetic_diagnosis import COMMAND, divergent

from aftershock.report import diagnosis_page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OFFLINE = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: install the package chromium")


@dataclass(frozen=True)
class Opened:
    dom: str
    console: tuple[str, ...]


def opened(html: str, folder: Path) -> Opened:
    """The document after its scripts ran, and what they said to the console (a refused load is said there)."""
    file = folder / "report.html"
    file.write_text(html, encoding="utf-8", newline="\n")
    done = subprocess.run(
        [
            str(BROWSER),
            *OFFLINE,
            f"--user-data-dir={folder / 'profile'}",
            "--virtual-time-budget=60000",
            "--enable-logging=stderr",
            "--dump-dom",
            file.as_uri(),
        ],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=240,
        check=True,
    )
    return Opened(done.stdout, tuple(line for line in done.stderr.splitlines() if "CONSOLE" in line))


def test_every_chart_draws_its_data_and_nothing_is_asked_for(html, tmp_path):
    page = opened(html, tmp_path)
    places = html.count('data-chart="')
    assert places == 7
    assert f'data-drawn="{places}"' in page.dom
    assert 'class="failed"' not in page.dom
    assert page.console == ()
    for name in ("component", "layer", "bit", "stage"):
        chart = page.dom[page.dom.index(f'id="chart-{name}"') :]
        chart = chart[: chart.index("</svg>")]
        assert "<svg" in chart
        assert len(re.findall(r'aria-roledescription="point"', chart)) >= 3


def test_the_charts_of_a_diagnosis_draw_too(tmp_path):
    page = opened(diagnosis_page(divergent(), COMMAND), tmp_path)
    assert 'data-drawn="2"' in page.dom
    assert 'class="failed"' not in page.dom
    assert page.console == ()
    picture = page.dom[page.dom.index('id="chart-picture"') :]
    assert len(re.findall(r'aria-roledescription="rect', picture)) >= 18


def test_a_load_or_a_script_that_slipped_in_would_be_refused_and_seen(html, tmp_path):
    foreign = '<header><img src="https://example.invalid/x.png"><script>document.title = "owned"</script>'
    page = opened(html.replace("<header>", foreign, 1), tmp_path)
    assert "<title>owned</title>" not in page.dom
    refused = [line for line in page.console if "Content Security Policy" in line]
    assert len(refused) == 2


PROBE = """<script>
const rows = () => [...document.querySelectorAll("#rows .answer")].filter((row) => !row.hidden);
const marks = () => document.querySelectorAll("#chart-component [aria-roledescription=point]").length;
const type = (text) => { search.value = text; search.dispatchEvent(new Event("input")); };
const wait = setInterval(async () => {
  if (!document.documentElement.dataset.drawn) return;
  clearInterval(wait);
  const before = rows().length;
  type("outcome=subtle");
  const subtle = rows().every((row) => row.dataset.keys.includes("outcome=subtle")) && rows().length < before;
  type("bit=3");
  const exact = rows().every((row) => row.dataset.keys.split(" ").includes("bit=3"));
  type("no such words");
  const none = rows().length === 0 && !document.getElementById("none").hidden;
  type("");
  document.querySelector("input[value=weight]").click();
  const site = rows().length > 0 && rows().every((row) => row.dataset.site === "weight");
  setTimeout(() => { document.title = JSON.stringify({ subtle, exact, none, site, marks: marks() }); }, 2000);
}, 100);
</script>"""


def test_filters_choose_answers_and_the_rows_of_charts(html, stored, tmp_path):
    start = html.index('<meta http-equiv="Content-Security-Policy"')
    unguarded = html[:start] + html[html.index(">", start) + 1 :]
    before, _, after = unguarded.rpartition("</body>")
    dom = opened(f"{before}{PROBE}</body>{after}", tmp_path).dom
    title = re.search("<title>(.*?)</title>", dom)
    assert title is not None
    assert json.loads(unescape(title[1])) == {
        "subtle": True,
        "exact": True,
        "none": True,
        "site": True,
        "marks": len({trial.component for trial in stored.trials if trial.site == "weight"}),
    }
