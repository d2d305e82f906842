"""One document of lm-evaluation-harness: tokenised and scored as the harness does it. Needs the extra `lm-eval`."""

import re
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from math import fsum
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix, postprocess_generated_text, resolve_max_length
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from aftershock.errors import InputError
from aftershock.tasks.items import Answer, Item, Row, RowResult, Tokenizer
from aftershock.tasks.judge import chosen, log_likelihood, rouge1, until_stop

_ZERO_OR_ONE = re.compile(r"(.+_)?(acc|accuracy|exact_match|em)(_.+)?|pass@1")
"""Names of metrics that are 0 or 1 of one document, though the harness gives them as floats."""


@dataclass(frozen=True)
class Metric:
    """What a task makes of a document's answer; `right` is None for a metric that is no matter of right or wrong."""

    name: str
    value: float
    right: bool | None


@dataclass(frozen=True, eq=False)
class Document:
    """The rules of one document. `requests` are the harness's instances of it, in order; `digest` covers document, task
    and the harness's version."""

    name: str
    task: Any = field(repr=False)
    requests: tuple[Any, ...] = field(repr=False)
    digest: str

    def rows(self, item: Item, tokenizer: Tokenizer) -> tuple[Row, ...]:
        """Token rows as the harness's own class for transformers models makes them: an option each, one of a text to be
        continued, or a rolling window each. What exceeds the tokenizer's `model_max_length` is cut off on the left.

        Raises InputError for a continuation without tokens.
        """
        return self._rows(item, tokenizer)

    @cached_property
    def _rows(self) -> Callable[..., tuple[Row, ...]]:
        """Every answer needs the rows, and tokenising takes longer than all the rest."""
        return lru_cache(maxsize=1)(self._tokenised)

    def _tokenised(self, item: Item, tokenizer: Tokenizer) -> tuple[Row, ...]:
        found = getattr(_Encoder(tokenizer), self.requests[0].request_type)(self.requests)
        if not found or (item.kind != "generation" and not all(continuation for _, continuation in found)):
            raise InputError(f"document {self.name} has a continuation without tokens: give each continuation a text")
        most = resolve_max_length(None, tokenizer, default=sys.maxsize)
        rows = []
        for context, continuation in found:
            # The last token of a continuation is never fed.
            room = most - (item.max_new_tokens or len(continuation) - 1)
            if room < 1:
                raise InputError(
                    f"document {self.name} leaves no room for a context in the tokenizer's {most} tokens: "
                    "ask for shorter answers"
                )
            rows.append(Row(tuple(context[-room:]), tuple(continuation)))
        return tuple(rows)

    def answer(self, item: Item, results: tuple[RowResult, ...], tokenizer: Tokenizer) -> Answer:
        """The answer, right when the task's metric says so (`metric`); where that leaves it open, as without rules.

        choice      the option of the largest log-likelihood, per character or byte where the metric counts so; with
                    several right options the score is the metric.
        cloze, lm   as without rules; an lm's loss is the mean over its windows' tokens.
        generation  the text as the harness cuts it; the score is the metric, ROUGE-1 where there is none.

        Raises InputError when the task's own code fails on an answer.
        """
        tokens = tuple(token for result in results for token in result.tokens)
        finite = all(result.finite for result in results)
        if item.kind == "generation":
            tokens, text = _text(item, tokens, tokenizer)
            metric = self.metric([text])
            score = rouge1(text, str(item.answer)) if metric is None else metric.value
            right = None if metric is None else metric.right
            return Answer(text, right, score, tokens, finite)
        totals = [log_likelihood(result) for result in results]
        mean = fsum(totals) / sum(len(result.logprobs) for result in results)
        if item.kind == "lm":
            return Answer(repr(-mean), None, mean, tokens, finite)
        rows = self.rows(item, tokenizer)
        greedy = [result.tokens == row.continuation for result, row in zip(results, rows, strict=True)]
        metric = self.metric(list(zip(totals, greedy, strict=True)))
        decided = None if metric is None else metric.right
        if item.kind == "cloze":
            right = greedy[0] if decided is None else decided
            return Answer(tokenizer.decode(tokens, skip_special_tokens=False), right, mean, tokens, finite)
        lengths = self._lengths(metric, len(totals))
        values = [total / length for total, length in zip(totals, lengths, strict=True)]
        if not isinstance(item.answer, int):
            score = 0.0 if metric is None else metric.value
            return Answer(str(chosen(values, None)[0]), decided, score, tokens, finite)
        option, margin = chosen(values, item.answer)
        return Answer(str(option), option == item.answer if decided is None else decided, margin, tokens, finite)

    def metric(self, responses: Sequence[Any]) -> Metric | None:
        """What the task's first filter and its own scoring make of one response a request: (log-likelihood, whether
        greedy) pairs, or a text.

        Of the metrics that are single numbers, in the order of the task's metric_list, the first that is 0 or 1 (a
        bool, an integer, or by its name: acc, exact_match, em, ...); where there is none the first, which leaves right
        and wrong open. None where there is no single number.
        """
        chain = self.task._filters[0]
        answered = [
            replace(request, doc=deepcopy(request.doc), resps=[response] * request.repeats, filtered_resps={})
            for request, response in zip(self.requests, responses, strict=True)
        ]
        try:
            chain.apply(answered)
            # Likelihoods of a model that overflowed are infinite.
            with np.errstate(invalid="ignore"):
                values = self.task.process_results(
                    answered[0].doc, [one.filtered_resps[chain.name] for one in answered]
                )
        except Exception as error:
            raise InputError(
                f"the scoring of document {self.name} fails on the answer {responses!r:.200} ({type(error).__name__}: "
                f"{error}): mend the task's process_results or filters"
            ) from error
        names = dict.fromkeys([*(name for name in self.task.aggregation() if name in values), *values])
        numbers = {name: values[name] for name in names if isinstance(values[name], (int, float, np.number, np.bool_))}
        for name, value in numbers.items():
            if isinstance(value, (int, np.integer, np.bool_)) or _ZERO_OR_ONE.fullmatch(name):
                return Metric(name, float(value), bool(value == 1))
        return next((Metric(name, float(value), None) for name, value in numbers.items()), None)

    def _lengths(self, metric: Metric | None, options: int) -> list[int]:
        """What each option's log-likelihood is divided by before they are compared."""
        match metric:
            case Metric(name="acc_norm"):
                return [len(choice) for choice in self.task.doc_to_choice(self.requests[0].doc)]
            case Metric(name="acc_bytes"):
                return [len(choice.encode()) for choice in self.task.doc_to_choice(self.requests[0].doc)]
        return [1] * options


