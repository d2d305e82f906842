"""The reference executor: every trial runs alone and in full, with the faults armed."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import repeat
from math import log, sqrt

import torch

from aftershock.errors import ContractError, InputError
from aftershock.faults import ALWAYS, Fault, WeightSite, splits
from aftershock.inject import Injection, Struck
from aftershock.models import (
    Block,
    Choices,
    ColumnCache,
    Generated,
    LoadedModel,
    Pass,
    Prefix,
    States,
    align,
    continue_greedy,
    cut,
    decode,
    end_tokens,
    forced_call,
    generate,
    has_ended,
)
from aftershock.replay.batches import Batch
from aftershock.replay.company import in_parts
from aftershock.replay.distance import Clean, clean, distances
from aftershock.replay.executor import Distance, ItemRun, Job, ModelCrashedError, Proof, Run
from aftershock.replay.head import Doubt, head_in_parts, head_of
from aftershock.replay.observe import Asked, Seen, asked_of, joined, logits_of, observe
from aftershock.replay.score import score
from aftershock.replay.shapes import COLUMN_STEP, Shapes, rows_mix, shapes_of
from aftershock.tasks import Answer, Item, RowResult, judge

DEVIATIONS = 8.0
"""A margin within so many standard deviations of the rounding noise between the two paths is too close to call."""


@dataclass(frozen=True)
class Forced:
    """A teacher-forced run of a batch: what it showed, and its keys and values. Those of the layers before `first` are
    golden's, `states` need not have them."""

    seen: Seen
    states: States
    golden: States = ()
    first: int = 0

    def prefix_states(self, row: int, columns: slice) -> States:
        """Keys and values of some columns of a row; copies, so that the rest is freed."""
        found, begin = [], 0
        for number, states in enumerate(self.states):
            shared = min(max(0, self.first - begin), len(states))
            begin += len(states)
            own = states[shared:, :, row, :, columns]
            found.append(torch.cat([self.golden[number][:shared, :, row, :, columns], own]) if shared else own.clone())
        return tuple(found)


