"""The rules of docs/outcomes.md and docs/tasks.md, written a second time.

Nothing of aftershock is imported: this is the other side of `benchmarks.independent_check`. Where the pages leave an
edge open (which characters are Latin letters, say), it was settled by what `aftershock` answers, never by its code.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Item = dict[str, Any]
"""One line of a task file in the full schema."""

OUTCOMES = ("masked", "benign", "subtle", "distorted", "non_finite")
SDC = ("subtle", "distorted")

HAN_AND_KANA = r"\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
"""Characters of languages written without spaces, as the inside of a regular expression's class."""


@dataclass(frozen=True)
class Answer:
    """What a model made of an item.

    `output` is the number of the chosen option or the text, `tokens` how many were written. `finite` is whether
    every logit the answer was read from is. `margin` is the smallest gap that decided: nats between the two
    likeliest options, or the logits between the two likeliest tokens.
    """

    output: str
    tokens: int
    finite: bool
    margin: float


def is_right(item: Item, answer: Answer) -> bool | None:
    """The task's verdict; None for a text without a reference."""
    text = answer.output
    if item["kind"] == "choice":
        return text == str(item["answer"])
    if item["kind"] == "cloze":
        return text == str(item["continuations"][0])
    if item["answer"] is None:
        return None
    if item["match"] == "contains":
        return re.search(rf"(?<!\w){re.escape(item['answer'].lower())}(?!\w)", text.lower()) is not None
    if item["match"] == "numeric":
        numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
        return bool(numbers) and float(numbers[-1].replace(",", "")) == float(item["answer"])
    raise SystemExit(f"item {item['id']} is matched by {item['match']}, which this check does not know")


def outcome(item: Item, golden: Answer, faulty: Answer) -> str:
    """The first rule that holds, read from the top of the table."""
    if not faulty.finite:
        return "non_finite"
    if faulty.output == golden.output:
        return "masked"
    distorted = item["kind"] == "generation" and any(distortions(item, golden, faulty))
    right = is_right(item, faulty)
    if right or (right is None and not distorted and rouge1(faulty.output, golden.output) >= 0.5):
        return "benign"
    return "distorted" if distorted else "subtle"


def rouge1(text: str, reference: str) -> float:
    """F1 of the words that two texts share, counted with multiplicity (Lin 2004).

    A word is a run of letters and digits, or one character of Han or kana. Two texts without words are equal.
    """
    ours, theirs = (
        Counter(re.findall(rf"[{HAN_AND_KANA}]|[^\W_{HAN_AND_KANA}]+", one.lower())) for one in (text, reference)
    )
    if not ours and not theirs:
        return 1.0
    shared = (ours & theirs).total()
    return 2 * shared / (ours.total() + theirs.total()) if shared else 0.0


def distortions(item: Item, golden: Answer, faulty: Answer) -> Iterator[bool]:
    """Whether each rule of the table of distorted text holds, in its order."""
    before, after = (" ".join(answer.output.split()) for answer in (golden, faulty))
    limit = item["max_new_tokens"]

    yield letters_and_digits(before) > 0 and letters_and_digits(after) == 0
    yield faulty.tokens >= limit and golden.tokens <= limit / 2
    yield repeats(after.lower()) and not repeats(before.lower())
    yield broken(after) and not broken(before)
    yield foreign(after, item["contexts"][0] + before)
    yield symbols(after) - symbols(before) > 0.5
    yield mangled(after) and not mangled(before)


def letters_and_digits(text: str) -> int:
    """How many characters are letters or digits."""
    return sum(map(str.isalnum, text))


def repeats(text: str) -> bool:
    """A block of up to 200 characters three times or more in a row, 15 characters or more in all.

    The end of the text counts as a space, so that the last of some repeated words is one of them.
    """
    text += " "
    return any(
        re.search(rf"(.{{{size}}})\1{{{max(3, -(-15 // size)) - 1},}}", text)
        for size in range(1, min(200, len(text) // 3) + 1)
    )


def broken(text: str) -> bool:
    """Undecodable, control, private or unassigned characters; the last one may be a character cut short."""
    text = text.removesuffix("\ufffd")
    return any(one == "\ufffd" or unicodedata.category(one) in ("Cc", "Co", "Cn") for one in text)


def foreign(text: str, known: str) -> bool:
    """Three letters or more, and a fifth of all, from scripts that `known` does not use."""
    familiar = {script(one) for one in known if one.isalpha()}
    letters = [one for one in text if one.isalpha()]
    strange = sum(script(one) not in familiar for one in letters)
    return strange >= 3 and strange >= len(letters) / 5


def script(letter: str) -> str:
    """The script of a letter, which its Unicode name begins with; Han and kana are one."""
    name = re.split("[ -]", unicodedata.name(letter, "UNKNOWN"))[0]
    return "HAN AND KANA" if name in ("CJK", "HIRAGANA", "KATAKANA") else name


def symbols(text: str) -> float:
    """Share of the characters, white space aside, that are no letter or digit."""
    visible = text.replace(" ", "")
    return 1 - letters_and_digits(visible) / len(visible) if visible else 0.0


def mangled(text: str) -> bool:
    """A Latin word of more than 30 letters and digits, or two words and a third of all with a capital inside."""
    words = re.findall(r"[0-9A-Za-z\u00aa-\u024f]+", text)
    capital_inside = sum(re.search(r"[a-z\u00aa-\u024f][A-Z]", word) is not None for word in words)
    return any(len(word) > 30 for word in words) or (capital_inside >= 2 and capital_inside >= len(words) / 3)
