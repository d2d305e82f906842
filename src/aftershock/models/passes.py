"""Run a model pass by pass over rows aligned by stage.

A block holds rows padded so that every stage is the same range of columns in each of them: contexts end at
the same column (padded on the left), answers begin after it (padded on the right). Cutting a run between two
stages is then a cut between two columns.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from aftershock.models.loading import LoadedModel
from aftershock.models.stages import FIRST_TOKEN, decode


@dataclass(frozen=True)
class Block:
    """Token rows of one fixed shape.

    `tokens` and `mask` have shape (rows, columns), int64; `mask` is 1 on real tokens. Contexts fill columns
    [context_width - context_lengths[r], context_width) of row r and its answer the columns after.
    """

    tokens: torch.Tensor
    mask: torch.Tensor
    context_width: int
    context_lengths: tuple[int, ...]
    answer_lengths: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Number of rows, padding rows included."""
        return int(self.tokens.shape[0])

    @property
    def last_pass(self) -> int:
        """Number of the last pass that the block's columns hold."""
        return decode(int(self.tokens.shape[1]) - self.context_width)

    @property
    def positions(self) -> torch.Tensor:
        """Position ids, shape (rows, columns): 0 at each row's first real token."""
        return (self.mask.cumsum(-1) - 1).clamp(min=0)

    def start(self, number: int) -> int:
        """First column of a pass."""
        return 0 if number < FIRST_TOKEN else self.context_width - 2 + number

    def holds(self, row: int, columns: range) -> bool:
        """Whether a row has a token in any of the columns; those past the block's own are generated ones."""
        if columns.stop > self.tokens.shape[1]:
            return True
        begin = self.context_width - self.context_lengths[row]
        end = self.context_width + self.answer_lengths[row]
        return max(begin, columns.start) < min(end, columns.stop)


@dataclass(frozen=True)
class Pass:
    """One forward call: passes `first` to `last` (inclusive) at once, columns [start, stop) of `block`.

    The last `kept` columns are the ones whose logits are computed. `active[r]` is False where row r's answer
    had ended before.
    """

    block: Block
    first: int
    last: int
    start: int
    stop: int
    kept: int
    active: tuple[bool, ...]

    def takes_part(self, row: int) -> bool:
        """Whether a token of row r's unfinished answer, or of its context, is fed in this call."""
        return self.active[row] and self.block.holds(row, range(self.start, self.stop))


BeforePass = Callable[[Pass], None]
"""Called before each forward call, so that faults can be armed or taken back between passes."""


def align(
    contexts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    device: torch.device,
) -> Block:
    """A block of contexts and the answer tokens that are fed after them (empty ones to generate).

    Padding is masked, so any token will do: a row is padded with its own first and last token. A fault in the
    embedding of a token then never reaches rows that don't hold it (NaN x 0 is NaN, also in a masked column).
    """
    width = max(map(len, contexts))
    columns = width + max(map(len, answers))
    rows = [(*context, *answer) for context, answer in zip(contexts, answers, strict=True)]
    before = [width - len(context) for context in contexts]
    after = [columns - begin - len(row) for begin, row in zip(before, rows, strict=True)]
    tokens = torch.tensor(
        [(row[0],) * left + row + (row[-1],) * right for left, row, right in zip(before, rows, after, strict=True)]
    )
    mask = torch.tensor(
        [(0,) * left + (1,) * len(row) + (0,) * right for left, row, right in zip(before, rows, after, strict=True)]
    )
    return Block(
        tokens.to(device),
        mask.to(device),
        width,
        tuple(map(len, contexts)),
        tuple(map(len, answers)),
    )


def cut(block: Block, boundaries: frozenset[int]) -> Iterator[tuple[int, int]]:
    """The (first, last) pass numbers of each forward call over a block cut before the pass numbers given."""
    starts = sorted({0} | {number for number in boundaries if 0 < number <= block.last_pass})
    for first, following in zip(starts, [*starts[1:], block.last_pass + 1], strict=True):
        if block.start(following) > block.start(first):
            yield first, following - 1


