"""What the model is asked: items, the token rows that carry them through a model, and what comes back."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["choice", "cloze", "generation", "lm"]


@dataclass(frozen=True)
class Item:
    """One question.

    choice      `contexts[i]` + `continuations[i]` is option i; the likeliest option is the answer.
    cloze       one context, one continuation; right when every token of it is the greedy one.
    generation  one context, no continuation; the model writes up to `max_new_tokens` tokens.
    lm          one context (its first token), one continuation (the text); the loss is the output.

    `answer` is the index of the right option (choice), the continuation (cloze), the reference (generation,
    None where there is no reference and golden's text is the measure) or None (lm). `match` says how a
    generated text is compared with the reference. `stop` are strings that end a generated text.
    `group` is what reports group by (a language and a skill, say).
    """

    id: str
    kind: Kind
    group: str
    contexts: tuple[str, ...]
    continuations: tuple[str, ...] = ()
    answer: int | str | None = None
    match: Literal["exact", "numeric", "letter", "contains", "rouge1"] = "exact"
    length_normalised: bool = False
    max_new_tokens: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """Token ids of one sequence: the context, and the continuation fed after it (empty when generating)."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class RowResult:
    """What the model did with one row.

    `tokens`: the greedy token at each continuation position, or the generated tokens (end-of-sequence
    excluded). `logprobs`: natural-log probability of each continuation token, computed in fp32 (empty when
    generating). `finite`: False when a NaN or an infinity reached the logits.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finite: bool


@dataclass(frozen=True)
class Answer:
    """One item's output.

    `output` is what is compared with golden's: the index of the chosen option, the text, or the loss.
    `right` is None where no reference exists. `score` grows with quality: log-probability of the right option
    minus the best wrong one (choice), mean log-probability of the continuation (cloze, lm), match or ROUGE-1
    F1 in [0, 1] (generation).
    """

    output: str
    right: bool | None
    score: float
    tokens: tuple[int, ...]
    finite: bool
