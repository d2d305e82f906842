"""What the sweeps of a campaign came to, beside the figures published: studies/realm.toml and studies/fragile.toml.

    python -m benchmarks.sweeps DIR --json

All figures are means over faults with 95 % intervals over faults. `lost`: the share of golden's right answers that end
as SDC or DUE; `relative_loss`: how much of golden's accuracy is gone, wrong answers that became right taken off. Curves
have AWRCL, all severities weighing the same, and the severity at which half is lost.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from aftershock.faults import sweep_name
from aftershock.study import StoredStudy, SweptRate, load_members, summarise
from benchmarks.environment import environment
from benchmarks.published import PUBLISHED


def plain(record: BaseModel | None) -> Any:
    """A record as JSON has it: infinities as strings."""
    return None if record is None else json.loads(record.model_dump_json())


def row(found: SweptRate, published: dict[str, str]) -> dict[str, Any]:
    """One combination, with what is published of it."""
    name = sweep_name(found.values)
    return {
        "at": name,
        "trials": found.trials,
        "accuracy": plain(found.accuracy),
        "lost": plain(found.lost),
        "due": plain(found.due),
        "relative_loss": found.relative_loss,
        "published": published.get(name),
    }


def member(name: str, study: StoredStudy) -> dict[str, Any]:
    """One study of the campaign."""
    summary, published = summarise(study), dict(PUBLISHED.get(name, {}))
    return {
        "model": study.environment.model,
        "model_hash": study.environment.model_hash,
        "task": study.settings.task.spec,
        "trials": summary.trials,
        "records": summary.records_digest,
        "seconds": round(summary.seconds, 1),
        "golden": plain(summary.golden),
        "audit": plain(summary.audit),
        "sensitivity": plain(summary.sensitivity),
        "degradation": plain(summary.degradation),
        "curves": [{**plain(curve), "published": published.get(curve.name)} for curve in summary.curves],
        "rows": [row(found, published) for found in summary.sweep],
    }


def main() -> None:
    """Print them as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the --out folder of the campaign")
    parser.add_argument("--json", action="store_true", help="the only form there is")
    members = {name: study for name, study in load_members(parser.parse_args().folder) if study.trials}
    print(
        json.dumps(
            {
                "benchmark": "sweeps",
                **environment(),
                "n": sum(len(study.trials) for study in members.values()),
                "studies": {name: member(name, study) for name, study in members.items()},
            },
            allow_nan=False,
        )
    )


if __name__ == "__main__":
    main()
