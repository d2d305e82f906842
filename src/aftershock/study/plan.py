"""What a study will do, worked out before it does it: every trial is a function of the plan and its number."""

import hashlib
import json
import platform
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from itertools import accumulate
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import tokenizers
import torch
import transformers

from aftershock.errors import ContractError, InputError
from aftershock.faults import (
    Cell,
    Fault,
    Flip,
    Labels,
    Population,
    Selection,
    Stratum,
    cell_faults,
    check,
    check_per_pass,
    distinct,
    element_faults,
    parse_faults,
    sample_faults,
    select,
    stratify,
    swept,
)
from aftershock.models import COMPONENTS, LoadedModel, end_tokens, load, model_hash
from aftershock.numerics import generator
from aftershock.replay import Batch, ExpertUse, make_batches
from aftershock.stats import neyman_allocation
from aftershock.study.experts import drawn_from, measured_use
from aftershock.study.records import Environment
from aftershock.study.settings import StudySettings
from aftershock.tasks import Task

PILOT = 100
"""Fewest trials of a first round whose size is not given."""


@dataclass(frozen=True)
class Round:
    """A round of a stratified plan: its first trial, and how many it takes from each stratum, in the strata's order."""

    begin: int
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """Where a trial of a stratified plan stands."""

    round: int
    stratum: Stratum


@dataclass(frozen=True)
class Trial:
    """One trial to run, all of it: whoever has the model and the batches can, without knowing how it was drawn.

    `batches` are the numbers of the batches that it sees, in ascending order; `traced` tells whether its error is
    followed through the layers; `place` is its own in a stratified plan.
    """

    number: int
    batches: tuple[int, ...]
    faults: tuple[Fault, ...]
    traced: bool
    place: Place | None = None


