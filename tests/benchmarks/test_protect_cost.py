"""The decoder that the cost of checks is measured on: checked and plain it is the same, and struck it is seen."""

from types import SimpleNamespace

import pytest
import torch
from benchmarks.llama_shaped import Decoder, Shape, batch_of, block, checked_pass, guards_of, plain_pass, random_decoder
from benchmarks.protect_cost_detection import HIGHEST_EXPONENT_BIT, PRODUCTS, detection, seen_in_graph, struck_weight

from aftershock.protect.fused import plain_steps
from aftershock.protect.fused.row_parts import GateChecks, NormChecks


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return random_decoder(Shape(2, 64, 4, 2, 16, 96, 128), "cpu", torch.bfloat16, 0)


@pytest.mark.parametrize(("tokens", "context"), [(5, 5), (1, 7)])
def test_checked_passes_give_the_plain_ones_tokens(decoder: Decoder, tokens: int, context: int):
    batch = batch_of(decoder, 3, tokens, context, 1)
    blocks = [block(layer) for layer in decoder.layers]
    with torch.inference_mode():
        plain = plain_pass(decoder, batch, lambda layer, *arguments: layer(*arguments))
        for components in ((), ("o", "down"), (*PRODUCTS, "head")):
            guards = guards_of(decoder, components)
            assert torch.equal(checked_pass(plain_steps, decoder, blocks, guards, batch), plain)
            strains = guards.strains()
            assert {name.rpartition(".")[2] for name in strains} == set(components)
            assert all(0 <= strain <= 1 for strain in strains.values())


def test_flips_are_seen(decoder: Decoder):
    with torch.inference_mode():
        found = detection(plain_steps, decoder, 0, 1)
    assert found["clean_alarms"] == found["missed_highest_exponent_bit"] == 0
    assert found["weights"]["down"][HIGHEST_EXPONENT_BIT] == 1
    assert found["outputs"]["down"][0] == 0


def test_a_weight_that_is_struck_later_is_seen(decoder: Decoder):
    batch, guards = batch_of(decoder, 3, 1, 7, 1), guards_of(decoder, PRODUCTS)
    blocks = [block(layer) for layer in decoder.layers]
    with torch.inference_mode():
        assert seen_in_graph(lambda: checked_pass(plain_steps, decoder, blocks, guards, batch), decoder, guards)


def test_a_product_that_stays_wrong_is_not_quiet_again(decoder: Decoder):
    batch, guards = batch_of(decoder, 3, 1, 7, 1), guards_of(decoder, PRODUCTS)
    blocks = [block(layer) for layer in decoder.layers]
    with torch.inference_mode(), struck_weight(decoder.layers[1].o, HIGHEST_EXPONENT_BIT, 0, 0):
        assert not seen_in_graph(lambda: checked_pass(plain_steps, decoder, blocks, guards, batch), decoder, guards)


def test_what_steps_without_checks_miss_is_counted(decoder: Decoder):
    blind = SimpleNamespace(
        add_norm=lambda *given: plain_steps.add_norm(*given[:4], NormChecks()),
        gate=lambda gates, ups, _: plain_steps.gate(gates, ups, GateChecks()),
        rotate=lambda *given: plain_steps.rotate(*given[:6], False),
    )
    with torch.inference_mode():
        found = detection(blind, decoder, 0, 1)
    # Weights are small: the highest bit of their exponent makes each of them huge.
    assert found["missed_highest_exponent_bit"] >= len(PRODUCTS)
    assert not any(sum(own) for own in found["weights"].values())
