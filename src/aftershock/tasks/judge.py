"""From what the model did to an item's answer."""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from math import exp, fsum, inf, isnan

from aftershock.errors import ContractError
from aftershock.tasks.encode import encode
from aftershock.tasks.items import Answer, Item, RowResult, Tokenizer
from aftershock.tasks.programs import passes

ROUGE_RIGHT = 0.5
"""ROUGE-1 F1 from which a text counts as saying the same."""

_NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
_BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
_LETTER = re.compile(r"\b[A-Z]\b")


def judge(item: Item, results: tuple[RowResult, ...], tokenizer: Tokenizer) -> Answer:
    """The answer that the rows of one item give. `results` are in the order of `encode`'s rows.

    choice      the option of the largest sum of log-probabilities (divided by the characters of the
                continuation when the item is length-normalised); the lowest index wins a tie.
    cloze       right when every continuation token is the greedy one; the output is the greedy tokens' text.
    generation  the text up to the first stop string, without outer white space (a program keeps the one it begins
                with), compared as `matches` says.
    lm          the mean negative log-probability per token, in nats, printed so that it reads back equal.

    An item with rules of its own is judged by them.

    `Answer.tokens` are the greedy tokens of all rows in order, or the generated tokens up to and including
    the one that completes a stop string. A NaN log-probability counts as minus infinity.

    Raises ContractError when the number of results is not the number of the item's rows.
    """
    if item.rules is not None:
        return item.rules.answer(item, results, tokenizer)
    if len(results) != len(item.contexts):
        raise ContractError(f"item {item.id!r} has {len(item.contexts)} rows but {len(results)} results")
    if item.kind == "generation":
        return _generation(item, results[0], tokenizer)
    totals = tuple(map(log_likelihood, results))
    tokens = tuple(token for result in results for token in result.tokens)
    finite = all(result.finite for result in results)
    if item.kind == "choice":
        return _choice(item, totals, tokens, finite)
    score = totals[0] / len(results[0].logprobs)
    if item.kind == "lm":
        return Answer(repr(-score), None, score, tokens, finite)
    (row,) = encode(item, tokenizer)
    return Answer(
        tokenizer.decode(tokens, skip_special_tokens=False), tokens == row.continuation, score, tokens, finite
    )


def matches(item: Item, text: str) -> tuple[bool | None, float]:
    """Whether a generated text gives the item's reference answer, and its score in [0, 1].

    exact     equal but for case, white space and outer punctuation; a text with a LaTeX `\\boxed{...}` is
              judged by the last one.
    numeric   the last number of the text equals the reference's last number (`70,000` is 70000).
    letter    the first capital letter that stands alone is the reference.
    contains  the reference occurs as whole words, in any case.
    rouge1    ROUGE-1 F1 of at least 0.5.
    program   the item's program with the text in it runs to its end (`programs.passes`).

    (None, 0.0) when the item has no reference.
    """
    if item.program is not None:
        right = passes(item.program.before + text + item.program.after, item.program.unsafe)
        return right, float(right)
    if item.answer is None:
        return None, 0.0
    reference = str(item.answer)
    if item.match == "rouge1":
        score = rouge1(text, reference)
        return score >= ROUGE_RIGHT, score
    if item.match == "exact":
        right = _plain((_BOXED.findall(text) or [text])[-1]) == _plain(reference)
    elif item.match == "numeric":
        right = _number(text) is not None and _number(text) == _number(reference)
    elif item.match == "letter":
        letter = _LETTER.search(text)
        right = letter is not None and letter.group() == reference
    else:
        right = re.search(rf"(?<!\w){re.escape(reference)}(?!\w)", text, re.IGNORECASE) is not None
    return right, float(right)


def perplexity(results: tuple[RowResult, ...]) -> float:
    """exp(total negative log-probability / total tokens) over rows of a text."""
    return exp(-fsum(map(log_likelihood, results)) / sum(len(result.logprobs) for result in results))


def rouge1(text: str, reference: str) -> float:
    """ROUGE-1 as F1 of unigrams (Lin, "ROUGE: a package for automatic evaluation of summaries", 2004).

    Words are runs of letters and digits, lowercase. 1.0 when neither text has a word, 0.0 when one has none.
    """
    ours, theirs = Counter(words(text)), Counter(words(reference))
    if not ours and not theirs:
        return 1.0
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())


def words(text: str) -> list[str]:
    """The words of a text: runs of letters and digits, lowercase; each Chinese or Japanese sign is one."""
    return re.findall(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+", text.lower())


def log_likelihood(result: RowResult) -> float:
    """Natural-log probability of a row's continuation; minus infinity where NaN or an infinity reached the logits."""
    total = fsum(result.logprobs) if result.finite else -inf
    return -inf if isnan(total) else total


def chosen(values: Sequence[float], right: int | None) -> tuple[int, float]:
    """The option of the largest value, the lowest index on a tie, and how far the right one lies above the best wrong
    one (0 where it is not known which is right)."""
    best_wrong = max(value for index, value in enumerate(values) if index != right)
    right_value = best_wrong if right is None else values[right]
    # Two options at minus infinity have no difference; the right one is then as bad as can be.
    return values.index(max(values)), right_value - best_wrong if right_value > -inf else -inf


def until_stop(item: Item, tokens: tuple[int, ...], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Generated tokens up to and including the one that completes a stop string."""

    def stopped(length: int) -> bool:
        text = tokenizer.decode(tokens[:length], skip_special_tokens=False)
        return any(stop in text for stop in item.stop)

    if item.stop and stopped(len(tokens)):
        return tokens[: bisect_left(range(len(tokens)), True, key=stopped)]
    return tokens


def _choice(item: Item, totals: tuple[float, ...], tokens: tuple[int, ...], finite: bool) -> Answer:
    lengths = [len(text) if item.length_normalised else 1 for text in item.continuations]
    values = [total / length for total, length in zip(totals, lengths, strict=True)]
    right = item.answer if isinstance(item.answer, int) else None
    choice, score = chosen(values, right)
    return Answer(str(choice), None if item.answer is None else choice == item.answer, score, tokens, finite)


def _generation(item: Item, result: RowResult, tokenizer: Tokenizer) -> Answer:
    tokens = until_stop(item, result.tokens, tokenizer)
    text = tokenizer.decode(tokens, skip_special_tokens=False)
    ends = [text.find(stop) for stop in item.stop if stop in text]
    text = text[: min(ends, default=len(text))]
    # White space before a program's first line is part of it.
    text = text.strip() if item.program is None else text.rstrip()
    right, score = matches(item, text)
    return Answer(text, right, score, tokens, result.finite)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .,;:!?\"'$")


def _number(text: str) -> Decimal | None:
    numbers = _NUMBER.findall(text)
    return Decimal(numbers[-1].replace(",", "")) if numbers else None
