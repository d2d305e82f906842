"""What the scripts read beside a model."""

import json

import pytest

from settings import longest_text


@pytest.mark.parametrize(
    ("content", "longest"),
    [
        ({"max_position_embeddings": 128}, 128),
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 64}}, 64),
        ({"hidden_size": 32}, None),
    ],
)
def test_the_tokens_that_a_model_takes(tmp_path, content, longest):
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 2}')
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert longest_text(tmp_path) == longest