@dataclass(frozen=True)
class Plan:
    """Settings made concrete on a model: batches of items, the population of faults, the digest of it all.

    `use` tells how often each expert is chosen, where faults may strike the weights of experts.
    A stratified plan has `strata`, and knows the trials of its `rounds`: the first one when it is made, each later one
    once the records of those before are there (`next_block`).
    """

    settings: StudySettings
    model: LoadedModel
    task: Task
    batches: tuple[Batch, ...]
    population: Population
    environment: Environment
    strata: tuple[Stratum, ...] = ()
    rounds: tuple[Round, ...] = ()
    use: ExpertUse = field(default_factory=dict)

    @property
    def trials(self) -> int:
        """Number of trials, the largest where a rule may end the study earlier; of a search, what trying every bit of
        every value would take."""
        values = self.settings.search.values
        return values * len(self.searched_bits) if values else self.settings.trials

    @cached_property
    def searched_bits(self) -> tuple[int, ...]:
        """Bits that a search may try in each value; trial `value * len(searched_bits) + n` flips the n-th of them."""
        return self.settings.faults.bit_positions(self.model.format)

    def _draw(self, trial: int) -> int:
        """The number that a trial's items and faults are drawn by: all trials of a searched value share one."""
        return trial // len(self.searched_bits) if self.settings.search.values else trial

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that decides results; names of files and places are not in it."""
        content = self.settings.model_dump(mode="json")
        content["model"]["spec"] = self.environment.model_hash
        content["task"] |= {"spec": self.task.digest, "shots_from": None}
        configuration: Any = self.model.module.config
        content["configuration"] = {
            key: value for key, value in configuration.to_dict().items() if key != "_name_or_path"
        }
        content["end_tokens"] = sorted(end_tokens(self.model))
        content["rows"] = hashlib.sha256(repr([batch.rows for batch in self.batches]).encode()).hexdigest()
        if self.use:
            content["expert_use"] = sorted(self.use.items())
        content["environment"] = self.environment.model_dump(mode="json", exclude={"model"})
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    def use_of(self, label: Labels) -> float | None:
        """How often the expert that a fault strikes is chosen; None where it strikes none, or several, or where the
        model does not show it."""
        if label.expert is None or label.layer not in self.use:
            return None
        return self.use[label.layer][label.expert]

    def place_of(self, trial: int) -> Place | None:
        """Round and stratum of trial `trial`, which lies in one of the rounds known; None in a plan without strata."""
        if not self.strata:
            return None
        number = bisect_right([known.begin for known in self.rounds], trial) - 1
        known = self.rounds[number]
        return Place(number, self.strata[bisect_right(list(accumulate(known.counts)), trial - known.begin)])

    def trial(self, number: int) -> Trial:
        """Trial `number`, worked out."""
        batches = tuple(batch.number for batch in self.batches_of(number))
        return Trial(number, batches, self.faults_of(number), self.traced(number), self.place_of(number))

    def batches_of(self, trial: int) -> tuple[Batch, ...]:
        """The batches whose items trial `trial` sees; in a stratified plan given the stratum of its fault."""
        cell = self._cell_of(trial)
        random = generator(self.settings.run.seed, self._draw(trial), "items")
        while True:
            drawn = distinct(random, len(self.batches), self._batches_per_trial)
            batches = tuple(self.batches[number] for number in sorted(drawn.tolist()))
            if cell is None or cell.allows(_reach(batches) >= self._first_step, random):
                return batches

    def faults_of(self, trial: int) -> tuple[Fault, ...]:
        """The fault set of trial `trial`; empty where a rate drew none."""
        if self.settings.fault_list:
            return parse_faults(self.settings.fault_list[trial])
        cell, seed = self._cell_of(trial), self.settings.run.seed
        selection = self.settings.faults if cell is None else cell.selection
        reach = _reach(self.batches_of(trial))
        if set(selection.stages) == {"decode"} and reach < self._first_step:
            # Nothing else may be struck: the step is drawn as for the longest answers, and these items stay unreached.
            reach = _reach(self.batches)
        if cell is not None:
            return cell_faults(cell, self.model.format, reach, seed, trial)
        faults = sample_faults(selection, self.population, self.model.format, reach, seed, self._draw(trial))
        if not self.settings.search.values:
            return faults
        bit = self.searched_bits[trial % len(self.searched_bits)]
        return tuple(replace(fault, corruption=Flip((bit,))) for fault in faults)

    def _cell_of(self, trial: int) -> Cell | None:
        place = self.place_of(trial)
        return None if place is None else place.stratum.cell(self.settings.run.seed, trial)

    @property
    def _batches_per_trial(self) -> int:
        run = self.settings.run
        return min(len(self.batches), max(1, round(run.items_per_fault / run.batch_items)))

    @property
    def _first_step(self) -> int:
        """The decode step that answers must have to be struck in decode."""
        steps = self.settings.faults.decode_steps
        return steps[0] if steps else 1

    @property
    def decode_chance(self) -> float:
        """Probability that the items of a trial have the decode steps that faults are drawn from."""
        short = sum(batch.decode_passes < self._first_step for batch in self.batches)
        drawn = self._batches_per_trial
        return 1 - comb(short, drawn) / comb(len(self.batches), drawn)

    @cached_property
    def used_batches(self) -> tuple[Batch, ...]:
        """The batches that some trial sees, any of them where the trials are not all known yet."""
        if self.strata:
            return self.batches
        numbers = {batch.number for trial in range(self.trials) for batch in self.batches_of(trial)}
        return tuple(batch for batch in self.batches if batch.number in numbers)

    def traced(self, trial: int) -> bool:
        """Whether the trial's error is followed through the layers: some trials, evenly spread."""
        traced = min(self.settings.run.traced, self.trials)
        return traced > 0 and trial * traced // self.trials != (trial - 1) * traced // self.trials


def _reach(batches: Iterable[Batch]) -> int:
    return max(batch.decode_passes for batch in batches)


Say = Callable[[str], None]
"""Told, in a few words, what is being done now."""


def make_plan(settings: StudySettings, say: Say = lambda _: None) -> Plan:
    """Load the model and the task and check the settings against them; `say` is told what is being done.

    Raises InputError for whatever of the settings does not fit the model or the task.
    """
    threads = settings.run.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    settings = settings.model_copy(update={"run": settings.run.model_copy(update={"threads": threads})})
    task = settings.task.load()
    say(f"loading {settings.model.spec} as {settings.model.dtype} on {settings.model.device}")
    wanted = settings.model
    model = load(wanted.spec, wanted.dtype, wanted.device, say, settings.attention, wanted.storage, wanted.arithmetic)
    settings = settings.model_copy(update={"model": wanted.model_copy(update={"attention": model.attention})})
    if not settings.fault_list and "stored" not in settings.faults.sites:
        settings.faults.bit_positions(model.format)
    for line in settings.fault_list:
        for fault in parse_faults(line):
            check(fault, model.components, model.format)
        element_faults(model, parse_faults(line))
    population = Population() if settings.fault_list else select(settings.faults, model.components)
    say("hashing the model and reading the task")
    batches = make_batches(task.items, model, settings.run.batch_items, settings.run.seed)
    environment = _environment(settings, model, threads)
    use = measured_use(settings, model, population, batches, say)
    population = drawn_from(settings.faults, population, use)
    plan = Plan(settings, model, task, batches, population, environment, use=use)
    if not settings.sweep:
        _check_fits(plan, settings.faults, population)
    if settings.run.in_rounds:
        plan = _in_rounds(plan)
    if settings.sweep:
        plan = _swept(plan)
    longest = _reach(plan.batches)
    for line in settings.fault_list:
        for fault in parse_faults(line):
            if fault.trigger.first > 1 + longest:
                raise InputError(
                    f"fault '{fault}' can never strike: answers of this task have at most {longest} decode "
                    "passes; raise max_new_tokens or choose an earlier step"
                )
    plan.faults_of(0)
    return plan


