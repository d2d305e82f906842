"""The reference executor: every trial runs alone and in full, on the unmodified model, with the faults armed."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from transformers import DynamicCache

from aftershock.errors import ContractError, InputError
from aftershock.faults import ALWAYS, Fault, WeightSite, splits
from aftershock.inject import Injection, Struck
from aftershock.models import (
    Block,
    Choices,
    Generated,
    LoadedModel,
    Prefix,
    align,
    choose,
    continue_greedy,
    decode,
    end_tokens,
    generate,
    has_ended,
    teacher_forced,
)
from aftershock.replay.batches import Batch
from aftershock.replay.distance import compared
from aftershock.replay.executor import ItemRun, Job, ModelCrashedError, Run
from aftershock.replay.score import score
from aftershock.tasks import RowResult, judge

CONTINUED_ROWS = MappingProxyType({"cpu": 64, "cuda": 512})
"""Rows in which answers that left golden's are written on together, by device."""

COLUMN_STEP = 64
"""What such a row was fed before is padded to a multiple of this many columns."""

CLOSE = 4.0
"""A margin within so many times the rounding noise between the two paths is too close to call."""


@dataclass(frozen=True)
class Forced:
    """A teacher-forced pass: logits of shape (sequences, positions, vocabulary) and, where answers are generated, each
    layer's keys and values of shape (sequences, heads, columns, channels)."""

    logits: torch.Tensor
    keys: tuple[torch.Tensor, ...] = ()
    values: tuple[torch.Tensor, ...] = ()