@dataclass(frozen=True)
class Trajectory:
    """A golden teacher-forced run, call by call and layer by layer.

    `outputs[c][l]`, shape (sequences, columns, channels): the residual stream after layer l in call c; `tuples` tells
    whether layers return it as the first of a tuple. `seen[c]` is what call c showed, `hidden[c]` what its head was
    given, where that is kept.
    """

    outputs: tuple[tuple[torch.Tensor, ...], ...]
    tuples: bool
    seen: tuple[Seen, ...]
    states: States
    hidden: tuple[torch.Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Memory it takes, in bytes."""
        tensors = [
            *self.hidden,
            *self.states,
            *(seen.logits for seen in self.seen),
            *(one for call in self.outputs for one in call),
        ]
        return sum(tensor.nbytes for tensor in tensors)


@dataclass(frozen=True)
class GoldenRun:
    """A fault-free run and what trials need of it.

    `block` are the rows of every teacher-forced run, `calls` its forward calls, `asked` what is looked at in them and
    `compared` the logits kept. Of a batch that generates, `answers[r]` is the text of row r and whether it is finite,
    `texts[r]` the text with the token that ended it, and `choices` what the teacher-forced run chooses in their place.
    `noise` is how far the margins of the two paths lie apart at most. An executor that starts trials in the middle
    keeps the `trajectory`, and one that spares the head the `doubt`.
    """

    run: Run
    block: Block
    calls: tuple[Pass, ...]
    asked: Asked
    choices: Choices
    compared: torch.Tensor
    trajectory: Trajectory | None
    answers: tuple[tuple[tuple[int, ...], bool], ...] = ()
    texts: tuple[tuple[int, ...], ...] = ()
    noise: float = 0.0
    doubt: Doubt | None = None

    @property
    def close(self) -> float:
        """Margins below it are too close to call, as far as golden's rounding goes. The largest of n normal deviations
        is about sqrt(2 ln n) standard deviations."""
        return DEVIATIONS * self.noise / sqrt(2 * log(1 + sum(map(len, self.texts))))

    @cached_property
    def clean(self) -> Clean:
        """The compared logits, made ready."""
        return clean(self.compared, self.asked.items)

    @cached_property
    def text_tokens(self) -> torch.Tensor:
        """`texts` as int64, shape (rows, positions); zeros follow their ends."""
        width = self.choices.tokens.shape[1]
        return torch.tensor([(*text, *(0,) * (width - len(text))) for text in self.texts])

    @property
    def nbytes(self) -> int:
        """Memory it takes, in bytes."""
        # Twice in the model's dtype, and once in fp32.
        kept = 2 * self.compared.nbytes + 4 * self.compared.numel()
        return kept + (0 if self.trajectory is None else self.trajectory.nbytes)


@dataclass(frozen=True)
class Row:
    """A generated answer as far as the teacher-forced pass tells it; it goes on from `prefix`, if there is one. From
    token `certain` on no choice in it was too close to call."""

    tokens: tuple[int, ...]
    finite: bool
    certain: int
    prefix: Prefix | None


@dataclass(frozen=True)
class Pending:
    """A run after its teacher-forced pass. Margins below `band` are too close to call."""

    job: Job
    golden: GoldenRun
    rows: tuple[Row, ...]
    band: float
    apart: tuple[Distance, ...]
    reached: frozenset[int]
    struck: tuple[Struck, ...]

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


class ReferenceExecutor:
    """Runs everything, remembers only golden runs (the ones used last, within `memory` bytes)."""

    audited = False

    def __init__(self, model: LoadedModel, memory: int = 2**30, shapes: Shapes | None = None) -> None:
        self.model = model
        self._memory = memory
        self._shapes = shapes_of(model) if shapes is None else shapes
        self._golden: OrderedDict[tuple[int, frozenset[int]], GoldenRun] = OrderedDict()
        self._rows_mix = rows_mix(model)
        self._head = head_of(model)
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
        written = self._write(batch, (), boundaries) if batch.generates else Generated((), (), (), ())
        texts = tuple(
            tokens if end is None else (*tokens, end) for tokens, end in zip(written.tokens, written.ends, strict=True)
        )
        block = self._block(batch, texts).copies(self._shapes.copies)
        calls = cut(block, boundaries, self._shapes.cuts(block))
        asked = asked_of(batch, texts, self.model.device)
        seen, trajectory = self._golden_pass(calls, asked)
        asked = replace(asked, likely=seen.choices.tokens.to(self.model.device))
        if not batch.generates:
            by_sequence = logits_of(seen, asked)
            by_item = [tuple(by_sequence[one] for one in dict.fromkeys(own)) for own in batch.sequence_of]
            run = score(batch, self.model, asked, seen, by_item, repeat(None), frozenset(), ())
            return GoldenRun(run, block, calls, asked, seen.choices, seen.logits, trajectory)
        margins = [torch.tensor(row) for row in written.margins]
        noise = max(
            float(_apart(row, text, seen.choices.margins[number], seen.choices.tokens[number]).max())
            for number, (row, text) in enumerate(zip(margins, texts, strict=True))
        )
        answers = tuple(zip(written.tokens, written.finite, strict=True))
        run = Run(
            tuple(
                ItemRun(self._judged(item, *answer), text, (logits,), False)
                for item, answer, text, logits in zip(batch.items, answers, texts, logits_of(seen, asked), strict=True)
            ),
            (),
        )
        return GoldenRun(run, block, calls, asked, seen.choices, seen.logits, trajectory, answers, texts, noise)

    def _golden_pass(self, calls: Sequence[Pass], asked: Asked) -> tuple[Seen, Trajectory | None]:
        """What the teacher-forced run without faults shows, and what of it is kept for trials: here nothing."""
        with Injection(self.model, ()) as injection:
            return self._force(calls, asked, injection).seen, None

    # Trials.

    def _begin(self, job: Job) -> Run | Pending:
        """The run where it needs nothing more, else what there is after the teacher-forced run."""
        golden = self._golden_run(job.batch, splits(job.faults))
        own = range(len(job.batch.sequences))
        with self._armed(job.faults, own) as injection:
            forced = self._trial_pass(job, golden, injection)
        return self._forced(job, golden, forced, injection.reached_rows, injection.struck)

    def _forced(
        self,
        job: Job,
        golden: GoldenRun,
        forced: Forced | Proof,
        reached: frozenset[int],
        struck: tuple[Struck, ...],
    ) -> Run | Pending:
        """The same from what the teacher-forced run gave, or from the proof that it would give golden's."""
        batch = job.batch
        if not isinstance(forced, Forced):
            as_golden = Forced(Seen(golden.choices, torch.empty(0), golden.compared), ())
            if forced == "not_activated" or not batch.generates or not self._close(batch, golden, as_golden):
                return _as_golden(job, golden, forced, reached, struck)
            # Golden's own choices are too close to call, and decoding under the fault may make others.
            forced = as_golden
        apart = distances(golden.clean, forced.seen.logits)
        if not batch.generates:
            return score(batch, self.model, golden.asked, forced.seen, repeat(()), apart, reached, struck)
        band = self._band(golden, forced.seen.logits)
        rows = self._rows(batch, golden, forced, band)
        # What waits must not keep golden's states.
        pending = Pending(job, replace(golden, trajectory=None, doubt=None), rows, band, apart, reached, struck)
        unsettled = any(not _settled(job.faults, prefix) for prefix in pending.prefixes)
        if unsettled or (self._rows_mix and pending.prefixes) or not self._confirmed(pending):
            return self._decode(pending)
        return pending if pending.prefixes else self._finish(pending, Generated((), (), (), ()))

    def _close(self, batch: Batch, golden: GoldenRun, as_golden: Forced) -> bool:
        """Whether some of golden's own choices are too close to call."""
        return any(row.certain for row in self._rows(batch, golden, as_golden, self._least_band(golden)))

    def _trial_pass(self, job: Job, golden: GoldenRun, injection: Injection) -> Forced | Proof:
        """The teacher-forced run under the faults, or the proof that it is golden's."""
        return self._force(golden.calls, golden.asked, injection)

    def _force(self, calls: Sequence[Pass], asked: Asked, injection: Injection) -> Forced:
        """All calls, the faults in the first copy of the batch; that one is looked at."""
        cache = ColumnCache.of_block(self.model.layer_devices, calls[-1].stop)
        seen = joined([self._call(call, asked, cache, injection)[0] for call in calls])
        return Forced(seen, cache.states)

    def _call(self, call: Pass, asked: Asked, cache: ColumnCache, injection: Injection) -> list[Seen]:
        """One call of a teacher-forced run: what each copy of the batch shows."""
        # Without positions to predict the head's output is dropped.
        with head_in_parts(self._head, self._shapes.head_rows if call.kept else None):
            logits = forced_call(self.model, call, cache, injection.begin_pass)
        first = call.stop - call.kept - call.block.context_width + 1
        height = len(asked.likely)
        return observe(logits.view(len(logits) // height, height, *logits.shape[1:]), first, asked)

    def _rows(self, batch: Batch, golden: GoldenRun, forced: Forced, band: float) -> tuple[Row, ...]:
        """Each answer as far as the teacher-forced run tells it; choices with a margin below `band` are too close."""
        choices = forced.seen.choices
        lengths = torch.tensor([len(text) for text in golden.texts])
        inside = torch.arange(golden.text_tokens.shape[1]) < lengths[:, None]
        other = (choices.tokens != golden.text_tokens) & (choices.tokens != golden.choices.tokens) & inside
        left = torch.where(other.any(1), other.int().argmax(1), lengths)
        known = inside & (torch.arange(inside.shape[1]) <= left[:, None])
        finite = (choices.finite | ~known).all(1).tolist()
        close = (choices.margins < band) & known
        certain = (close * torch.arange(1, inside.shape[1] + 1)).amax(1).tolist()
        return tuple(
            Row(golden.answers[row][0], finite[row], certain[row], None)
            if at == len(golden.texts[row])
            else self._left(batch, row, at, golden, forced, finite[row], certain[row])
            for row, at in enumerate(left.tolist())
        )

    def _left(
        self, batch: Batch, row: int, left: int, golden: GoldenRun, forced: Forced, finite: bool, certain: int
    ) -> Row:
        """An answer whose token `left` is the first that is not golden's."""
        text, item, block = golden.texts[row], batch.items[row], golden.block
        chosen = int(forced.seen.choices.tokens[row, left])
        ended = chosen in end_tokens(self.model)
        tokens = text[:left] if ended else (*text[:left], chosen)
        # After a NaN or an infinity there is nothing more to learn.
        if ended or not finite or has_ended(self.model, tokens, item.max_new_tokens, item.stop):
            return Row(tokens, finite, certain, None)
        columns = slice(block.context_width - block.context_lengths[row], block.context_width + left)
        prefix = Prefix(forced.prefix_states(row, columns), tokens, item.max_new_tokens, item.stop)
        return Row(tokens, finite, certain, prefix)

    def _band(self, golden: GoldenRun, logits: torch.Tensor) -> float:
        """Margins below it could be decided by rounding alone. A faulty residual stream, and its rounding with it, can
        be far larger than golden's: the band grows with the compared logits."""
        if not self._precise:
            return 0.0
        return self._least_band(golden) * max(1.0, _largest(logits) / max(_largest(golden.compared), 1e-30))

    def _least_band(self, golden: GoldenRun) -> float:
        """The band of a trial whose logits are no larger than golden's."""
        if not self._precise:
            return 0.0
        return max(
            golden.close, DEVIATIONS * torch.finfo(self.model.dtype).eps * float(golden.choices.best.abs().max())
        )

    def _continue_alone(self, pending: Pending) -> Run:
        columns = columns_of(pending.job.batch)
        rows = self._shapes.rows(pending.prefixes[0], columns)
        with self._armed(lasting(pending.job.faults), range(rows)):
            parts = [
                continue_greedy(self.model, prefixes, rows, columns) for prefixes in in_parts(pending.prefixes, rows)
            ]
        return self._finish(
            pending,
            Generated(
                tuple(tokens for part in parts for tokens in part.tokens),
                tuple(end for part in parts for end in part.ends),
                tuple(finite for part in parts for finite in part.finite),
                tuple(margins for part in parts for margins in part.margins),
            ),
        )

    def _finish(self, pending: Pending, written: Generated) -> Run:
        """The run, its pending answers being written; anew where one of them was too close to call."""
        if any(min(margins) < pending.band for margins in written.margins):
            return self._decode(pending)
        answers = iter(zip(written.tokens, written.finite, strict=True))
        return self._finished(
            pending,
            tuple((row.tokens, row.finite) if row.prefix is None else next(answers) for row in pending.rows),
        )

    def _confirmed(self, pending: Pending) -> bool:
        """Whether each answer is that of decoding as far as its last choice that was too close to call."""
        if not pending.certain:
            return True
        items = [
            replace(item, max_new_tokens=min(item.max_new_tokens, pending.certain)) for item in pending.job.batch.items
        ]
        written = self.decoded(replace(pending.job.batch, items=tuple(items)), pending.job.faults)
        return all(
            found[: row.certain] == row.tokens[: row.certain]
            for found, row in zip(written.tokens, pending.rows, strict=True)
        )

    def _decode(self, pending: Pending) -> Run:
        """The run with its answers decoded as golden's were."""
        written = self.decoded(pending.job.batch, pending.job.faults)
        return self._finished(pending, tuple(zip(written.tokens, written.finite, strict=True)))

    def _write(self, batch: Batch, faults: tuple[Fault, ...], boundaries: frozenset[int]) -> Generated:
        with self._armed(faults, range(len(batch.items))) as injection:
            return generate(
                self.model,
                self._block(batch, [() for _ in batch.sequences]),
                [item.max_new_tokens for item in batch.items],
                [item.stop for item in batch.items],
                boundaries,
                injection.begin_pass,
            )

    def _finished(self, pending: Pending, answers: Sequence[tuple[tuple[int, ...], bool]]) -> Run:
        golden = pending.golden
        return Run(
            tuple(
                ItemRun(
                    clean.answer if (tokens, finite) == known else self._judged(item, tokens, finite),
                    golden.texts[row],
                    (),
                    row in pending.reached,
                    pending.apart[row],
                )
                for row, (item, clean, known, (tokens, finite)) in enumerate(
                    zip(pending.job.batch.items, golden.run.items, golden.answers, answers, strict=True)
                )
            ),
            pending.struck,
        )

    def _judged(self, item: Item, tokens: tuple[int, ...], finite: bool) -> Answer:
        return judge(item, (RowResult(tokens, (), finite),), self.model.tokenizer)

    def _block(self, batch: Batch, texts: Sequence[Sequence[int]]) -> Block:
        """The batch's sequences; of a generated text every token but the last is fed."""
        fed = [text[:-1] for text in texts] if batch.generates else [answer for _, answer in batch.sequences]
        return align([context for context, _ in batch.sequences], fed, self.model.device, batch.owners)

    @contextmanager
    def _armed(self, faults: tuple[Fault, ...], rows: range) -> Iterator[Injection]:
        """The faults armed on some rows; an exception that they provoke in the model is raised as ModelCrashedError."""
        injection = Injection(self.model, faults, [rows] * len(faults))
        try:
            with injection:
                yield injection
        except (ContractError, InputError, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception as error:
            if not faults or "DefaultCPUAllocator" in str(error):
                raise
            raise ModelCrashedError(error, injection.struck) from error


def _apart(margins: torch.Tensor, text: Sequence[int], others: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """How far the margins of a text lie from those of another run's tokens, each at least so long; margins of different
    winners lie on two sides of zero."""
    same = tokens[: len(text)] == torch.tensor(text)
    return (margins - torch.where(same, 1, -1) * others[: len(text)]).abs()


@torch.inference_mode()
def _largest(logits: torch.Tensor) -> float:
    """The largest magnitude."""
    low, high = logits.aminmax()
    return max(-float(low), float(high))


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


def _as_golden(job: Job, golden: GoldenRun, proof: Proof, reached: frozenset[int], struck: tuple[Struck, ...]) -> Run:
    """The run of a trial that is proved to be golden's."""
    items = zip(golden.run.items, job.batch.sequence_of, strict=True)
    apart = Distance(0.0, 0.0)
    return Run(
        tuple(replace(item, logits=(), apart=apart, reached=not reached.isdisjoint(rows)) for item, rows in items),
        struck,
        proof,
    )


def columns_of(batch: Batch) -> int:
    """Columns that hold whatever an answer of the batch is fed."""
    longest = max(len(context) for context, _ in batch.sequences) + batch.decode_passes
    return -(-longest // COLUMN_STEP) * COLUMN_STEP
