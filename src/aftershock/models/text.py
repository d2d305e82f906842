"""How well a model predicts a text: perplexity over windows of fixed length, whole passes at a time."""

from math import exp, inf
from statistics import fmean

import torch

from aftershock.errors import InputError
from aftershock.models.loading import LoadedModel

_LARGEST = 700.0
"""exp of more than this is no float."""


def text_windows(model: LoadedModel, text: str, passes: int, windows: int, length: int) -> torch.Tensor:
    """The first tokens of a text as windows, int64, shape (passes, windows, length), one after the other without
    overlap; each begins with the tokenizer's token of beginning, where it has one.

    Raises InputError for a text that is too short, and for a length below 2.
    """
    begin = [] if model.tokenizer.bos_token_id is None else [model.tokenizer.bos_token_id]
    own = length - len(begin)
    if length < 2 or passes * windows < 1:
        raise InputError(
            f"{passes} x {windows} windows of {length} tokens hold nothing to predict: give 1 or more, of 2 or more"
        )
    tokens = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    needed = passes * windows * own
    if len(tokens) < needed:
        raise InputError(f"the text has {len(tokens)} tokens and the windows need {needed}: give a longer one")
    rows = [begin + tokens[number * own : (number + 1) * own] for number in range(passes * windows)]
    return torch.tensor(rows, device=model.device).view(passes, windows, length)


@torch.inference_mode()
def text_perplexity(model: LoadedModel, windows: torch.Tensor) -> float:
    """exp of the mean negative log-likelihood of every token of windows (int64, shape (passes, windows, length)) but
    the first of each; inf where it is not finite. The windows of a pass go through the model together."""
    loss = fmean(_loss(model, one) for one in windows)
    return exp(loss) if loss < _LARGEST else inf


def _loss(model: LoadedModel, windows: torch.Tensor) -> float:
    logits = model.module(input_ids=windows, use_cache=False).logits[:, :-1].float()
    predicted = logits.gather(-1, windows[:, 1:, None])[..., 0]
    return float((logits.logsumexp(-1) - predicted).mean())
