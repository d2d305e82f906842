"""Errors of learned positions, and of the tokens' rows beside them, in a live model."""

from collections.abc import Callable

import pytest
import torch

from aftershock.capture import record
from aftershock.diagnose import diagnose
from aftershock.diagnose.points import KINDS
from aftershock.models import LoadedModel
from hand_planted import PROMPTS, Plant, after, before, diagnosed
from tiny_models import tiny_loaded

TABLES = {"gpt2": "transformer.wpe", "opt": "model.decoder.embed_positions"}


def table_of(model: LoadedModel) -> torch.nn.Module:
    return next(part for name, part in model.module.named_modules() if name in TABLES.values())


def in_table(edit: Callable[[torch.Tensor], torch.Tensor]) -> Plant:
    return lambda model: table_of(model).weight.copy_(edit(table_of(model).weight))


def read(edit: Callable[[torch.Tensor], torch.Tensor]) -> Plant:
    """GPT-2 reads its table at other positions."""
    return lambda model: before(table_of(model), edit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "plant", "found"),
    [
        ("gpt2", in_table(lambda rows: rows.roll(-2, 0)), 2),
        ("opt", in_table(lambda rows: rows.roll(2, 0)), -2),
        ("opt", in_table(torch.zeros_like), "left out"),
        ("gpt2", in_table(torch.neg), "taken off"),
        ("gpt2", in_table(lambda rows: 2 * rows), "added twice"),
        ("gpt2", read(lambda positions: positions % 16), "start again every 16 tokens"),
        (
            "gpt2",
            read(lambda positions: positions - 20 * (positions >= 20)),
            "start again from the first wrong token on",
        ),
    ],
)
def test_the_cause_of_wrong_positions(family: str, plant: Plant, found: object, dtype: torch.dtype) -> None:
    _, findings = diagnosed(tiny_loaded(family, dtype), plant)
    assert [(own.component, own.cause, own.found) for own in findings] == [("embedding", "position_embedding", found)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positions_are_told_where_no_sum_is_shown(dtype: torch.dtype) -> None:
    kinds = [kind for kind in KINDS if kind != "embedding"]
    _, findings = diagnosed(tiny_loaded("gpt2", dtype), in_table(lambda rows: rows.roll(-2, 0)), kinds)
    assert [(own.component, own.cause, own.found) for own in findings] == [("embedding", "position_embedding", 2)]


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_alignment_does_not_take_tokens_alone_for_the_sum(family: str) -> None:
    healthy, broken = (tiny_loaded(family) for _ in range(2))
    in_table(lambda rows: rows.roll(-3, 0))(broken)
    found = diagnose(healthy, record(broken, PROMPTS))
    assert [(own.component, own.cause, own.found) for own in found.findings] == [("embedding", "position_embedding", 3)]


def multiplied(model: LoadedModel) -> None:
    after(model.module.get_submodule("transformer.wte"), lambda rows: 1.5 * rows)


def row_of_another(model: LoadedModel) -> None:
    weight = model.module.get_submodule("transformer.wte").weight
    weight[22] = weight[23]


@pytest.mark.parametrize(
    ("plant", "cause", "found"),
    [
        (multiplied, "embedding_multiplier", 1.5),
        (row_of_another, "weight_rows_wrong", "tokens 22: rows of other tokens"),
    ],
)
def test_rows_of_tokens_are_told_from_positions(plant: Plant, cause: str, found: object) -> None:
    _, findings = diagnosed(tiny_loaded("gpt2"), plant)
    assert (findings[0].component, findings[0].cause, findings[0].found) == ("embedding", cause, found)
