"""Error growth: nothing before the struck layer, something from it on, infinity for NaN."""

import math

import pytest
from small_tasks import ITEMS

from aftershock.faults import parse_faults
from aftershock.models import LoadedModel
from aftershock.replay import Batch, ReferenceExecutor, make_batches, residual_error
from tiny_models import tiny_loaded

LAYERS = 4


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return tiny_loaded("llama", num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def batches(model: LoadedModel) -> tuple[Batch, ...]:
    return make_batches(ITEMS, model, 4, 0)


def errors(model: LoadedModel, batch: Batch, line: str) -> tuple[float, ...]:
    faults = parse_faults(line)
    return residual_error(model, batch, faults, ReferenceExecutor(model).golden(batch, faults))


@pytest.mark.parametrize("trigger", ["always", "from first_token", "at first_token"])
@pytest.mark.parametrize("layer", range(LAYERS))
def test_the_error_begins_at_the_struck_layer(
    model: LoadedModel, batches: tuple[Batch, ...], layer: int, trigger: str
) -> None:
    for batch in batches:
        grown = errors(model, batch, f"weight model.layers.{layer}.mlp.down_proj.weight[3,4] add 5.0 {trigger}")
        # The embedding comes first, then each layer.
        assert len(grown) == 1 + LAYERS
        assert grown[: layer + 1] == (0.0,) * (layer + 1)
        assert min(grown[layer + 1 :]) > 0


def test_a_struck_embedding_is_wrong_from_the_start(model: LoadedModel, batches: tuple[Batch, ...]) -> None:
    for batch in batches:
        token = batch.sequences[0][0][-1]
        assert min(errors(model, batch, f"weight model.embed_tokens.weight[{token},4] add 5.0")) > 0


def test_an_activation_fault_is_followed_too(model: LoadedModel, batches: tuple[Batch, ...]) -> None:
    for batch in batches:
        grown = errors(model, batch, "activation model.layers.2[4] add 50.0 at first_token")
        assert grown[:3] == (0.0, 0.0, 0.0)
        assert min(grown[3:]) > 0


def test_no_fault_no_error(model: LoadedModel, batches: tuple[Batch, ...]) -> None:
    golden = ReferenceExecutor(model).golden(batches[0])
    assert residual_error(model, batches[0], (), golden) == (0.0,) * (1 + LAYERS)


def test_nan_and_infinity_count_as_infinite(model: LoadedModel, batches: tuple[Batch, ...]) -> None:
    for value in ("nan", "inf", "-inf"):
        grown = errors(model, batches[0], f"weight model.layers.1.mlp.down_proj.weight[3,4] replace {value}")
        assert grown == (0.0, 0.0, math.inf, math.inf, math.inf)


def test_the_size_of_the_error_is_relative(model: LoadedModel, batches: tuple[Batch, ...]) -> None:
    """A residual channel replaced by itself plus d moves the stream by d / its norm, for the worst row."""
    (batch,) = [batch for batch in batches if batch.items[0].kind == "cloze"]
    small = errors(model, batch, "activation model.layers.3[4] add 0.5 at first_token")
    large = errors(model, batch, "activation model.layers.3[4] add 5.0 at first_token")
    assert large[-1] == pytest.approx(10 * small[-1], rel=1e-4)
