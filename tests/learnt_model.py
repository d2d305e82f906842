"""A tiny model that knows its text: healthy, so that flips of its bits cost much and hardly any helps."""

import torch

from aftershock.locate.by_text import text_rows
from aftershock.models import LoadedModel
from aftershock.tasks import probe_items
from tiny_models import tiny_loaded

TEXT = "\n".join(item.contexts[0] for item in probe_items())


def learnt_weights(text: str, rows: int, length: int, steps: int = 220) -> dict[str, torch.Tensor]:
    """Weights of a tiny Llama that was trained on these pieces of a text."""
    return trained(tiny_loaded("llama"), text, rows, length, steps)


def trained(model: LoadedModel, text: str, rows: int, length: int, steps: int = 220) -> dict[str, torch.Tensor]:
    """Weights of a model after training on these pieces of a text."""
    tokens = text_rows(model, text, rows, length)
    model.module.requires_grad_(True)
    optimizer = torch.optim.Adam(model.module.parameters(), 3e-3)
    for _step in range(steps):
        optimizer.zero_grad()
        model.module(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    return model.module.state_dict()


def learnt(weights: dict[str, torch.Tensor], dtype: torch.dtype = torch.bfloat16) -> LoadedModel:
    """A model with these weights."""
    model = tiny_loaded("llama", dtype)
    model.module.load_state_dict(weights)
    return model
