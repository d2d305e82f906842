"""How trials of the comparison are kept as they come, and when a run ends."""

import time
from collections.abc import Iterable
from typing import Any

from aftershock.study import Trial, TrialRecord
from benchmarks.protect_parts import Drawn, Part
from benchmarks.protect_schemes import Json
from benchmarks.recorded import Lines


class OutOfTimeError(Exception):
    """Ends a run between two trials."""


class Clock:
    """How long a run may still take."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def check(self) -> None:
        """Raise OutOfTimeError where it is over."""
        if time.monotonic() > self._end:
            raise OutOfTimeError


def line(part: Part, scheme: str, record: TrialRecord) -> dict[str, Any]:
    """What is kept of a trial under a scheme."""
    return {
        "part": part.name,
        "scheme": scheme,
        "trial": record.trial,
        "fault": record.faults[0] if record.faults else "",
        "component": record.component,
        "layer": record.layer,
        "bits": record.bits,
        "tensor": record.strikes[0].tensor if record.strikes else None,
        "sdc": record.sdc_share,
        "eligible": len(record.eligible),
        "outcomes": [item.outcome for item in record.items],
        "ran": True,
    }


def keep(part: Part, scheme: str, records: Iterable[TrialRecord], lines: Lines, clock: Clock) -> None:
    """Keep the records of a scheme as they come."""
    for record in records:
        lines.put(line(part, scheme, record))
        clock.check()


def missing(drawn: Drawn, chosen: Iterable[Json], scheme: str, lines: Lines) -> list[Trial]:
    """The trials of a scheme that are not recorded yet."""
    keys = [{"part": drawn.part.name, "scheme": scheme, "trial": one["trial"]} for one in chosen]
    return [drawn.trial(key["trial"]) for key in keys if key not in lines]
