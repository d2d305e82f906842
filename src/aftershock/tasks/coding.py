"""The schemas of lines that ask for a program, which is run to judge it."""

from typing import Annotated

from pydantic import Field

from aftershock.tasks.items import Item, Program
from aftershock.tasks.schemas import Line, NonEmpty

PROGRAM_TOKENS = 512
"""Length limit of a program unless the caller sets another."""


class Coding(Line):
    """A programming task with a solution; a program is right if it runs to its end with the tests after it."""

    prompt: NonEmpty
    answer: NonEmpty

    def worked(self, item: Item) -> str:
        """The solution right after the prompt."""
        return item.contexts[0] + self.answer.replace("\r\n", "\n")

    def _item(self, prompt: str, program: Program, stop: tuple[str, ...]) -> Item:
        return Item(
            id=self.id,
            kind="generation",
            group=self.dataset,
            contexts=(prompt,),
            answer=self.answer,
            match="program",
            max_new_tokens=PROGRAM_TOKENS,
            stop=stop,
            program=program,
        )


class FunctionBody(Coding):
    """The head of a function and its docstring, to be completed (HumanEval)."""

    test: NonEmpty
    entry_point: NonEmpty

    def item(self) -> Item:
        """The bare prompt; the text ends where it leaves the function (Chen et al., "Evaluating large language models
        trained on code", 2021)."""
        tests = f"\n{self.test}\ncheck({self.entry_point})\n"
        return self._item(self.prompt, Program(self.prompt, tests), ("\nclass", "\ndef", "\n#", "\nif", "\nprint"))


class WholeProgram(Coding):
    """A description and assertions (MBPP)."""

    tests: Annotated[tuple[NonEmpty, ...], Field(min_length=1)]
    setup: str = ""

    def item(self) -> Item:
        """Description and first test as a docstring, after which the program is written (Fried et al., "InCoder", 2022,
        zero-shot); all tests judge it."""
        return self._item(
            f'"""\n{self.prompt}\n{self.tests[0]}\n"""\n',
            Program("", "\n".join(("", self.setup, *self.tests, ""))),
            ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n#"),
        )
