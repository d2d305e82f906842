"""What can't be held against a reference is refused by name, before anything is compared."""

import json

import pytest
import torch
from engine_like import said

from aftershock.capture import record
from aftershock.diagnose import check_checkpoint, diagnose
from aftershock.errors import InputError
from tiny_models import save_tiny, tiny_loaded

PROMPTS = [list(range(5, 25)), list(range(30, 38))]


@pytest.fixture(scope="module")
def reference():
    return tiny_loaded("llama")


@pytest.fixture(scope="module")
def clean(reference):
    return record(reference, PROMPTS)


def test_a_target_of_fewer_layers_is_another_model(clean):
    deep = tiny_loaded("llama", num_hidden_layers=4)
    with pytest.raises(InputError, match="has values of layers up to 1, the reference 4 layers: give another"):
        diagnose(deep, clean)


def test_a_target_of_more_layers_is_another_model(clean):
    with pytest.raises(InputError, match="has a layer 1, the reference 1 layers"):
        diagnose(tiny_loaded("llama", num_hidden_layers=1), clean)


@pytest.mark.parametrize(
    ("size", "sentence"),
    [("32", "has hidden_size '32': write a whole number"), (64, "has hidden_size 64, the reference 32")],
)
def test_a_configuration_of_another_shape_is_refused(reference, clean, size, sentence):
    with pytest.raises(InputError, match=sentence):
        diagnose(reference, said(clean, settings={"config": {"hidden_size": size}}))


def test_a_request_beyond_the_references_positions_is_named_with_what_was_sampled(clean):
    narrow = tiny_loaded("llama", max_position_embeddings=16)
    first = clean.manifest.requests[0].model_copy(update={"prompt_tokens": 17, "sampled": (22, 23, 24, 25)})
    with pytest.raises(InputError, match="request 0 has 20 tokens, 3 of them sampled, and tiny:llama takes 16"):
        diagnose(narrow, said(clean, requests=(first, *clean.manifest.requests[1:])))


def test_a_bundle_beside_is_told_from_the_target(reference, clean):
    with pytest.raises(InputError, match=r"the bundle beside .* is of dtype bfloat16, the target of float32"):
        diagnose(reference, clean, beside=[record(tiny_loaded("llama", torch.bfloat16), PROMPTS)])
    with pytest.raises(InputError, match=r"the bundle beside: .* has hidden_size 64"):
        diagnose(reference, clean, beside=[said(clean, settings={"config": {"hidden_size": 64}})])


def test_a_model_of_another_shape_is_refused_by_its_folder(reference, tmp_path):
    check_checkpoint(reference, "mine", save_tiny(tmp_path / "same", "llama"))
    check_checkpoint(reference, "mine", tmp_path / "a file.gguf")
    with pytest.raises(InputError, match="mine has num_hidden_layers 4, the reference 2: they are not the same model"):
        check_checkpoint(reference, "mine", save_tiny(tmp_path / "deep", "llama", num_hidden_layers=4))
    (tmp_path / "deep" / "config.json").write_text(json.dumps({"hidden_size": 32})[:-1])
    with pytest.raises(InputError, match=r"config\.json is no JSON"):
        check_checkpoint(reference, "mine", tmp_path / "deep")
