"""The fast executor: runs only what a fault can change, and gives the reference executor's bits."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch

from aftershock.errors import ContractError
from aftershock.inject import Injection, Struck, StruckSet, changes_one_channel, row_faults
from aftershock.models import ColumnCache, LoadedModel, Pass, continue_greedy, forced_call
from aftershock.numerics import words
from aftershock.replay.batches import Batch
from aftershock.replay.company import (
    Member,
    in_parts,
    members,
    renumbered,
    sociable,
    strikes_of,
    weights_by_row,
)
from aftershock.replay.distance import distances
from aftershock.replay.executor import Job, ModelCrashedError, Proof, Run, crashes_told
from aftershock.replay.golden import Forced, GoldenRun, Trajectory, band_of, least_band
from aftershock.replay.head import doubt_of, gives_logits, observe_wanted, replaced_forward, unasked, withheld
from aftershock.replay.observe import Asked, Seen, joined
from aftershock.replay.pending import Pending, columns_of, lasting
from aftershock.replay.reach import Reach, reach_of
from aftershock.replay.reference import ReferenceExecutor
from aftershock.replay.shapes import Shapes, memory_budget
from aftershock.replay.stock import Line, Stock, faults_by_row, line_of

LOOKAHEAD = 32
"""Times the trials of one run among which those alike are looked for."""


class _GoldenAgainError(BaseException):
    """Ends a call whose state is golden's again; no error of the model's."""


class FastExecutor(ReferenceExecutor):
    """Starts each trial at the first faulty layer and call, from golden's state there; ends it where the state is
    golden's again; writes the answers that leave golden's on together, those of many trials at once.

    What it skips is work whose result is known to the bit: the layers and calls before the fault have golden's inputs
    and golden's shapes. `memory`, in bytes (2 GiB if not given, on a GPU half of its own), bounds the golden state
    that is kept (half of it), and that of answers that wait for company (the other half).
    """

    audited = True

    def __init__(self, model: LoadedModel, memory: int | None = None, shapes: Shapes | None = None) -> None:
        super().__init__(model, (memory_budget(model.device) if memory is None else memory) // 2, shapes)
        names = [site.module for site in model.components.outputs if site.component == "residual"]
        self._layers = [model.module.get_submodule(name) for name in names]
        self._spares_head = self._shapes.head_rows is not None and gives_logits(model)

    def trials(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Run | ModelCrashedError]]:
        """Every job with its run; those whose answers leave golden's wait for company."""
        stock = Stock(self._shapes, self._memory)
        for job, begun in self._begun(jobs):
            if not isinstance(begun, Pending):
                yield job, begun
            elif not all(changes_one_channel(self.model, fault) for fault in lasting(job.faults)):
                yield job, self._alone_from(begun)
            else:
                stock.put(begun)
                for lines in stock.runs():
                    yield from self._write_on(stock, lines)
        for lines in stock.rest():
            yield from self._write_on(stock, lines)

    def _begun(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Run | Pending | ModelCrashedError]]:
        """Every job after its teacher-forced run; in company where there is room for it."""
        size = self._shapes.copies - 1
        if not size:
            yield from ((job, self._begun_alone(job)) for job in jobs)
            return
        for some in in_parts(jobs, LOOKAHEAD * size):
            alike: dict[tuple[int, int], list[tuple[int, Job]]] = {}
            for job in some:
                if not sociable(self.model, job):
                    yield job, self._begun_alone(job)
                    continue
                golden = self._golden_run(job.batch, frozenset())
                reach = reach_of(job.faults, self.model, golden.block)
                alike.setdefault((job.batch.number, _first_call(golden, reach)), []).append((reach.first, job))
            for placed in alike.values():
                for company in in_parts(sorted(placed, key=lambda one: one[0]), size):
                    yield from self._begun_together([job for _, job in company])

    def _begun_alone(self, job: Job) -> Run | Pending | ModelCrashedError:
        try:
            return self._begin(job)
        except ModelCrashedError as error:
            return error

    def _begun_together(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Run | Pending | ModelCrashedError]]:
        """Jobs of one batch that begin with the same call, in one teacher-forced run; its last copy has no fault."""
        golden = self._golden_run(jobs[0].batch, frozenset())
        own = members(jobs, len(golden.asked.likely))
        # Armed once in place, so that every word is known, and proved to be struck as it would be alone.
        struck = [self._struck_weights(member) for member in own]
        activations = [(member, fault) for member in own for fault in member.faults(member.activations)]
        injection = Injection(self.model, [fault for _, fault in activations], [one.rows for one, _ in activations])
        try:
            shared = self._shared_run(own, golden, injection)
        except ModelCrashedError:
            # Find out which of them does that.
            yield from ((job, self._begun_alone(job)) for job in jobs)
            return
        begin = 0
        fault_free = [golden.compared] * (self._shapes.copies - len(shared))
        apart = distances(golden.clean, [*(forced.seen.logits for forced in shared), *fault_free])
        for member, words_struck, forced, distance in zip(own, struck, shared, apart, strict=False):
            rows = member.rows
            # A weight fault that is always there reaches every row.
            reached = rows if member.weights else injection.reached_rows.intersection(rows)
            strikes = words_struck + strikes_of(member, injection.struck, begin)
            begin += len(member.activations)
            try:
                yield (
                    member.job,
                    self._forced(
                        member.job, golden, forced, distance, frozenset(row - rows.start for row in reached), strikes
                    ),
                )
            except ModelCrashedError as error:
                yield member.job, error

    def _struck_weights(self, member: Member) -> tuple[Struck | StruckSet, ...]:
        with Injection(self.model, member.faults(member.weights)) as injection:
            return renumbered(injection.struck, member.weights)

    def _shared_run(self, own: Sequence[Member], golden: GoldenRun, injection: Injection) -> list[Forced]:
        """What the run gives for each member. Raises ContractError where its fault-free copy is not golden's."""
        trajectory, calls = golden.trajectory, golden.calls
        assert trajectory is not None
        reaches = [reach_of(member.job.faults, self.model, golden.block) for member in own]
        first, begin = min(reach.first for reach in reaches), min(_first_call(golden, reach) for reach in reaches)
        cache = self._cache(golden, trajectory, first, begin)
        seen = [list(trajectory.seen[:begin]) for _ in range(self._shapes.copies)]
        with injection:
            for call in calls[:begin]:
                injection.begin_pass(call)
            for rows, some in groupby(enumerate(calls[begin:], begin), key=lambda numbered: numbered[1].rows):
                with row_faults(self.model, weights_by_row(own, rows), len(rows)):
                    for number, call in some:
                        with self._resumed(trajectory, first, number):
                            for copy, found in zip(seen, self._call(call, golden.asked, cache, injection), strict=True):
                                copy.append(found)
        shown = [joined(copy) for copy in seen]
        if not shown[-1].equal(joined(trajectory.seen)):
            raise ContractError(
                "the fault-free rows of a run were not golden's to the bit: on this device rows depend on each other; "
                "run the study with --executor reference, and please report this"
            )
        return [
            Forced(
                copy,
                tuple(states[:, :, member.rows.start : member.rows.stop] for states in cache.states),
                trajectory.states,
                first,
            )
            for member, copy in zip(own, shown, strict=False)
        ]

    def _alone_from(self, pending: Pending) -> Run | ModelCrashedError:
        try:
            return self._continue_alone(pending)
        except ModelCrashedError as error:
            return error

    def _write_on(self, stock: Stock, lines: Sequence[Line]) -> Iterator[tuple[Job, Run | ModelCrashedError]]:
        """Write lines of one number of columns to their end; the trials that are complete with that."""
        lines = [line for line in lines if stock.waits(line)]
        if not lines:
            return
        # Their keys and values are large: what is cached in other sizes must not be in their way. Without GPU a no-op.
        torch.cuda.empty_cache()
        columns = columns_of(lines[0].pending.job.batch)
        rows = self._shapes.rows(lines[0].prefix, columns)
        try:
            with row_faults(self.model, faults_by_row(lines), rows), crashes_told(tuple):
                written = continue_greedy(self.model, [line.prefix for line in lines], rows, columns)
        except ModelCrashedError:
            # Find out which of them does that.
            yield from ((pending.job, self._alone_from(pending)) for pending in stock.give_up(lines))
            return
        for row, line in enumerate(lines):
            answers = stock.done(line, line_of(written, row))
            if answers is not None:
                try:
                    yield line.pending.job, self._finish(line.pending, answers)
                except ModelCrashedError as error:
                    yield line.pending.job, error

    def _run_golden(self, batch: Batch, boundaries: frozenset[int]) -> GoldenRun:
        golden = super()._run_golden(batch, boundaries)
        if not (batch.generates and self._spares_head):
            return golden
        assert golden.trajectory is not None
        # Far enough from the band, so that a trial with somewhat larger logits stays outside too.
        least = 2 * least_band(golden)
        return replace(golden, doubt=doubt_of(self.model, golden.trajectory.hidden, golden.choices, least))

    def _golden_pass(self, calls: Sequence[Pass], asked: Asked) -> tuple[Seen, Trajectory | None]:
        height, layers = len(asked.likely), len(self._layers)
        streams: list[torch.Tensor] = []
        tuples: set[bool] = set()
        hidden: list[torch.Tensor] = []

        def keep(module: Any, inputs: Any, output: Any) -> None:
            # Of the first copy alone.
            rows = bisect_left(calls[len(streams) // layers].rows, height)
            streams.append(_stream(output)[:rows].clone())
            tuples.add(isinstance(output, tuple))

        def keep_inputs(module: Any, inputs: Any) -> None:
            hidden.append(calls[len(hidden)].predicting(inputs[0]).clone())

        cache = ColumnCache.of_block(self.model.layer_devices, calls[-1].stop)
        with Injection(self.model, ()) as injection, ExitStack() as hooks:
            for layer in self._layers:
                hooks.callback(layer.register_forward_hook(keep).remove)
            if self._spares_head and not len(asked.scored):
                # Only the choices of a generated text can be beyond doubt.
                hooks.callback(self._head.register_forward_pre_hook(keep_inputs).remove)
            seen = tuple(self._call(call, asked, cache, injection)[0].by_itself() for call in calls)
        return joined(seen), Trajectory(
            tuple(tuple(streams[begin : begin + layers]) for begin in range(0, len(streams), layers)),
            tuples == {True},
            seen,
            tuple(states[:, :, :height].clone() for states in cache.states),
            tuple(hidden),
        )

    def _trial_pass(self, job: Job, golden: GoldenRun, injection: Injection) -> Forced | Proof:
        trajectory, calls = golden.trajectory, golden.calls
        assert trajectory is not None
        reach = reach_of(job.faults, self.model, golden.block)
        begin = _first_call(golden, reach)
        cache = self._cache(golden, trajectory, reach.first, begin)
        for call in calls[:begin]:
            injection.begin_pass(call)
        if begin == len(calls):
            return "not_activated"
        # A fault that comes after the layers may change the head itself.
        spares_head = self._spares_head and reach.last is not None
        doubt = golden.doubt
        least = 0.0 if doubt is None else doubt.least
        inputs: dict[int, torch.Tensor] = {}
        seen, as_golden = list(trajectory.seen[:begin]), True
        for number, call in enumerate(calls[begin:], begin):
            if as_golden and call.start >= reach.stop:
                # Faults that nothing reads may still be due.
                for rest in calls[number:]:
                    injection.begin_pass(rest)
                return "converged"
            watched = self._watched(trajectory, reach, number, call, cache) if as_golden else nullcontext()
            try:
                with self._resumed(trajectory, reach.first, number), watched:
                    if spares_head:
                        hidden = self._hidden(call, cache, injection)
                        found = self._observed(golden, number, hidden, least)
                        if doubt is not None:
                            inputs[number] = hidden
                    else:
                        found = self._call(call, golden.asked, cache, injection)[0]
            except _GoldenAgainError:
                cache.put(trajectory.states, golden.block.rows, reach.first, call.start, call.stop)
                found = trajectory.seen[number]
            else:
                as_golden = False
            seen.append(found)
        if as_golden:
            return "converged"
        if doubt is not None and band_of(golden, joined(seen).logits) > doubt.least:
            # Its logits are so large that more is in doubt than was thought.
            for number, hidden in inputs.items():
                seen[number] = self._observed(golden, number, hidden, torch.inf)
        return Forced(joined(seen), cache.states, trajectory.states, reach.first)

    def _hidden(self, call: Pass, cache: ColumnCache, injection: Injection) -> torch.Tensor:
        """What the head is given in one call, which is run without it."""
        inputs: list[torch.Tensor] = []
        with withheld(self._head, inputs), crashes_told(lambda: injection.struck):
            forced_call(self.model, call, cache, injection.begin_pass)
        return call.predicting(inputs[0])

    def _observed(self, golden: GoldenRun, number: int, hidden: torch.Tensor, least: float) -> Seen:
        """What such a call shows; a choice with a margin of no more than `least` is in doubt."""
        call = golden.calls[number]
        first = call.first_position
        known = unasked(hidden) if golden.doubt is None else golden.doubt.known(number, first, hidden)
        return observe_wanted(self.model, known, least, first, hidden, golden.asked, self._shapes.head_rows)

    def _cache(self, golden: GoldenRun, trajectory: Trajectory, first: int, begin: int) -> ColumnCache:
        """A cache that holds what the calls before `begin` left in layer `first` and those after it."""
        cache = ColumnCache.of_block(self.model.layer_devices, golden.calls[-1].stop)
        start = golden.calls[begin].start if begin < len(golden.calls) else golden.calls[-1].stop
        cache.put(trajectory.states, golden.block.rows, first, 0, start)
        return cache

    @contextmanager
    def _resumed(self, trajectory: Trajectory, first: int, call: int) -> Iterator[None]:
        """Inside, layers before `first` don't run: the last of them gives golden's output of that call."""
        with ExitStack() as restored:
            for number, layer in enumerate(self._layers[:first]):
                output = trajectory.outputs[call][number]
                if number == first - 1:
                    output = output.repeat(self._shapes.copies, 1, 1)
                given = _constant((output,) if trajectory.tuples else output)
                restored.enter_context(replaced_forward(layer, given))
            yield

    @contextmanager
    def _watched(
        self, trajectory: Trajectory, reach: Reach, number: int, call: Pass, cache: ColumnCache
    ) -> Iterator[None]:
        """Inside, a call ends with _GoldenAgainError when the last faulty layer gives golden's output and no layer up
        to it has left other keys and values."""
        last = reach.last
        if last is None:
            yield
            return
        golden = words(trajectory.outputs[number][last])
        layers = range(reach.first, last + 1)

        def compare(module: Any, inputs: Any, output: Any) -> None:
            same = torch.equal(words(_stream(output))[: len(golden)], golden)
            if same and cache.holds(trajectory.states, layers, call.start, call.stop):
                raise _GoldenAgainError

        hook = self._layers[last].register_forward_hook(compare)
        try:
            yield
        finally:
            hook.remove()


def _first_call(golden: GoldenRun, reach: Reach) -> int:
    """Number of the first call that faults can change, the number of calls where there is none."""
    return next((number for number, call in enumerate(golden.calls) if call.stop > reach.start), len(golden.calls))


def _stream(output: Any) -> torch.Tensor:
    """The residual stream out of what a layer returned."""
    stream: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return stream


def _constant(output: Any) -> Any:
    return lambda *_, **__: output
