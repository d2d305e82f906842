"""What became of an item's output: each class is a rule on the golden answer and the faulty one.

Read from the top, the first rule that holds gives the outcome.

non_finite  a NaN or an infinity reached the logits.
masked      the output equals golden's; for lm, the loss moved by at most `LOSS_DELTA`.
benign      the output differs and is still right; for text without a reference, it is undistorted and its
            ROUGE-1 F1 against golden's text is at least 0.5; for lm, the loss fell.
distorted   the text is degenerate by a rule of `distortion`; for lm, the loss rose by more than
            `LOSS_COLLAPSE`.
subtle      anything else: a wrong answer that reads like an answer.

`crash` is the sixth class, of a trial that ended in an exception; whoever ran the trial assigns it.
"""

import re
import unicodedata
from collections import Counter
from typing import Literal, get_args

from aftershock.errors import InputError
from aftershock.tasks.items import Answer, Item
from aftershock.tasks.judge import ROUGE_RIGHT, rouge1, words

Outcome = Literal["masked", "benign", "subtle", "distorted", "non_finite", "crash"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
"""In the order of harm, detected errors last."""

Distortion = Literal[
    "empty", "runaway", "repetition", "broken characters", "foreign script", "symbols", "mangled words"
]
"""The rules by which a text is distorted, in the order they are tried."""

LOSS_DELTA = 0.01
"""Change of the mean loss per token, in nats, that still counts as the same output (1 % of perplexity)."""

LOSS_COLLAPSE = 1.0
"""Rise of the mean loss per token, in nats, beyond which the model is lost (perplexity x 2.7)."""

REPEATED_CHARACTERS = 15
"""Characters that a block, repeated three times or more, must cover to count as repetition."""

FOREIGN_LETTERS = 3
"""Fewest letters of a script of neither the prompt nor golden that count as foreign (`π` alone does not)."""

LONG_WORD = 30
"""Letters of a single word beyond which it is no word of a language."""

_REPEATS = re.compile(rf"(?=((.{{1,200}}?)\2{{2,{REPEATED_CHARACTERS}}}))")
_INNER_CAPITAL = re.compile(r"[^\W\d_A-Z][A-Z]")
_ONE_SCRIPT = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "KATAKANA-HIRAGANA": "CJK"}


def classify(item: Item, golden: Answer, faulty: Answer) -> Outcome:
    """The outcome of one item under one fault. `right` of a wrong golden answer plays no part.

    Raises InputError when golden itself is not finite: there is nothing to compare with.
    """
    if not golden.finite:
        raise InputError(
            f"the fault-free answer to item {item.id!r} holds NaN or infinity: the model overflows in this "
            "dtype, choose a wider one"
        )
    if not faulty.finite:
        return "non_finite"
    if item.kind == "lm":
        return _classify_loss(float(faulty.output) - float(golden.output))
    if (faulty.output, faulty.right) == (golden.output, golden.right):
        return "masked"
    if faulty.right:
        return "benign"
    if item.kind == "generation" and distortion(item, golden, faulty) is not None:
        return "distorted"
    if faulty.right is None and rouge1(faulty.output, golden.output) >= ROUGE_RIGHT:
        return "benign"
    return "subtle"


def is_sdc(outcome: str) -> bool:
    """Whether an outcome is a silent data corruption: wrong, and nothing said so."""
    return outcome in ("subtle", "distorted")


def score_change(item: Item, golden: Answer, faulty: Answer) -> float:
    """Faulty minus golden score; for text without a reference, ROUGE-1 F1 against golden's text minus 1."""
    if item.kind == "generation" and item.answer is None:
        return rouge1(faulty.output, golden.output) - 1.0
    return faulty.score - golden.score


def distortion(item: Item, golden: Answer, faulty: Answer) -> Distortion | None:
    """The rule by which a generated text is degenerate where golden's is not, or None.

    empty              no letter or digit, where golden has some.
    runaway            all `max_new_tokens` tokens, where golden ended within half of them.
    repetition         a block of up to 200 characters three times or more in a row, covering 15 characters.
    broken characters  undecodable, control, private or unassigned characters (a last character cut short by
                       the token limit aside).
    foreign script     three letters, and a fifth of all, from scripts that neither prompt nor golden uses.
    symbols            the share of characters that are no letter or digit exceeds golden's by over a half.
    mangled words      a word of over 30 letters, or two words and a third of all with a capital inside.

    Each rule compares with golden, so that golden never breaks one against itself.
    """
    ours, theirs = faulty.output, golden.output
    if words(theirs) and not words(ours):
        return "empty"
    limit = item.max_new_tokens
    if len(faulty.tokens) >= limit and 2 * len(golden.tokens) <= limit:
        return "runaway"
    if _repetitive(ours) and not _repetitive(theirs):
        return "repetition"
    if _broken(ours) and not _broken(theirs):
        return "broken characters"
    scripts, known = _scripts(ours), _scripts(theirs + "".join(item.contexts))
    foreign = sum(count for script, count in scripts.items() if script not in known)
    if foreign >= FOREIGN_LETTERS and 5 * foreign >= scripts.total():
        return "foreign script"
    if _symbol_share(ours) > _symbol_share(theirs) + 0.5:
        return "symbols"
    if _mangled(ours) and not _mangled(theirs):
        return "mangled words"
    return None


def _classify_loss(rise: float) -> Outcome:
    if abs(rise) <= LOSS_DELTA:
        return "masked"
    if rise < 0:
        return "benign"
    return "distorted" if rise > LOSS_COLLAPSE else "subtle"


def _repetitive(text: str) -> bool:
    """Whether a block occurs at least three times in a row and so covers `REPEATED_CHARACTERS`."""
    # White space counts as one space, and the end as another, so that the last word repeats like the others.
    flat = " ".join(text.casefold().split()) + " "
    return any(len(match.group(1)) >= REPEATED_CHARACTERS for match in _REPEATS.finditer(flat))


def _broken(text: str) -> bool:
    whole = text.rstrip("\ufffd")
    visible = (character for character in whole if not character.isspace())
    return "\ufffd" in whole or any(unicodedata.category(character) in ("Cc", "Co", "Cn") for character in visible)


def _scripts(text: str) -> Counter[str]:
    """Letters per script; the first word of a letter's Unicode name is its script."""
    names = (unicodedata.name(letter, "UNNAMED").split()[0] for letter in text if letter.isalpha())
    return Counter(_ONE_SCRIPT.get(name, name) for name in names)


def _symbol_share(text: str) -> float:
    visible = [character for character in text if not character.isspace()]
    return sum(not character.isalnum() for character in visible) / max(len(visible), 1)


def _mangled(text: str) -> bool:
    found = re.findall(r"[^\W_\u3040-\u30ff\u3400-\u9fff]+", text)
    capitals = sum(_INNER_CAPITAL.search(word) is not None for word in found)
    return any(len(word) > LONG_WORD for word in found) or (capitals >= 2 and 3 * capitals >= len(found))
