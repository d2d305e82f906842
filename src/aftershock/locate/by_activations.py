"""Locate a fault by what modules return: the first one whose output differs while its input agrees.

The onset counts, not the largest deviation: what comes later inherits the error (BitFlipScope's differential mode,
arXiv 2512.22174, as reconstructed, with words in the place of norms).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import torch

from aftershock.capture import Bundle, Place, Record
from aftershock.errors import InputError
from aftershock.locate.explaining import Element, deviating, explain, same_words

Where = Literal["input", "output", "logits"]


@dataclass(frozen=True)
class ActivationFinding:
    """Where two runs part.

    `place` tells what differs first: a module's `output`, its input being as recorded, so that the fault lies in one of
    `tensors`, or in the module's own computation; its `input`, everything recorded before being as it was, so that
    the fault lies in what is computed between modules, as attention is, and in no tensor that is mapped; the `logits`
    alone; None where nothing differs. `block` is `layer N`, `embedding`, `position`, `norm` (the final one) or
    `lm_head`. `components` are those whose channels differ; a tied tensor's are both, and `modules` all that hold it.

    `tensors` has several names where the output doesn't tell which. `channels` are the module's output channels that
    differ: rows of a linear weight, columns of a table. `elements` are words that are proved to explain a channel each,
    if they are faulty alone in it; none where several could, as after a NaN, or where several words of a row changed.
    """

    place: Where | None = None
    module: str | None = None
    layer: int | None = None
    block: str | None = None
    components: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    channels: tuple[int, ...] = ()
    elements: tuple[Element, ...] = ()

    @property
    def divergent(self) -> bool:
        """Whether anything differs."""
        return self.place is not None


@dataclass(frozen=True)
class Noise:
    """The largest deviation of any value that means nothing, by a record's name and place, and of any logit."""

    limits: dict[tuple[str, Place], float]
    logits: float | None = None

    def limit(self, record: Record, place: Place) -> float:
        """The limit for one tensor. Raises InputError where its noise is not known."""
        if (record.name, place) not in self.limits:
            raise InputError(f"the noise has no {place} of {record.name}: take it from recordings of the same model")
        return self.limits[record.name, place]


def noise_of(bundles: Sequence[Bundle], sigmas: float = 6.0) -> Noise:
    """The noise of repeated clean recordings of the same prompts: for every tensor mean + `sigmas` x standard deviation
    of the largest deviation between two of them, and at least the largest one seen.

    Raises InputError for fewer than three bundles, which tell no standard deviation, and for unlike ones.
    """
    if len(bundles) < 3:
        raise InputError(f"noise takes three clean bundles at least, here are {len(bundles)}: record more")
    peaks: dict[tuple[str, Place], list[float]] = {}
    logits: list[float] = []
    for first, second in combinations(bundles, 2):
        _check_alike(first, second)
        for (record, place, one), (_, _, other) in zip(_tensors(first), _tensors(second), strict=True):
            peaks.setdefault((record.name, place), []).append(_gap(one, other))
        if first.logits is not None and second.logits is not None:
            logits.append(_gap(first.logits, second.logits))
    limits = {name: _limit(found, sigmas) for name, found in peaks.items()}
    return Noise(limits, _limit(logits, sigmas) if logits else None)


def _gap(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double() - other.double()).abs().nan_to_num(0.0, 0.0).max())


def _limit(peaks: Sequence[float], sigmas: float) -> float:
    seen = torch.tensor(peaks, dtype=torch.float64)
    return max(float(seen.mean() + sigmas * seen.std(correction=min(1, len(peaks) - 1))), float(seen.max()))


