"""How the lines of a task file become questions: by likelihood or by letter, with worked examples or without."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from aftershock.errors import InputError
from aftershock.tasks.items import Item
from aftershock.tasks.schemas import Line

Answers = Literal["likelihood", "letter"]


@dataclass(frozen=True)
class Asking:
    """How the questions of a file are put.

    answers      `likelihood`: as the schema's template has it; `letter`: every question with options is asked with
                 lettered ones, and answered by a short generated text whose first letter counts
    shots        worked examples before every question, in its own template; where lines have subjects (MMLU), so many
                 of each subject
    shots_from   the file whose first lines are the examples; None: the last lines of the task's own file, which are no
                 questions then
    unsafe_code  programs may run under limits alone where the machine can't isolate them
    """

    answers: Answers = "likelihood"
    shots: int = 0
    shots_from: str | None = None
    unsafe_code: bool = False

    def __post_init__(self) -> None:
        if self.shots < 0:
            raise InputError(f"shots is {self.shots}: choose 0 or more")
        if self.shots_from is not None and not self.shots:
            raise InputError(f"shots_from names {self.shots_from}, but shots is 0: say how many examples to show")


def ask(name: str, lines: Sequence[Line], others: Sequence[Line] | None, asking: Asking) -> tuple[Item, ...]:
    """The items of a file's lines. `others` are the lines of `shots_from`; `name` is what errors call the task's file.

    Raises InputError where a line can't be asked so, and for examples that are too few, of another schema, or among the
    questions.
    """
    if not asking.shots:
        return tuple(_item(name, line, asking) for line in lines)
    questions = _by_subject(lines)
    if others is None:
        split = {subject: (group[: -asking.shots], group[-asking.shots :]) for subject, group in questions.items()}
        source = name
    else:
        source = str(asking.shots_from)
        _check_strangers(name, lines, source, others)
        known = _by_subject(others)
        split = {subject: (group, known.get(subject, [])[: asking.shots]) for subject, group in questions.items()}
    asked: dict[str, Item] = {}
    for subject, (group, examples) in split.items():
        if not group or len(examples) < asking.shots:
            about = f" about {subject}" if subject else ""
            raise InputError(
                f"shots = {asking.shots}, but {source} has too few lines{about} to show so many"
                f"{' and ask one' if others is None else ''}: choose fewer, or another file with shots_from"
            )
        shown = "".join(_worked(source, line, asking) for line in examples)
        asked |= {line.id: _after(shown, line, _item(name, line, asking)) for line in group}
    return tuple(asked[line.id] for line in lines if line.id in asked)


def _by_subject(lines: Sequence[Line]) -> dict[str, list[Line]]:
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(line.subject_of_examples, []).append(line)
    return groups


def _check_strangers(name: str, lines: Sequence[Line], source: str, others: Sequence[Line]) -> None:
    if type(others[0]) is not type(lines[0]):
        raise InputError(f"{source} has other keys than {name}: take shots_from a file of the same kind")
    ours = {line.model_dump_json() for line in lines}
    both = next((line.id for line in others if line.model_dump_json() in ours), None)
    if both is not None:
        raise InputError(
            f"{source} and {name} both hold {both!r}, whose answer would be shown: take shots_from another file, or "
            "leave it out to show the last lines and not ask them"
        )


def _item(name: str, line: Line, asking: Asking) -> Item:
    try:
        return line.lettered() if asking.answers == "letter" else line.item()
    except ValueError as error:
        key = 'answers = "letter"' if asking.answers == "letter" else "the task"
        raise InputError(f"{key} does not fit {line.id!r} of {name}: {error}") from None


def _worked(name: str, line: Line, asking: Asking) -> str:
    """A line as an example: the question with its answer, and what separates it from the next."""
    item = _item(name, line, asking)
    try:
        text = line.worked(item)
    except ValueError as error:
        raise InputError(f"shots does not fit {line.id!r} of {name}: {error}") from None
    return f"{text.removeprefix(line.preamble).rstrip()}\n\n"


def _after(shown: str, line: Line, item: Item) -> Item:
    """The item with examples before its question, after what is said once."""
    contexts = (line.preamble + shown + context.removeprefix(line.preamble) for context in item.contexts)
    return replace(item, contexts=tuple(contexts))
