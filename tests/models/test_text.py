"""Perplexity of a text, and the windows that it is cut into."""

import pytest
import torch

from aftershock.errors import InputError
from aftershock.models import LoadedModel, text_perplexity, text_windows
from tiny_models import tiny_loaded

TEXT = "The ferry leaves at noon, and nobody waits on the quay for the letters that it brings. " * 4


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return tiny_loaded("llama")


def test_windows_begin_with_the_beginning_and_follow_one_another(model: LoadedModel) -> None:
    windows = text_windows(model, TEXT, 2, 3, 8)
    assert windows.shape == (2, 3, 8)
    assert (windows[..., 0] == model.tokenizer.bos_token_id).all()
    assert model.tokenizer.decode(windows[..., 1:].flatten()) == TEXT[: 6 * 7]
    with pytest.raises(InputError, match="give a longer one"):
        text_windows(model, TEXT, 1, 100, 20)
    with pytest.raises(InputError, match="nothing to predict"):
        text_windows(model, TEXT, 1, 0, 20)


def test_perplexity_is_that_of_the_model_alone(model: LoadedModel) -> None:
    windows = text_windows(model, TEXT, 1, 2, 20)
    logits = model.module(input_ids=windows[0]).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), windows[0, :, 1:].flatten())
    assert text_perplexity(model, windows) == pytest.approx(float(loss.exp()), rel=1e-5)
