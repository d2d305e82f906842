"""Trials after their teacher-forced run: how far it tells their answers, and what is still to be written."""

from dataclasses import dataclass, replace

import torch

from aftershock.faults import ALWAYS, Fault
from aftershock.inject import Struck, StruckSet
from aftershock.models import FIRST_TOKEN, LoadedModel, Prefix, decode, end_tokens, has_ended
from aftershock.replay.batches import Batch
from aftershock.replay.executor import Distance, Job
from aftershock.replay.golden import Forced, GoldenRun
from aftershock.replay.shapes import COLUMN_STEP


@dataclass(frozen=True)
class Row:
    """A generated answer as far as the teacher-forced pass tells it; it goes on from `prefix`, if there is one. From
    token `certain` on no choice in it was too close to call; token `broken` is the first whose logits were not finite.
    """

    tokens: tuple[int, ...]
    broken: int | None
    certain: int
    prefix: Prefix | None

    @property
    def finite(self) -> bool:
        """Whether all its logits were."""
        return self.broken is None


@dataclass(frozen=True)
class Pending:
    """A run after its teacher-forced pass. Margins below `band` are too close to call."""

    job: Job
    golden: GoldenRun
    rows: tuple[Row, ...]
    band: float
    apart: tuple[Distance, ...]
    reached: frozenset[int]
    struck: tuple[Struck | StruckSet, ...]

    @property
    def certain(self) -> int:
        """From so many tokens on no choice in any answer was too close to call."""
        return max(row.certain for row in self.rows)

    @property
    def nbytes(self) -> int:
        """Memory it takes, in bytes."""
        return sum(prefix.nbytes for prefix in self.prefixes)

    @property
    def lines(self) -> int:
        """How many answers go on."""
        return sum(row.prefix is not None for row in self.rows)

    @property
    def prefixes(self) -> tuple[Prefix, ...]:
        """Where they go on from."""
        return tuple(row.prefix for row in self.rows if row.prefix is not None)


def rows_of(
    model: LoadedModel, batch: Batch, golden: GoldenRun, forced: Forced, faults: tuple[Fault, ...], band: float
) -> tuple[Row, ...]:
    """Each answer as far as the teacher-forced run tells it; choices with a margin below `band` are too close."""
    choices = forced.seen.choices
    lengths = torch.tensor([len(text) for text in golden.texts])
    places = torch.arange(golden.text_tokens.shape[1])
    inside = places < lengths[:, None]
    # Before any fault is there, golden's choices hold, whatever leaks back.
    reached = places >= first_token_of(faults)
    other = (choices.tokens != golden.text_tokens) & (choices.tokens != golden.choices.tokens) & inside & reached
    left = torch.where(other.any(1), other.int().argmax(1), lengths)
    known = inside & (places <= left[:, None])
    wrong = known & ~torch.where(reached, choices.finite, golden.choices.finite)
    broken = [
        place if some else None
        for some, place in zip(wrong.any(1).tolist(), wrong.int().argmax(1).tolist(), strict=True)
    ]
    close = (choices.margins < band) & known
    certain = (close * (places + 1)).amax(1).tolist()
    return tuple(
        Row(golden.written.tokens[row], broken[row], certain[row], None)
        if at == len(golden.texts[row])
        else replace(_left(model, batch, row, at, golden, forced, broken[row]), certain=certain[row])
        for row, at in enumerate(left.tolist())
    )


def _left(
    model: LoadedModel, batch: Batch, row: int, left: int, golden: GoldenRun, forced: Forced, broken: int | None
) -> Row:
    """An answer whose token `left` is the first that is not golden's."""
    text, item, block = golden.texts[row], batch.items[row], golden.block
    chosen = int(forced.seen.choices.tokens[row, left])
    ended = chosen in end_tokens(model)
    tokens = text[:left] if ended else (*text[:left], chosen)
    # After a NaN or an infinity there is nothing more to learn.
    if ended or broken is not None or has_ended(model, tokens, item.max_new_tokens, item.stop):
        return Row(tokens, broken, 0, None)
    columns = slice(block.first_column(row), block.context_width + left)
    prefix = Prefix(forced.prefix_states(row, columns), tokens, item.max_new_tokens, item.stop)
    return Row(tokens, broken, 0, prefix)


def first_token_of(faults: tuple[Fault, ...]) -> int:
    """The first token of an answer that is chosen with a fault there."""
    return max(FIRST_TOKEN, min((fault.first for fault in faults), default=FIRST_TOKEN)) - FIRST_TOKEN


def settled(faults: tuple[Fault, ...], prefix: Prefix) -> bool:
    """Whether nothing changes any more: each fault is over, or has begun and stays to the end, in a weight or in the
    keys and values of the prefix."""
    following = decode(len(prefix.written))

    def decided(fault: Fault) -> bool:
        if fault.trigger.end is not None:
            return fault.trigger.end <= following
        if fault.spreads:
            # What an answer goes on with is struck too.
            return False
        return fault.first <= following if fault.in_weights else fault.first < following

    return all(map(decided, faults))


def lasting(faults: tuple[Fault, ...]) -> tuple[Fault, ...]:
    """The faults that are still there when a settled answer goes on."""
    return tuple(replace(fault, trigger=ALWAYS) for fault in faults if fault.in_weights and fault.trigger.end is None)


def columns_of(batch: Batch) -> int:
    """Columns that hold whatever an answer of the batch is fed."""
    longest = max(len(context) for context, _ in batch.sequences) + batch.decode_passes
    return -(-longest // COLUMN_STEP) * COLUMN_STEP
