"""Locate a fault in a live model by a clean recording of it, while the model runs."""

from functools import cached_property

import torch

from aftershock.capture import ENGINE, Batch, Bundle, Place, batches, forward, settings_of, watched, watching
from aftershock.errors import InputError
from aftershock.locate.by_activations import ActivationFinding, finding, of_logits
from aftershock.locate.explaining import same_words
from aftershock.models import LoadedModel


class LiveSuspect:
    """A live model that may be faulty, beside a clean recording of it on the same device.

    `locate` can be called as often as one likes: what the recording holds is read once, and stays in memory. Raises
    InputError where the recording is not of such a model, taken by `record`.
    """

    def __init__(self, model: LoadedModel, reference: Bundle) -> None:
        self.model, self.reference = model, reference
        self.modules = watched(model)
        manifest = reference.manifest
        _check_model(self, manifest.model)
        self.records = {record.module: record for record in manifest.records}
        self.batches: tuple[Batch, ...] = batches(model, [request.tokens for request in manifest.requests])

    @cached_property
    def clean(self) -> dict[tuple[str, Place], torch.Tensor]:
        """What was recorded, by module and place, in call order."""
        found: dict[tuple[str, Place], torch.Tensor] = {}
        for record in self.records.values():
            inputs = self.reference.input(record)
            if inputs is not None:
                found[record.module, "input"] = inputs
            found[record.module, "output"] = self.reference.output(record)
        return found

    def rows(self, batch: Batch) -> torch.Tensor:
        """Numbers of a batch's tokens among the recorded ones."""
        return batch.rows(self.reference.manifest.starts)

    def locate(self) -> ActivationFinding:
        """Run the prompts and compare words while they run. Nothing is copied, and a pass ends at its onset; of several
        passes the earliest onset counts."""
        order = list(self.clean)
        onsets: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        agree = True
        for batch in self.batches:
            rows = self.rows(batch)
            onset = _Onset(self, rows)
            try:
                with watching(self.modules, onset.see):
                    logits = forward(self.model, batch)
                agree &= self._same_logits(rows, logits)
            except _ReachedError:
                onsets.setdefault(order.index(onset.name), []).append((rows, onset.values))
        if not onsets:
            return of_logits(agree)
        earliest = min(onsets)
        return self.finding(*order[earliest], onsets[earliest])

    def finding(self, path: str, place: Place, pieces: list[tuple[torch.Tensor, torch.Tensor]]) -> ActivationFinding:
        """What it means that some tokens have other values than recorded at a place: their numbers and values."""
        values = self.clean[path, place].clone()
        for rows, own in pieces:
            values[rows] = own
        return finding(self.reference, self.records[path], place, values, None)

    def agrees(self, path: str, place: Place, rows: torch.Tensor, own: torch.Tensor) -> bool:
        """Whether values of some tokens are the recorded ones to the bit; so are those that were not recorded."""
        clean = self.clean.get((path, place))
        return clean is None or same_words(clean if len(rows) == len(clean) else clean[rows], own)

    def _same_logits(self, rows: torch.Tensor, logits: torch.Tensor) -> bool:
        stored = self.reference.manifest.logits
        if stored is None or any(record.output == stored.stored for record in self.records.values()):
            return True  # they are some module's output, which is compared as such
        clean = self.reference.tensors[stored.stored]
        return same_words(clean[rows], logits.to("cpu"))


class _ReachedError(Exception):
    """Ends a pass at its onset."""


class _Onset:
    """The first tensor of a pass that differs from the recording: its `name` and `values`, shape (tokens, ...)."""

    def __init__(self, suspect: LiveSuspect, rows: torch.Tensor) -> None:
        self._suspect, self._rows = suspect, rows
        self.name: tuple[str, Place] = "", "output"
        self.values = torch.empty(0)

    def see(self, path: str, place: Place, values: torch.Tensor) -> None:
        """Compare one tensor."""
        own = self._suspect.modules[path].flat(values, len(self._rows)).to("cpu")
        if not self._suspect.agrees(path, place, self._rows, own):
            self.name, self.values = (path, place), own.clone()
            raise _ReachedError


def _check_model(suspect: LiveSuspect, name: str) -> None:
    """Raise InputError unless a recording is of such a model."""
    manifest, spec = suspect.reference.manifest, suspect.model.spec
    if [record.module for record in manifest.records] != list(suspect.modules):
        raise InputError(f"the bundle of {name} has other modules than {spec}: record the same model with aftershock")
    dtype = str(suspect.model.dtype).removeprefix("torch.")
    if manifest.dtype != dtype:
        raise InputError(f"the bundle was recorded in {manifest.dtype}, the model runs in {dtype}: take the same dtype")
    for record in manifest.records:
        own = suspect.modules[record.module].parameters
        if {(one.name, one.shape) for one in record.parameters} != {(one.name, one.shape) for one in own}:
            raise InputError(f"{record.module} has other tensors in the bundle than in {spec}: record that model")
    ran, runs = ({"engine": manifest.engine, **manifest.settings}, {"engine": ENGINE, **settings_of(suspect.model)})
    if unlike := [key for key in ran.keys() | runs.keys() if ran.get(key) != runs.get(key)]:
        raise InputError(
            f"the bundle was recorded with another {', '.join(sorted(unlike))} than the model runs with, which rounds "
            "otherwise: record the clean model in the same way"
        )
    for request in manifest.requests:
        if request.positions != tuple(range(len(request.tokens))):
            raise InputError(f"request {request.id} of the bundle does not begin at position 0: record whole prompts")
