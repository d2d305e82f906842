"""One computation that may be the reason of a wrong point, and ways to try others in its place."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch.nn.functional import normalize

from aftershock.diagnose.arithmetic import TRUTH
from aftershock.diagnose.functions import Tokens
from aftershock.diagnose.hypotheses.changes import Change
from aftershock.diagnose.local import deviation_at, local
from aftershock.diagnose.points import LINEAR, Point
from aftershock.diagnose.replay import Deviation, Shown, Target, compared
from aftershock.diagnose.replica import Replica
from aftershock.diagnose.signatures import touched

SAME = 0.99
"""Cosine from which two tokens' inputs are the same."""

FOLLOWS, SURE = 0.5, 6.0
"""How alike errors of tokens have to be, by their inputs' likeness, and how many standard deviations from none."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A possible cause: what the replica has to compute otherwise, and the parameter that says so in numbers or words.

    `least` is the ratio below which the change explains too much: above 0 for changes that only allow for more
    rounding. `blamed` is the component where it is not the place's own kind, and `besides` are other kinds of the layer
    that have to come out right with it.
    """

    cause: str
    change: Change
    parameter: str | None = None
    found: float | str | None = None
    reference: float | str | None = None
    least: float = 0.0
    blamed: str | None = None
    besides: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Place:
    """A wrong point and the kind of computation that is to blame: the point's own, or one between it and the target's
    last values before it. `replica` has the target's arithmetic. Parameters may be found from the rows `fitted` of
    those shown alone; causes are judged on all."""

    replica: Replica
    tokens: Tokens
    target: Target
    wrong: Deviation
    parts: tuple[Point, ...]
    kind: str
    fitted: torch.Tensor

    @property
    def point(self) -> Point:
        """The wrong point."""
        return self.wrong.point

    @cached_property
    def shown(self) -> Shown:
        """The target's values of the wrong point, as far as they are compared."""
        return compared(self.replica, self.target, self.point)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers whose computations of the kind may be to blame."""
        return tuple(part.layer for part in self.parts if part.kind == self.kind)

    @property
    def layer(self) -> int:
        """The first of these layers."""
        return self.layers[0]

    @property
    def direct(self) -> bool:
        """Whether the kind's own values are shown."""
        return self.kind == self.point.kind

    @cached_property
    def numbers(self) -> torch.Tensor:
        """The tokens that are compared: int64, shape (rows,)."""
        rows = self.shown.rows
        return torch.arange(len(self.tokens.ids), device=self.tokens.ids.device) if rows is None else rows

    @property
    def rows(self) -> torch.Tensor:
        """Those that parameters may be found from."""
        return self.numbers[self.fitted]

    @cached_property
    def values(self) -> torch.Tensor:
        """The target's values in fp64, shape (rows, channels)."""
        return self.shown.values.to(self.tokens.ids.device)[self.fitted].double()

    @cached_property
    def expected(self) -> torch.Tensor:
        """What they should be."""
        return self.every_truth[self.fitted]

    @cached_property
    def every_truth(self) -> torch.Tensor:
        """What the values of all rows should be, fp64."""
        return self._exact(self.replica)

    @cached_property
    def inputs(self) -> list[torch.Tensor]:
        """What the computation is done with, fp64, each of shape (tokens, channels); 0 where it is not finite."""
        truth = replace(self.replica, arithmetic=TRUTH)
        sources = truth.inputs(Point(self.kind, self.layer))
        return [self._input(truth, source).nan_to_num(0.0, 0.0, 0.0) for source in sources]

    def _input(self, truth: Replica, source: Point) -> torch.Tensor:
        if source in self.parts:
            return local(truth, self.tokens, self.target, source)
        return self.target[source].values.to(self.tokens.ids.device, torch.float64)

    @cached_property
    def is_of_words(self) -> bool:
        """Whether a linear map's error is one of its words, not of rounding: with words off by D errors are E = X D, so
        that two tokens' errors are about as alike as their inputs, which rounding errors are not."""
        if not self.direct or self.kind not in LINEAR:
            return False
        inputs, errors = (normalize(own) for own in (self.inputs[0][self.rows], self.values - self.expected))
        alike, found = (own @ own.T for own in (inputs, errors))
        # Equal tokens have equal rounding errors too.
        pairs = torch.ones_like(alike, dtype=torch.bool).triu(1) & (alike.abs() < SAME)
        told = float(alike[pairs].square().sum())
        slope = float((alike * found)[pairs].sum()) / max(told, 1e-30)
        return slope > FOLLOWS and slope * math.sqrt(told * errors.shape[-1]) > SURE

    def changed(self, change: Change) -> Replica:
        """The replica with something else in all layers in question."""
        replica = self.replica
        for layer in self.layers:
            replica = change(replica, layer)
        return replica

    def truth(self, replica: Replica) -> torch.Tensor:
        """What a replica computes without rounding, shape (rows, channels)."""
        return self._exact(replica)[self.fitted]

    def _exact(self, replica: Replica) -> torch.Tensor:
        exact = replace(replica, arithmetic=TRUTH)
        return self.shown.of(local(exact, self.tokens, self.target, self.point))

    def error(self, change: Change) -> float:
        """Sum of squares of what a change leaves unexplained."""
        found = float((self.truth(self.changed(change)) - self.values).square().sum())
        return found if found == found else float("inf")

    def deviation(self, change: Change, point: Point) -> Deviation:
        """What a change leaves of a point's deviation, over all rows."""
        return deviation_at(self.changed(change), self.tokens, self.target, point)


LISTED = 16
"""Things of a list that are named at most."""

Candidates = Callable[[Place], Iterator[Candidate]]


@dataclass(frozen=True)
class Hypothesis:
    """A kind of error: the computations in which it can be, and what it could be there.

    `freedom` says how much is found from the target's values: a `choice` of a few, a `number`, a `structure` such as a
    permutation, or values that can be anything (`free`). More freedom is tried only where less explains nothing.
    `same_for_all`: what a model has of it is the same for all tokens, as its words are.
    """

    kinds: tuple[str, ...]
    freedom: Literal["choice", "number", "structure", "free"]
    candidates: Candidates
    same_for_all: bool = False


def halves(ratios: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows to find parameters from and rows to judge by: every other wrong one and every other right one each. A single
    row is in both."""
    order = torch.argsort(touched(ratios).to(torch.int8), stable=True, descending=True)
    fitted, held = order[::2].sort().values, order[1::2].sort().values
    return fitted, held if len(held) else fitted


def numbers(first: float, last: float, count: int) -> Sequence[float]:
    """Positive numbers at equal ratios."""
    found: list[float] = torch.logspace(0, 1, count, base=last / first, dtype=torch.float64).mul(first).tolist()
    return found


def chance(count: int) -> float:
    """Share by which the sums of squares of so many values may differ and not be told apart."""
    return 6 / math.sqrt(count)


def listed(values: Sequence[object]) -> str:
    """The first of them, and how many more there are."""
    shown = ", ".join(map(str, values[:LISTED]))
    return shown if len(values) <= LISTED else f"{shown} and {len(values) - LISTED} more"
