"""The HTML page: one file that holds its data, its charts and the program that draws them."""

from aftershock.report.charts import OUTCOME_COLOURS
from aftershock.report.content import Content, content
from aftershock.report.panels import panels
from aftershock.report.rendering import rendered
from aftershock.report.sweep_charts import sweep_panels
from aftershock.report.tables import ALL_SITES
from aftershock.study import StoredStudy, Summary


def page(stored: StoredStudy, summary: Summary) -> str:
    """The report of a study as one HTML document that loads nothing (`rendered`)."""
    said = content(stored, summary)
    floor = summary.noise_floor
    drawn = tuple(
        panels(
            said.trials, stored.trials, stored.environment, (floor.estimate, floor.low, floor.high) if floor.n else None
        )
    )
    of_sweep = tuple(sweep_panels(summary))
    return rendered(
        "page.html.j2",
        said,
        {panel.name: panel.spec for panel in (*of_sweep, *drawn) if panel.spec is not None},
        panels=drawn,
        sweep_panels=of_sweep,
        colours=OUTCOME_COLOURS,
        sites=_sites(said),
        all_sites=ALL_SITES,
        scale=max(summary.sdc_rate.high, summary.any_sdc.high, summary.due_rate.high),
    )


def _sites(said: Content) -> tuple[str, ...]:
    return (ALL_SITES, *sorted(set(said.trials["site"])))
