"""Rows set to zero and branches damped where no flip helps."""

import math

import pytest
import torch

from aftershock.locate.by_text import Search, recovery, text_rows
from aftershock.locate.by_text.branches import Branch, Damped
from aftershock.locate.by_text.recovery import Masked, applied, measure
from aftershock.locate.by_text.search import Found, Tried
from aftershock.locate.by_text.suspects import Suspect
from aftershock.models import LoadedModel, model_hash
from learnt_model import TEXT, learnt, learnt_weights

DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return learnt_weights(TEXT, 12, 64)


def rows_of(model: LoadedModel) -> torch.Tensor:
    return text_rows(model, TEXT, 12, 64)


def test_nothing_is_measured_in_a_healthy_model(weights: dict[str, torch.Tensor]) -> None:
    model = learnt(weights)
    search = Search(model, rows_of(model))
    assert measure(model, search.text, search.run()) is None


def test_a_row_of_nan_is_masked_and_the_model_left_as_it_was(weights: dict[str, torch.Tensor]) -> None:
    model = learnt(weights)
    model.module.get_parameter(DOWN)[3] = math.nan
    broken = model_hash(model.module)
    search = Search(model, rows_of(model))
    found = search.run()
    chosen = measure(model, search.text, found)
    assert isinstance(chosen, Masked)
    assert (chosen.parameter, chosen.row) == (DOWN, 3)
    assert model_hash(model.module) == broken
    with applied(model, chosen):
        assert float(search.text.refresh().mean()) == pytest.approx(float(found.before.mean()) - chosen.gain)
    assert model_hash(model.module) == broken


def test_a_branch_of_nan_is_left_out(weights: dict[str, torch.Tensor]) -> None:
    model = learnt(weights)
    model.module.get_parameter(DOWN).fill_(math.nan)
    search = Search(model, rows_of(model))
    found = search.run()
    chosen = measure(model, search.text, found)
    assert isinstance(chosen, Damped)
    assert (str(chosen.branch), chosen.alpha) == ("layer 0 mlp", 0)
    with applied(model, chosen):
        assert float(search.text.refresh().mean()) < float(found.before.mean())


BRANCH = Branch(0, "mlp", "model.layers.0.mlp.down_proj")
TRIED = Tried(Suspect(DOWN, 3, 5, 0.5, 0.0), torch.full((12,), 0.5))


@pytest.mark.parametrize(
    ("damped", "masked", "chosen"),
    [
        (0.30, 0.29, Masked),  # the narrower, though it brings a little less
        (0.30, 0.27, Damped),
        (0.05, 0.035, Damped),  # what a healthy model offers too is no measure
        (0.035, 0.05, Masked),
        (0.035, 0.035, None),
    ],
)
def test_the_narrower_measure_is_taken_where_it_brings_nearly_as_much(
    weights: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    damped: float,
    masked: float,
    chosen: type[Masked] | type[Damped] | None,
) -> None:
    model = learnt(weights)
    search = Search(model, rows_of(model))
    monkeypatch.setattr(recovery, "least", lambda *_: Damped(BRANCH, 0.0, damped))
    monkeypatch.setattr(recovery, "_masking", lambda *_: Masked(DOWN, 3, masked))
    losses = torch.ones(12, dtype=torch.float64)
    branches = (Damped(BRANCH, 0.0, 0.5),)
    found = measure(model, search.text, Found((), branches, losses, losses, (0,), 9.0))
    assert found is None if chosen is None else isinstance(found, chosen)
    assert measure(model, search.text, Found((TRIED,), branches, losses, losses, (0,), 9.0)) is None
