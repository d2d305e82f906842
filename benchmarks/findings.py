"""The figures of docs/findings.md, from the records of a campaign of studies/llmfi*.toml.

    python -m benchmarks.findings DIR --json

An answer is lost when golden has it right and the run does not, for whatever reason (SDC and DUE). A figure is the mean
over faults of the share of eligible answers lost, with its 95 % interval over faults; studies of the same name but for
the model are taken together.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from aftershock.stats import cluster_interval
from aftershock.study import DUE, SDC, StoredStudy, TrialRecord, load_members, takeaways
from benchmarks.environment import environment

LOST = SDC | DUE
Label = Callable[[StoredStudy, TrialRecord], str | None]
Figure = dict[str, float | int]


def figures(studies: Iterable[StoredStudy], label: Label, outcomes: frozenset[str] = LOST) -> dict[str, Figure]:
    """The figure of every label, by label."""
    shares: dict[str, list[float]] = {}
    for study in studies:
        for trial in study.trials:
            name = label(study, trial)
            if name is not None and trial.eligible:
                lost = float(np.mean([item.outcome in outcomes for item in trial.eligible]))
                shares.setdefault(name, []).append(lost)
    found = {name: cluster_interval(np.array(own)) for name, own in sorted(shares.items())}
    return {
        name: {"estimate": one.estimate, "low": one.low, "high": one.high, "n": one.n} for name, one in found.items()
    }


def _quarter(study: StoredStudy, trial: TrialRecord) -> str | None:
    if trial.layer is None:
        return None
    return f"{trial.site}, quarter {1 + 4 * trial.layer // study.environment.layers} of the layers"


def _last(study: StoredStudy, trial: TrialRecord) -> str | None:
    if trial.layer is None:
        return None
    return f"{trial.site}, {'last four layers' if trial.layer >= study.environment.layers - 4 else 'before'}"


def main() -> None:
    """Print the figures as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the --out folder of the campaign")
    parser.add_argument("--json", action="store_true", help="the only form there is")
    folder: Path = parser.parse_args().folder
    members = [(name, study) for name, study in load_members(folder) if study.trials]

    def of(name: str) -> list[StoredStudy]:
        return [study for member, study in members if member == name or member.startswith(f"{name}-")]

    print(
        json.dumps(
            {
                "benchmark": "findings",
                **environment(),
                "n": sum(len(study.trials) for _, study in members),
                "studies": [
                    {
                        "name": name,
                        "trials": len(study.trials),
                        "planned": study.planned,
                        "golden_right": sum(record.right is True for record in study.golden),
                        "with_reference": sum(record.right is not None for record in study.golden),
                        "device": study.environment.device,
                        "versions": study.environment.versions,
                        "model_hash": study.environment.model_hash,
                        "records": study.records_digest,
                        "seconds": round(study.seconds, 1),
                    }
                    for name, study in members
                ],
                "figures": {
                    "component": figures(of("text"), lambda _, trial: f"{trial.site} {trial.component}"),
                    "stage": figures(of("text"), lambda _, trial: trial.stratum),
                    "depth": figures(of("text"), _quarter),
                    "last four layers": figures(of("text"), _last),
                    "choice by stage": figures(of("choice"), lambda _, trial: trial.stratum),
                    "letter by stage": figures(of("letter"), lambda _, trial: trial.stratum),
                    "cache": figures(of("cache"), lambda _, trial: trial.site),
                    "cache, silent only": figures(of("cache"), lambda _, trial: trial.site, SDC),
                    "cache by bit": figures(
                        of("cache"), lambda _, trial: None if trial.site == "weight" else f"{trial.site} {trial.bits}"
                    ),
                    "format": figures(of("format"), lambda study, _: study.environment.dtype),
                    "format by model": figures(
                        of("format"), lambda study, _: f"{study.environment.model} {study.environment.dtype}"
                    ),
                    "format by bit": figures(
                        of("format"), lambda study, trial: f"{study.environment.dtype} {trial.bits}"
                    ),
                    "packed": figures(of("packed"), lambda study, _: study.settings.model.storage),
                    "packed by field": figures(
                        of("packed"), lambda study, trial: f"{study.settings.model.storage} {trial.bit_class}"
                    ),
                    "packed by model": figures(
                        of("packed"), lambda study, _: f"{study.environment.model} {study.settings.model.storage}"
                    ),
                    "code": figures(of("code"), lambda _, trial: trial.site),
                    "experts": figures(of("experts"), lambda _, trial: trial.component),
                    "flips in a word": figures(of("double"), lambda _, trial: trial.stratum),
                },
                "takeaways": [one.model_dump(mode="json") for one in takeaways([study for _, study in members])],
            }
        )
    )


if __name__ == "__main__":
    main()
