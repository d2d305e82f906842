"""Results of a batch whose continuations are given."""

from collections.abc import Iterable
from itertools import islice

import torch

from aftershock.inject import Struck, StruckSet
from aftershock.models import LoadedModel
from aftershock.replay.batches import Batch
from aftershock.replay.executor import Distance, ItemRun, Run
from aftershock.replay.observe import Asked, Seen
from aftershock.tasks import RowResult, judge


def score(
    batch: Batch,
    model: LoadedModel,
    asked: Asked,
    seen: Seen,
    logits: Iterable[tuple[torch.Tensor, ...]],
    apart: Iterable[Distance | None],
    reached: frozenset[int],
    struck: tuple[Struck | StruckSet, ...],
) -> Run:
    """The run that a teacher-forced pass makes; `reached` are the sequences that a fault reached, `logits` and `apart`
    are those of each item."""
    tokens, finite = seen.choices.tokens.tolist(), seen.choices.finite.tolist()
    # Row after row; within a row they are in the order of positions already.
    logprobs = iter(seen.logprobs[asked.by_row].tolist())
    items = []
    parts = zip(batch.items, batch.rows, batch.sequence_of, logits, apart, strict=False)
    for item, rows, sequences, own, distance in parts:
        results = tuple(
            RowResult(
                tuple(tokens[sequence][: len(row.continuation)]),
                tuple(islice(logprobs, len(row.continuation))),
                all(finite[sequence][: len(row.continuation)]),
            )
            for row, sequence in zip(rows, sequences, strict=True)
        )
        items.append(
            ItemRun(
                judge(item, results, model.tokenizer),
                (),
                own,
                not reached.isdisjoint(sequences),
                distance,
            )
        )
    return Run(tuple(items), struck)
