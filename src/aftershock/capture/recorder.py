"""Record what a transformers model computes for some prompts."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers

from aftershock.capture.bundle import DTYPES, Bundle
from aftershock.capture.entries import Engine, Logits, Record, Request, Share, Stored
from aftershock.capture.hooks import Batch, Place, Watched, batches, forward, token_rows, watched, watching
from aftershock.capture.manifest import Manifest
from aftershock.errors import InputError
from aftershock.models import LoadedModel
from aftershock.numerics import words

_FILE = "tensors.safetensors"

ENGINE = Engine(name="transformers", version=transformers.__version__)
"""What the recorder runs models with."""

_Name = tuple[str, str]
"""A module's path, and `input`, `output` or `logits`."""


def record(model: LoadedModel, prompts: Sequence[str | Sequence[int]]) -> Bundle:
    """What a model computes for prompts (texts, or token ids), in memory: `write_bundle` writes it.

    Every mapped output in call order, the input of every module that has tensors of its own, and the logits, for every
    token, in one pass for each length of prompts (`batches`). Values are cloned when they are made and kept as the
    words they are, on the CPU; what is both the output of one module and the input of others is kept once. Two
    recordings of one model on one machine with deterministic kernels are equal to the bit.

    Raises InputError for prompts that the model can't take.
    """
    rows = token_rows(model, prompts)
    modules = watched(model)
    requests = tuple(
        Request(id=str(number), tokens=row, positions=tuple(range(len(row)))) for number, row in enumerate(rows)
    )
    taken = _Taken(modules)
    parts = batches(model, rows)
    for batch in parts:
        taken.run(model, batch)
    starts = Manifest(engine=ENGINE, model="", dtype="", requests=requests, records=()).starts
    order = torch.cat([batch.rows(starts) for batch in parts]).argsort()
    stored, tensors = taken.assembled(order)
    for path, module in modules.items():
        if module.operation == "embedding":
            place = Stored(file=_FILE, key=f"{path}.input", dtype="I64", shape=(len(order),))
            stored[path, "input"], tensors[place] = place, _looked_up(module, requests)
    manifest = Manifest(
        engine=ENGINE,
        model=model.spec,
        dtype=str(model.dtype).removeprefix("torch."),
        settings=settings_of(model),
        requests=requests,
        records=tuple(_record(module, stored) for module in modules.values()),
        logits=Logits(stored=stored["", "logits"]),
    )
    return Bundle(manifest, tensors)


class _Taken:
    """What was seen so far, pass by pass."""

    def __init__(self, modules: Mapping[str, Watched]) -> None:
        self._modules = modules
        self._pieces: dict[_Name, list[torch.Tensor]] = {}
        self._last: dict[int, torch.Tensor] = {}
        self._tokens = 0

    def run(self, model: LoadedModel, batch: Batch) -> None:
        """One pass."""
        self._tokens = batch.ids.numel()
        self._last.clear()
        with watching(self._modules, self._see):
            logits = forward(model, batch)
        self._keep(("", "logits"), logits)

    def _see(self, path: str, place: Place, values: torch.Tensor) -> None:
        self._keep((path, place), self._modules[path].flat(values, self._tokens))

    def _keep(self, name: _Name, values: torch.Tensor) -> None:
        """A clone, or the one that was taken when another module returned or took the same words in the same place."""
        if values.dtype not in DTYPES:
            raise InputError(
                f"{'.'.join(name)} is of type {values.dtype}, which a bundle does not hold: record another"
            )
        clone = values.to("cpu", copy=True).contiguous()
        known = self._last.get(values.data_ptr())
        if known is not None and known.shape == clone.shape and torch.equal(words(known), words(clone)):
            clone = known
        self._last[values.data_ptr()] = clone
        self._pieces.setdefault(name, []).append(clone)

    def assembled(self, order: torch.Tensor) -> tuple[dict[_Name, Stored], dict[Stored, torch.Tensor]]:
        """Where each name's tensor lies, and the tensors, their tokens in this order."""
        stored: dict[_Name, Stored] = {}
        tensors: dict[Stored, torch.Tensor] = {}
        places: dict[tuple[int, ...], Stored] = {}
        for name, pieces in self._pieces.items():
            same = tuple(map(id, pieces))
            if same not in places:
                tensor = pieces[0] if len(pieces) == 1 else torch.cat(pieces)[order]
                key = ".".join(part for part in name if part)
                place = Stored(file=_FILE, key=key, dtype=DTYPES[tensor.dtype], shape=tuple(tensor.shape))
                places[same], tensors[place] = place, tensor
            stored[name] = places[same]
        return stored, tensors


def _record(module: Watched, stored: Mapping[_Name, Stored]) -> Record:
    return Record(
        module=module.path,
        layer=module.sites[0].layer,
        operation=module.operation,
        shares=tuple(
            Share(component=site.component, offset=rows.offset, length=rows.length, period=rows.period)
            for site in module.sites
            for rows in [site.rows]
        ),
        parameters=module.parameters,
        output=stored[module.path, "output"],
        input=stored.get((module.path, "input")),
    )


def _looked_up(module: Watched, requests: Sequence[Request]) -> torch.Tensor:
    """The rows of a table that the tokens read, int64, shape (tokens,)."""
    if module.sites[0].component == "position":
        skipped = getattr(module.part, "offset", 0)  # OPT's table begins with rows that no position reads
        return torch.tensor([place + skipped for request in requests for place in request.positions])
    return torch.tensor([token for request in requests for token in request.tokens])


def settings_of(model: LoadedModel) -> dict[str, Any]:
    """What the words of a recording depend on, beside model, prompts and engine."""
    return {
        "device": str(model.device),
        "attention": model.attention,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "padding": "none",
        "batches": "by length",
    }
