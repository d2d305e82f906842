"""The schemas of task files' lines, and the prompt that each makes of a line.

The dataset that an id names before its number (`hellaswag-7`, `xcopa-it-3`) chooses between templates where
keys can't: the language of connectives and labels, and HellaSwag's bare sentence.
"""

import re
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from aftershock.tasks.items import Item

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

ANSWER_TOKENS = 256
"""Length limit of a worked answer (GSM8K, MGSM, MATH) unless the caller sets another."""

CONNECTIVES = {
    "en": ("because", "so"),
    "et": ("sest", "seega"),
    "id": ("karena", "sehingga"),
    "it": ("perché", "quindi"),
    "sw": ("kwa sababu", "kwa hiyo"),
    "vi": ("bởi vì", "vì vậy"),
    "zh": ("因为", "所以"),
}
"""Words that join a premise to its cause, and to its effect, per language."""

LABELS = {"deu": ("Frage", "Antwort {letter}", "Richtige Antwort")}
"""Words of a lettered passage question per language; English where an id names no language listed here."""

NonEmpty = Annotated[str, Field(min_length=1)]
Options = Annotated[tuple[NonEmpty, ...], Field(min_length=2)]


class Line(BaseModel):
    """Base of all schemas: keys beyond the schema's own are ignored, types are never converted."""

    model_config = ConfigDict(frozen=True, strict=True)

    id: str

    @property
    def dataset(self) -> str:
        """The id without its number: `xcopa-it` of `xcopa-it-3`."""
        return re.sub(r"-?\d+$", "", self.id)

    @property
    def language(self) -> str:
        """What follows the first hyphen of the dataset: `it` of `xcopa-it`."""
        return self.dataset.partition("-")[2]

    def item(self) -> Item:
        """The item that the line describes."""
        raise NotImplementedError


class Chosen(Line):
    """Lines with options and the index of the right one."""

    choices: Options
    answer: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _answer_is_an_option(self) -> Self:
        if self.answer >= len(self.choices):
            last = len(self.choices) - 1
            raise ValueError(f"answer is {self.answer} but the choices are numbered 0 to {last}")
        return self

    def options(self, context: str, group: str = "") -> Item:
        """An item whose options follow one context after a space."""
        options = tuple(f" {choice}" for choice in self.choices)
        return self._item((context,) * len(options), options, group)

    def letters(self, context: str, group: str = "") -> Item:
        """An item whose options are letters, named in the context."""
        letters = tuple(f" {letter}" for letter in LETTERS[: len(self.choices)])
        return self._item((context,) * len(letters), letters, group)

    def _item(self, contexts: tuple[str, ...], continuations: tuple[str, ...], group: str) -> Item:
        return Item(
            id=self.id,
            kind="choice",
            group=group or self.dataset,
            contexts=contexts,
            continuations=continuations,
            answer=self.answer,
        )


class Choice(Chosen):
    """A question and its options (ARC, OpenBookQA, PIQA, HellaSwag)."""

    question: NonEmpty

    def item(self) -> Item:
        """Options after `Question: ...\\nAnswer:`; after the bare sentence in HellaSwag."""
        bare = self.dataset == "hellaswag"
        return self.options(self.question if bare else f"Question: {self.question}\nAnswer:")


class TruthfulChoice(Choice):
    """TruthfulQA, single right answer (MC1)."""

    mc2_choices: Options

    def item(self) -> Item:
        """Options after `Q: ...\\nA:`."""
        return self.options(f"Q: {self.question}\nA:")


class SubjectChoice(Choice):
    """A question of a subject, answered by letter (MMLU)."""

    subject: NonEmpty

    def item(self) -> Item:
        """Letters after the question and its lettered options; grouped by subject."""
        return self.letters(
            f"The following are multiple choice questions (with answers) about {self.subject}.\n\n"
            f"{self.question}\n" + _lettered(self.choices, "{letter}. ") + "Answer:",
            self.subject,
        )


class PassageChoice(Choice):
    """A question about a passage (BoolQ with two options, Belebele with four)."""

    context: NonEmpty

    def item(self) -> Item:
        """Two options are scored as texts, more of them by letter."""
        if len(self.choices) == 2:
            return self.options(f"{self.context}\nQuestion: {self.question}?\nAnswer:")
        question, answer, right = LABELS.get(self.language, ("Question", "Answer {letter}", "Correct answer"))
        return self.letters(
            f"{self.context}\n{question}: {self.question}\n" + _lettered(self.choices, answer + ": ") + f"{right}:"
        )