def locate_by_activations(reference: Bundle, suspect: Bundle, noise: Noise | None = None) -> ActivationFinding:
    """Compare two bundles of the same prompts: as words, or beyond `noise`.

    Raises InputError where the prompts, modules, types or shapes differ, and without `noise` where the engines or
    their settings do.
    """
    _check_alike(reference, suspect)
    ours, theirs = reference.manifest, suspect.manifest
    if noise is None and (ours.engine, ours.settings) != (theirs.engine, theirs.settings):
        raise InputError(
            f"the bundles come from {ours.engine.name} {ours.engine.version} with {ours.settings} and from "
            f"{theirs.engine.name} {theirs.engine.version} with {theirs.settings}, whose words differ by rounding: "
            "record both alike, or give the noise of clean recordings"
        )
    for (record, place, clean), (_, _, found) in zip(_tensors(reference), _tensors(suspect), strict=True):
        limit = None if noise is None else noise.limit(record, place)
        if not same_words(clean, found) and bool(deviating(clean, found, limit).any()):
            return finding(reference, record, place, found, limit)
    clean_logits, found_logits = reference.logits, suspect.logits
    if clean_logits is None or found_logits is None or (noise is not None and noise.logits is None):
        return ActivationFinding()
    limit = None if noise is None else noise.logits
    return of_logits(not bool(deviating(clean_logits, found_logits, limit).any()))


def finding(
    reference: Bundle, record: Record, place: Place, found: torch.Tensor, limit: float | None
) -> ActivationFinding:
    """What it means that the tensor at a place of a record is `found`, shape as recorded, all before being clean."""
    clean = reference.output(record) if place == "output" else reference.input(record)
    assert clean is not None
    component = record.shares[0].component if record.shares else record.module
    where = ActivationFinding(
        place=place,
        module=record.module,
        layer=record.layer,
        block=component if record.layer is None else f"layer {record.layer}",
    )
    if place == "input":
        return replace(where, components=tuple(share.component for share in record.shares))
    explained = explain(record, clean, found, reference.input(record), limit)
    holders = next((one.modules for one in record.parameters if len(one.modules) > 1), (record.module,))
    if len(holders) > 1:
        by_module = {one.module: one.shares for one in reference.manifest.records}
        roles = [share.component for module in holders for share in by_module.get(module, ())]
        components: tuple[str, ...] = ("+".join(roles),)
    else:
        components = tuple(_components(record, explained.channels))
    return replace(
        where,
        components=components,
        modules=holders,
        tensors=explained.tensors,
        channels=explained.channels,
        elements=explained.elements,
    )


def _components(record: Record, channels: Sequence[int]) -> Iterator[str]:
    """The components that some output channels belong to."""
    for share in record.shares:
        if any(share.offset <= channel % share.period < share.offset + share.length for channel in channels):
            yield share.component


def of_logits(agree: bool) -> ActivationFinding:
    """The finding where everything recorded agrees, but for the logits perhaps."""
    return ActivationFinding() if agree else ActivationFinding(place="logits", block="logits")


def _tensors(bundle: Bundle) -> Iterator[tuple[Record, Place, torch.Tensor]]:
    """All tensors that are compared, in call order. What embeddings look up follows from the prompts."""
    for record in bundle.manifest.records:
        inputs = None if record.operation == "embedding" else bundle.input(record)
        if inputs is not None:
            yield record, "input", inputs
        yield record, "output", bundle.output(record)


def _check_alike(first: Bundle, second: Bundle) -> None:
    ours, theirs = first.manifest, second.manifest
    if [(one.tokens, one.positions) for one in ours.requests] != [
        (one.tokens, one.positions) for one in theirs.requests
    ]:
        raise InputError("the bundles are of different prompts: record both with the same token ids and positions")
    if ours.rows != theirs.rows:
        raise InputError("the bundles lack rows of different tokens: record both without cached prefixes")
    if len(ours.records) != len(theirs.records):
        raise InputError(
            f"the bundles have {len(ours.records)} and {len(theirs.records)} records: record the same modules"
        )
    for one, other in zip(ours.records, theirs.records, strict=True):
        layouts = [
            [entry.name, entry.span, *((part.dtype, part.shape) for part in (entry.output, entry.input) if part)]
            for entry in (one, other)
        ]
        if layouts[0] != layouts[1]:
            raise InputError(
                f"the bundles differ in what they hold: {one.name} with {layouts[0][1:]} in one, {other.name} with "
                f"{layouts[1][1:]} in the other: record the same model in the same dtype"
            )
