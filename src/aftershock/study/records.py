"""What a study keeps. Every record is immutable, versioned and says by itself what it is.

Nothing here holds a time, a path or a machine's name: equal records mean equal results.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from aftershock.replay import Proof
from aftershock.tasks import OUTCOMES, Outcome, is_sdc

RECORD_VERSION = 5

ItemOutcome = Literal[Outcome, "unreached"]
"""`unreached`: the fault's moment never came for this item (its answer had ended before)."""

SDC = frozenset(outcome for outcome in OUTCOMES if is_sdc(outcome))
"""Silent data corruption: wrong, and nothing shows it."""

DUE = frozenset({"non_finite", "crash"})
"""Detected, unrecoverable errors: they show by themselves."""


UNUSED = "never"
"""The class of experts that no token chooses."""


def _missing(value: object) -> bool:
    return value is None


class Record(BaseModel):
    """Base of all records: frozen, unknown fields refused, NaN and infinities kept as text in JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Strike(Record):
    """One word that a fault changed (or found unchanged, for a stuck bit that already had its value).

    `fault` is the position in the trial's fault set, `index` the element's index in the stored tensor, or
    (token column within the item's own tokens, channel) for an activation. `item` is None for weights.
    `old_bits` and `new_bits` are the unsigned words, `old_value` and `new_value` their values.
    """

    fault: int
    tensor: str
    index: tuple[int, ...]
    item: str | None
    old_bits: int
    new_bits: int
    old_value: float
    new_value: float


class ItemRecord(Record):
    """One item under one trial. `output` is kept where it differs from golden's.

    `eligible`: golden answers it right (or it has no reference) and the fault reached it.
    `score_change`: faulty minus golden score. `first_difference`: position of the first answer token that
    differs, None when all are equal. `rmse` and `kl` compare the logits, in fp32, teacher-forced on the golden
    text: root mean square difference, and mean KL(golden || faulty) in nats; None after a crash, and where the two were
    forced on different texts.
    """

    item: str
    outcome: ItemOutcome
    eligible: bool
    right: bool | None
    output: str | None
    score_change: float
    first_difference: int | None
    rmse: float | None
    kl: float | None


class TrialRecord(Record):
    """One trial: its faults, what they struck, and what became of each item.

    The labels (`site` ... `stage`) are the fault's own; "several" where the faults of the set differ.
    Of a set of more than 64 faults the first 64 lines and strikes are kept; `fault_count` tells how many there were (a
    scattered set counts as the words that it struck), `strikes_digest` covers all of them. `residual_error` is the
    relative error of the residual stream after the embedding and after each layer (the largest over the items), for the
    trials that are traced. In a stratified study `stratum` names the trial's stratum, `stratum_chance` is the chance
    that a draw of the whole selection falls into it, and `round` counts the rounds of trials from 0; a study drawn
    uniformly keeps none of them.
    Where the weights of one expert are struck, `expert` is its number in the layer and `expert_use` the share of the
    tokens of golden runs that choose it.
    `proof` tells how the executor knew the trial to be golden's without running it to the end; it is no part of the
    result, which is the same where nobody looked for a proof.
    """

    trial: int
    faults: tuple[str, ...]
    fault_count: int
    site: str
    component: str
    layer: int | None
    bits: tuple[int, ...]
    bit_class: str
    stage: str
    strikes: tuple[Strike, ...]
    strikes_digest: str
    items: tuple[ItemRecord, ...]
    residual_error: tuple[float, ...] | None = None
    stratum: str | None = Field(None, exclude_if=_missing)
    stratum_chance: float | None = Field(None, exclude_if=_missing)
    round: int | None = Field(None, exclude_if=_missing)
    expert: int | None = Field(None, exclude_if=_missing)
    expert_use: float | None = Field(None, exclude_if=_missing)
    proof: Proof | None = Field(None, exclude_if=_missing)

    @property
    def result(self) -> str:
        """The record without its proof, as JSON: equal texts mean equal results, whatever executor came to them."""
        return self.model_dump_json(exclude={"proof"})

    @property
    def use_class(self) -> str | None:
        """How often the struck expert is chosen, to a tenth of the tokens; None where none was struck."""
        if self.expert_use is None:
            return None
        tenth = min(int(10 * self.expert_use), 9)
        return f"{tenth / 10} to {(tenth + 1) / 10}" if self.expert_use else UNUSED

    @property
    def eligible(self) -> tuple[ItemRecord, ...]:
        """The items that count for SDC."""
        return tuple(item for item in self.items if item.eligible)

    @property
    def sdc_share(self) -> float | None:
        """Share of the eligible items with outcome subtle or distorted; None when no item is eligible."""
        eligible = self.eligible
        if not eligible:
            return None
        return sum(item.outcome in SDC for item in eligible) / len(eligible)


class GeneratedAnswer(Record):
    """What plain `generate` answered under a trial's faults. `output` is kept where it differs from golden's."""

    outcome: Outcome
    output: str | None


class GeneratedItem(Record):
    """One item decoded token by token: in its batch as it is, and in a batch of another size."""

    item: str
    whole: GeneratedAnswer
    reshaped: GeneratedAnswer


class GeneratedTrial(Record):
    """The items of a trial for which answers are generated, as plain `generate` answers them under its faults."""

    trial: int
    items: tuple[GeneratedItem, ...]


class GoldenRecord(Record):
    """One item's fault-free answer. `options` are the texts to choose from; `output` and `reference` of a choice are
    their numbers. `chance` is the probability that a guess is right, 0 where there is nothing to choose from."""

    item: str
    kind: str
    group: str
    prompt: str
    options: tuple[str, ...]
    output: str
    reference: str | None
    right: bool | None
    score: float
    chance: float


class NoiseRecord(Record):
    """One perturbation that means nothing, on the items of one batch. A sweep goes once over every batch in use, each
    with a perturbation of its own."""

    sweep: int
    perturbation: str
    items: tuple[ItemRecord, ...]


class Environment(Record):
    """What the study ran on and with; what of it changes bits is part of the plan digest."""

    model: str
    architecture: str
    model_hash: str
    parameters: int
    layers: int
    dtype: str
    device: str
    threads: int
    versions: dict[str, str]
