"""How commands speak: people get tables and progress on the terminal, `--json` prints one object to stdout."""

import sys
import time
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from aftershock.stats import Estimate
    from aftershock.study import Progress

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout and nothing else.")]

console = Console(highlight=False)
status = Console(stderr=True, highlight=False)

SECONDS_BETWEEN_LINES = 5.0

PHASES = MappingProxyType(
    {
        "golden": "golden and A/A run",
        "noise": "noise floor",
        "trials": "trials",
        "audit": "audit",
        "generate": "plain generate",
    }
)


def print_json(record: BaseModel) -> None:
    """One JSON object on one line of stdout; NaN and infinities as strings."""
    sys.stdout.write(record.model_dump_json() + "\n")


def say(message: str) -> None:
    """Tell a person what is going on (on stderr, so that stdout stays the result)."""
    status.print(message, style="dim", markup=False, soft_wrap=True)


def counted(number: int, what: str) -> str:
    """`1 file`, `2,048 files`."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def percent(estimate: "Estimate") -> str:
    """`3.1 % (1.2 to 6.0, n = 80)`."""
    return f"{100 * estimate.estimate:.2f} % ({100 * estimate.low:.2f} to {100 * estimate.high:.2f}, n = {estimate.n})"


class StudyProgress:
    """A live display on a terminal, a line every few seconds elsewhere. Call it with what a study reports."""

    def __init__(self) -> None:
        self._bar = Bar(
            TextColumn("{task.description:20}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=status,
            disable=not status.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._shares: list[float | None] = []
        self._begin = self._said = time.monotonic()
        self._first = 0

    def __enter__(self) -> "StudyProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, progress: "Progress") -> None:
        """Show one step."""
        if progress.phase not in self._tasks:
            for task in self._tasks.values():
                self._bar.update(task, completed=self._bar.tasks[task].total)
            self._tasks[progress.phase] = self._bar.add_task(PHASES[progress.phase], total=progress.total, note="")
            self._begin, self._first, self._said = time.monotonic(), progress.done, 0.0
        if progress.stored and progress.record is not None:
            self._begin, self._first = time.monotonic(), progress.done
            self._shares.append(progress.record.sdc_share)
            return
        note = self._note(progress)
        self._bar.update(self._tasks[progress.phase], completed=progress.done, total=progress.total, note=note)
        last = progress.done == progress.total
        if not status.is_terminal and (last or time.monotonic() - self._said > SECONDS_BETWEEN_LINES):
            self._said = time.monotonic()
            status.print(f"{PHASES[progress.phase]}: {progress.done}/{progress.total} {note}")

    def _note(self, progress: "Progress") -> str:
        from aftershock.stats import cluster_interval

        if progress.record is None:
            return ""
        self._shares.append(progress.record.sdc_share)
        known = [share for share in self._shares if share is not None]
        # Of a stratified study a plain mean would be of no population; its rate is in the summary.
        plain = known and progress.record.stratum is None
        sdc = [f"SDC {percent(cluster_interval(known))}"] if plain else []
        finished = progress.done - self._first
        if finished == 0:
            return "".join(sdc)
        rate = finished / max(time.monotonic() - self._begin, 1e-9)
        return ", ".join([f"{rate:.2f}/s", f"{(progress.total - progress.done) / rate:.0f} s left", *sdc])
