"""The schemas of lines with options: each is asked for the likeliest option, or for its letter.

The dataset that an id names before its number (`hellaswag-7`, `xcopa-it-3`) chooses between templates where
keys can't: the language of connectives and labels, and HellaSwag's bare sentence.
"""

from abc import abstractmethod
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from aftershock.tasks.items import Item
from aftershock.tasks.schemas import Line, NonEmpty

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

LETTER_TOKENS = 4
"""Tokens of an answer by letter unless the caller sets another number: the letter, and steps after it."""

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

Options = Annotated[tuple[NonEmpty, ...], Field(min_length=2)]


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

    @property
    def group(self) -> str:
        """What reports group the line by."""
        return self.dataset

    @property
    @abstractmethod
    def asked(self) -> str:
        """The question as it stands above lettered options."""

    @property
    def lettered_prompt(self) -> str:
        """The question, its lettered options, and the request for the answer."""
        return f"{self.asked}\n{self.lettered_choices('{letter}. ')}Answer:"

    def lettered_choices(self, label: str) -> str:
        """A line for each choice, after a label that names its `{letter}`. Raises ValueError when letters run out."""
        if len(self.choices) > len(LETTERS):
            raise ValueError(f"it has {len(self.choices)} choices, more than there are letters")
        pairs = zip(LETTERS, self.choices, strict=False)
        return "".join(f"{label.format(letter=letter)}{choice}\n" for letter, choice in pairs)

    def lettered(self) -> Item:
        """A short text whose first letter is the answer."""
        return Item(
            id=self.id,
            kind="generation",
            group=self.group,
            contexts=(self.lettered_prompt,),
            answer=LETTERS[self.answer],
            match="letter",
            max_new_tokens=LETTER_TOKENS,
            options=self.choices,
        )

    def likeliest_text(self, context: str) -> Item:
        """An item whose options follow one context after a space."""
        options = tuple(f" {choice}" for choice in self.choices)
        return self.likeliest((context,) * len(options), options)

    def likeliest_letter(self) -> Item:
        """An item whose options are the letters after the lettered prompt."""
        letters = tuple(f" {letter}" for letter in LETTERS[: len(self.choices)])
        return self.likeliest((self.lettered_prompt,) * len(letters), letters)

    def likeliest(self, contexts: tuple[str, ...], continuations: tuple[str, ...]) -> Item:
        """An item whose options are contexts with their continuations."""
        return Item(
            id=self.id,
            kind="choice",
            group=self.group,
            contexts=contexts,
            continuations=continuations,
            answer=self.answer,
        )


class Choice(Chosen):
    """A question and its options (ARC, OpenBookQA, PIQA, HellaSwag)."""

    question: NonEmpty

    @property
    def asked(self) -> str:
        """`Question: ...`; the bare sentence in HellaSwag."""
        return self.question if self.dataset == "hellaswag" else f"Question: {self.question}"

    def item(self) -> Item:
        """Options after `Question: ...\\nAnswer:`; after the bare sentence in HellaSwag."""
        return self.likeliest_text(self.asked if self.dataset == "hellaswag" else f"{self.asked}\nAnswer:")


class TruthfulChoice(Choice):
    """TruthfulQA, single right answer (MC1)."""

    mc2_choices: Options

    def item(self) -> Item:
        """Options after `Q: ...\\nA:`."""
        return self.likeliest_text(f"Q: {self.question}\nA:")


class SubjectChoice(Choice):
    """A question of a subject, answered by letter (MMLU)."""

    subject: NonEmpty

    @property
    def group(self) -> str:
        """The subject."""
        return self.subject

    @property
    def preamble(self) -> str:
        """What the questions are about, said once."""
        return f"The following are multiple choice questions (with answers) about {self.subject}.\n\n"

    @property
    def subject_of_examples(self) -> str:
        """Examples are of the question's subject."""
        return self.subject

    @property
    def asked(self) -> str:
        """The question after the preamble."""
        return self.preamble + self.question

    def item(self) -> Item:
        """Letters after the question and its lettered options."""
        return self.likeliest_letter()


class PassageChoice(Choice):
    """A question about a passage (BoolQ with two options, Belebele with four)."""

    context: NonEmpty

    @property
    def asked(self) -> str:
        """The passage and the question."""
        return f"{self.context}\nQuestion: {self.question}?"

    @property
    def lettered_prompt(self) -> str:
        """Of more than two options, Belebele's own words."""
        if len(self.choices) == 2:
            return super().lettered_prompt
        question, answer, right = LABELS.get(self.language, ("Question", "Answer {letter}", "Correct answer"))
        return f"{self.context}\n{question}: {self.question}\n{self.lettered_choices(answer + ': ')}{right}:"

    def item(self) -> Item:
        """Two options are scored as texts, more of them by letter."""
        return self.likeliest_text(f"{self.asked}\nAnswer:") if len(self.choices) == 2 else self.likeliest_letter()


class CausalChoice(Chosen):
    """A premise and its likelier cause or effect (COPA, XCOPA)."""

    context: NonEmpty
    question: Literal["cause", "effect"]

    @property
    def asked(self) -> str:
        """The premise and a connective of the id's language (English when it names none)."""
        cause, effect = CONNECTIVES.get(self.language, CONNECTIVES["en"])
        premise = self.context.rstrip(" .。")
        return f"{premise} {cause if self.question == 'cause' else effect}"

    def item(self) -> Item:
        """Options after premise and connective."""
        # The options go on the premise's sentence, so they lose their capital, as in COPA's usual prompt.
        choices = tuple(choice[0].lower() + choice[1:] for choice in self.choices)
        return self.model_copy(update={"choices": choices}).likeliest_text(self.asked)


class ContextChoice(Chosen):
    """One context per option and a common rest of the sentence (WinoGrande)."""

    prompts: Options
    suffix: NonEmpty

    @model_validator(mode="after")
    def _one_prompt_per_choice(self) -> Self:
        if len(self.prompts) != len(self.choices):
            raise ValueError(f"there are {len(self.prompts)} prompts for {len(self.choices)} choices")
        return self

    @property
    def asked(self) -> str:
        """The sentence with a blank for the choices. Raises ValueError where the prompts don't end with them."""
        stem = self.prompts[0].removesuffix(self.choices[0])
        if self.prompts != tuple(stem + choice for choice in self.choices):
            raise ValueError("its prompts are not one text with a choice each at the end")
        return f"{stem}_{self.suffix}"

    def item(self) -> Item:
        """The likelihood of the suffix after each prompt."""
        return self.likeliest(self.prompts, (self.suffix,) * len(self.prompts))
