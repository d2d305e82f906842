"""The HTML page: one file that holds its data, its charts and the program that draws them."""

import base64
import hashlib
from importlib.resources import files

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from aftershock.report.charts import OUTCOME_COLOURS
from aftershock.report.content import Content, content
from aftershock.report.panels import panels
from aftershock.report.sweep_charts import sweep_panels
from aftershock.report.tables import ALL_SITES
from aftershock.report.wording import visible
from aftershock.study import StoredStudy, Summary

_ASSETS = files("aftershock.report") / "assets"


def page(stored: StoredStudy, summary: Summary) -> str:
    """The report of a study as one HTML document.

    It loads nothing: its content security policy lets only the two scripts run whose hashes it names, and forbids
    every request. Prompts and answers are escaped. Vega's expressions are interpreted, never compiled.
    """
    said = content(stored, summary)
    floor = summary.noise_floor
    drawn = tuple(
        panels(
            said.trials, stored.trials, stored.environment, (floor.estimate, floor.low, floor.high) if floor.n else None
        )
    )
    of_sweep = tuple(sweep_panels(summary))
    vega: str = vl_convert.javascript_bundle()
    scripts = (vega, (_ASSETS / "page.js").read_text("utf-8"))
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            said=said,
            panels=drawn,
            sweep_panels=of_sweep,
            specs={panel.name: panel.spec for panel in (*of_sweep, *drawn) if panel.spec is not None},
            colours=OUTCOME_COLOURS,
            sites=_sites(said),
            all_sites=ALL_SITES,
            scale=max(summary.sdc_rate.high, summary.any_sdc.high, summary.due_rate.high),
            style=Markup((_ASSETS / "page.css").read_text("utf-8")),
            scripts=tuple(Markup(script) for script in scripts),
            hashes=tuple(script_hash(script) for script in scripts),
        )
    )


def _sites(said: Content) -> tuple[str, ...]:
    return (ALL_SITES, *sorted(set(said.trials["site"])))


def script_hash(script: str) -> str:
    """The source expression of an inline script (Content Security Policy level 3, section 2.3.1)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def environment() -> Environment:
    """Templates that escape whatever they put out, and write control characters out."""
    environment = Environment(
        loader=PackageLoader("aftershock.report", "assets"),
        autoescape=True,
        finalize=_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "ensure_ascii": True}
    return environment


def _visible(value: object) -> object:
    """What a template puts out: all text but the page's own markup has its control characters written out."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