class CausalChoice(Chosen):
    """A premise and its likelier cause or effect (COPA, XCOPA)."""

    context: NonEmpty
    question: Literal["cause", "effect"]

    def item(self) -> Item:
        """Options after the premise and a connective of the id's language (English when it names none)."""
        cause, effect = CONNECTIVES.get(self.language, CONNECTIVES["en"])
        connective = cause if self.question == "cause" else effect
        # The options go on the premise's sentence, so they lose their capital, as in COPA's usual prompt.
        choices = tuple(choice[0].lower() + choice[1:] for choice in self.choices)
        premise = self.context.rstrip(" .。")
        return self.model_copy(update={"choices": choices}).options(f"{premise} {connective}")


class ContextChoice(Chosen):
    """One context per option and a common rest of the sentence (WinoGrande)."""

    prompts: Options
    suffix: NonEmpty

    @model_validator(mode="after")
    def _one_prompt_per_choice(self) -> Self:
        if len(self.prompts) != len(self.choices):
            raise ValueError(f"there are {len(self.prompts)} prompts for {len(self.choices)} choices")
        return self

    def item(self) -> Item:
        """The likelihood of the suffix after each prompt."""
        return self._item(self.prompts, (self.suffix,) * len(self.prompts), "")


class Cloze(Line):
    """A text without its last word (LAMBADA)."""

    context: NonEmpty
    answer: NonEmpty

    def item(self) -> Item:
        """The answer follows the context after a space."""
        word = f" {self.answer}"
        return Item(self.id, "cloze", self.dataset, (self.context,), (word,), word)


class Generation(Line):
    """A question with a short reference answer (GSM8K, MGSM)."""

    prompt: NonEmpty
    answer: NonEmpty

    def item(self) -> Item:
        """Text after `Question: ...\\nAnswer:`; numbers are compared as numbers, other answers exactly."""
        numeric = re.fullmatch(r"-?[\d,]+(\.\d+)?", self.answer) is not None
        return Item(
            id=self.id,
            kind="generation",
            group=self.dataset,
            contexts=(f"Question: {self.prompt}\nAnswer:",),
            answer=self.answer,
            match="numeric" if numeric else "exact",
            max_new_tokens=ANSWER_TOKENS,
            stop=("\nQuestion:",),
        )


class Problem(Generation):
    """A mathematics problem with subject and level (MATH)."""

    subject: NonEmpty
    level: str

    def item(self) -> Item:
        """Text after `Problem: ...\\nSolution:`, judged by its last `\\boxed{...}`; grouped by subject."""
        return Item(
            id=self.id,
            kind="generation",
            group=self.subject,
            contexts=(f"Problem: {self.prompt}\nSolution:",),
            answer=self.answer,
            match="exact",
            max_new_tokens=ANSWER_TOKENS,
            stop=("\nProblem:",),
        )


class OwnItem(Line):
    """The fields of `Item` themselves."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["choice", "cloze", "generation", "lm"]
    group: NonEmpty
    contexts: Annotated[tuple[str, ...], Field(min_length=1)]
    continuations: tuple[NonEmpty, ...] = ()
    answer: int | str | None = None
    match: Literal["exact", "numeric", "letter", "contains", "rouge1"] = "exact"
    length_normalised: bool = False
    max_new_tokens: Annotated[int, Field(ge=0)] = 0
    stop: tuple[NonEmpty, ...] = ()

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        contexts, continuations = len(self.contexts), len(self.continuations)
        if self.kind == "choice":
            if continuations != contexts or contexts < 2:
                raise ValueError("a choice item needs two contexts or more and as many continuations")
            if not isinstance(self.answer, int) or not 0 <= self.answer < contexts:
                raise ValueError(f"the answer of this choice item must be an index from 0 to {contexts - 1}")
        elif self.kind == "generation":
            if contexts != 1 or continuations or self.max_new_tokens < 1:
                raise ValueError("a generation item needs one context, no continuation, and max_new_tokens")
            if isinstance(self.answer, int):
                raise ValueError("the answer of a generation item must be a text or null")
        else:
            if contexts != 1 or continuations != 1:
                raise ValueError(f"a {self.kind} item needs one context and one continuation")
            if self.answer not in (None, *self.continuations):
                raise ValueError(f"the answer of a {self.kind} item is its continuation: leave it out")
        return self

    def item(self) -> Item:
        """The item itself."""
        fields = self.model_dump()
        if self.kind == "cloze":
            fields["answer"] = self.continuations[0]
        return Item(**fields)


class Code(Line):
    """A programming task with tests, which this release does not run (HumanEval, MBPP)."""

    prompt: str
    answer: str


def _lettered(choices: tuple[str, ...], label: str) -> str:
    return "".join(f"{label.format(letter=letter)}{choice}\n" for letter, choice in zip(LETTERS, choices, strict=False))
