"""Results of a batch whose continuations are given."""

import torch

from aftershock.inject import Struck
from aftershock.models import LoadedModel
from aftershock.replay.batches import Batch
from aftershock.replay.distance import compared
from aftershock.replay.executor import ItemRun, Run
from aftershock.tasks import RowResult, judge


def score(
    batch: Batch, model: LoadedModel, logits: torch.Tensor, reached: frozenset[int], struck: tuple[Struck, ...]
) -> Run:
    """The run that logits of shape (sequences, positions, vocabulary) make; `reached` are the sequences that a fault
    reached."""
    kept = [compared(logits[row], 1 + len(answer)) for row, (_, answer) in enumerate(batch.sequences)]
    items = tuple(
        ItemRun(
            judge(item, results, model.tokenizer),
            (),
            tuple(kept[sequence] for sequence in dict.fromkeys(sequences)),
            not reached.isdisjoint(sequences),
        )
        for item, results, sequences in zip(batch.items, _results(batch, logits), batch.sequence_of, strict=True)
    )
    return Run(items, struck)


@torch.inference_mode()
def _results(batch: Batch, logits: torch.Tensor) -> tuple[tuple[RowResult, ...], ...]:
    """Results of rows whose continuation was given, from logits of shape (sequences, positions, vocabulary).

    Log-probabilities are taken in fp32, one sequence at a time to bound memory.
    """
    distributions: dict[int, torch.Tensor] = {}
    results = []
    for rows, sequences in zip(batch.rows, batch.sequence_of, strict=True):
        of_item = []
        for row, sequence in zip(rows, sequences, strict=True):
            if sequence not in distributions:
                distributions = {sequence: logits[sequence].float().log_softmax(-1)}
            length = len(row.continuation)
            values = distributions[sequence][:length]
            chosen = torch.tensor(row.continuation, device=logits.device)[:, None]
            raw = logits[sequence, :length]
            of_item.append(
                RowResult(
                    tuple(raw.argmax(-1).tolist()),
                    tuple(values.gather(-1, chosen)[:, 0].tolist()),
                    bool(torch.isfinite(raw).all()),
                )
            )
        results.append(tuple(of_item))
    return tuple(results)
