"""Alignment does not explain a wrong component away: a forced replay shows that component and no other."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from engine_like import PROMPTS, bundle_of, named, outcome, replica_of, values_of
from test_alignment import ARRANGEMENTS, DTYPES, model

from aftershock.capture import record
from aftershock.diagnose.architecture import Architecture, Layer
from aftershock.diagnose.replica import Replica
from aftershock.diagnose.weights import Part
from tiny_models import tiny_loaded

Plant = Callable[[Replica], Replica]

LAYERS = (0, 1, 2)


def in_layers(change: Callable[[Layer], Layer], layers: tuple[int, ...] = LAYERS) -> Plant:
    def plant(replica: Replica) -> Replica:
        own = replica.architecture.layers
        changed = tuple(change(layer) if number in layers else layer for number, layer in enumerate(own))
        return replace(replica, architecture=replace(replica.architecture, layers=changed))

    return plant


def in_attention(change: Callable[[Layer], dict[str, Any]], layers: tuple[int, ...] = LAYERS) -> Plant:
    return in_layers(lambda layer: replace(layer, attention=replace(layer.attention, **change(layer))), layers)


def in_rotation(change: Callable[[Any], dict[str, Any]]) -> Plant:
    return in_attention(
        lambda layer: {"rotation": replace(layer.attention.rotation, **change(layer.attention.rotation))}
    )


def in_weights(kind: str, source: Callable[[Replica, int], torch.Tensor], layers: tuple[int, ...] = LAYERS) -> Plant:
    def plant(replica: Replica) -> Replica:
        changed = {Part(kind, number): source(replica, number) for number in layers}
        return replace(replica, weights={**replica.weights, **changed})

    return plant


def in_decoder(**change: Any) -> Plant:
    def plant(replica: Replica) -> Replica:
        architecture: Architecture = replace(replica.architecture, **change)
        return replace(replica, architecture=architecture)

    return plant


def heads_rolled(kind: str) -> Callable[[Replica, int], torch.Tensor]:
    return lambda replica, layer: replica.weights[Part(kind, layer)].unflatten(0, (-1, 8)).roll(1, 0).flatten(0, 1)


def interleaved(kind: str) -> Callable[[Replica, int], torch.Tensor]:
    return lambda replica, layer: (
        replica.weights[Part(kind, layer)].unflatten(0, (-1, 2, 4)).transpose(1, 2).flatten(0, 2)
    )


def multiplied(kind: str, factor: float) -> Callable[[Replica, int], torch.Tensor]:
    return lambda replica, layer: replica.weights[Part(kind, layer)] * factor


def of(kind: str, step: int = 0) -> Callable[[Replica, int], torch.Tensor]:
    return lambda replica, layer: replica.weights[Part(kind, layer + step)]


def both(*plants: Plant) -> Plant:
    """All of them, each computed from the healthy replica's weights."""

    def plant(replica: Replica) -> Replica:
        planted = [own(replica) for own in plants]
        changed = {
            part: tensor
            for own in planted
            for part, tensor in own.weights.items()
            if tensor is not replica.weights[part]
        }
        return replace(replica, weights={**replica.weights, **changed})

    return plant


def swapped(layers: tuple[int, ...]) -> Plant:
    return both(in_weights("gate", of("up"), layers), in_weights("up", of("gate"), layers))