@dataclass(frozen=True)
class Trajectory:
    """A golden teacher-forced pass, layer by layer.

    `outputs[l]`, shape (sequences, columns, channels): the residual stream after layer l; `tuples` tells whether layers
    return it as the first of a tuple. `keys` and `values` as in `Forced`.
    """

    outputs: tuple[torch.Tensor, ...]
    tuples: bool
    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Memory it takes, in bytes."""
        return sum(tensor.nbytes for tensor in (*self.outputs, *self.keys, *self.values))


@dataclass(frozen=True)
class GoldenRun:
    """A fault-free run and what trials need of it.

    Of a batch that generates, `written[r]` is the text of row r, `texts[r]` the same with the token that ended it, and
    `choices` what the teacher-forced pass chooses in their place. `noise` is how far the margins of the two paths lie
    apart at most. An executor that starts trials in the middle keeps the `trajectory`.
    """

    run: Run
    trajectory: Trajectory | None
    written: tuple[tuple[int, ...], ...] = ()
    texts: tuple[tuple[int, ...], ...] = ()
    choices: Choices | None = None
    noise: float = 0.0

    @property
    def nbytes(self) -> int:
        """Memory it takes, in bytes."""
        kept = sum(logits.nbytes for item in self.run.items for logits in item.logits)
        return kept + (0 if self.trajectory is None else self.trajectory.nbytes)


@dataclass(frozen=True)
class Row:
    """A generated answer as far as the teacher-forced pass tells it; it goes on from `prefix`, if there is one."""

    tokens: tuple[int, ...]
    finite: bool
    margin: float
    prefix: Prefix | None


@dataclass(frozen=True)
class Pending:
    """A run after its teacher-forced pass. Margins below `band` are too close to call."""

    job: Job
    golden: GoldenRun
    rows: tuple[Row, ...]
    band: float
    logits: tuple[torch.Tensor, ...]
    reached: frozenset[int]
    struck: tuple[Struck, ...]

    @property
    def prefixes(self) -> tuple[Prefix, ...]:
        """The answers that go on."""
        return tuple(row.prefix for row in self.rows if row.prefix is not None)


class ReferenceExecutor:
    """Runs everything, remembers only golden runs (the ones used last, within `memory` bytes)."""

    audited = False

    def __init__(self, model: LoadedModel, memory: int = 2**30) -> None:
        self.model = model
        self._memory = memory
        self._rows = CONTINUED_ROWS.get(model.device.type, CONTINUED_ROWS["cuda"])
        self._golden: OrderedDict[tuple[int, frozenset[int]], GoldenRun] = OrderedDict()
        # Experts work on the tokens that all rows send them, so a row's bits depend on its company.
        self._rows_mix = any(site.component == "router" for site in model.components.outputs)
        self._precise = torch.finfo(model.dtype).eps < 1e-6

    def golden(self, batch: Batch, faults: Sequence[Fault] = ()) -> Run:
        """The fault-free run in the passes that `faults` need; computed once, again where memory ran out."""
        return self._golden_run(batch, splits(tuple(faults))).run

    @property
    def held(self) -> int:
        """Bytes of the golden runs that are remembered."""
        return sum(golden.nbytes for golden in self._golden.values())

    def decoded(self, batch: Batch, faults: Sequence[Fault]) -> Generated:
        """The answers of a batch that generates, decoded token by token from the first under the faults."""
        return self._write(batch, tuple(faults), splits(tuple(faults)))

    def trial(self, batch: Batch, faults: Sequence[Fault]) -> Run:
        """One run under the faults.

        Raises ContractError when one was due and did not fire, and ModelCrashedError when the model itself failed.
        """
        ((_, run),) = self.trials([Job(None, batch, tuple(faults))])
        if isinstance(run, ModelCrashedError):
            raise run
        return run

    def trials(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Run | ModelCrashedError]]:
        """Every job with its run, in the order given."""
        for job in jobs:
            yield job, self._alone(job)

    def _alone(self, job: Job) -> Run | ModelCrashedError:
        try:
            begun = self._begin(job)
            return begun if isinstance(begun, Run) else self._continue_alone(begun)
        except ModelCrashedError as error:
            return error

    # Golden runs.

    def _golden_run(self, batch: Batch, boundaries: frozenset[int]) -> GoldenRun:
        key = (batch.number, boundaries)
        if key not in self._golden:
            self._golden[key] = self._run_golden(batch, boundaries)
            while self.held > self._memory and len(self._golden) > 1:
                self._golden.popitem(last=False)
        self._golden.move_to_end(key)
        return self._golden[key]

    def _run_golden(self, batch: Batch, boundaries: frozenset[int]) -> GoldenRun:
        if not batch.generates:
            forced, trajectory = self._golden_pass(batch, self._block(batch, ()), boundaries)
            return GoldenRun(score(batch, self.model, forced.logits, frozenset(), ()), trajectory)
        written = self._write(batch, (), boundaries)
        texts = tuple(
            tokens if end is None else (*tokens, end) for tokens, end in zip(written.tokens, written.ends, strict=True)
        )
        forced, trajectory = self._golden_pass(batch, self._block(batch, texts), boundaries)
        choices = choose(forced.logits)
        noise = max(
            float((torch.tensor(margins) - choices.margins[row, : len(margins)]).abs().max())
            for row, margins in enumerate(written.margins)
        )
        logits = tuple(compared(forced.logits[row], len(text)) for row, text in enumerate(texts))
        run = self._run(batch, texts, tuple(zip(written.tokens, written.finite, strict=True)), logits, frozenset(), ())
        return GoldenRun(run, trajectory, written.tokens, texts, choices, noise)

    def _golden_pass(self, batch: Batch, block: Block, boundaries: frozenset[int]) -> tuple[Forced, Trajectory | None]:
        """The teacher-forced pass without faults, and what of it is kept for trials: here nothing."""
        with Injection(self.model, ()) as injection:
            return self._force(batch, block, boundaries, injection), None

    # Trials.

    def _begin(self, job: Job) -> Run | Pending:
        """The run where it needs nothing more, else what there is after the teacher-forced pass."""
        batch, boundaries = job.batch, splits(job.faults)
        golden = self._golden_run(batch, boundaries)
        block = self._block(batch, golden.texts)
        with self._armed(job.faults) as injection:
            forced = self._trial_pass(job, golden, block, boundaries, injection)
        if forced is None:
            return self._as_golden(job, golden, injection)
        if not batch.generates:
            return score(batch, self.model, forced.logits, injection.reached_rows, injection.struck)
        choices = choose(forced.logits)
        pending = Pending(
            job,
            golden,
            tuple(self._row(batch, row, golden, block, choices, forced) for row in range(block.rows)),
            self._band(golden, choices),
            tuple(compared(forced.logits[row], len(text)) for row, text in enumerate(golden.texts)),
            injection.reached_rows,
            injection.struck,
        )
        close = any(row.margin < pending.band for row in pending.rows)
        unsettled = any(not _settled(job.faults, prefix) for prefix in pending.prefixes)
        if close or unsettled or (self._rows_mix and pending.prefixes):
            return self._decode(pending)
        return pending if pending.prefixes else self._finish(pending, Generated((), (), (), ()))

    def _trial_pass(
        self, job: Job, golden: GoldenRun, block: Block, boundaries: frozenset[int], injection: Injection
    ) -> Forced | None:
        """The teacher-forced pass under the faults; None where it is known to be golden's."""
        return self._force(job.batch, block, boundaries, injection)

    def _force(self, batch: Batch, block: Block, boundaries: frozenset[int], injection: Injection) -> Forced:
        if not batch.generates:
            return Forced(teacher_forced(self.model, block, boundaries, injection.begin_pass))
        cache = DynamicCache()
        logits = teacher_forced(self.model, block, boundaries, injection.begin_pass, cache)
        return Forced(
            logits, tuple(layer.keys for layer in cache.layers), tuple(layer.values for layer in cache.layers)
        )

    def _as_golden(self, job: Job, golden: GoldenRun, injection: Injection) -> Run:
        """The run of a trial whose state became golden's again."""
        items = zip(golden.run.items, job.batch.sequence_of, strict=True)
        return Run(
            tuple(replace(item, reached=not injection.reached_rows.isdisjoint(sequences)) for item, sequences in items),
            injection.struck,
        )

    def _row(self, batch: Batch, row: int, golden: GoldenRun, block: Block, choices: Choices, forced: Forced) -> Row:
        text, item = golden.texts[row], batch.items[row]
        assert golden.choices is not None
        chosen, theirs = choices.tokens[row].tolist(), golden.choices.tokens[row].tolist()
        left = next((at for at, token in enumerate(text) if chosen[at] not in (token, theirs[at])), None)
        known = len(text) if left is None else left + 1
        finite, margin = bool(choices.finite[row, :known].all()), float(choices.margins[row, :known].min())
        if left is None:
            return Row(golden.written[row], finite, margin, None)
        ended = chosen[left] in end_tokens(self.model)
        tokens = text[:left] if ended else (*text[:left], chosen[left])
        # After a NaN or an infinity there is nothing more to learn.
        if ended or not finite or has_ended(self.model, tokens, item.max_new_tokens, item.stop):
            return Row(tokens, finite, margin, None)
        columns = slice(block.context_width - block.context_lengths[row], block.context_width + left)
        prefix = Prefix(
            tuple(keys[row, :, columns].clone() for keys in forced.keys),
            tuple(values[row, :, columns].clone() for values in forced.values),
            tokens,
            item.max_new_tokens,
            item.stop,
        )
        return Row(tokens, finite, margin, prefix)

    def _band(self, golden: GoldenRun, choices: Choices) -> float:
        """Margins below it could be decided by rounding alone. A faulty residual stream, and its rounding with it, can
        be far larger than golden's: the band grows with the logits."""
        if not self._precise:
            return 0.0
        assert golden.choices is not None
        largest, faulty = float(golden.choices.best.abs().max()), float(choices.best.abs().max())
        noise = max(golden.noise, torch.finfo(self.model.dtype).eps * largest)
        return CLOSE * noise * max(1.0, faulty / largest)

    def _continue_alone(self, pending: Pending) -> Run:
        with self._armed(lasting(pending.job.faults)):
            written = continue_greedy(self.model, pending.prefixes, self._rows, columns_of(pending))
        return self._finish(pending, written)

    def _finish(self, pending: Pending, written: Generated) -> Run:
        """The run, its pending answers being written; anew where one of them was too close to call."""
        if any(min(margins) < pending.band for margins in written.margins):
            return self._decode(pending)
        answers = iter(zip(written.tokens, written.finite, strict=True))
        return self._finished(
            pending,
            tuple((row.tokens, row.finite) if row.prefix is None else next(answers) for row in pending.rows),
        )

    def _decode(self, pending: Pending) -> Run:
        """The run with its answers decoded as golden's were."""
        written = self.decoded(pending.job.batch, pending.job.faults)
        return self._finished(pending, tuple(zip(written.tokens, written.finite, strict=True)))

    def _write(self, batch: Batch, faults: tuple[Fault, ...], boundaries: frozenset[int]) -> Generated:
        with self._armed(faults) as injection:
            return generate(
                self.model,
                self._block(batch, [() for _ in batch.sequences]),
                [item.max_new_tokens for item in batch.items],
                [item.stop for item in batch.items],
                boundaries,
                injection.begin_pass,
            )

    def _finished(self, pending: Pending, answers: Sequence[tuple[tuple[int, ...], bool]]) -> Run:
        return self._run(
            pending.job.batch, pending.golden.texts, answers, pending.logits, pending.reached, pending.struck
        )

    def _run(
        self,
        batch: Batch,
        texts: Sequence[tuple[int, ...]],
        answers: Sequence[tuple[tuple[int, ...], bool]],
        logits: Sequence[torch.Tensor],
        reached: frozenset[int],
        struck: tuple[Struck, ...],
    ) -> Run:
        return Run(
            tuple(
                ItemRun(
                    judge(item, (RowResult(tokens, (), finite),), self.model.tokenizer),
                    texts[row],
                    (logits[row],),
                    row in reached,
                )
                for row, (item, (tokens, finite)) in enumerate(zip(batch.items, answers, strict=True))
            ),
            struck,
        )

    def _block(self, batch: Batch, texts: Sequence[Sequence[int]]) -> Block:
        """The batch's sequences; of a generated text every token but the last is fed."""
        fed = [text[:-1] for text in texts] if batch.generates else [answer for _, answer in batch.sequences]
        return align([context for context, _ in batch.sequences], fed, self.model.device)

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


def _settled(faults: tuple[Fault, ...], prefix: Prefix) -> bool:
    """Whether nothing changes any more: each fault is over, or a weight fault that stays to the end."""
    following = decode(len(prefix.written))
    return all(
        fault.trigger.end <= following if fault.trigger.end is not None else fault.trigger.first <= following
        for fault in faults
    )


def lasting(faults: tuple[Fault, ...]) -> tuple[Fault, ...]:
    """The faults that are still there when a settled answer goes on."""
    return tuple(
        replace(fault, trigger=ALWAYS)
        for fault in faults
        if isinstance(fault.site, WeightSite) and fault.trigger.end is None
    )


def columns_of(pending: Pending) -> int:
    """Columns for what the run's answers were fed: one number for all trials of a batch."""
    batch = pending.job.batch
    longest = max(len(context) for context, _ in batch.sequences) + batch.decode_passes
    return -(-longest // COLUMN_STEP) * COLUMN_STEP
