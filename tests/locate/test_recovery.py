import math

import pytest
import torch

from aftershock.locate import Damped, Masked, Search, applied, measure, text_rows
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
