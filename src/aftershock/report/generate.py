"""What a report says of the records beside plain `generate`."""

from dataclasses import dataclass

from aftershock.report.wording import interval, percent
from aftershock.study import AgainstGenerate, Rate, SdcTest


@dataclass(frozen=True)
class GenerateRow:
    """One share of the answers that were decoded."""

    what: str
    share: str
    interval: str
    n: str


@dataclass(frozen=True)
class GenerateContent:
    """The comparison in words: what was decoded, the shares, what the paired test tells."""

    introduction: str
    rows: tuple[GenerateRow, ...]
    conclusion: str


def generate_content(found: AgainstGenerate) -> GenerateContent:
    """What there is to say of a comparison."""
    answers = f"{found.trials:,} trials, {found.answers:,} answers"
    shares = (
        _row("the answer is not the record's", found.disagreement, answers),
        _row("generate's answer changes with the batch size (A/A)", found.batch_size, answers),
    )
    return GenerateContent(
        f"The answers of {found.trials:,} trials, drawn evenly from those that reached an answer, were decoded token "
        "by token under their faults, as transformers' generate does it: in the study's batches, and in batches of "
        "another size. In bf16 and fp16 near ties are common and generate's answer is itself one draw: how often it "
        "disagrees with itself (A/A) is the measure for how often it disagrees with the records.",
        (*shares, *(() if found.sdc is None else _sdc_rows(found.sdc))),
        "No answer counts for SDC." if found.sdc is None else _conclusion(found.sdc),
    )


def _sdc_rows(test: SdcTest) -> tuple[GenerateRow, ...]:
    answers = f"{test.records.n:,} trials, {test.answers:,} answers"
    return (
        _row("SDC by the records", test.records, answers),
        _row("SDC by generate, on the same answers", test.generate, answers),
    )


def _row(what: str, share: Rate, n: str) -> GenerateRow:
    return GenerateRow(what, percent(share.estimate), interval(share.low, share.high), n)


def _conclusion(test: SdcTest) -> str:
    said = test.conclusion
    return (
        f"{said[0].upper()}{said[1:]}. Paired tests: p = {test.p_value:.3g} by exchanging records and generate trial "
        f"by trial; exact McNemar p = {test.mcnemar_p_value:.3g}, which takes answers under one fault as independent "
        f"({test.records_alone:,} are SDC in the records alone, {test.generate_alone:,} by generate alone)."
    )
