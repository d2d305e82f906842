"""The schemas of task files' lines, and the prompt that each makes of a line; those with options are in `choices`,
those whose answers are programs in `coding`."""

import re
from abc import ABC, abstractmethod
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from aftershock.tasks.items import Item

ANSWER_TOKENS = 256
"""Length limit of a worked answer (GSM8K, MGSM, MATH) unless the caller sets another."""

NonEmpty = Annotated[str, Field(min_length=1)]


class Line(BaseModel, ABC):
    """Base of all schemas: keys beyond the schema's own are ignored, types are never converted."""

    model_config = ConfigDict(frozen=True, strict=True)

    id: str

    @property
    def dataset(self) -> str:
        """The id without its number: `xcopa-it` of `xcopa-it-3`."""
        return re.sub(r"[-/]?\d+$", "", self.id)

    @property
    def language(self) -> str:
        """What follows the first hyphen of the dataset: `it` of `xcopa-it`."""
        return self.dataset.partition("-")[2]

    @abstractmethod
    def item(self) -> Item:
        """The item that the line describes."""

    def lettered(self) -> Item:
        """The item that asks for the letter of an option. Raises ValueError where there is none to choose."""
        raise ValueError("it has no options to choose by letter")

    @property
    def preamble(self) -> str:
        """What the prompt says once, before worked examples."""
        return ""

    @property
    def subject_of_examples(self) -> str:
        """Only lines that agree in it are examples of each other."""
        return ""

    def worked(self, item: Item) -> str:
        """The prompt of one of the line's items with the right answer after it. Raises ValueError for a line that can
        be no example."""
        if item.continuations:
            right = item.answer if isinstance(item.answer, int) else 0
            return item.contexts[right] + item.continuations[right]
        return f"{item.contexts[0]} {item.answer}"


class Cloze(Line):
    """A text without its last word (LAMBADA)."""

    context: NonEmpty
    answer: NonEmpty

    def item(self) -> Item:
        """The answer follows the context after a space."""
        word = f" {self.answer}"
        return Item(self.id, "cloze", self.dataset, (self.context,), (word,), word)


class Generation(Line):
    """A question with a short reference answer, and perhaps the way to it (GSM8K, MGSM)."""

    prompt: NonEmpty
    answer: NonEmpty
    solution: NonEmpty | None = None

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

    def worked(self, item: Item) -> str:
        """The solution where there is one, so that examples show their reasoning."""
        return f"{item.contexts[0]} {self.solution or self.answer}"


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
    options: tuple[NonEmpty, ...] = ()

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.options and (self.kind, self.match) != ("generation", "letter"):
            raise ValueError("options are what generated letters stand for, and this item asks for none")
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

    def lettered(self) -> Item:
        """Never: the item is written out."""
        raise ValueError("it is an item written out, which says itself how it is asked")

    def worked(self, item: Item) -> str:
        """Never: the item is written out."""
        raise ValueError("it is an item written out, with its own examples if any")
