"""The reference executor: every trial runs in full, on the unmodified model, with the faults armed.

Other executors must give the same runs, bit for bit; they share this module's `Executor` protocol.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from aftershock.errors import ContractError, InputError
from aftershock.faults import Fault, splits
from aftershock.inject import Injection, Struck
from aftershock.models import Block, LoadedModel, align, generate, teacher_forced
from aftershock.replay.batches import Batch
from aftershock.tasks import Answer, RowResult, judge

MAX_COMPARED_POSITIONS = 64
"""Logits of at most this many answer positions a row, evenly spread, are kept for RMSE and KL."""


@dataclass(frozen=True)
class ItemRun:
    """What one run gave for one item.

    `logits[r]`, shape (positions, vocabulary), model dtype: the logits of row r at the compared answer positions,
    teacher-forced on `forced`, the golden text (empty where the task gives the continuations). `reached`:
    whether the item took part in a pass with some fault present.
    """

    answer: Answer
    forced: tuple[int, ...]
    logits: tuple[torch.Tensor, ...]
    reached: bool


@dataclass(frozen=True)
class Run:
    """What one run of a batch gave: its items, and the words that faults wrote."""

    items: tuple[ItemRun, ...]
    struck: tuple[Struck, ...]


class ModelCrashedError(Exception):
    """The model itself failed under the faults, as an index out of range would make it: that is a result.

    `struck` holds the words that faults wrote before. A machine that ran out of memory or lost its accelerator is no
    result, and neither is a fault that can't be armed: those exceptions pass through as they are.
    """

    def __init__(self, error: Exception, struck: tuple[Struck, ...]) -> None:
        super().__init__(str(error))
        self.struck = struck


class Executor(Protocol):
    """Runs a batch without faults and with them, in the same shapes."""

    def golden(self, batch: Batch, faults: Sequence[Fault] = ()) -> Run:
        """The fault-free run, cut between the same passes as a run under `faults`."""
        ...

    def trial(self, batch: Batch, faults: Sequence[Fault]) -> Run:
        """The run under the faults. Raises ModelCrashedError when the model itself fails under them."""
        ...


class ReferenceExecutor:
    """Runs everything, remembers only golden runs (the ones used last, within `memory` bytes of logits)."""

    def __init__(self, model: LoadedModel, memory: int = 2**30) -> None:
        self.model = model
        self._memory = memory
        self._golden: OrderedDict[tuple[int, frozenset[int]], Run] = OrderedDict()

    def golden(self, batch: Batch, faults: Sequence[Fault] = ()) -> Run:
        """The fault-free run in the passes that `faults` need; computed once, again where memory ran out."""
        key = (batch.number, splits(tuple(faults)))
        if key not in self._golden:
            self._golden[key] = self._run(batch, (), key[1], None)
            held = sum(map(_logits_bytes, self._golden.values()))
            while held > self._memory and len(self._golden) > 1:
                held -= _logits_bytes(self._golden.popitem(last=False)[1])
        self._golden.move_to_end(key)
        return self._golden[key]

    def trial(self, batch: Batch, faults: Sequence[Fault]) -> Run:
        """The full run under the faults. Raises ContractError when one was due and did not fire."""
        golden = self.golden(batch, faults)
        return self._run(batch, tuple(faults), splits(tuple(faults)), golden)

    @contextmanager
    def _armed(self, faults: tuple[Fault, ...]) -> Iterator[Injection]:
        """The faults armed; an exception that they provoke in the model is raised as ModelCrashedError."""
        injection = Injection(self.model, faults)
        try:
            with injection:
                yield injection
        except (ContractError, InputError, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception as error:
            if not faults or "DefaultCPUAllocator" in str(error):
                raise
            raise ModelCrashedError(error, injection.struck) from error

    def _run(self, batch: Batch, faults: tuple[Fault, ...], boundaries: frozenset[int], golden: Run | None) -> Run:
        texts: tuple[tuple[int, ...], ...] = ()
        if not batch.generates:
            block = self._block(batch, [answer for _, answer in batch.sequences])
            with self._armed(faults) as injection:
                logits = teacher_forced(self.model, block, boundaries, injection.begin_pass)
            results = _scored(batch, logits)
        else:
            block = self._block(batch, [() for _ in batch.sequences])
            with self._armed(faults) as injection:
                written = generate(
                    self.model,
                    block,
                    [item.max_new_tokens for item in batch.items],
                    [item.stop for item in batch.items],
                    boundaries,
                    injection.begin_pass,
                )
            results = tuple(
                (RowResult(tokens, (), finite),) for tokens, finite in zip(written.tokens, written.finite, strict=True)
            )
            texts = written.tokens if golden is None else tuple(item.forced for item in golden.items)
            block = self._block(batch, [tokens[:-1] for tokens in texts])
            with self._armed(faults) as forced:
                logits = teacher_forced(self.model, block, boundaries, forced.begin_pass)
        kept = [_compared(logits[row], 1 + block.answer_lengths[row]) for row in range(block.rows)]
        items = tuple(
            ItemRun(
                judge(item, rows, self.model.tokenizer),
                texts[number] if batch.generates else (),
                tuple(kept[sequence] for sequence in dict.fromkeys(sequences)),
                not injection.reached_rows.isdisjoint(sequences),
            )
            for number, (item, rows, sequences) in enumerate(zip(batch.items, results, batch.sequence_of, strict=True))
        )
        return Run(items, injection.struck)

    def _block(self, batch: Batch, answers: Sequence[Sequence[int]]) -> Block:
        contexts = [context for context, _ in batch.sequences]
        return align(contexts, answers, self.model.device)


def _logits_bytes(run: Run) -> int:
    return sum(logits.nbytes for item in run.items for logits in item.logits)


@torch.inference_mode()
def _scored(batch: Batch, logits: torch.Tensor) -> tuple[tuple[RowResult, ...], ...]:
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


def _compared(logits: torch.Tensor, positions: int) -> torch.Tensor:
    """At most MAX_COMPARED_POSITIONS of the first `positions` rows, evenly spread; a copy, so the rest is freed."""
    kept = min(positions, MAX_COMPARED_POSITIONS)
    return logits[torch.linspace(0, positions - 1, kept, device=logits.device).long()]


@dataclass(frozen=True)
class Distance:
    """How far faulty logits lie from golden ones: RMSE, and mean KL(golden || faulty) in nats."""

    rmse: float
    kl: float


@torch.inference_mode()
def distance(golden: ItemRun, other: ItemRun) -> Distance | None:
    """Distance over all compared positions, in fp32 (RMSE: fragile-parts study, section 3.3).

    None where the two were forced on different texts, which makes positions incomparable.
    """
    if golden.forced != other.forced:
        return None
    squares, divergence, entries, positions = 0.0, 0.0, 0, 0
    for first, second in zip(golden.logits, other.logits, strict=True):
        clean, corrupt = first.float(), second.float()
        squares += float((clean - corrupt).square().sum(dtype=torch.float64))
        divergence += float(
            torch.nn.functional.kl_div(corrupt.log_softmax(-1), clean.log_softmax(-1), reduction="sum", log_target=True)
        )
        entries += clean.numel()
        positions += len(clean)
    return Distance((squares / entries) ** 0.5, divergence / positions)
