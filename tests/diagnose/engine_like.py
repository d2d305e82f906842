"""Bundles as engines of any habit would make them: the values of a tiny decoder, renamed and rearranged in code."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from aftershock.capture import Bundle, Engine, Logits, Manifest, Record, Request, Stored
from aftershock.diagnose.alignment import Alignment, align
from aftershock.diagnose.architecture import architecture_of
from aftershock.diagnose.arithmetic import Arithmetic
from aftershock.diagnose.functions import Tokens
from aftershock.diagnose.points import INSIDE, Point
from aftershock.diagnose.replay import deviations
from aftershock.diagnose.replica import Replica
from aftershock.diagnose.weights import weights_of
from aftershock.models import LoadedModel

PROMPTS = (tuple(range(5, 35)), tuple(range(40, 48)), tuple(range(60, 82)))

DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}

Values = dict[Point, torch.Tensor]

Arrange = Callable[[Values], dict[str, torch.Tensor]]
"""From the values of all points to records by name, in call order."""


def replica_of(model: LoadedModel) -> Replica:
    """The replica of a model, in the arithmetic of the model."""
    return Replica(architecture_of(model), weights_of(model), Arithmetic(model.dtype))


def tokens_of(requests: Sequence[Request]) -> Tokens:
    """The tokens of a bundle's requests."""
    return Tokens(
        ids=torch.tensor([token for request in requests for token in request.tokens]),
        positions=torch.tensor([position for request in requests for position in request.positions]),
        lengths=tuple(len(request.tokens) for request in requests),
    )


def requests_of(prompts: Sequence[Sequence[int]]) -> tuple[Request, ...]:
    """One request a prompt."""
    return tuple(
        Request(id=str(number), tokens=tuple(prompt), positions=tuple(range(len(prompt))))
        for number, prompt in enumerate(prompts)
    )


def values_of(replica: Replica, prompts: Sequence[Sequence[int]] = PROMPTS) -> Values:
    """What an engine with this decoder computes at each point, in call order."""
    return dict(replica.walk(tokens_of(requests_of(prompts)), lambda _, values: values))


def named(values: Values) -> dict[str, torch.Tensor]:
    """A record for each point, under a name that says what it is."""
    return {f"h.{point.layer}.{point.kind}" if point.layer >= 0 else point.kind: own for point, own in values.items()}


def bundle_of(
    records: Mapping[str, torch.Tensor],
    prompts: Sequence[Sequence[int]] = PROMPTS,
    rows: Mapping[str, Sequence[int]] | None = None,
) -> Bundle:
    """A bundle of these values, the logits under their own name; `rows` are the tokens that some records have alone."""
    rows = {} if rows is None else rows
    tensors = {_stored(name, values): values for name, values in records.items()}
    stored = {place.key: place for place in tensors}
    manifest = Manifest(
        engine=Engine(name="engine-like", version="1"),
        model="tiny",
        dtype=str(next(iter(records.values())).dtype).removeprefix("torch."),
        requests=requests_of(prompts),
        rows={name: tuple(numbers) for name, numbers in rows.items()},
        records=tuple(
            Record(module=name, output=place, span=name if name in rows else "all")
            for name, place in stored.items()
            if name != "logits"
        ),
        logits=Logits(stored=stored["logits"], span="logits" if "logits" in rows else "all"),
    )
    return Bundle(manifest, tensors)


def _stored(name: str, values: torch.Tensor) -> Stored:
    return Stored(file="tensors.safetensors", key=name, dtype=DTYPES[values.dtype], shape=tuple(values.shape))


@dataclass(frozen=True)
class Outcome:
    """An alignment, and the points whose error ratio says that they are wrong."""

    alignment: Alignment
    wrong: frozenset[Point]

    @property
    def kinds(self) -> set[str]:
        """Kinds of the points that are wrong."""
        return {point.kind for point in self.wrong}

    def layouts(self, kind: str) -> set[str]:
        """How the kind's values are laid out, in all layers."""
        return {str(own.source.layout) for point, own in self.alignment.matches.items() if point.kind == kind}


def outcome(replica: Replica, bundle: Bundle) -> Outcome:
    """Align a bundle with a replica, and compare."""
    tokens = tokens_of(bundle.manifest.requests)
    alignment = align(replica, tokens, bundle)
    compared = deviations(replica, tokens, alignment.target(bundle))
    return Outcome(alignment, frozenset(own.point for own in compared if own.ratio > 2))


def inside(values: Values, kind: str) -> list[Point]:
    """The points of a kind."""
    assert kind in INSIDE
    return [point for point in values if point.kind == kind]


def said(bundle: Bundle, **update: Any) -> Bundle:
    """A bundle that says something else of itself."""
    return Bundle(bundle.manifest.model_copy(update=update), bundle.tensors)
