"""Run a model pass by pass over a block of rows: teacher-forced, greedy, or on from the middle of an answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from aftershock.errors import InputError
from aftershock.models.blocks import BeforePass, Block, Pass, cut
from aftershock.models.columns import ColumnCache, States
from aftershock.models.loading import LoadedModel
from aftershock.models.stages import decode


def teacher_forced(
    model: LoadedModel, block: Block, boundaries: frozenset[int], before_pass: BeforePass
) -> torch.Tensor:
    """Logits that predict every answer token, the block's own tokens being fed.

    Returns shape (rows, 1 + longest answer fed, vocabulary) in the model's dtype; entry [r, j] predicts answer
    token j of row r. The run is cut before each of `boundaries`.
    """
    cache = ColumnCache.of_block(model.layer_devices, block.tokens.shape[1])
    logits = [forced_call(model, call, cache, before_pass) for call in cut(block, boundaries)]
    return torch.cat(logits, dim=1)


@torch.inference_mode()
def forced_call(model: LoadedModel, call: Pass, cache: ColumnCache, before_pass: BeforePass) -> torch.Tensor:
    """One call of a teacher-forced run: logits of its last `call.kept` columns, shape (rows, kept, vocabulary).

    `cache` holds the columns before the call's, whose keys and values are added. Rows that share a context have its
    keys, values and logits from the row that owns it. What the logits of a row without a token in the call are, is
    not defined.
    """
    block, start, stop = call.block, call.start, call.stop
    before_pass(call)
    cache.seek(call)
    rows = slice(None) if call.whole else call.running
    output = model.module(
        input_ids=block.tokens[rows, start:stop],
        attention_mask=block.mask[rows, :stop],
        position_ids=block.positions[rows, start:stop],
        past_key_values=cache,
        use_cache=True,
        # Some logits there must be: the one column of a pure prefill call is dropped below.
        logits_to_keep=_last_columns(max(call.kept, 1), stop - start, block.tokens.device),
    )
    logits: torch.Tensor = output.logits
    return call.predicting(logits)


def _last_columns(kept: int, columns: int, device: torch.device) -> torch.Tensor:
    """Indices of the columns that lm_head sees. A number of columns would mean the same, but gives lm_head a strided
    view, for which torch copies its whole weight once a row (2.3 s instead of 0.1 s for 16 rows in bf16 on a CPU)."""
    return torch.arange(columns - kept, columns, device=device)


@dataclass(frozen=True)
class Prefix:
    """A row in the middle of its answer, able to go on in other company.

    `states` are those of every token fed so far, without the dimension of rows: (layers, 2, heads, tokens, channels).
    `written` is the answer so far; its last token is the one to feed next. `limit` and `stop` end the answer.
    """

    states: States
    written: tuple[int, ...]
    limit: int
    stop: tuple[str, ...]

    @property
    def fed(self) -> int:
        """Number of tokens fed so far, context included."""
        return int(self.states[0].shape[3])

    @property
    def remaining(self) -> int:
        """The most tokens that may follow."""
        return self.limit - len(self.written)

    @property
    def nbytes(self) -> int:
        """Memory of the keys and values, in bytes."""
        return sum(states.nbytes for states in self.states)


@dataclass(frozen=True)
class Generated:
    """Greedy answers.

    `tokens[r]` is the text of row r, `ends[r]` the end-of-sequence token after it (None where a limit or a stop string
    ended it). `finite[r]` is False when a NaN or an infinity reached the logits of row r before its answer ended.
    `margins[r]` holds, for every token chosen (`ends[r]` included), its logit minus the best other one, in fp32.
    """

    tokens: tuple[tuple[int, ...], ...]
    ends: tuple[int | None, ...]
    finite: tuple[bool, ...]
    margins: tuple[tuple[float, ...], ...]

    @property
    def texts(self) -> tuple[tuple[int, ...], ...]:
        """Each answer with the token that ended it."""
        return tuple(
            tokens if end is None else (*tokens, end) for tokens, end in zip(self.tokens, self.ends, strict=True)
        )


class _Answers:
    """Greedy answers while they are being written; `active`, bool of shape (rows,), tells which are not over yet."""

    def __init__(
        self,
        model: LoadedModel,
        written: Sequence[Sequence[int]],
        limits: Sequence[int],
        stops: Sequence[tuple[str, ...]],
    ) -> None:
        self._model, self._stops, self._written = model, stops, written
        self._end_tokens = torch.tensor(sorted(end_tokens(model)), dtype=torch.int64)
        self._left = torch.tensor([limit - len(tokens) for limit, tokens in zip(limits, written, strict=True)])
        self._stopping = [row for row, stop in enumerate(stops) if stop]
        self._choices: list[Choices] = []
        self._took_part: list[torch.Tensor] = []
        self.active = torch.ones(len(written), dtype=torch.bool)

    def take(self, logits: torch.Tensor) -> torch.Tensor:
        """Choose the next token of every row from logits (rows, vocabulary); returns them, shape (rows,)."""
        choices = choose(logits, logits.argmax(-1))
        self._choices.append(choices)
        self._took_part.append(self.active)
        ended = torch.isin(choices.tokens, self._end_tokens)
        self._left = self._left - (self.active & ~ended).long()
        going = self.active & ~ended & (self._left > 0)
        for row in self._stopping:
            if going[row]:
                tokens = [*self._written[row], *(int(one.tokens[row]) for one in self._choices)]
                text = self._model.tokenizer.decode(tokens)
                going[row] = not any(one in text for one in self._stops[row])
        self.active = going
        return choices.tokens.to(logits.device)

    def done(self) -> Generated:
        """All answers."""
        took_part = torch.stack(self._took_part, dim=1)
        finite = torch.stack([choices.finite for choices in self._choices], dim=1) | ~took_part
        steps = took_part.sum(1).tolist()
        tokens = torch.stack([choices.tokens for choices in self._choices], dim=1).tolist()
        margins = torch.stack([choices.margins for choices in self._choices], dim=1).tolist()
        ends = set(self._end_tokens.tolist())
        texts: list[tuple[int, ...]] = []
        last: list[int | None] = []
        for row, count in enumerate(steps):
            own = tokens[row][:count]
            last.append(own.pop() if own and own[-1] in ends else None)
            texts.append((*self._written[row], *own))
        return Generated(
            tuple(texts),
            tuple(last),
            tuple(finite.all(1).tolist()),
            tuple(tuple(row[:count]) for row, count in zip(margins, steps, strict=True)),
        )


@dataclass(frozen=True)
class Choices:
    """Greedy choices from logits of shape (..., vocabulary); every field is a CPU tensor of shape (...).

    `tokens`: the lowest of the best; NaN is above everything. `finite`: whether all logits are. `best`: the logit of
    the choice, `margins`: what the runner-up lacks to it, both in fp32.
    """

    tokens: torch.Tensor
    finite: torch.Tensor
    best: torch.Tensor
    margins: torch.Tensor


def choose(logits: torch.Tensor, likely: torch.Tensor) -> Choices:
    """The greedy choice at every place.

    `likely`, shape (...), int64, on the logits' device: tokens that are probably chosen; the nearer the truth, the
    faster. The logits are changed meanwhile, and left as they were.
    """
    flat, tokens = logits.flatten(0, -2), likely.flatten().clone()
    best, finite = flat.amax(-1), torch.isfinite(flat.amin(-1))
    own, others = _apart(flat, tokens)
    margins = own.float() - others.float()
    unlikely = (~(margins > 0)).nonzero()[:, 0]
    if len(unlikely):
        rows = flat[unlikely]
        tokens[unlikely] = rows.argmax(-1)
        margins[unlikely] = best[unlikely].float() - _apart(rows, tokens[unlikely])[1].float()
    fields = (tokens, finite & torch.isfinite(best), best.float(), margins)
    return Choices(*(field.view(likely.shape).cpu() for field in fields))


def _apart(logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of one token a row, and the best of the others; `logits`, shape (rows, vocabulary)."""
    rows = torch.arange(len(tokens), device=tokens.device)
    own = logits[rows, tokens]
    logits[rows, tokens] = -torch.inf
    others = logits.amax(-1)
    logits[rows, tokens] = own
    return own, others


