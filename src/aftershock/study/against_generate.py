"""Records beside plain `generate`: how often the answers differ, and whether the SDC rates do."""

from collections.abc import Sequence

import numpy as np

from aftershock.stats import mcnemar, paired_difference
from aftershock.study.generated import generated_items, reached_answers
from aftershock.study.rates import Rate, mean_rate
from aftershock.study.records import DUE, SDC, GeneratedAnswer, GeneratedItem, ItemRecord, Record
from aftershock.study.store import StoredStudy

SIGNIFICANT = 0.05
"""A p-value below it is called a difference."""

Pairs = tuple[tuple[ItemRecord, GeneratedItem], ...]
"""The answers of one trial: the record's, and those of `generate`."""


class SdcTest(Record):
    """SDC by the records and by plain `generate`, on the same eligible answers.

    `difference` is generate's rate less the records', with its 95 % interval; `p_value` is that of exchanging the two
    trial by trial. `records_alone` and `generate_alone` answers are SDC by one of them only; `mcnemar_p_value` takes
    answers as independent, which those of one trial are not.
    """

    answers: int
    records: Rate
    generate: Rate
    difference: float
    low: float
    high: float
    p_value: float
    records_alone: int
    generate_alone: int
    mcnemar_p_value: float

    @property
    def conclusion(self) -> str:
        """What the test tells, in plain words."""
        between = f"{100 * self.low:+.2f} to {100 * self.high:+.2f} points"
        if self.p_value < SIGNIFICANT:
            # The interval allows for outcomes that so few trials have not shown; exchanging what was seen does not.
            zero = ", which allows for few trials and so still holds zero" if self.low <= 0 <= self.high else ""
            return (
                f"the SDC rates differ: generate's less the records' is {100 * self.difference:+.2f} points "
                f"(95 % interval {between}{zero})"
            )
        return (
            "no difference of the SDC rates was found; with so many answers one outside the 95 % interval of "
            f"{between} is ruled out, a smaller one is not"
        )


class AgainstGenerate(Record):
    """Generated answers of some trials beside those that plain `generate` gives under the same faults.

    `disagreement`: answers that are not the record's. `batch_size`: answers of `generate` that change with the size of
    the batch, which is how far it disagrees with itself (A/A). Both are means over trials. `sdc` is None where no
    answer is eligible.
    """

    trials: int
    answers: int
    disagreement: Rate
    batch_size: Rate
    sdc: SdcTest | None

    def text(self) -> str:
        """`64 answers of 8 trials: 3.12 % (...) are not generate's; 4.69 % (...) of generate's change ...`."""
        found = (
            f"{self.answers} answers of {self.trials} trials: {self.disagreement.text()} are not generate's; "
            f"{self.batch_size.text()} of generate's change with the batch size"
        )
        return found if self.sdc is None else f"{found}; {self.sdc.conclusion}, p = {self.sdc.p_value:.3g}"


def against_generate(study: StoredStudy) -> AgainstGenerate | None:
    """What the decoded trials of a study tell; None where there are none."""
    generated = {trial.trial: {item.item: item for item in trial.items} for trial in study.generated}
    items = generated_items(study.golden)
    every = [
        tuple((record, decoded[record.item]) for record in reached_answers(trial, items) if record.item in decoded)
        for trial in study.trials
        if (decoded := generated.get(trial.trial)) is not None
    ]
    trials = [pairs for pairs in every if pairs]
    if not trials:
        return None
    return AgainstGenerate(
        trials=len(trials),
        answers=sum(map(len, trials)),
        disagreement=mean_rate(np.array([_disagreement(pairs) for pairs in trials])),
        batch_size=mean_rate(np.array([_batch_size(pairs) for pairs in trials])),
        sdc=_sdc_test([verdicts for pairs in trials if (verdicts := _verdicts(pairs))], study.settings.run.seed),
    )


def _disagreement(pairs: Pairs) -> float:
    """Share of the answers that `generate` gives differently."""
    return float(np.mean([_shown(record) != _shown(generated.whole) for record, generated in pairs]))


def _batch_size(pairs: Pairs) -> float:
    """Share of generate's answers that change with the size of the batch."""
    return float(np.mean([_shown(generated.whole) != _shown(generated.reshaped) for _, generated in pairs]))


def _verdicts(pairs: Pairs) -> tuple[tuple[bool, bool], ...]:
    """Whether each eligible answer is SDC, by the record and by `generate`."""
    return tuple(
        (record.outcome in SDC, generated.whole.outcome in SDC) for record, generated in pairs if record.eligible
    )


def _shown(answer: ItemRecord | GeneratedAnswer) -> tuple[str, str | None]:
    """What a user gets to see: the text, or a detected error, whatever text was there when it came."""
    return (answer.outcome, None) if answer.outcome in DUE else ("text", answer.output)


def _sdc_test(verdicts: Sequence[tuple[tuple[bool, bool], ...]], seed: int) -> SdcTest | None:
    if not verdicts:
        return None
    records, generate = np.array([np.mean(one, axis=0) for one in verdicts]).T
    answers = [pair for one in verdicts for pair in one]
    records_alone, generate_alone = answers.count((True, False)), answers.count((False, True))
    found = paired_difference(records, generate, seed)
    return SdcTest(
        answers=len(answers),
        records=mean_rate(records),
        generate=mean_rate(generate),
        difference=found.difference.estimate,
        low=found.difference.low,
        high=found.difference.high,
        p_value=found.p_value,
        records_alone=records_alone,
        generate_alone=generate_alone,
        mcnemar_p_value=mcnemar(records_alone, generate_alone),
    )
