"""What a study will do, worked out before it does it: every trial is a function of the plan and its number."""

import hashlib
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import tokenizers
import torch
import transformers

from aftershock.errors import InputError
from aftershock.faults import (
    Fault,
    Flip,
    Population,
    check,
    distinct,
    parse_faults,
    sample_faults,
    select,
)
from aftershock.models import LoadedModel, end_tokens, load, model_hash
from aftershock.numerics import generator
from aftershock.replay import Batch, make_batches
from aftershock.study.records import Environment
from aftershock.study.settings import StudySettings
from aftershock.tasks import Task, load_task


@dataclass(frozen=True)
class Plan:
    """Settings made concrete on a model: batches of items, the population of faults, the digest of it all."""

    settings: StudySettings
    model: LoadedModel
    task: Task
    batches: tuple[Batch, ...]
    population: Population
    environment: Environment

    @property
    def trials(self) -> int:
        """Number of trials; of a search, what trying every bit of every value would take."""
        if self.settings.search.values:
            return self.settings.search.values * len(self.searched_bits)
        return len(self.settings.fault_list) or self.settings.run.trials

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
        content["task"]["spec"] = self.task.digest
        configuration: Any = self.model.module.config
        content["configuration"] = {
            key: value for key, value in configuration.to_dict().items() if key != "_name_or_path"
        }
        content["end_tokens"] = sorted(end_tokens(self.model))
        content["rows"] = hashlib.sha256(repr([batch.rows for batch in self.batches]).encode()).hexdigest()
        content["environment"] = self.environment.model_dump(mode="json", exclude={"model"})
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    def batches_of(self, trial: int) -> tuple[Batch, ...]:
        """The batches whose items trial `trial` sees."""
        run = self.settings.run
        count = min(len(self.batches), max(1, round(run.items_per_fault / run.batch_items)))
        drawn = distinct(generator(run.seed, self._draw(trial), "items"), len(self.batches), count)
        return tuple(self.batches[number] for number in sorted(drawn.tolist()))

    def faults_of(self, trial: int) -> tuple[Fault, ...]:
        """The fault set of trial `trial`; empty where a rate drew none."""
        if self.settings.fault_list:
            return parse_faults(self.settings.fault_list[trial])
        selection = self.settings.faults
        reach = max(batch.decode_passes for batch in self.batches_of(trial))
        wanted = selection.decode_steps[0] if selection.decode_steps else 1
        if set(selection.stages) == {"decode"} and reach < wanted:
            # Nothing else may be struck: the step is drawn as for the longest answers, and these items stay unreached.
            reach = max(batch.decode_passes for batch in self.batches)
        seed, number = self.settings.run.seed, self._draw(trial)
        faults = sample_faults(selection, self.population, self.model.format, reach, seed, number)
        if not self.settings.search.values:
            return faults
        bit = self.searched_bits[trial % len(self.searched_bits)]
        return tuple(replace(fault, corruption=Flip((bit,))) for fault in faults)

    @cached_property
    def used_batches(self) -> tuple[Batch, ...]:
        """The batches that some trial sees."""
        numbers = {batch.number for trial in range(self.trials) for batch in self.batches_of(trial)}
        return tuple(batch for batch in self.batches if batch.number in numbers)

    def traced(self, trial: int) -> bool:
        """Whether the trial's error is followed through the layers: some trials, evenly spread."""
        traced = min(self.settings.run.traced, self.trials)
        return traced > 0 and trial * traced // self.trials != (trial - 1) * traced // self.trials


Say = Callable[[str], None]
"""Told, in a few words, what is being done now."""


def make_plan(settings: StudySettings, say: Say = lambda _: None) -> Plan:
    """Load the model and the task and check the settings against them; `say` is told what is being done.

    Raises InputError for whatever of the settings does not fit the model or the task.
    """
    threads = settings.run.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    settings = settings.model_copy(update={"run": settings.run.model_copy(update={"threads": threads})})
    task = load_task(settings.task.spec, settings.task.limit, settings.task.max_new_tokens)
    say(f"loading {settings.model.spec} as {settings.model.dtype} on {settings.model.device}")
    model = load(settings.model.spec, settings.model.dtype, settings.model.device, progress=say)
    if not settings.fault_list:
        settings.faults.bit_positions(model.format)
    for line in settings.fault_list:
        for fault in parse_faults(line):
            check(fault, model.components, model.format)
    say("hashing the model and reading the task")
    plan = Plan(
        settings,
        model,
        task,
        make_batches(task.items, model, settings.run.batch_items, settings.run.seed),
        Population((), ()) if settings.fault_list else select(settings.faults, model.components),
        _environment(settings, model, threads),
    )
    longest = max(batch.decode_passes for batch in plan.batches)
    for line in settings.fault_list:
        for fault in parse_faults(line):
            if fault.trigger.first > 1 + longest:
                raise InputError(
                    f"fault '{fault}' can never strike: answers of this task have at most {longest} decode "
                    "passes; raise max_new_tokens or choose an earlier step"
                )
    plan.faults_of(0)
    return plan


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