@torch.inference_mode()
def generate(
    model: LoadedModel,
    block: Block,
    limits: Sequence[int],
    stops: Sequence[tuple[str, ...]],
    boundaries: frozenset[int],
    before_pass: BeforePass,
) -> Generated:
    """Greedy decoding with a key-value cache, one token a pass, as `transformers.generate` does it.

    `limits[r]` is the most tokens row r may write and `stops[r]` the strings that end it. The prompt is one
    forward call, cut before each of `boundaries`.
    """
    cache = DynamicCache(config=model.module.config)
    mask, positions = block.mask, block.positions
    lengths = [length + limit - 1 for length, limit in zip(block.context_lengths, limits, strict=True)]
    last = torch.tensor(lengths, device=model.device)[:, None]
    answers = _Answers(model, [()] * block.rows, limits, stops)
    every = tuple(range(block.rows))

    def run(inputs: torch.Tensor, call: Pass) -> torch.Tensor:
        before_pass(call)
        seen, fed = slice(call.stop), slice(call.start, call.stop)
        return _next_logits(model, inputs, mask[:, seen], positions[:, fed], cache)

    for call in cut(block, boundaries):
        logits = run(block.tokens[:, call.start : call.stop], call)
    for number in range(decode(1), decode(1) + max(limits)):
        chosen = answers.take(logits)
        if not answers.active.any():
            break
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        # An answer that has ended stays where it is: past its limit there may be no position.
        positions = torch.cat([positions, torch.minimum(positions[:, -1:] + 1, last)], dim=1)
        stop = mask.shape[1]
        active = tuple(answers.active.tolist())
        logits = run(chosen[:, None], Pass(block, number, number, stop - 1, stop, 1, active, every))
    return answers.done()


