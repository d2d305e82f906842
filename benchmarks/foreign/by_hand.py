"""The trials without any tool: flip a word through an integer view, run the model, flip it back."""

from typing import Any

import torch

from benchmarks.foreign.serve import Flip, Trial, flip_words, serve


def make(model: Any, tokens: torch.Tensor) -> Trial:
    """Trials on the bare model."""

    def forward() -> torch.Tensor:
        logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
        return logits

    def weight(flip: Flip) -> torch.Tensor:
        values = model.get_submodule(flip.module).weight
        old = values[flip.index].clone()
        values[flip.index] = flip_words(old, flip.bit)
        try:
            return forward()
        finally:
            values[flip.index] = old

    def activation(flip: Flip) -> torch.Tensor:
        token, channel = flip.index

        def strike(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
            output[:, token, channel] = flip_words(output[:, token, channel].contiguous(), flip.bit)

        hook = model.get_submodule(flip.module).register_forward_hook(strike)
        try:
            return forward()
        finally:
            hook.remove()

    return lambda flip: weight(flip) if flip.kind == "weight" else activation(flip)


if __name__ == "__main__":
    serve(make)
