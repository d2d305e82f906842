"""Trials by PyTorchFI 0.6.0, and what it does when more is asked of it.

`python -m benchmarks.foreign.pytorchfi_tool` serves trials, `... FOLDER` prints the attempts. Exact flips go in by the
hooks that the tool has for a user's own error models (`function=`).
"""

import random
from typing import Any

import torch
from pytorchfi import core, neuron_error_models, weight_error_models

from benchmarks.foreign.serve import Flip, Trial, flip_words, load, main, mentions

BATCH, TOKENS = 2, 8
"""Shape of the attempts."""


class Logits(torch.nn.Module):
    """The model as the tool wants it: tensor in, tensor out; its profiling run passes noise in place of tokens."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of token ids."""
        ids = torch.zeros_like(tokens, dtype=torch.long) if tokens.is_floating_point() else tokens
        logits: torch.Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits


def make(model: Any, tokens: torch.Tensor) -> Trial:
    """Trials on the wrapped model, every Linear open to faults."""
    rows, columns = tokens.shape
    tool = core.fault_injection(Logits(model), rows, input_shape=[columns], layer_types=[torch.nn.Linear])
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    numbers = {name: number for number, name in enumerate(names)}

    def weight(flip: Flip) -> torch.Tensor:
        faulty = tool.declare_weight_fi(
            function=lambda values, place: flip_words(values[place], flip.bit),
            layer_num=[numbers[flip.module]],
            k=[flip.index[0]],
            dim1=[flip.index[1]],
            dim2=[None],
            dim3=[None],
        )
        logits: torch.Tensor = faulty(tokens)
        return logits

    def activation(flip: Flip) -> torch.Tensor:
        token, channel = flip.index

        def strike(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
            if tool.get_current_layer() in tool.get_corrupt_layer():
                output[:, token, channel] = flip_words(output[:, token, channel].contiguous(), flip.bit)
            tool.updateLayer()

        faulty = tool.declare_neuron_fi(
            function=strike,
            batch=list(range(rows)),
            layer_num=[numbers[flip.module]] * rows,
            dim1=[token] * rows,
            dim2=[channel] * rows,
            dim3=[None] * rows,
        )
        logits: torch.Tensor = faulty(tokens)
        return logits

    return lambda flip: weight(flip) if flip.kind == "weight" else activation(flip)


def wrapped(folder: str, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """The tool around the wrapped model."""
    return core.fault_injection(
        Logits(load(folder, dtype)), BATCH, input_shape=[TOKENS], layer_types=[torch.nn.Linear], **options
    )


def as_it_is(folder: str) -> str:
    """The transformers model without a wrapper."""
    core.fault_injection(load(folder), BATCH, input_shape=[TOKENS], layer_types=[torch.nn.Linear])
    return "runs"


def every_layer_type(folder: str) -> str:
    """`layer_types=["all"]`, and a weight fault."""
    tool = core.fault_injection(Logits(load(folder)), BATCH, input_shape=[TOKENS], layer_types=["all"])
    tool.declare_weight_fi(layer_num=[0], k=[0], dim1=[0], dim2=[None], dim3=[None], value=[1.0])
    return "runs"


def random_norm_weight(folder: str) -> str:
    """A random fault in a weight with one dimension."""
    model = load(folder)
    tool = core.fault_injection(Logits(model), BATCH, input_shape=[TOKENS], layer_types=[type(model.model.norm)])
    weight_error_models.random_weight_inj(tool)
    return "runs"


def generate_weight(folder: str) -> str:
    """Generation under a weight fault."""
    faulty = weight_error_models.random_weight_inj(wrapped(folder))
    return f"{written(faulty)} tokens"


def generate_activation(folder: str) -> str:
    """Generation under an activation fault."""
    faulty = neuron_error_models.random_neuron_inj(wrapped(folder))
    return f"{written(faulty)} tokens"


def written(faulty: Any) -> int:
    """Tokens that the faulty model generates."""
    prompt = torch.arange(1000, 1000 + TOKENS).expand(BATCH, -1)
    tokens = faulty.model.generate(input_ids=prompt, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    return int(tokens.shape[1]) - TOKENS


def own_flip(folder: str) -> str:
    """The tool's own bit flip: is what it writes the old word with one bit inverted?"""
    tool = neuron_error_models.single_bit_flip_func(
        Logits(load(folder)), BATCH, input_shape=[TOKENS], layer_types=[torch.nn.Linear]
    )
    old = torch.tensor(0.3)
    words = {float(flip_words(old, bit)) for bit in range(32)}
    new = [float(tool._flip_bit_signed(old, 1.0, bit)) for bit in range(8)]
    return f"0.3 becomes {', '.join(map(str, new))}; {sum(value in words for value in new)} of 8 are words of 0.3"


def sixteen_bits(folder: str) -> str:
    """A weight fault by value in bf16 and fp16."""
    found = []
    for dtype in (torch.bfloat16, torch.float16):
        tool = wrapped(folder, dtype)
        faulty = tool.declare_weight_fi(layer_num=[0], k=[1], dim1=[2], dim2=[None], dim3=[None], value=[0.3])
        first = next(module for module in faulty.modules() if isinstance(module, torch.nn.Linear))
        found.append(f"{dtype} holds {float(first.weight[1, 2])}")
    return "; ".join(found)


def seeded(folder: str) -> str:
    """Two random weight faults after the same global seed."""
    tool = wrapped(folder)
    places = []
    for _ in range(2):
        # The global generator is what the tool draws from; that is tried here.
        random.seed(7)
        places.append(weight_error_models.random_weight_location(tool))
    return "the same place" if places[0] == places[1] else "different places"


def absent_layer(folder: str) -> str:
    """A weight fault in a layer that does not exist."""
    tool = wrapped(folder)
    faulty = tool.declare_weight_fi(layer_num=[9999], k=[0], dim1=[0], dim2=[None], dim3=[None], value=[1.0])
    pairs = zip(tool.get_original_model().parameters(), faulty.parameters(), strict=True)
    changed = sum(int((one != other).sum()) for one, other in pairs)
    return f"no error; {changed} weights differ"


def undo(folder: str) -> str:
    """Whether the original is untouched, and what the copy takes."""
    tool = wrapped(folder)
    before = [parameter.clone() for parameter in tool.get_original_model().parameters()]
    faulty = weight_error_models.random_weight_inj(tool, min_val=1e6, max_val=1e7)
    same = all(torch.equal(a, b) for a, b in zip(before, tool.get_original_model().parameters(), strict=True))
    size = sum(parameter.nbytes for parameter in faulty.parameters())
    return f"original {'untouched' if same else 'changed'}; each fault copies {size} bytes"


def words_of_source(_: str) -> str:
    """Lines of the source that speak of what a campaign needs."""
    return mentions("pytorchfi", ("seed", "resume", "interval", "confidence", "cache", "bfloat16"))


TRIES = {
    "the transformers model as it is": as_it_is,
    'layer_types=["all"], one weight fault': every_layer_type,
    "random weight fault in a norm": random_norm_weight,
    "generate, weight fault": generate_weight,
    "generate, activation fault": generate_activation,
    "own bit flip": own_flip,
    "weight set to 0.3 in bf16, fp16": sixteen_bits,
    "random fault after the same global seed": seeded,
    "fault in layer 9999": absent_layer,
    "undo": undo,
    "words in the source (lines)": words_of_source,
}

if __name__ == "__main__":
    main(make, TRIES)