def _in_rounds(plan: Plan) -> Plan:
    """The plan with its strata, the size of its pilot and the components that it may have to rank."""
    settings, run = plan.settings, plan.settings.run
    if run.plan == "neyman":
        strata = stratify(settings.faults, plan.population, plan.model.format, run.strata, plan.decode_chance)
        plan = replace(plan, strata=strata)
    fewest = 2 * len(plan.strata)
    pilot = run.pilot or max(PILOT, fewest)
    if pilot < fewest:
        raise InputError(
            f"pilot = {pilot}, but {len(plan.strata)} strata need rounds of at least {fewest} trials: raise it, or "
            "name fewer keys in strata"
        )
    if run.trials < pilot:
        why = f" for {len(plan.strata)} strata" if plan.strata else ""
        raise InputError(
            f"trials = {run.trials}, but the first round alone takes {pilot}{why}: raise trials, or "
            + ("name fewer keys in strata" if plan.strata else "lower pilot")
        )
    names = {site.component for site in plan.population.sites}
    faults = settings.faults
    if run.rule is not None and run.rule.ranks:
        faults = faults.model_copy(update={"components": tuple(name for name in COMPONENTS if name in names)})
    update = {"run": run.model_copy(update={"pilot": pilot}), "faults": faults}
    plan = replace(plan, settings=settings.model_copy(update=update))
    if not plan.strata:
        return plan
    # Nothing is known yet: in proportion to the strata.
    counts = neyman_allocation(
        [stratum.chance for stratum in plan.strata], np.ones(len(plan.strata)), plan.settings.round_ends[0]
    )
    return replace(plan, rounds=(Round(0, tuple(counts.tolist())),))


def _swept(plan: Plan) -> Plan:
    """The plan with a stratum for each combination of a sweep, and one round that takes as many trials from each."""
    strata = swept(plan.settings.faults, plan.settings.sweep, plan.model.components)
    for stratum in strata:
        selection = stratum.cells[0].selection
        if "stored" not in selection.sites:
            selection.bit_positions(plan.model.format)
        _check_fits(plan, selection, stratum.cells[0].population)
    strata = tuple(
        replace(stratum, cells=tuple(replace(cell, population=_drawn(plan, cell)) for cell in stratum.cells))
        for stratum in strata
    )
    least, more = divmod(plan.settings.trials, len(strata))
    counts = tuple(least + (number < more) for number in range(len(strata)))
    return replace(plan, strata=strata, rounds=(Round(0, counts),))


def _check_fits(plan: Plan, selection: Selection, population: Population) -> None:
    shortest = min(len(context) for batch in plan.batches for context, _ in batch.sequences)
    check_per_pass(selection, population, plan.model.format, shortest)


def _drawn(plan: Plan, cell: Cell) -> Population:
    return drawn_from(cell.selection, cell.population, plan.use)


def check_unchanged(plan: Plan) -> None:
    """Raise ContractError unless every word of the model is what it was when loaded."""
    if model_hash(plan.model.module) != plan.environment.model_hash:
        raise ContractError("the model in memory is no longer the one that was loaded: an undo failed")


def _environment(settings: StudySettings, model: LoadedModel, threads: int) -> Environment:
    on_gpu = model.device.type == "cuda"
    return Environment(
        # A place on this machine is nobody's business but its own: of a path, the last part.
        model=Path(settings.model.spec).name if Path(settings.model.spec).exists() else settings.model.spec,
        architecture=model.components.architecture,
        model_hash=model_hash(model.module),
        parameters=sum(parameter.numel() for parameter in model.module.parameters()),
        layers=model.components.layers,
        dtype=model.format.name,
        device=torch.cuda.get_device_name(model.device)
        if on_gpu
        else f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        threads=threads,
        versions={
            "aftershock": version("aftershock"),
            "numpy": np.__version__,
            "safetensors": safetensors.__version__,
            "tokenizers": tokenizers.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    )
