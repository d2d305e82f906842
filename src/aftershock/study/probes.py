"""Which trials a search for boundary bits runs next, given those it has."""

from collections.abc import Mapping
from math import ceil, log2

from aftershock.faults import WeightSite
from aftershock.numerics import words
from aftershock.study.boundary import Ladder, exhaustive_values, ladders, next_probes
from aftershock.study.plan import Plan
from aftershock.study.records import DUE, SDC, TrialRecord


def next_probes_of(plan: Plan, records: Mapping[int, TrialRecord]) -> tuple[int, ...]:
    """Numbers of the trials that a search runs next; none when it is done. A function of the plan and the records."""
    bits, seed, search = plan.searched_bits, plan.settings.run.seed, plan.settings.search
    probes = next_probes(
        [_ladders(plan, value) for value in range(search.values)],
        outcomes_by_value(records, bits),
        exhaustive_values(search.values, search.exhaustive, seed),
        seed,
    )
    return tuple(value * len(bits) + bits.index(bit) for value, bit in probes)


def expected_trials(plan: Plan) -> int:
    """Number of trials that the study will take; of a search about so many: two ladders of half the bits a value."""
    search = plan.settings.search
    if not search.values:
        return plan.trials
    bits = len(plan.searched_bits)
    all_bits = len(exhaustive_values(search.values, search.exhaustive, plan.settings.run.seed))
    # A binary search over h flips has h + 1 ends, and up to two verifying probes.
    probes = 2 * (ceil(log2(bits / 2 + 1)) + 1)
    return all_bits * bits + (search.values - all_bits) * min(bits, probes)


def outcomes_by_value(records: Mapping[int, TrialRecord], bits: tuple[int, ...]) -> dict[int, dict[int, bool]]:
    """Whether the flip did harm, by searched value and by bit."""
    known: dict[int, dict[int, bool]] = {}
    for trial, record in records.items():
        value, place = divmod(trial, len(bits))
        known.setdefault(value, {})[bits[place]] = is_harmful(record)
    return known


def is_harmful(record: TrialRecord) -> bool:
    """Whether some eligible item came out as silent corruption or as a detected error."""
    return any(item.outcome in SDC | DUE for item in record.eligible)


def _ladders(plan: Plan, value: int) -> tuple[Ladder, Ladder]:
    (fault,) = plan.faults_of(value * len(plan.searched_bits))
    assert isinstance(fault.site, WeightSite)
    word = words(plan.model.module.get_parameter(fault.site.parameter))[fault.site.index]
    number_format = plan.model.format
    return ladders(value, int(word) % (1 << number_format.bits), number_format, plan.searched_bits)
