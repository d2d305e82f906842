"""What protections cost on this machine: passes with and without them, in turn, and the memory that they keep."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch

from aftershock.errors import InputError
from aftershock.models import ColumnCache, LoadedModel, Pass, align, cut, decode, forced_call
from aftershock.protect.configs import Protection, Scrub
from aftershock.protect.handle import protect
from aftershock.replay import Batch
from aftershock.stats import Estimate, bootstrap_interval

Floats = npt.NDArray[np.float64]

ROUNDS = 6
DECODES = 3
"""Decode passes that are timed together: one alone is short."""


@dataclass(frozen=True)
class Cost:
    """What protections add: shares of the time that the same passes take without them (0.02: 2 %), fastest round
    against fastest round, each with its 95 % interval, and `nbytes` of memory. Whatever else runs on a machine only
    makes passes slower, so that the fastest of some tells most of what they take by themselves.

    `prefill`: one pass over prompts; `decode`: one pass over a token of each; `latency`: whole answers, one prefill and
    as many decode passes as the batches need at most.
    """

    prefill: Estimate
    decode: Estimate
    latency: Estimate
    nbytes: int


def measured_cost(
    model: LoadedModel, protections: Sequence[Protection], batches: Sequence[Batch], rounds: int = ROUNDS
) -> Cost:
    """The cost of protections that are used together, on the prompts of `batches`; see `measured_costs`."""
    (cost,) = measured_costs(model, [protections], batches, rounds)
    return cost


@torch.inference_mode()
def measured_costs(
    model: LoadedModel, sets: Sequence[Sequence[Protection]], batches: Sequence[Batch], rounds: int = ROUNDS
) -> tuple[Cost, ...]:
    """The cost of each set of protections.

    In each round the batches are run on the plain model and on one protected model after the other: what drifts on the
    machine meanwhile strikes all alike. Protected models are twins that share the model's words, so nothing large is
    copied. A `Scrub` is timed before every pass and its time divided by its `every`.

    Raises InputError without batches, for fewer than 3 rounds, and as `protect` does.
    """
    if not batches or rounds < 3:
        raise InputError("a cost needs a batch and at least 3 rounds: give them")
    timed = _distinct([part for one in sets for part, _ in _parts(one)])
    with ExitStack() as stack:
        handles = [stack.enter_context(protect(_twin(model), part)) for part in timed]
        models = [model, *(handle.model for handle in handles)]
        passes = [_passes(batch, model.device) for batch in batches]
        # Nothing counts that is done once.
        _ = [_seconds(one, passes) for one in models]
        seconds = np.array([[_seconds(one, passes) for one in models] for _ in range(rounds)])
        kept = [handle.extra_bytes for handle in handles]
    lengths = float(np.mean([batch.decode_passes for batch in batches]))
    costs = []
    for one in sets:
        parts = [(timed.index(part), factor) for part, factor in _parts(one)]
        of_parts = seconds[:, [0, *(1 + number for number, _ in parts)]]
        factors = np.array([factor for _, factor in parts])
        prefill, decoding, latency = (
            _added(of_parts, factors, counts) for counts in ((1.0, 0.0), (0.0, 1.0), (1.0, lengths))
        )
        costs.append(Cost(prefill, decoding, latency, sum(kept[number] for number, _ in parts)))
    return tuple(costs)


def _added(seconds: Floats, factors: Floats, passes: tuple[float, float]) -> Estimate:
    """What some parts, each times its factor, add to so many prefill and decode passes. `seconds` has shape (rounds,
    1 + parts, 2), the plain model's first."""

    def added(samples: Floats) -> Floats:
        fastest = samples.min(axis=1) @ np.array(passes)
        shares: Floats = (fastest[:, 1:] / fastest[:, :1] - 1) @ factors
        return shares

    return bootstrap_interval(seconds, added, 0)


def _parts(protections: Sequence[Protection]) -> list[tuple[tuple[Protection, ...], float]]:
    """What is timed of a set, and by what its share is multiplied."""
    steady = tuple(one for one in protections if not isinstance(one, Scrub))
    scrubs = [((replace(one, every=1),), 1 / one.every) for one in protections if isinstance(one, Scrub)]
    return [*([(steady, 1.0)] if steady else []), *scrubs]


def _distinct(parts: Sequence[tuple[Protection, ...]]) -> list[tuple[Protection, ...]]:
    return [part for number, part in enumerate(parts) if part not in parts[:number]]


def _twin(model: LoadedModel) -> LoadedModel:
    """The model with modules of its own and the same words."""
    shared = {id(one): one for one in chain(model.module.parameters(), model.module.buffers())}
    return replace(model, module=deepcopy(model.module, shared))


def _passes(batch: Batch, device: torch.device) -> tuple[Pass, Pass]:
    """The pass over a batch's prompts, and the next one over a token of each."""
    contexts = [context for number, (context, _) in enumerate(batch.sequences) if batch.owners[number] == number]
    block = align(contexts, [context[-1:] for context in contexts], device)
    prefill, first = cut(block, frozenset([decode(1)]))
    return prefill, first


def _seconds(model: LoadedModel, passes: Sequence[tuple[Pass, Pass]]) -> tuple[float, ...]:
    """Seconds of a prefill and of a decode pass, over all batches."""
    return tuple(map(sum, zip(*(_of_batch(model, one) for one in passes), strict=True)))


def _of_batch(model: LoadedModel, passes: tuple[Pass, Pass]) -> tuple[float, float]:
    cache = ColumnCache.of_block(model.layer_devices, passes[-1].stop)
    moments = [_now(model.device)]
    for call, times in zip(passes, (1, DECODES), strict=True):
        for _ in range(times):
            forced_call(model, call, cache, lambda _: None)
        moments.append(_now(model.device))
    return moments[1] - moments[0], (moments[2] - moments[1]) / DECODES


def _now(device: torch.device) -> float:
    """Seconds on a clock: of a GPU once its work is done, of a CPU the processor's own, which doesn't run while other
    programs do."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()