FAULTS: dict[str, tuple[Plant, set[str], tuple[int, ...]]] = {
    "rope theta": (
        in_rotation(lambda own: {"frequencies": tuple(0.6 * value for value in own.frequencies)}),
        {"q_rope", "k_rope"},
        LAYERS,
    ),
    "rope layout": (in_rotation(lambda own: {"interleaved": True}), {"q_rope", "k_rope"}, LAYERS),
    "eps": (
        in_layers(lambda layer: replace(layer, attn_norm=replace(layer.attn_norm, eps=0.1))),
        {"attn_norm"},
        LAYERS,
    ),
    "attention scale": (in_attention(lambda layer: {"scale": 0.5}), {"attention"}, LAYERS),
    "attention scale in one layer": (in_attention(lambda layer: {"scale": 0.5}, (1,)), {"attention"}, (1,)),
    "window": (in_attention(lambda layer: {"window": 6}), {"attention"}, LAYERS),
    "heads read others' keys": (in_attention(lambda layer: {"reads": (1, 1, 0, 0)}), {"attention"}, LAYERS),
    "gate and up": (swapped(LAYERS), {"gate", "up"}, LAYERS),
    "gate and up in the first layer": (swapped((0,)), {"gate", "up"}, (0,)),
    "gate and up in the second layer": (swapped((1,)), {"gate", "up"}, (1,)),
    "heads of q": (in_weights("q", heads_rolled("q")), {"q"}, LAYERS),
    "heads of q in one layer": (in_weights("q", heads_rolled("q"), (1,)), {"q"}, (1,)),
    "heads of k": (in_weights("k", heads_rolled("k")), {"k"}, LAYERS),
    "heads of k in the first layer": (in_weights("k", heads_rolled("k"), (0,)), {"k"}, (0,)),
    "heads of v": (in_weights("v", heads_rolled("v")), {"v"}, LAYERS),
    "pairs of q and k": (
        both(in_weights("q", interleaved("q")), in_weights("k", interleaved("k"))),
        {"q", "k"},
        LAYERS,
    ),
    "pairs of k": (in_weights("k", interleaved("k")), {"k"}, LAYERS),
    "weights of another layer": (in_weights("o", of("o", 1), (1,)), {"o"}, (1,)),
    "a factor": (in_weights("q", multiplied("q", 2.0)), {"q"}, LAYERS),
    "a sign": (in_weights("o", multiplied("o", -1.0)), {"o"}, LAYERS),
    "embedding multiplier": (in_decoder(embedding_multiplier=3.0), {"embedding"}, (-1,)),
    "logit multiplier": (in_decoder(logit_multiplier=3.0), {"logits"}, (-1,)),
    "softcap": (in_decoder(logit_softcap=1.0), {"logits"}, (-1,)),
    "residual multiplier": (
        in_layers(lambda layer: replace(layer, residual_multiplier=0.5)),
        {"attn_residual", "residual"},
        LAYERS,
    ),
    "activation": (in_layers(lambda layer: replace(layer, activation="gelu")), {"activation"}, LAYERS),
    "all projections": (
        both(
            *(
                in_weights(kind, lambda replica, layer, kind=kind: replica.weights[Part(kind, layer)].sin())
                for kind in "qkv"
            )
        ),
        {"q", "k", "v"},
        LAYERS,
    ),
}


@pytest.mark.parametrize(("arrangement", "dtype"), [("as they are", torch.float32), ("fused", torch.bfloat16)])
@pytest.mark.parametrize("fault", FAULTS)
def test_the_wrong_component_alone_is_found(fault: str, arrangement: str, dtype: torch.dtype) -> None:
    plant, kinds, layers = FAULTS[fault]
    replica = replica_of(model(dtype=dtype))
    found = outcome(replica, bundle_of(ARRANGEMENTS[arrangement](values_of(plant(replica)))))
    assert found.kinds == kinds
    assert {point.layer for point in found.wrong} == set(layers)
    assert not found.alignment.unmatched_points


@pytest.mark.parametrize(
    "fault", ["rope theta", "heads of q in one layer", "attention scale", "gate and up", "a factor"]
)
def test_a_layout_does_not_hide_it(fault: str) -> None:
    plant, kinds, layers = FAULTS[fault]
    replica = replica_of(model())
    found = outcome(replica, bundle_of(ARRANGEMENTS["interleaved pairs"](values_of(plant(replica)))))
    assert found.kinds == kinds
    assert {point.layer for point in found.wrong} == set(layers)
    assert len(found.layouts("k_rope")) == 1


def test_two_errors_in_a_row_are_both_found() -> None:
    replica = replica_of(model())
    planted = FAULTS["attention scale"][0](FAULTS["rope theta"][0](FAULTS["eps"][0](replica)))
    found = outcome(replica, bundle_of(named(values_of(planted))))
    assert found.kinds == {"attn_norm", "q_rope", "k_rope", "attention"}
    assert not found.alignment.unmatched_points


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_a_live_model_computes_wrong_is_found(dtype: torch.dtype) -> None:
    healthy, broken = (tiny_loaded("gemma3", dtype) for _ in range(2))
    attention = broken.module.get_submodule("model.layers.1.self_attn")
    attention.register_forward_pre_hook(lambda module, _: setattr(module, "scaling", 0.5))
    found = outcome(replica_of(healthy), record(broken, PROMPTS))
    assert {str(point) for point in found.wrong} == {"layer 1 attention"}


def test_a_value_that_is_not_finite_ends_nothing() -> None:
    healthy, broken = (tiny_loaded("llama") for _ in range(2))
    broken.module.get_submodule("model.layers.0.self_attn.o_proj").weight[3, 4] = float("nan")
    found = outcome(replica_of(healthy), record(broken, PROMPTS))
    assert "layer 0 o" in {str(point) for point in found.wrong}


def test_a_layer_that_differs_is_reported() -> None:
    replica = replica_of(model())
    records = named(values_of(replica))
    # Both hold what they should, under each other's names: no component is wrong, the names are odd.
    swapped_names = {"h.1.gate": "h.1.up.x", "h.1.up": "h.1.gate.x"}
    found = outcome(replica, bundle_of({swapped_names.get(name, name): own for name, own in records.items()}))
    assert not found.wrong
    assert found.alignment.disagreements == ()
