"""Tokens that a target holds in another order than its requests: the order is found once, it is the same everywhere."""

from collections.abc import Callable

import torch
from scipy.optimize import linear_sum_assignment

from aftershock.diagnose.functions import Tokens
from aftershock.diagnose.matching.catalogue import Value
from aftershock.diagnose.matching.search import apart, search
from aftershock.diagnose.matching.walking import Scene
from aftershock.diagnose.points import Point

_Way = Callable[[torch.Tensor, torch.Tensor, Tokens], tuple[int, ...] | None]
"""The order of a target's values, given those of the reference, both of shape (tokens, channels)."""


def token_order(scene: Scene) -> tuple[int, ...] | None:
    """The number that each of the bundle's tokens has in the requests; None where it is the same, or can't be told.

    Told from the embedding, whose rows say which token they are of: whole requests in another order. Else from the
    first layer's output, in which only tokens that follow on the same ones are equal.
    """
    computed: dict[Point, torch.Tensor] = {}
    ways: dict[Point, _Way] = {Point("embedding"): _by_request, Point("residual", 0): _one_by_one}
    for point in scene.replica.points:
        inputs = [computed[own] for own in scene.replica.inputs(point)]
        computed[point] = scene.replica.compute(point, inputs, scene.tokens)
        if point in ways:
            rows = computed[point].cpu()
            candidates = [value for value in scene.free({}) if _is_whole(value, rows)]
            if search(scene.catalogue, scene.wanted(point, rows), candidates, scene.tolerance) is not None:
                return None
            for value in candidates:
                values = scene.catalogue.bundle.tensors[value.stored].flatten(1).float()
                if _agree(_norms(rows), _norms(values), scene.tolerance):
                    order = ways[point](rows, values, scene.tokens)
                    if order is not None and _agree(rows[list(order)], values, scene.tolerance):
                        return order
        if point == Point("residual", 0):
            break
    return None


def _is_whole(value: Value, rows: torch.Tensor) -> bool:
    return value.width == rows.shape[-1] and len(value.tokens) == len(rows)


def _agree(rows: torch.Tensor, values: torch.Tensor, tolerance: float) -> bool:
    factor = float((rows * values).sum() / (values * values).sum())
    return apart(rows, factor * values) <= tolerance


def _norms(rows: torch.Tensor) -> torch.Tensor:
    """The rows' norms, whatever order they are in: shape (rows, 1)."""
    norms: torch.Tensor = torch.linalg.vector_norm(rows, dim=-1)
    return norms.sort().values[:, None]


def _by_request(rows: torch.Tensor, values: torch.Tensor, tokens: Tokens) -> tuple[int, ...] | None:
    """The order in which whole requests, one after another, have the tokens that are nearest to the values."""
    ids = tokens.ids[_cosines(values, rows).argmax(-1)].tolist()
    remaining = tokens.requests
    order: list[int] = []
    while remaining:
        rest = ids[len(order) :]
        fitting = [own for own in remaining if tokens.ids[own].tolist() == rest[: own.stop - own.start]]
        if not fitting:
            return None
        # Of requests that begin alike the longest is meant, as far as can be told.
        own = max(fitting, key=lambda one: one.stop - one.start)
        order += range(own.start, own.stop)
        remaining.remove(own)
    return tuple(order)


def _one_by_one(rows: torch.Tensor, values: torch.Tensor, _: Tokens) -> tuple[int, ...]:
    """The order in which tokens are as near to the values as they can be, each taken once."""
    return tuple(linear_sum_assignment(-_cosines(values, rows).double().numpy(force=True))[1].tolist())


def _cosines(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(values, dim=-1) @ torch.nn.functional.normalize(rows, dim=-1).T
