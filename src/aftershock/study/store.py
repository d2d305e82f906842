"""Where records live: one SQLite file, each trial a transaction, so that a kill loses only trials in flight."""

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from aftershock.errors import InputError
from aftershock.study.records import (
    RECORD_VERSION,
    Environment,
    GeneratedTrial,
    GoldenRecord,
    ItemOutcome,
    NoiseRecord,
    TrialRecord,
)
from aftershock.study.settings import StudySettings
from aftershock.study.verdict import Verdict, verdict

FILE = "study.sqlite"

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE golden (number INTEGER PRIMARY KEY, record TEXT NOT NULL) STRICT;
CREATE TABLE noise (number INTEGER PRIMARY KEY, record TEXT NOT NULL) STRICT;
CREATE TABLE trials (trial INTEGER PRIMARY KEY, record TEXT NOT NULL, seconds REAL NOT NULL) STRICT;
CREATE TABLE audits (trial INTEGER PRIMARY KEY, agrees INTEGER NOT NULL) STRICT;
CREATE TABLE generated (trial INTEGER PRIMARY KEY, record TEXT NOT NULL) STRICT;
"""


@dataclass(frozen=True)
class StoredStudy:
    """A study as its store holds it, complete or not.

    `planned` is the number of trials of the plan, the largest where a rule may end it earlier; `aa_disagreements` the
    number of items whose fault-free rerun was not bit-identical (None before that was measured); `audits` tells of each
    trial that the reference executor repeated whether its record was the same; `generated` are the trials that
    plain `generate` decoded too; `seconds` is the time that the trials took in all.
    """

    folder: Path
    settings: StudySettings
    plan_digest: str
    environment: Environment
    golden: tuple[GoldenRecord, ...]
    noise: tuple[NoiseRecord, ...]
    trials: tuple[TrialRecord, ...]
    planned: int
    aa_disagreements: int | None
    audits: dict[int, bool]
    generated: tuple[GeneratedTrial, ...]
    seconds: float

    @property
    def complete(self) -> bool:
        """Whether every planned trial is there, or a rule ended the study."""
        return len(self.trials) == self.planned or (self.verdict is not None and self.verdict.decided)

    @cached_property
    def verdict(self) -> Verdict | None:
        """What the study's rule says of it; None without one."""
        return verdict(self.settings, self.trials)

    @cached_property
    def counted(self) -> tuple[TrialRecord, ...]:
        """The trials that rates are made of: all, but of a stratified study those of complete rounds alone."""
        if self.settings.run.plan == "uniform":
            return self.trials
        stored = {record.trial for record in self.trials}
        complete = [end for end in self.settings.round_ends if all(trial in stored for trial in range(end))]
        return tuple(record for record in self.trials if record.trial < max(complete, default=0))

    @cached_property
    def noise_sweeps(self) -> tuple[dict[str, ItemOutcome], ...]:
        """The outcome of each item in every whole sweep of the noise floor."""
        sweeps: dict[int, dict[str, ItemOutcome]] = {}
        for record in self.noise:
            sweeps.setdefault(record.sweep, {}).update((item.item, item.outcome) for item in record.items)
        return tuple(outcomes for outcomes in sweeps.values() if len(outcomes) == len(self.golden))

    @property
    def records_digest(self) -> str:
        """SHA-256 over all records: equal digests mean equal results, whatever the time, place or order."""
        digest = hashlib.sha256()
        results = (record.model_dump_json() for record in (*self.golden, *self.noise))
        for result in (*results, *(trial.result for trial in self.trials)):
            digest.update(result.encode() + b"\n")
        return digest.hexdigest()