@torch.inference_mode()
def teacher_forced(
    model: LoadedModel, block: Block, boundaries: frozenset[int], before_pass: BeforePass
) -> torch.Tensor:
    """Logits that predict every answer token, the block's own tokens being fed.

    Returns shape (rows, 1 + longest answer fed, vocabulary) in the model's dtype; entry [r, j] predicts answer
    token j of row r. The run is one forward call, cut before each of `boundaries`.
    """
    calls = list(cut(block, boundaries))
    cache = DynamicCache(config=model.module.config) if len(calls) > 1 else None
    active = tuple(True for _ in range(block.rows))
    logits = []
    for first, last in calls:
        start, stop = block.start(first), block.start(last + 1)
        kept = max(0, stop - max(start, block.context_width - 1))
        before_pass(Pass(block, first, last, start, stop, kept, active))
        output = model.module(
            input_ids=block.tokens[:, start:stop],
            attention_mask=block.mask[:, :stop],
            position_ids=block.positions[:, start:stop],
            past_key_values=cache,
            use_cache=cache is not None,
            # The one column of a pure prefill call is dropped below.
            logits_to_keep=_last_columns(max(kept, 1), stop - start, block),
        )
        if kept:
            logits.append(output.logits)
    return torch.cat(logits, dim=1) if len(logits) > 1 else logits[0]


def _last_columns(kept: int, columns: int, block: Block) -> torch.Tensor:
    """Indices of the columns that lm_head sees. A number of columns would mean the same, but gives lm_head a strided
    view, for which torch copies its whole weight once a row (2.3 s instead of 0.1 s for 16 rows in bf16 on a CPU)."""
    return torch.arange(columns - kept, columns, device=block.tokens.device)


@dataclass(frozen=True)
class Generated:
    """Greedy answers. `tokens[r]` excludes the end-of-sequence token; `finite[r]` is False when a NaN or an
    infinity reached the logits of row r before its answer ended.
    """

    tokens: tuple[tuple[int, ...], ...]
    finite: tuple[bool, ...]


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
    rows = range(block.rows)
    cache = DynamicCache(config=model.module.config)
    mask, positions = block.mask, block.positions
    tokens: list[list[int]] = [[] for _ in rows]
    finite = [True] * block.rows
    active = [True] * block.rows
    ends = end_tokens(model)

    def call(inputs: torch.Tensor, first: int, last: int, start: int, stop: int) -> torch.Tensor:
        before_pass(Pass(block, first, last, start, stop, 1, tuple(active)))
        output = model.module(
            input_ids=inputs,
            attention_mask=mask[:, :stop],
            position_ids=positions[:, start:stop],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=_last_columns(1, stop - start, block),
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    for first, last in cut(block, boundaries):
        start, stop = block.start(first), block.start(last + 1)
        logits = call(block.tokens[:, start:stop], first, last, start, stop)
    for number in range(FIRST_TOKEN, FIRST_TOKEN + max(limits)):
        chosen = logits.argmax(-1)
        row_finite = torch.isfinite(logits).all(-1).tolist()
        for row, token in enumerate(chosen.tolist()):
            if not active[row]:
                continue
            finite[row] &= row_finite[row]
            if token in ends:
                active[row] = False
                continue
            tokens[row].append(token)
            active[row] = len(tokens[row]) < limits[row] and not _stopped(model, tokens[row], stops[row])
        if not any(active):
            break
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        positions = torch.cat([positions, positions[:, -1:] + 1], dim=1)
        stop = mask.shape[1]
        logits = call(chosen[:, None], number + 1, number + 1, stop - 1, stop)
    return Generated(tuple(map(tuple, tokens)), tuple(finite))


def end_tokens(model: LoadedModel) -> frozenset[int]:
    """Token ids that end a text, as `transformers.generate` takes them from the generation configuration."""
    configuration: Any = model.module.generation_config
    ends = configuration.eos_token_id
    if ends is None:
        return frozenset()
    return frozenset([ends] if isinstance(ends, int) else ends)


def _stopped(model: LoadedModel, tokens: list[int], stops: tuple[str, ...]) -> bool:
    if not stops:
        return False
    text = model.tokenizer.decode(tokens)
    return any(stop in text for stop in stops)
