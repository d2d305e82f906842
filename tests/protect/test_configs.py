"""Protections that are none, or not as they are meant, are refused by one sentence."""

from collections.abc import Callable
from math import inf, nan
from typing import Any

import pytest
import torch

from aftershock.errors import InputError
from aftershock.hardware import ClassicalABFT
from aftershock.protect import (
    Backup,
    Checksum,
    Duplication,
    Ecc,
    FiniteScreen,
    FirstTokenBounds,
    FusedChecksum,
    Int8,
    RangeGuard,
    Scrub,
    observe_bounds,
    protect,
)
from tiny_models import tiny_loaded

DOWN = "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        (Checksum, {"action": "recompute"}, "'recompute': choose from count, log, recover"),
        (Checksum, {"scheme": ClassicalABFT}, "type Scheme"),
        (Checksum, {"scheme": ClassicalABFT(), "array": 128}, "type SystolicArray"),
        (Checksum, {"scheme": ClassicalABFT(), "action": "count"}, "leave one out"),
        (Checksum, {"scheme": ClassicalABFT(), "action": "raise"}, "leave one out"),
        (Checksum, {"components": "qk"}, "'qk': give a tuple of names"),
        (FusedChecksum, {"components": "o"}, "give a tuple of names"),
        (Duplication, {"components": None}, "give a tuple of names"),
        (Duplication, {"components": ()}, "no components are given"),
        (FiniteScreen, {"components": (1,)}, "give a tuple of names"),
        (FiniteScreen, {"limit": "clip"}, "'clip': choose from count, clamp, zero"),
        (FirstTokenBounds, {"limit": "clip"}, "choose from count, clamp, zero"),
        (FirstTokenBounds, {"factor": inf}, "finite number from 1"),
        (FirstTokenBounds, {"factor": nan}, "finite number from 1"),
        (FirstTokenBounds, {"factor": 0.5}, "finite number from 1"),
        (FirstTokenBounds, {"factor": "2"}, "finite number from 1"),
        (RangeGuard, {"bounds": {DOWN: (0.0, 1.0)}, "limit": "clip"}, "choose from count, clamp, zero"),
        (RangeGuard, {"bounds": {}}, "at least one module"),
        (RangeGuard, {"bounds": [DOWN]}, "at least one module"),
        (RangeGuard, {"bounds": {DOWN: (1.0, 0.0)}}, "the lower one first"),
        (RangeGuard, {"bounds": {DOWN: (0.0, nan)}}, "two numbers"),
        (RangeGuard, {"bounds": {DOWN: 3.0}}, "two numbers"),
        (RangeGuard, {"bounds": {DOWN: "01"}}, "two numbers"),
        (Scrub, {"every": 1.5}, "every is 1.5: give one of type int"),
        (Scrub, {"every": True}, "every is True"),
        (Scrub, {"every": 0}, "finite number from 1"),
        (Backup, {"parameters": f"{DOWN}.weight"}, "give a tuple of names"),
        (Backup, {"parameters": ()}, "no parameters are given"),
        (Ecc, {"parameters": ()}, "no parameters are given"),
        (Int8, {"calibration": ()}, "no texts of the calibration"),
        (Int8, {"calibration": ("",)}, "texts of the calibration are given"),
    ],
)
def test_what_a_protection_can_not_be(kind: Callable[..., object], given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        kind(**given)


def test_a_value_that_never_varies_has_bounds() -> None:
    assert RangeGuard({DOWN: (0.5, 0.5)}).bounds == {DOWN: (0.5, 0.5)}


def test_what_is_no_protection() -> None:
    nothing: Any = ["down"]
    model = tiny_loaded("llama")
    with pytest.raises(InputError, match="'down' is no protection"):
        protect(model, nothing)
    protect(model, [Scrub()]).remove()


@pytest.mark.parametrize("kind", [Backup, Ecc])
def test_buffers_are_not_parameters(kind: Callable[..., Backup | Ecc]) -> None:
    with pytest.raises(InputError, match=r"down_proj\.weight is a buffer.*Scrub"):
        protect(tiny_loaded("llama"), [Int8(), kind((f"{DOWN}.weight",))])


def test_a_component_in_integers_once() -> None:
    with pytest.raises(InputError, match="in integers already"):
        protect(tiny_loaded("llama"), [Int8(("down",)), Int8(("down",))])
    with pytest.raises(InputError, match="no fc1 of the model"):
        protect(tiny_loaded("llama"), [Int8(("fc1",))])
    protect(tiny_loaded("llama"), [Int8(("down",)), Int8(("up",))]).remove()


def test_bounds_of_tokens_in_no_rows() -> None:
    with pytest.raises(InputError, match=r"shape \(5,\)"):
        observe_bounds(tiny_loaded("llama"), [torch.arange(5)])