class Store:
    """An open store. Use `Store.create` or `Store.open`, then as a context manager."""

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self.folder = folder
        self._connection = connection

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    @classmethod
    def create(
        cls, folder: Path, settings: StudySettings, digest: str, environment: Environment, planned: int
    ) -> "Store":
        """A new store in `folder`. Raises InputError when it holds a study already or can't be written."""
        path = folder / FILE
        if path.exists():
            raise InputError(f"{folder} holds a study already: add --resume to go on with it, or choose another --out")
        meta = {
            "version": RECORD_VERSION,
            "settings": settings.model_dump(mode="json"),
            "plan_digest": digest,
            "environment": environment.model_dump(mode="json"),
            "planned": planned,
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"folder {folder} can't be made ({error.strerror}): choose another --out") from None
        with _clear_errors(path):
            connection = sqlite3.connect(path)
            connection.execute("PRAGMA journal_mode = WAL")
            with connection:
                # One transaction: a kill leaves either no study or one that can be resumed.
                connection.execute("BEGIN")
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    connection.execute(statement)
                connection.executemany(
                    "INSERT INTO meta VALUES (?, ?)",
                    [(key, json.dumps(value)) for key, value in meta.items()],
                )
        return cls(folder, connection)

    @classmethod
    def open(cls, folder: Path) -> "Store":
        """The store in `folder`. Raises InputError when there is none, or one of a version not known here."""
        path = folder / FILE
        if not path.is_file():
            raise InputError(f"{folder} holds no study ({FILE} is not there): give the --out folder of one")
        with _clear_errors(path):
            connection = sqlite3.connect(path)
            try:
                (value,) = connection.execute("SELECT value FROM meta WHERE key = 'version'").fetchone()
                version = json.loads(value)
            except (sqlite3.DatabaseError, TypeError, json.JSONDecodeError):
                connection.close()
                raise InputError(
                    f"{path} is not a study store, or was never filled: remove it and start again"
                ) from None
        if version != RECORD_VERSION:
            connection.close()
            raise InputError(
                f"{path} has record version {version}, this aftershock reads version {RECORD_VERSION}: "
                "use the release that wrote it, or a newer one"
            )
        return cls(folder, connection)

    def read(self) -> StoredStudy:
        """Everything the store holds."""
        with _clear_errors(self.folder / FILE):
            meta = {key: json.loads(value) for key, value in self._connection.execute("SELECT * FROM meta")}
            golden = self._connection.execute("SELECT record FROM golden ORDER BY number").fetchall()
            noise = self._connection.execute("SELECT record FROM noise ORDER BY number").fetchall()
            trials = self._connection.execute("SELECT record, seconds FROM trials ORDER BY trial").fetchall()
            generated = self._connection.execute("SELECT record FROM generated ORDER BY trial").fetchall()
            audits = self._connection.execute("SELECT trial, agrees FROM audits ORDER BY trial").fetchall()
            return StoredStudy(
                self.folder,
                StudySettings.model_validate(meta["settings"]),
                meta["plan_digest"],
                Environment.model_validate(meta["environment"]),
                tuple(GoldenRecord.model_validate_json(record) for (record,) in golden),
                tuple(NoiseRecord.model_validate_json(record) for (record,) in noise),
                tuple(TrialRecord.model_validate_json(record) for record, _ in trials),
                meta["planned"],
                meta.get("aa_disagreements"),
                {trial: bool(agrees) for trial, agrees in audits},
                tuple(GeneratedTrial.model_validate_json(record) for (record,) in generated),
                sum(seconds for _, seconds in trials),
            )

    def done(self) -> frozenset[int]:
        """Numbers of the trials stored."""
        with _clear_errors(self.folder / FILE):
            return frozenset(trial for (trial,) in self._connection.execute("SELECT trial FROM trials"))

    def noise_done(self) -> frozenset[int]:
        """Numbers of the perturbations stored."""
        with _clear_errors(self.folder / FILE):
            return frozenset(number for (number,) in self._connection.execute("SELECT number FROM noise"))

    def put_golden(self, records: tuple[GoldenRecord, ...], aa_disagreements: int) -> None:
        """Keep the golden answers and the result of the A/A run."""
        with _clear_errors(self.folder / FILE), self._connection:
            self._connection.executemany(
                "INSERT INTO golden VALUES (?, ?)",
                [(number, record.model_dump_json()) for number, record in enumerate(records)],
            )
            self._connection.execute("INSERT INTO meta VALUES ('aa_disagreements', ?)", (json.dumps(aa_disagreements),))

    def put_noise(self, number: int, record: NoiseRecord) -> None:
        """Keep one perturbation of the noise floor."""
        with _clear_errors(self.folder / FILE), self._connection:
            self._connection.execute("INSERT INTO noise VALUES (?, ?)", (number, record.model_dump_json()))

    def put_trial(self, record: TrialRecord, seconds: float) -> None:
        """Keep one trial. A trial is never stored twice."""
        with _clear_errors(self.folder / FILE), self._connection:
            self._connection.execute(
                "INSERT INTO trials VALUES (?, ?, ?)", (record.trial, record.model_dump_json(), seconds)
            )

    def put_audit(self, trial: int, agrees: bool) -> None:
        """Keep whether the reference executor gave the same record of a trial."""
        with _clear_errors(self.folder / FILE), self._connection:
            self._connection.execute("INSERT INTO audits VALUES (?, ?)", (trial, agrees))

    def put_generated(self, record: GeneratedTrial) -> None:
        """Keep what plain `generate` answered under the faults of a trial."""
        with _clear_errors(self.folder / FILE), self._connection:
            self._connection.execute("INSERT INTO generated VALUES (?, ?)", (record.trial, record.model_dump_json()))


def load_study(folder: Path) -> StoredStudy:
    """The study in a folder. Raises InputError when it can't be read."""
    with Store.open(folder) as store:
        return store.read()


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.OperationalError, OSError) as error:
        raise InputError(
            f"{path} can't be read or written ({error}): check the folder, its rights and the space left on the "
            "disk; what was stored before is safe, go on with --resume"
        ) from None
    except sqlite3.IntegrityError:
        raise InputError(f"{path}: another process is filling this study: let it finish, then use --resume") from None
    except (sqlite3.DatabaseError, ValidationError, json.JSONDecodeError, KeyError) as error:
        problem = str(error).partition("\n")[0]
        raise InputError(f"{path} is damaged ({problem}): restore it or start a new study in another --out") from None
