"""The page of a campaign: its studies side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aftershock.report.markdown import escaped, table, takeaway_blocks
from aftershock.report.rendering import rendered_alone
from aftershock.report.takeaways import TakeawayContent, takeaway_content
from aftershock.report.wording import rate
from aftershock.report.write import replaced
from aftershock.stats import wilson
from aftershock.study import CampaignSummary, MemberSummary, Rate, SdcRate

LEAST_FAULTS = 100
"""Faults of a study whose interval the axis makes room for."""


@dataclass(frozen=True)
class MemberRow:
    """One study: its circumstances and headline rates; `low`, `at`, `high` place its SDC rate on an axis that all
    share, in percent of it."""

    name: str
    model: str
    arithmetic: str
    golden: str
    faults: str
    silent: str
    detected: str
    audit: str
    low: float
    at: float
    high: float


@dataclass(frozen=True)
class SweepTable:
    """The SDC rates of studies that sweep over the same combinations: one row a study, one column a combination."""

    combinations: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Joint:
    """Everything a campaign's page says; `failed` are members that did not come to their end, each with the reason."""

    title: str
    members: tuple[MemberRow, ...]
    sweeps: tuple[SweepTable, ...]
    takeaways: TakeawayContent | None
    failed: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]


def joint(found: CampaignSummary) -> Joint:
    """What there is to say of a campaign."""
    told = [study.summary.sdc_rate.high for study in found.studies if study.summary.sdc_rate.n_faults >= LEAST_FAULTS]
    widest = max(told, default=1.0) or 1.0
    return Joint(
        title=f"{len(found.studies):,} studies, {sum(study.summary.trials for study in found.studies):,} faults",
        members=tuple(_row(study, widest) for study in found.studies),
        sweeps=_sweeps(found.studies),
        takeaways=takeaway_content(found.takeaways),
        failed=tuple((state.name, f"{state.outcome}: {state.why}") for state in found.failed),
        missing=found.missing,
    )


def _row(study: MemberSummary, widest: float) -> MemberRow:
    summary = study.summary
    golden, sdc = summary.golden, summary.sdc_rate
    right = "no reference"
    if golden.with_reference:
        share = wilson(golden.right, golden.with_reference)
        right = f"{rate(share.estimate, share.low, share.high)}, n = {golden.with_reference:,}"
    audit = summary.audit
    return MemberRow(
        name=study.name,
        model=study.environment.model,
        arithmetic=" ".join((study.environment.dtype, *study.packed)),
        golden=right,
        faults=f"{summary.trials:,}",
        silent=_written(sdc),
        detected=_written(summary.due_rate),
        audit="–" if audit is None else f"{audit.trials - audit.disagreements} of {audit.trials}",
        low=_place(sdc.low, widest),
        at=_place(sdc.estimate, widest),
        high=_place(sdc.high, widest),
    )


def _place(share: float, widest: float) -> float:
    return 100 * min(max(share, 0) / widest, 1)


def _written(found: Rate | SdcRate) -> str:
    n = found.n if isinstance(found, Rate) else found.n_faults
    return rate(found.estimate, found.low, found.high) if n else "–"


def _sweeps(studies: Sequence[MemberSummary]) -> tuple[SweepTable, ...]:
    groups: dict[tuple[str, ...], list[tuple[str, tuple[str, ...]]]] = {}
    for study in studies:
        swept = study.summary.sweep
        if swept:
            combinations = tuple(", ".join(one.values.values()) for one in swept)
            groups.setdefault(combinations, []).append((study.name, tuple(_written(one.sdc) for one in swept)))
    return tuple(SweepTable(combinations, tuple(rows)) for combinations, rows in groups.items())


def joint_page(said: Joint) -> str:
    """The campaign as one HTML document, without a script; it loads nothing, and links to its studies' own pages."""
    return rendered_alone("joint.html.j2", said)


def joint_markdown(said: Joint) -> str:
    """The campaign as Markdown."""
    blocks = [
        f"# {escaped(said.title)}",
        *(f"**{escaped(name)}** {escaped(why)}" for name, why in said.failed),
        *([f"**Still to run:** {escaped(', '.join(said.missing))}"] if said.missing else []),
        table(
            ("study", "model", "format", "golden accuracy", "faults", "SDC rate", "DUE rate", "audit"),
            [
                (row.name, row.model, row.arithmetic, row.golden, row.faults, row.silent, row.detected, row.audit)
                for row in said.members
            ],
        ),
    ]
    for sweep in said.sweeps:
        blocks += [
            "## SDC rate by combination",
            table(("study", *sweep.combinations), [(n, *r) for n, r in sweep.rows]),
        ]
    blocks += takeaway_blocks(said.takeaways)
    return "\n\n".join(blocks) + "\n"


def write_joint_report(found: CampaignSummary, folder: Path) -> Path:
    """Write `report.html` and `report.md` of a campaign into its folder; returns the HTML's path. Raises InputError
    when the folder can't be written."""
    said = joint(found)
    replaced(folder, {"report.md": joint_markdown(said), "report.html": joint_page(said)})
    return folder / "report.html"
