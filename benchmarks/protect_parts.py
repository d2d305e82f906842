"""Which faults the schemes are compared on: a model, a site, questions, and trials drawn where harm is likely."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import torch

from aftershock.faults import Selection, select
from aftershock.models import LoadedModel
from aftershock.protect import observe_bounds
from aftershock.replay import Batch, make_batches
from aftershock.study import Plan, StudySettings, Trial, make_plan
from aftershock.tasks import Item
from benchmarks.false_alarms import LENGTH, text_of, windows

MODEL = "demo:smollm2-135m"
GEMMS = ("q", "k", "v", "o", "gate", "up", "down", "lm_head")
REDUCING = ("o", "down")
"""Components whose products reduce the dimension: LLMFI's choice."""

MARGIN = 1.0
"""Of the bounds of range guards, chosen before any other text was seen."""

BOUND_TOKENS = 8192
"""Tokens of text that set these bounds."""

ITEMS = 4
"""Questions that each fault sees."""

EXPONENT = {"float32": tuple(range(23, 31)), "bfloat16": tuple(range(7, 15))}
HIGH_SUMS = tuple(range(16, 31))
"""Bits of int32 sums: those below change a row of SmolLM2 by less than int8 rounding does."""

SHOTS = 3
RUN = 8
"""Trials drawn from the same bits, one after the other."""


@dataclass(frozen=True)
class Part:
    """A model in a dtype (or in integers), the site of its faults, and the kind of its questions."""

    name: str
    dtype: str
    site: str
    arithmetic: str | None = None
    kind: str = "cloze"

    @property
    def bits(self) -> tuple[tuple[int, ...], ...]:
        """The sets of bits that trials draw from in turn: the top bit of the exponent, where most harm is, and the
        whole exponent; of sums their upper half."""
        if self.site == "accumulator":
            return (HIGH_SUMS,)
        exponent = EXPONENT[self.dtype]
        return exponent[-1:], exponent

    @property
    def components(self) -> tuple[str, ...]:
        """Those whose products may be struck; a head over the vocabulary has no sums in integers."""
        return GEMMS[:-1] if self.site == "accumulator" else GEMMS


PARTS = (
    Part("float32 weight", "float32", "weight"),
    Part("float32 output", "float32", "activation"),
    Part("int32 accumulator", "float32", "accumulator", "w8a8"),
    Part("bfloat16 weight", "bfloat16", "weight"),
    Part("bfloat16 output", "bfloat16", "activation"),
    Part("generation, float32 weight", "float32", "weight", kind="generation"),
    Part("generation, float32 output", "float32", "activation", kind="generation"),
)


@dataclass(frozen=True)
class Drawn:
    """The trials of a part: those of some plans, `RUN` from each in turn."""

    part: Part
    plans: tuple[Plan, ...]

    @property
    def plan(self) -> Plan:
        """What all plans share: the model and the batches."""
        return self.plans[0]

    def trial(self, number: int) -> Trial:
        """Trial `number`."""
        plan = self.plans[number // RUN % len(self.plans)]
        return replace(plan.trial(number), traced=False)

    def trials(self, share: tuple[int, int], done: frozenset[int], size: int) -> Iterator[list[Trial]]:
        """Trials that are not done yet, `size` at a time, without an end: the i-th of every n for a share (i, n)."""
        numbers = (number for number in count(*share) if number not in done)
        while True:
            yield [self.trial(next(numbers)) for _ in range(size)]

    def of_seed(self, seed: int) -> "Drawn":
        """Other trials on the same batches."""
        return Drawn(self.part, tuple(replace(plan, settings=_with_seed(plan.settings, seed)) for plan in self.plans))

    def asked_again(self) -> "Drawn":
        """The same faults where every question has worked examples before it."""
        items = [_with_examples(item, self.plan.task.items) for batch in self.plan.batches for item in batch.items]
        batches = _batches(items, self.plan)
        return Drawn(self.part, tuple(replace(plan, batches=batches) for plan in self.plans))

    def noise(self) -> "Drawn":
        """Trials that mean nothing: one weight of all changed by one unit in the last place."""
        if self.part.arithmetic is not None:
            selection = Selection(sites=("accumulator",), bits=(0,), components=self.part.components)
        else:
            selection = Selection(sites=("weight",), bits=(0,), draw="uniform")
        plan = self.plan
        quiet = replace(
            plan,
            settings=plan.settings.model_copy(update={"faults": selection}),
            population=select(selection, plan.model.components),
        )
        return Drawn(self.part, (quiet,))


def draw(part: Part, device: str, seed: int) -> Drawn:
    """The trials of a part, on the probe set's questions of its kind, `ITEMS` of them a trial."""
    settings = StudySettings.model_validate(
        {
            "model": {"spec": MODEL, "dtype": part.dtype, "device": device, "arithmetic": part.arithmetic},
            "faults": {"sites": [part.site], "components": part.components, "bits": part.bits[0]},
            "run": {"seed": seed, "batch_items": ITEMS, "items_per_fault": ITEMS, "trials": 10**6, "traced": 0},
        }
    )
    plan = make_plan(settings)
    plan = replace(plan, batches=_batches([item for item in plan.task.items if item.kind == part.kind], plan))
    return Drawn(part, tuple(replace(plan, settings=_with_bits(plan.settings, bits)) for bits in part.bits))


def _batches(items: Sequence[Item], plan: Plan) -> tuple[Batch, ...]:
    return make_batches(items, plan.model, ITEMS, plan.settings.run.seed)


def _with_bits(settings: StudySettings, bits: tuple[int, ...]) -> StudySettings:
    return settings.model_copy(update={"faults": settings.faults.model_copy(update={"bits": bits})})


def _with_seed(settings: StudySettings, seed: int) -> StudySettings:
    return settings.model_copy(update={"run": settings.run.model_copy(update={"seed": seed})})


def _with_examples(item: Item, others: Sequence[Item]) -> Item:
    """The question after others of its group with their answers, one a line."""
    group = [one for one in others if one.group == item.group and one.id != item.id]
    shown = "".join(f"{one.contexts[0]}{one.continuations[0]}.\n" for one in group[:SHOTS])
    return replace(item, contexts=tuple(shown + context for context in item.contexts))


def ranges(model: LoadedModel, text: Path, tokens: int, margin: float) -> dict[str, tuple[float, float]]:
    """Bounds of every product on a text, widened by a margin: {module: (lowest, highest)}."""
    ids = windows(model, text_of([text]), max(tokens, LENGTH))
    return observe_bounds(model, torch.split(ids, 2), margin=margin)
