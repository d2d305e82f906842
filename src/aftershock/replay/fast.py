"""The fast executor: runs only what a fault can change, and gives the reference executor's bits."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from aftershock.errors import ContractError, InputError
from aftershock.faults import ActivationSite, Fault, WeightSite, output_site, parameter_site
from aftershock.inject import Injection, changes_one_channel, row_faults
from aftershock.models import Block, Generated, LoadedModel, continue_greedy
from aftershock.numerics import words
from aftershock.replay.batches import Batch
from aftershock.replay.executor import Job, ModelCrashedError, Run
from aftershock.replay.reference import (
    Forced,
    GoldenRun,
    Pending,
    ReferenceExecutor,
    Trajectory,
    columns_of,
    lasting,
)

BEFORE_LAYERS = ("embedding", "position")
"""Components outside the decoder layers that come before them; the last norm and lm_head come after."""


class _GoldenAgainError(Exception):
    """Ends a pass whose state is golden's again."""


class FastExecutor(ReferenceExecutor):
    """Starts each trial at the first faulty layer, from golden's state there; ends it where the state is golden's
    again; writes the answers that leave golden's on together, those of many trials at once.

    What it skips is work whose result is known to the bit: the layers before the fault have golden's inputs and
    golden's shapes. `memory` bounds the golden state that is kept, in bytes.
    """

    audited = True

    def __init__(self, model: LoadedModel, memory: int = 2**31) -> None:
        super().__init__(model, memory)
        names = [site.module for site in model.components.outputs if site.component == "residual"]
        self._layers = [model.module.get_submodule(name) for name in names]

    def trials(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Run | ModelCrashedError]]:
        """Every job with its run; those whose answers leave golden's wait for company."""
        waiting: dict[int, list[Pending]] = {}
        for job in jobs:
            try:
                begun = self._begin(job)
            except ModelCrashedError as error:
                yield job, error
                continue
            if isinstance(begun, Run):
                yield job, begun
                continue
            if not all(changes_one_channel(self.model, fault) for fault in lasting(job.faults)):
                yield job, self._continued(begun)
                continue
            pool = waiting.setdefault(columns_of(begun), [])
            if _rows(pool) + len(begun.prefixes) > self._rows:
                yield from self._together(pool)
                pool.clear()
            pool.append(begun)
        for pool in waiting.values():
            yield from self._together(pool)

    def _continued(self, pending: Pending) -> Run | ModelCrashedError:
        try:
            return self._continue_alone(pending)
        except ModelCrashedError as error:
            return error

    def _together(self, pool: Sequence[Pending]) -> Iterator[tuple[Job, Run | ModelCrashedError]]:
        prefixes = [prefix for pending in pool for prefix in pending.prefixes]
        begin = 0
        faults: dict[tuple[int, ...], Sequence[Fault]] = {}
        for pending in pool:
            end = begin + len(pending.prefixes)
            if lasting(pending.job.faults):
                faults[tuple(range(begin, end))] = lasting(pending.job.faults)
            begin = end
        try:
            with row_faults(self.model, faults, self._rows):
                written = continue_greedy(self.model, prefixes, self._rows, columns_of(pool[0]))
        except (ContractError, InputError, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception:
            # One of them brings the model down: find out which.
            yield from ((pending.job, self._continued(pending)) for pending in pool)
            return
        begin = 0
        for pending in pool:
            end = begin + len(pending.prefixes)
            try:
                yield pending.job, self._finish(pending, _part(written, slice(begin, end)))
            except ModelCrashedError as error:
                yield pending.job, error
            begin = end

    def _golden_pass(self, batch: Batch, block: Block, boundaries: frozenset[int]) -> tuple[Forced, Trajectory | None]:
        if boundaries:
            return super()._golden_pass(batch, block, boundaries)
        outputs: list[Any] = []
        with ExitStack() as hooks:
            for layer in self._layers:
                hook = layer.register_forward_hook(lambda _, __, output: outputs.append(output))
                hooks.callback(hook.remove)
            forced, _ = super()._golden_pass(batch, block, boundaries)
        tuples = isinstance(outputs[0], tuple)
        return forced, Trajectory(tuple(map(_stream, outputs)), tuples, forced.keys, forced.values)

    def _trial_pass(
        self, job: Job, golden: GoldenRun, block: Block, boundaries: frozenset[int], injection: Injection
    ) -> Forced | None:
        trajectory = golden.trajectory
        if trajectory is None:
            return super()._trial_pass(job, golden, block, boundaries, injection)
        if not job.faults:
            return None
        first, last = faulty_layers(job.faults, self.model, block)
        try:
            with self._resumed(trajectory, first), self._watched(trajectory, last):
                forced = self._force(job.batch, block, boundaries, injection)
        except _GoldenAgainError:
            return None
        return Forced(
            forced.logits,
            trajectory.keys[:first] + forced.keys[first:],
            trajectory.values[:first] + forced.values[first:],
        )

    @contextmanager
    def _resumed(self, trajectory: Trajectory, first: int) -> Iterator[None]:
        """Inside, layers before `first` don't run: the last of them gives golden's output."""
        with ExitStack() as restored:
            for number, layer in enumerate(self._layers[:first]):
                restored.callback(_restore_forward, layer, layer.__dict__.get("forward"))
                layer.forward = _constant(trajectory, number)
            yield

    @contextmanager
    def _watched(self, trajectory: Trajectory, last: int | None) -> Iterator[None]:
        """Inside, a pass ends with _GoldenAgainError when layer `last`, the last faulty one, gives golden's output."""
        if last is None:
            yield
            return

        def compare(module: Any, inputs: Any, output: Any) -> None:
            if torch.equal(words(_stream(output)), words(trajectory.outputs[last])):
                raise _GoldenAgainError

        hook = self._layers[last].register_forward_hook(compare)
        try:
            yield
        finally:
            hook.remove()


def _stream(output: Any) -> torch.Tensor:
    """The residual stream out of what a layer returned."""
    stream: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return stream


def _constant(trajectory: Trajectory, number: int) -> Any:
    output = trajectory.outputs[number]
    return lambda *_, **__: (output,) if trajectory.tuples else output


def _restore_forward(layer: Any, own: Any) -> None:
    """Take an instance's own `forward` back: the class's serves again, or the one that stood there before."""
    del layer.forward
    if own is not None:
        layer.forward = own


def _part(written: Generated, rows: slice) -> Generated:
    return Generated(written.tokens[rows], written.ends[rows], written.finite[rows], written.margins[rows])


def _rows(pool: Sequence[Pending]) -> int:
    return sum(len(pending.prefixes) for pending in pool)


def faulty_layers(faults: Sequence[Fault], model: LoadedModel, block: Block) -> tuple[int, int | None]:
    """The first layer that must run, and the last one that differs from golden's: when its output is golden's, the
    rest is. None where something after the layers differs too."""
    spans = [_span(fault, model, block) for fault in faults]
    lasts = [last for _, last in spans if last is not None]
    return min(first for first, _ in spans), max(lasts) if len(lasts) == len(spans) else None


def _span(fault: Fault, model: LoadedModel, block: Block) -> tuple[int, int | None]:
    components = model.components
    site = parameter_site(fault, components) if isinstance(fault.site, WeightSite) else output_site(fault, components)
    if site.layer is not None:
        return site.layer, site.layer
    if not site.component.startswith(BEFORE_LAYERS):
        return components.layers, None
    if isinstance(fault.site, ActivationSite):
        return 0, 0
    tied = "+" in site.component
    table = isinstance(model.module.get_submodule(fault.site.parameter.rpartition(".")[0]), torch.nn.Embedding)
    if table and site.component != "position" and not bool((block.tokens == fault.site.index[0]).any()):
        # None of these tokens is embedded by the faulty row.
        return components.layers, None
    return 0, None if tied else 0
