"""The right computations that errors are made from are right."""

from typing import Any

import pytest
import torch
from benchmarks.plants import attending, norms, rotation, routing
from benchmarks.tiny_serving import tiny_module
from hypothesis import given
from hypothesis import strategies as st


def test_the_right_pieces_are_right() -> None:
    module: Any = tiny_module("qwen3")
    layer = module.model.layers[0]
    values = torch.linspace(-1, 1, 128).repeat(3, 1)
    norm = layer.input_layernorm
    assert torch.allclose(norms.root_mean_square(values, norm.weight, norm.variance_epsilon), norm(values))
    cosines, sines = module.model.rotary_emb(values, torch.arange(3)[None])
    table = rotation.table_of(torch.arange(3)[None], rotation.inverse_frequencies(10000.0, 32), values)
    assert torch.allclose(table[0], cosines)
    assert torch.allclose(table[1], sines)
    weights, experts = routing.top_then_softmax(torch.tensor([[1.0, 3.0, 2.0]]), 2)
    assert experts.tolist() == [[1, 2]]
    assert float(weights.sum()) == pytest.approx(1.0)


@given(st.integers(1, 6), st.integers(1, 40))
def test_a_window_of_any_size_shows_that_many_tokens(size: int, tokens: int) -> None:
    states = torch.zeros(1, 1, tokens, 2)
    seen = attending.Attended(states, states, states, torch.ones(1, 1, tokens, tokens, dtype=torch.bool), 1.0)
    shown = attending.window(seen, size).allowed.sum(-1)[0, 0]
    assert shown.tolist() == [min(size, place + 1) for place in range(tokens)]
