"""What a search for boundary bits found."""

from collections.abc import Sequence
from typing import Any

from aftershock.faults import parse_fault
from aftershock.numerics import format_of
from aftershock.stats import Estimate, by_label, cluster_interval, wilson
from aftershock.study.boundary import Direction, Ladder, exhaustive_values, ladders, search
from aftershock.study.probes import outcomes_by_value
from aftershock.study.rates import LabelledRate, Rate
from aftershock.study.records import Record, TrialRecord
from aftershock.study.store import StoredStudy


class Side(Record):
    """The search among the flips of a value in one direction, `bits` by growing change. `boundary` is the bit of the
    smallest harmful change, None where no flip does harm; `implied` are it and the bits of larger changes. `probes`
    trials told so; `contradictions` are the bits whose verifying probe came out on the wrong side."""

    direction: Direction
    bits: tuple[int, ...]
    boundary: int | None
    implied: tuple[int, ...]
    probes: int
    contradictions: tuple[int, ...]


class SearchedValue(Record):
    """A value whose search is done. `harmful` are the bits that do harm, None unless every bit was tried."""

    value: int
    site: str
    component: str
    sides: tuple[Side, Side]
    harmful: tuple[int, ...] | None

    @property
    def flips(self) -> int:
        """Bits that could be tried."""
        return sum(len(side.bits) for side in self.sides)

    @property
    def implied(self) -> frozenset[int]:
        """Bits that do harm, if harm grows with the change."""
        return frozenset(bit for side in self.sides for bit in side.implied)


class Trust(Record):
    """How the searches fared on the values of which every bit was tried. BinFI's terms: `recall` is the share of the
    harmful bits that the search implies, `precision` the share of the implied ones that are harmful (means over
    values)."""

    values: int
    harmful: int
    implied: int
    agreeing: int
    recall: Rate
    precision: Rate
    not_monotone: Rate


class Searched(Record):
    """Boundary bits of all values searched. `probes` is what the searches asked for, of `flips` bits; `critical` the
    share of bits that do harm, mean over values."""

    values: tuple[SearchedValue, ...]
    probes: int
    flips: int
    critical: Rate
    components: tuple[LabelledRate, ...]
    contradicted: Rate
    trust: Trust | None

    def text(self) -> str:
        """The result for a person."""
        lines = [
            f"searched      {len(self.values)} values with {self.probes} probes; every bit would take {self.flips}, "
            f"{self.flips / max(self.probes, 1):.1f} times as many",
            f"critical bits {self.critical.text()} of a value's bits, if harm grows with the change",
            *(f"  {rate.label:18}{rate.text()}" for rate in self.components),
            f"contradicted  {self.contradicted.text()} of the values by a verifying probe",
        ]
        if self.trust is not None:
            trust = self.trust
            lines += [
                f"every bit     tried of {trust.values} values: recall {trust.recall.text()}, precision "
                f"{trust.precision.text()}",
                f"              {trust.agreeing} of {trust.harmful} harmful bits among the {trust.implied} implied; "
                f"not monotone {trust.not_monotone.text()} of the values",
            ]
        return "\n".join(lines)


def searched(study: StoredStudy) -> Searched:
    """What the records tell about boundary bits. Values whose search is not done yet, and those that no eligible item
    saw, are left out."""
    bits = study.settings.faults.bit_positions(format_of(study.environment.dtype))
    seed, settings = study.settings.run.seed, study.settings.search
    harmful = outcomes_by_value({record.trial: record for record in study.trials}, bits)
    exhaustive = exhaustive_values(settings.values, settings.exhaustive, seed)
    first = {record.trial // len(bits): record for record in study.trials if record.strikes and record.eligible}
    found = [
        value
        for number, record in sorted(first.items())
        if (value := _value(number, record, study, harmful[number], number in exhaustive)) is not None
    ]
    shares = [len(value.implied) / value.flips for value in found]
    components = by_label([value.component for value in found], shares)
    return Searched(
        values=tuple(found),
        probes=sum(side.probes for value in found for side in value.sides),
        flips=sum(value.flips for value in found),
        critical=_mean(shares),
        components=tuple(LabelledRate(label=name, **_fields(rate)) for name, rate in sorted(components.items())),
        contradicted=_share([any(side.contradictions for side in value.sides) for value in found]),
        trust=_trust([(value, frozenset(value.harmful)) for value in found if value.harmful is not None]),
    )


def _value(
    number: int, record: TrialRecord, study: StoredStudy, harmful: dict[int, bool], exhaustive: bool
) -> SearchedValue | None:
    number_format = format_of(study.environment.dtype)
    bits = study.settings.faults.bit_positions(number_format)
    pair = ladders(number, record.strikes[0].old_bits, number_format, bits)
    up, down = (_side(ladder, harmful, study.settings.run.seed) for ladder in pair)
    if up is None or down is None or (exhaustive and len(harmful) < len(bits)):
        return None
    return SearchedValue(
        value=number,
        site=str(parse_fault(record.faults[0]).site),
        component=record.component,
        sides=(up, down),
        harmful=tuple(sorted(bit for bit, does_harm in harmful.items() if does_harm)) if exhaustive else None,
    )


def _side(ladder: Ladder, harmful: dict[int, bool], seed: int) -> Side | None:
    """What the search on one ladder came to; None while it is not done."""
    found = search(ladder, harmful, seed)
    if found.boundary is None or found.wanted:
        return None
    implied = ladder.bits[found.boundary :]
    return Side(
        direction=ladder.direction,
        bits=ladder.bits,
        boundary=implied[0] if implied else None,
        implied=implied,
        probes=len(found.asked),
        contradictions=found.contradictions,
    )


def _trust(tried: Sequence[tuple[SearchedValue, frozenset[int]]]) -> Trust | None:
    if not tried:
        return None
    agreeing = [len(value.implied & harmful) for value, harmful in tried]
    return Trust(
        values=len(tried),
        harmful=sum(len(harmful) for _, harmful in tried),
        implied=sum(len(value.implied) for value, _ in tried),
        agreeing=sum(agreeing),
        recall=_mean([both / len(harmful) for both, (_, harmful) in zip(agreeing, tried, strict=True) if harmful]),
        precision=_mean(
            [both / len(value.implied) for both, (value, _) in zip(agreeing, tried, strict=True) if value.implied]
        ),
        not_monotone=_share([not _monotone(value, harmful) for value, harmful in tried]),
    )


def _monotone(value: SearchedValue, harmful: frozenset[int]) -> bool:
    """Whether along each ladder the harmful flips come last."""
    return all(
        harmful.isdisjoint(side.bits[: len(side.bits) - len(harmful.intersection(side.bits))]) for side in value.sides
    )


def _mean(shares: Sequence[float]) -> Rate:
    """Mean over values with an interval whose unit is the value; 0 to 1 where there is none."""
    return Rate(**_fields(cluster_interval(shares))) if shares else Rate(estimate=0.0, low=0.0, high=1.0, n=0)


def _share(events: Sequence[bool]) -> Rate:
    return Rate(**_fields(wilson(sum(events), len(events)))) if events else Rate(estimate=0.0, low=0.0, high=1.0, n=0)


def _fields(found: Estimate) -> dict[str, Any]:
    return {"estimate": found.estimate, "low": found.low, "high": found.high, "n": found.n}
