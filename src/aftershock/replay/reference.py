"""The reference executor: every trial runs alone and in full, with the faults armed."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import repeat

import torch

from aftershock.faults import Fault, splits
from aftershock.inject import Injection, Struck, StruckSet
from aftershock.models import (
    FIRST_TOKEN,
    Block,
    ColumnCache,
    Generated,
    LoadedModel,
    Pass,
    align,
    continue_greedy,
    cut,
    forced_call,
    generate,
)
from aftershock.replay.batches import Batch
from aftershock.replay.company import in_parts
from aftershock.replay.executor import Distance, ItemRun, Job, ModelCrashedError, Proof, Run, crashes_told
from aftershock.replay.golden import Forced, GoldenRun, Trajectory, band_of, least_band, margins_apart
from aftershock.replay.head import head_in_parts, head_of
from aftershock.replay.leaks import cuts_against_leaks
from aftershock.replay.observe import Asked, Seen, asked_of, joined, logits_of, observe
from aftershock.replay.pending import Pending, columns_of, lasting, rows_of, settled
from aftershock.replay.score import score
from aftershock.replay.shapes import Shapes, rows_mix, shapes_of
from aftershock.tasks import Answer, Item, RowResult, judge

ENOUGH_CUTS = 6
"""A run cut in so many places is not cut again; its answers are decoded instead."""


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
            try:
                self._golden[key] = self._run_golden(batch, boundaries)
            except ModelCrashedError as crash:
                # Without a fault that is no result.
                raise crash.error from None
            while self.held > self._memory and len(self._golden) > 1:
                self._golden.popitem(last=False)
        self._golden.move_to_end(key)
        return self._golden[key]

    def _run_golden(self, batch: Batch, boundaries: frozenset[int]) -> GoldenRun:
        written = self._golden_text(batch, boundaries)
        texts = written.texts
        block = self._block(batch, texts).copies(self._shapes.copies)
        calls = tuple(call.without_padding() for call in cut(block, boundaries, self._shapes.cuts(block)))
        asked = asked_of(batch, texts, self.model.device)
        seen, trajectory = self._golden_pass(calls, asked)
        asked = replace(asked, likely=seen.choices.tokens.to(self.model.device))
        if not batch.generates:
            by_sequence = logits_of(seen, asked)
            by_item = [tuple(by_sequence[one] for one in dict.fromkeys(own)) for own in batch.sequence_of]
            run = score(batch, self.model, asked, seen, by_item, repeat(None), frozenset(), ())
            return GoldenRun(run, block, calls, asked, seen.choices, seen.logits, trajectory, written, boundaries)
        margins = [torch.tensor(row) for row in written.margins]
        noise = max(
            float(margins_apart(row, text, seen.choices.margins[number], seen.choices.tokens[number]).max())
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
        return GoldenRun(run, block, calls, asked, seen.choices, seen.logits, trajectory, written, boundaries, noise)

    def _golden_text(self, batch: Batch, boundaries: frozenset[int]) -> Generated:
        """What golden writes. Decoding is one pass a token: only boundaries within the prompt change its passes."""
        if not batch.generates:
            return Generated((), (), (), ())
        in_prompt = frozenset(boundary for boundary in boundaries if boundary <= FIRST_TOKEN)
        if in_prompt != boundaries:
            return self._golden_run(batch, in_prompt).written
        return self._write(batch, (), boundaries)

    def _golden_pass(self, calls: Sequence[Pass], asked: Asked) -> tuple[Seen, Trajectory | None]:
        """What the teacher-forced run without faults shows, and what of it is kept for trials: here nothing."""
        with Injection(self.model, ()) as injection:
            return self._force(calls, asked, injection).seen, None

    # Trials.

    def _begin(self, job: Job) -> Run | Pending:
        """The run where it needs nothing more, else what there is after the teacher-forced run."""
        return self._begin_cut(job, splits(job.faults))

    def _begin_cut(self, job: Job, boundaries: frozenset[int]) -> Run | Pending:
        """The same of a run that is cut before `boundaries`."""
        golden = self._golden_run(job.batch, boundaries)
        own = range(len(job.batch.sequences))
        with Injection(self.model, job.faults, [own] * len(job.faults)) as injection:
            forced = self._trial_pass(job, golden, injection)
        apart = golden.apart(forced.seen.logits) if isinstance(forced, Forced) else _unmoved(job.batch)
        return self._forced(job, golden, forced, apart, injection.reached_rows, injection.struck)

    def _forced(
        self,
        job: Job,
        golden: GoldenRun,
        forced: Forced | Proof,
        apart: tuple[Distance, ...],
        reached: frozenset[int],
        struck: tuple[Struck | StruckSet, ...],
    ) -> Run | Pending:
        """The same from what the teacher-forced run gave, or from the proof that it would give golden's; `apart` is how
        far each item's logits lie from golden's."""
        batch = job.batch
        if not isinstance(forced, Forced):
            as_golden = Forced(Seen(golden.choices, torch.empty(0), golden.compared), ())
            if forced == "not_activated" or not batch.generates or not self._close(job, golden, as_golden):
                return _as_golden(job, golden, forced, apart, reached, struck)
            # Golden's own choices are too close to call, and decoding under the fault may make others.
            forced = as_golden
        if not batch.generates:
            return score(batch, self.model, golden.asked, forced.seen, repeat(()), apart, reached, struck)
        band = band_of(golden, forced.seen.logits)
        rows = rows_of(self.model, batch, golden, forced, job.faults, band)
        cuts = cuts_against_leaks(golden, forced, job.faults, rows)
        if cuts and len(golden.boundaries) < ENOUGH_CUTS:
            return self._begin_cut(job, golden.boundaries | cuts)
        # What waits must not keep golden's states.
        pending = Pending(job, replace(golden, trajectory=None, doubt=None), rows, band, apart, reached, struck)
        unsettled = any(not settled(job.faults, prefix) for prefix in pending.prefixes)
        if cuts or unsettled or (self._rows_mix and pending.prefixes) or not self._confirmed(pending):
            return self._decode(pending)
        return pending if pending.prefixes else self._finish(pending, Generated((), (), (), ()))

    def _close(self, job: Job, golden: GoldenRun, as_golden: Forced) -> bool:
        """Whether some of golden's own choices are too close to call."""
        return any(
            row.certain for row in rows_of(self.model, job.batch, golden, as_golden, job.faults, least_band(golden))
        )

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
        with (
            head_in_parts(self._head, self._shapes.head_rows if call.kept else None),
            crashes_told(lambda: injection.struck),
        ):
            logits = forced_call(self.model, call, cache, injection.begin_pass)
        height = len(asked.likely)
        return observe(logits.view(len(logits) // height, height, *logits.shape[1:]), call.first_position, asked)

    def _continue_alone(self, pending: Pending) -> Run:
        columns = columns_of(pending.job.batch)
        rows = self._shapes.rows(pending.prefixes[0], columns)
        with Injection(self.model, lasting(pending.job.faults)), crashes_told(lambda: pending.struck):
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
        block = self._block(batch, [() for _ in batch.sequences])
        with Injection(self.model, faults) as injection, crashes_told(lambda: injection.struck):
            return generate(
                self.model,
                block,
                [item.max_new_tokens for item in batch.items],
                [item.stop for item in batch.items],
                boundaries,
                injection.begin_pass,
            )

    def _finished(self, pending: Pending, answers: Sequence[tuple[tuple[int, ...], bool]]) -> Run:
        golden = pending.golden
        before = zip(golden.written.tokens, golden.written.finite, strict=True)
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
                    zip(pending.job.batch.items, golden.run.items, before, answers, strict=True)
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


def _as_golden(
    job: Job,
    golden: GoldenRun,
    proof: Proof,
    apart: tuple[Distance, ...],
    reached: frozenset[int],
    struck: tuple[Struck | StruckSet, ...],
) -> Run:
    """The run of a trial that is proved to be golden's."""
    items = zip(golden.run.items, apart, job.batch.sequence_of, strict=True)
    return Run(
        tuple(replace(item, logits=(), apart=own, reached=not reached.isdisjoint(rows)) for item, own, rows in items),
        struck,
        proof,
    )


def _unmoved(batch: Batch) -> tuple[Distance, ...]:
    """The distances of a run whose logits are golden's."""
    return (Distance(0.0, 0.0),) * len(batch.items)
