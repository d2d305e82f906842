"""The page of a diagnosis: verdict, ladder, findings, where and when the target deviates, how to reproduce it."""

from dataclasses import dataclass
from pathlib import Path

from aftershock.diagnose import Diagnosis, Finding
from aftershock.report.diagnosis_charts import curve_panel, picture_panel
from aftershock.report.markdown import escaped
from aftershock.report.markdown import table as markdown_table
from aftershock.report.rendering import rendered
from aftershock.report.table import Table
from aftershock.report.wording import number
from aftershock.report.write import replaced

SHOWN_NAMES = 40
"""Most unmatched values that are listed."""


@dataclass(frozen=True)
class FindingRow:
    """A finding as it is written: what is wrong, and the facts that show it, by name."""

    title: str
    evidence: str
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class DiagnosisContent:
    """Everything the page and the Markdown say."""

    title: str
    subject: str
    rungs: tuple[tuple[str, str, str], ...]
    findings: tuple[FindingRow, ...]
    suspects: Table
    command: str
    reproduce: str
    invisible: tuple[str, ...]
    alignment: str
    unmatched: tuple[str, ...]
    more_unmatched: int


def diagnosis_content(found: Diagnosis, command: str) -> DiagnosisContent:
    """What there is to say of a diagnosis that a command line made."""
    subject = found.subject
    return DiagnosisContent(
        title=found.verdict,
        subject=f"{subject.target} against {subject.reference}: {subject.tokens:,} tokens of {subject.requests} "
        f"prompts, the target in {subject.dtype}",
        rungs=tuple((rung.name, rung.state, rung.said) for rung in found.rungs),
        findings=tuple(_row(finding) for finding in found.findings),
        suspects=Table(
            title="Suspects",
            note="Components that deviate by more than rounding explains, on the inputs that they had in the target.",
            header=("component", "layers", "error ratio", "where"),
            rows=tuple((one.component, layer_list(one.layers), number(one.ratio), one.where) for one in found.suspects),
        ),
        command=command,
        reproduce=found.reproduce,
        invisible=found.invisible,
        alignment=found.alignment,
        unmatched=found.unmatched[:SHOWN_NAMES],
        more_unmatched=max(len(found.unmatched) - SHOWN_NAMES, 0),
    )


def layer_list(numbers: tuple[int, ...]) -> str:
    """`0 to 5, 7`; a dash outside of layers."""
    runs: list[tuple[int, int]] = []
    for one in sorted(numbers):
        if runs and one == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], one)
        else:
            runs.append((one, one))
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in runs) or "–"


def _row(finding: Finding) -> FindingRow:
    facts = [("layers", layer_list(finding.layers))] if finding.layers else []
    if finding.parameter is not None:
        right = "" if finding.reference is None else f", {_value(finding.reference)} right"
        facts.append((finding.parameter, f"{_value(finding.found)} in the target{right}"))
    if finding.before is not None:
        after = "" if finding.after is None else f", {number(finding.after)} once the cause is built in"
        facts.append(("error ratio", f"{number(finding.before)}{after}"))
    if finding.runner_up is not None:
        facts.append(("next best cause", f"{finding.runner_up}, which leaves {number(finding.runner_up_after)}"))
    if not finding.confirmed:
        facts.append(("confirmed", "no: nothing that was computed shows it"))
    return FindingRow(f"{finding.component}: {finding.cause}", finding.evidence, tuple(facts))


def _value(value: float | str | None) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value or "–")


def diagnosis_page(found: Diagnosis, command: str) -> str:
    """A diagnosis as one HTML document that loads nothing, as a study's page does."""
    panels = tuple(panel for panel in (curve_panel(found), picture_panel(found)) if panel.spec is not None)
    return rendered(
        "diagnosis.html.j2",
        diagnosis_content(found, command),
        {panel.name: panel.spec for panel in panels},
        divergent=found.divergent,
        panels=panels,
    )


def diagnosis_markdown(found: Diagnosis, command: str) -> str:
    """A diagnosis as Markdown."""
    said = diagnosis_content(found, command)
    blocks = [f"# {escaped(said.title)}", escaped(said.subject)]
    for row in said.findings:
        blocks += [f"## {escaped(row.title)}", escaped(row.evidence)]
        blocks += [markdown_table(("", ""), row.facts)] if row.facts else []
    blocks += ["## What was checked", markdown_table(("rung", "state", "what was found"), said.rungs)]
    if said.suspects.rows:
        blocks += ["## Suspects", escaped(said.suspects.note), markdown_table(said.suspects.header, said.suspects.rows)]
    blocks += ["## Reproduce", *([escaped(said.reproduce)] if said.reproduce else []), f"    {said.command}"]
    if said.invisible:
        blocks += ["## What this can't show", "\n".join(f"- {escaped(one)}" for one in said.invisible)]
    blocks += ["## How values were told apart", escaped(said.alignment)]
    return "\n\n".join(blocks) + "\n"


def write_diagnosis(found: Diagnosis, command: str, folder: Path) -> Path:
    """Write `report.html`, `report.md` and `diagnosis.json` into a folder; returns the HTML's path. Raises InputError
    when the folder can't be written."""
    texts = {
        "diagnosis.json": found.model_dump_json(indent=1) + "\n",
        "report.md": diagnosis_markdown(found, command),
        "report.html": diagnosis_page(found, command),
    }
    replaced(folder, texts)
    return folder / "report.html"
