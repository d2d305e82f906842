"""Results of a batch whose continuations are given."""

from itertools import islice

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
    logits = logits_of(seen, asked)
    tokens, finite = seen.choices.tokens.tolist(), seen.choices.finite.tolist()
    # Row after row; within a row they are in the order of positions already.
    logprobs = iter(seen.logprobs[asked.by_row].tolist())
    items = []
    for item, rows, sequences in zip(batch.items, batch.rows, batch.sequence_of, strict=True):
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
                tuple(logits[sequence] for sequence in dict.fromkeys(sequences)),
                not reached.isdisjoint(sequences),
            )
        )
    return Run(tuple(items), struck)
