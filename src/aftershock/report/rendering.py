"""From a template to a page: one HTML document that loads nothing."""

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from aftershock.report.wording import visible

_ASSETS = files("aftershock.report") / "assets"


def rendered(template: str, said: object, specs: Mapping[str, Any], **more: object) -> str:
    """A page with charts: `said` and `more` as the template names them, `specs` are Vega-Lite's, by the chart's name.

    It loads nothing: its content security policy lets only the two scripts run whose hashes it names, and forbids
    every request. Whatever is said is escaped. Vega's expressions are interpreted, never compiled.
    """
    vega: str = vl_convert.javascript_bundle()
    scripts = (vega, (_ASSETS / "page.js").read_text("utf-8"))
    return rendered_alone(
        template,
        said,
        specs=specs,
        scripts=tuple(Markup(script) for script in scripts),
        hashes=tuple(_script_hash(script) for script in scripts),
        **more,
    )


def rendered_alone(template: str, said: object, **more: object) -> str:
    """A page without charts and scripts."""
    style = Markup((_ASSETS / "page.css").read_text("utf-8"))
    return _environment().get_template(template).render(said=said, style=style, **more)


def _script_hash(script: str) -> str:
    """The source expression of an inline script (Content Security Policy level 3, section 2.3.1)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _environment() -> Environment:
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
