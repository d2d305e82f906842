"""The study file: what to run, on what, how often. Unknown keys are errors."""

import json
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from aftershock.errors import InputError
from aftershock.faults import MAKES_SCORES, Selection, StratumKey, combinations, parse_faults, site_kind
from aftershock.models import Arithmetic, Attention
from aftershock.numerics import STORAGE
from aftershock.study.rules import Rule, parse_rule
from aftershock.tasks import Answers, Asking, Task, load_task

TRIALS, TRIALS_UNTIL = 400, 20_000
"""Trials of a study whose file says nothing, without and with a rule that ends it earlier."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelSettings(_Table):
    """`[model]`: a model spec (`demo:NAME`, a folder, a .gguf file, a hub id), dtype and device; `attention` not
    given: `eager` where scores or probabilities are to be struck, else transformers' own choice; `storage`, a packed
    format that weights are rounded to (`aftershock.numerics.STORAGE`); `arithmetic`, `w8a8` or `w8a8-requantised`:
    projections and attention's products in integers.
    """

    spec: str = "demo:smollm2-135m"
    dtype: str = "float32"
    device: str = "cpu"
    attention: Attention | None = None
    storage: str | None = None
    arithmetic: Arithmetic | None = None

    @model_validator(mode="after")
    def _known(self) -> "ModelSettings":
        if self.storage is not None and self.storage not in STORAGE:
            raise ValueError(f"unknown storage {self.storage!r}: choose from {', '.join(STORAGE)}")
        return self


class TaskSettings(_Table):
    """`[task]`: `probe`, the path of a task file, or `lm_eval:` and a task of lm-evaluation-harness; the first `limit`
    items of a file, or an even share of every group of the probe set; tokens to generate; how the questions are put
    (`aftershock.tasks.Asking`)."""

    spec: str = "probe"
    limit: int | None = Field(None, ge=1)
    max_new_tokens: int | None = Field(None, ge=1)
    answers: Answers = "likelihood"
    shots: int = Field(0, ge=0)
    shots_from: str | None = None
    unsafe_code: bool = False

    def load(self) -> Task:
        """The task. Raises InputError."""
        asking = Asking(self.answers, self.shots, self.shots_from, self.unsafe_code)
        return load_task(self.spec, self.limit, self.max_new_tokens, asking)


class RunSettings(_Table):
    """`[run]`: how many trials, from which seed, in which shapes.

    trials           faults (fault sets) to try; with `until` the largest number
    until            a rule that ends the study earlier: `sdc ±0.5%` or `rank components ±1%`; see docs/study.md
    plan             `uniform`: every trial is drawn from the whole selection; `neyman`: from strata, more where more is
                     to be learned
    strata           what tells strata apart: site, component, bit_class, bit, stage
    pilot            trials of the first round, after which a rule is first looked at and strata first get more or less.
                     Not given: 100, or twice the number of strata if that is more
    seed             everything random follows from it
    items_per_fault  items that each fault sees, taken as whole batches
    batch_items      items that run together; the shapes they make decide rounding, so it is part of the plan
    noise            sweeps of perturbations that mean nothing, to measure the noise floor with
    traced           trials whose error is followed through the layers
    threads          CPU threads; they decide rounding too. Not given: torch's own number
    check_every      trials between two checks of the whole model's hash
    audit            share of the trials, at least 20, that the reference executor repeats; the same share, at most 20,
                     is decoded by plain `generate` too
    """

    trials: int = Field(TRIALS, ge=1)
    until: str = ""
    plan: Literal["uniform", "neyman"] = "uniform"
    strata: tuple[StratumKey, ...] = Field(("site", "component", "bit_class", "stage"), min_length=1)
    pilot: int | None = Field(None, ge=2)
    seed: int = Field(0, ge=0, lt=2**63)
    items_per_fault: int = Field(16, ge=1)
    batch_items: int = Field(8, ge=1)
    noise: int = Field(5, ge=2)
    traced: int = Field(24, ge=0)
    threads: int | None = Field(None, ge=1)
    check_every: int = Field(200, ge=1)
    audit: float = Field(0.02, ge=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _room_for_a_rule(cls, table: Any) -> Any:
        """A study that a rule is to end has trials enough, unless their number is given."""
        if isinstance(table, Mapping) and table.get("until") and "trials" not in table:
            return {**table, "trials": TRIALS_UNTIL}
        return table

    @model_validator(mode="after")
    def _consistent(self) -> "RunSettings":
        rule = self.rule
        if self.plan == "neyman" and rule is not None and rule.ranks and "component" not in self.strata:
            raise ValueError('until = "rank components" needs strata by component: add "component" to strata')
        return self

    @property
    def rule(self) -> Rule | None:
        """The rule that ends the study early; None where there is none."""
        return parse_rule(self.until) if self.until else None

    @property
    def in_rounds(self) -> bool:
        """Whether the trials are run round by round."""
        return self.plan == "neyman" or bool(self.until)


class SearchSettings(_Table):
    """`[search]`: find the bit from which on a flip does harm, in place of drawing bits.

    values      weights to search, in place of `run.trials`; 0: no search
    exhaustive  share of them of which every bit is tried, to tell how far the search can be trusted
    """

    values: int = Field(0, ge=0)
    exhaustive: float = Field(0.1, ge=0, le=1)


class StudySettings(_Table):
    """A whole study. `fault_list` holds faults in the grammar, one trial each, in place of drawing them; `sweep` keys
    of `faults` with the values that they take in turn, every combination as often."""

    model: ModelSettings = ModelSettings()
    task: TaskSettings = TaskSettings()
    faults: Selection = Selection()
    fault_list: tuple[str, ...] = ()
    search: SearchSettings = SearchSettings()
    sweep: dict[str, tuple[Any, ...]] = {}
    run: RunSettings = RunSettings()

    @model_validator(mode="after")
    def _sweepable(self) -> "StudySettings":
        if not self.sweep:
            return self
        for key, values in self.sweep.items():
            if key not in Selection.model_fields:
                raise ValueError(f"sweep.{key} is no key of [faults]: choose from {', '.join(Selection.model_fields)}")
            if not values:
                raise ValueError(f"sweep.{key} has no value: give a list of them")
        if self.fault_list or self.search.values or self.run.in_rounds:
            raise ValueError("a sweep deals its trials out evenly: leave until, plan, search and a fault list out")
        try:
            cells = len(combinations(self.faults, self.sweep))
        except ValidationError as error:
            raise ValueError(f"a combination of the sweep is no [faults] table: {_message(error)}") from None
        if self.run.trials < 2 * cells:
            needed = f"the sweep's {cells} combinations need two each"
            raise ValueError(f"trials = {self.run.trials}, but {needed}: raise it")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> "StudySettings":
        rule, faults = self.run.rule, self.faults
        if self.fault_list and self.run.in_rounds:
            raise ValueError(
                "your own fault list runs as it stands, so leave until and plan out: they need drawn faults"
            )
        several = not faults.strikes_one_value
        if rule is not None and rule.ranks and several:
            raise ValueError(
                'until = "rank components" needs one fault a trial: leave count, rate and pattern out of [faults]'
            )
        one_flip = (faults.corruption, faults.bits_per_word) == ("flip", 1) and not several
        if self.search.values and (self.fault_list or faults.sites != ("weight",) or not one_flip):
            raise ValueError(
                'a search for boundary bits flips one bit of one stored value: set sites = ["weight"] under [faults], '
                "leave corruption, bits_per_word, pattern, count and rate out, and give no fault list"
            )
        if self.search.values and self.run.in_rounds:
            raise ValueError("a search chooses its own trials: leave until and plan out, or search")
        return self

    @property
    def attention(self) -> Attention | None:
        """How attention is to be computed: as asked for, else so that every fault finds its site; None for the model's
        own choice."""
        listed = {site_kind(fault) for line in self.fault_list for fault in parse_faults(line)}
        drawn = {kind for _, faults in combinations(self.faults, self.sweep) for kind in faults.sites}
        kinds = listed if self.fault_list else drawn
        return self.model.attention or ("eager" if kinds & set(MAKES_SCORES) else None)

    @property
    def trials(self) -> int:
        """Number of trials, the largest where a rule may end the study earlier."""
        return len(self.fault_list) or self.run.trials

    @property
    def round_ends(self) -> tuple[int, ...]:
        """Numbers of trials at which rounds end: the pilot, then each half as large as all before it, the second no
        smaller than the pilot; what would be left as less than half a pilot goes to the round before. One round of
        all trials where nothing is looked at in between."""
        pilot, trials = self.run.pilot, self.trials
        if not self.run.in_rounds or pilot is None:
            return (trials,)
        ends, end = [], pilot
        while 2 * (trials - end) >= pilot:
            ends.append(end)
            end += max(pilot, end // 2)
        return (*ends, trials)


def read_settings(path: Path) -> dict[str, Any]:
    """The tables of a study file, not yet checked. Raises InputError."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise InputError(f"study file {path} can't be read ({error.strerror}): give a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"study file {path} is not valid TOML: {error}") from None


