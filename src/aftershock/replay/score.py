"""Results of a batch whose continuations are given."""

from itertools import count

from aftershock.inject import Struck
from aftershock.models import LoadedModel
from aftershock.replay.batches import Batch
from aftershock.replay.executor import ItemRun, Run
from aftershock.replay.observe import Asked, Seen, logits_of
from aftershock.tasks import RowResult, judge


def score(
    batch: Batch, model: LoadedModel, asked: Asked, seen: Seen, reached: frozenset[int], struck: tuple[Struck, ...]
) -> Run:
    """The run that a teacher-forced pass makes; `reached` are the sequences that a fault reached."""
    logits, numbers = logits_of(seen, asked), count()
    items = []
    for item, rows, sequences in zip(batch.items, batch.rows, batch.sequence_of, strict=True):
        results = tuple(
            RowResult(
                tuple(seen.choices.tokens[sequence, : len(row.continuation)].tolist()),
                tuple(seen.logprobs[asked.scored[:, 0] == next(numbers)].tolist()),
                bool(seen.choices.finite[sequence, : len(row.continuation)].all()),
            )
            for row, sequence in zip(rows, sequences, strict=True)
        )
        items.append(
            ItemRun(
                judge(item, results, model.tokenizer),
                (),
                tuple(logits[sequence] for sequence in dict.fromkeys(sequences)),
                not reached.isdisjoint(sequences),
            )
        )
    return Run(tuple(items), struck)
