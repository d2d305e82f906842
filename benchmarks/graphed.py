"""Greedy decoding with every token after the first replayed from one captured CUDA graph: the fastest plain loop."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import StaticCache

from aftershock.models import LoadedModel, align
from aftershock.replay import Batch


def graphed_decoding(model: LoadedModel, batch: Batch, tokens: int) -> Callable[[], torch.Tensor]:
    """A call writes `tokens` tokens after every context of the batch and returns them, int64 of shape (rows, tokens).

    The prompt runs as one plain call. Weights may change between calls; hooks are frozen into the graph, so a fault in
    an activation cannot be run like this. For models without sliding windows, on a GPU.
    """
    module: Any = model.module
    block = align(
        [context for context, _ in batch.sequences], [() for _ in batch.sequences], model.device, batch.owners
    )
    rows, width = block.tokens.shape
    columns = width + tokens - 1
    cache = StaticCache(config=module.config, max_cache_len=columns)
    seen = torch.zeros(rows, 1, 1, columns, dtype=torch.bool, device=model.device)
    prompt = torch.zeros(rows, 1, width, columns, dtype=torch.bool, device=model.device)
    prompt[..., :width] = block.mask.bool()[:, None, None, :]
    prompt[..., :width] &= torch.ones(width, width, dtype=torch.bool, device=model.device).tril()
    token = torch.zeros(rows, 1, dtype=torch.int64, device=model.device)
    position, column = torch.zeros_like(token), torch.zeros(1, dtype=torch.int64, device=model.device)

    def step() -> None:
        seen.index_fill_(3, column, True)
        logits = module(
            token, attention_mask=seen, position_ids=position, past_key_values=cache, logits_to_keep=1
        ).logits
        token.copy_(logits[:, -1:].argmax(-1))
        position.add_(1)
        column.add_(1)

    def begin() -> None:
        cache.reset()
        seen.zero_()
        seen[..., :width] = block.mask.bool()[:, None, None, :]
        logits = module(
            block.tokens,
            attention_mask=prompt,
            position_ids=block.positions,
            past_key_values=cache,
            logits_to_keep=1,
        ).logits
        token.copy_(logits[:, -1:].argmax(-1))
        position.copy_(block.positions[:, -1:] + 1)
        column.fill_(width)

    def written(next_token: Callable[[], None]) -> torch.Tensor:
        with torch.inference_mode():
            begin()
            found = [token.clone()]
            for _ in range(tokens - 1):
                next_token()
                found.append(token.clone())
            return torch.cat(found, dim=1)

    return _captured(step, written)


def _captured(
    step: Callable[[], None], written: Callable[[Callable[[], None]], torch.Tensor]
) -> Callable[[], torch.Tensor]:
    """The loop with its step captured, after a run that warms up what must not be allocated during the capture."""
    # torch gives its streams no types.
    cuda: Any = torch.cuda
    aside = cuda.Stream()
    aside.wait_stream(cuda.current_stream())
    with cuda.stream(aside):
        written(step)
    cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        step()
    return lambda: written(graph.replay)
