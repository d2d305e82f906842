"""What the model is asked: items, the token rows that carry them through a model, and what comes back."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

Kind = Literal["choice", "cloze", "generation", "lm"]


class Tokenizer(Protocol):
    """What the room needs of a tokenizer; every transformers tokenizer has it."""

    bos_token_id: int | None
    eos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text, with the model's own special tokens (a leading BOS, say) on request."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Text of token ids."""
        ...


class Rules(Protocol):
    """How an evaluation made elsewhere asks and judges one item, in place of the item's kind."""

    @property
    def digest(self) -> str:
        """SHA-256 of whatever of the rules decides answers."""
        ...

    def rows(self, item: "Item", tokenizer: Tokenizer) -> "tuple[Row, ...]":
        """The item's token rows, one or more."""
        ...

    def answer(self, item: "Item", results: "tuple[RowResult, ...]", tokenizer: Tokenizer) -> "Answer":
        """The answer that the results of those rows give."""
        ...


@dataclass(frozen=True)
class Program:
    """What a generated text is part of: it is right if the Python program `before` + text + `after` runs to its end.

    `unsafe`: where the machine can't isolate the program it may run under limits alone.
    """

    before: str
    after: str
    unsafe: bool = False


@dataclass(frozen=True)
class Item:
    """One question.

    choice      `contexts[i]` + `continuations[i]` is option i; the likeliest option is the answer.
    cloze       one context, one continuation; right when every token of it is the greedy one.
    generation  one context, no continuation; the model writes up to `max_new_tokens` tokens.
    lm          one context (its first token), one continuation (the text); the loss is the output.

    `answer` is the index of the right option (choice), the continuation (cloze), the reference (generation,
    None where there is no reference and golden's text is the measure) or None (lm). `match` says how a
    generated text is compared with the reference; with `program` the text is run as part of that instead. `stop` are
    strings that end a generated text, `options` what the letters stand for where a letter is to be generated.
    `group` is what reports group by (a language and a skill, say).
    `rules`, where it has any, tokenise and judge it; its kind then says what the model does, and which outcomes there
    are.
    """

    id: str
    kind: Kind
    group: str
    contexts: tuple[str, ...]
    continuations: tuple[str, ...] = ()
    answer: int | str | None = None
    match: Literal["exact", "numeric", "letter", "contains", "rouge1", "program"] = "exact"
    length_normalised: bool = False
    max_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    program: Program | None = None
    rules: Rules | None = field(default=None, compare=False, repr=False)

    @property
    def chance(self) -> float:
        """Probability that a guess is right: one of the options; 0 where there are none."""
        options = len(self.contexts) if self.kind == "choice" else len(self.options)
        return 1 / options if options else 0.0


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