@torch.inference_mode()
def continue_greedy(model: LoadedModel, prefixes: Sequence[Prefix], rows: int, columns: int) -> Generated:
    """Write each row's answer to its end, all rows together, one token a pass.

    The shapes depend on `rows` (the last prefix fills up missing ones) and `columns` (the last so many are seen, masked
    where there are fewer) alone, so a row's result is the same bits in any company of as many rows.
    Raises InputError where more rows, or longer ones, are given than that.
    """
    if len(prefixes) > rows or any(prefix.fed + prefix.remaining > columns for prefix in prefixes):
        raise InputError(f"{len(prefixes)} rows don't fit {rows} rows of {columns} columns: give larger ones")
    filled = [*prefixes, *[prefixes[-1]] * (rows - len(prefixes))]
    fed = torch.tensor([prefix.fed for prefix in filled], device=model.device)
    last = fed + torch.tensor([prefix.remaining - 1 for prefix in filled], device=model.device)
    places = torch.arange(columns, device=model.device)
    cache = ColumnCache.of_prefixes(model.layer_devices, [prefix.states for prefix in filled], columns)
    answers = _Answers(
        model,
        [prefix.written for prefix in prefixes],
        [prefix.limit for prefix in prefixes],
        [prefix.stop for prefix in prefixes],
    )
    chosen = torch.tensor([prefix.written[-1] for prefix in filled], device=model.device)
    while bool(answers.active.any()):
        mask = (places >= columns - 1 - fed[:, None]).long()
        logits = _next_logits(model, chosen[:, None], mask, fed[:, None], cache)
        cache.step()
        chosen = torch.cat([answers.take(logits[: len(prefixes)]), chosen[len(prefixes) :]])
        # An answer that has ended stays where it is: past its limit there may be no position.
        fed = torch.minimum(fed + 1, last)
    return answers.done()


def _next_logits(
    model: LoadedModel, inputs: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: DynamicCache
) -> torch.Tensor:
    """Logits after the last column of `inputs`, shape (rows, vocabulary)."""
    output = model.module(
        input_ids=inputs,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=_last_columns(1, inputs.shape[1], inputs.device),
    )
    logits: torch.Tensor = output.logits[:, -1]
    return logits


def end_tokens(model: LoadedModel) -> frozenset[int]:
    """Token ids that end a text, as `transformers.generate` takes them from the generation configuration."""
    configuration: Any = model.module.generation_config
    ends = configuration.eos_token_id
    if ends is None:
        return frozenset()
    return frozenset([ends] if isinstance(ends, int) else ends)


def has_ended(model: LoadedModel, tokens: Sequence[int], limit: int, stop: tuple[str, ...]) -> bool:
    """Whether an answer is over after `tokens`: its limit is reached, or a stop string is in its text."""
    if len(tokens) >= limit:
        return True
    if not stop:
        return False
    text = model.tokenizer.decode(tokens)
    return any(one in text for one in stop)