def check_settings(tables: Mapping[str, Any], source: str) -> StudySettings:
    """Settings from the tables of a study file. Raises InputError that names the key, with a suggestion."""
    try:
        return StudySettings.model_validate(tables)
    except ValidationError as error:
        raise InputError(f"{source}: {_first_problem(error)}") from None


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    place = [str(part) for part in problem["loc"]]
    if problem["type"] != "extra_forbidden":
        return f"{'.'.join(place) or 'the file'}: {_message(error)}"
    table: type[BaseModel] = StudySettings
    for part in place[:-1]:
        annotation = table.model_fields[part].annotation
        assert isinstance(annotation, type)
        table = annotation
    close = get_close_matches(place[-1], table.model_fields, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(table.model_fields)}"
    return f"unknown key {'.'.join(place)!r}: {hint}"


def _message(error: ValidationError) -> str:
    """What the first thing wrong is."""
    message = error.errors()[0]["msg"].removeprefix("Value error, ")
    return f"{message[0].lower()}{message[1:]}"


def to_toml(settings: StudySettings) -> str:
    """The settings as a study file that gives equal settings back; what is not set is left out."""
    tables = settings.model_dump(mode="json", exclude_none=True)
    lines = [f"fault_list = {_toml(tables.pop('fault_list'))}", ""] if settings.fault_list else []
    tables.pop("fault_list", None)
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items()), ""]
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # A TOML basic string takes JSON's escapes, and wants DEL escaped too.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return repr(value)