class _Encoder(TemplateLM):
    """The harness's class for transformers models as far as it tokenises: what it answers to a request are the token
    ids of context and continuation, pairs of lists, one a window where it rolls."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        if add_special_tokens is None:
            start = self.tokenizer.decode([self.prefix_token_id], skip_special_tokens=False)
            add_special_tokens = not has_bos_prefix(string, start)
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> Any:
        return [(context, continuation) for _, context, continuation in requests]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
        longest = resolve_max_length(None, self.tokenizer, default=sys.maxsize)
        return [
            make_disjoint_window(window)
            for request in requests
            for window in get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, longest, context_len=1
            )
        ]

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
        return [(self.tok_encode(request.args[0]) or [self.prefix_token_id], []) for request in requests]


def _text(item: Item, tokens: tuple[int, ...], tokenizer: Tokenizer) -> tuple[tuple[int, ...], str]:
    """Generated tokens up to the first stop string or end of text, and their text as the harness hands it to filters:
    without special tokens and without the stop string."""
    ending = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    end = tokenizer.decode(ending, skip_special_tokens=False)
    stop = tuple(handle_stop_sequences(list(item.stop), eos=end or None))
    tokens = until_stop(replace(item, stop=stop), tokens, tokenizer)
    return tokens, str(postprocess_generated_text(tokenizer.decode(tokens, skip_special_tokens=True), list(stop), None))
