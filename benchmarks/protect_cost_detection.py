"""Do checks by fused steps see faults? Part of `benchmarks.protect_cost`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from aftershock.numerics import generator
from aftershock.protect.fused.decoder_block import Steps
from benchmarks.llama_shaped import Decoder, Guards, batch_of, block, checked_pass, guards_of

PRODUCTS = ("qkv", "o", "gate_up", "down")
ROWS, CONTEXT, BITS, HIGHEST_EXPONENT_BIT = 16, 1024, 16, 14


def detection(steps: Steps, decoder: Decoder, seed: int, count: int) -> dict[str, Any]:
    """Share of single-bit flips, in values that products of the first block store and in their weights, that their own
    check sees: `count` for each product and bit, lowest bit first. Flips of the highest exponent bit that make a value
    huge and are missed are counted too; those that make one tiny change a row by no more than that value."""
    batch = batch_of(decoder, ROWS, 1, CONTEXT, seed)
    guards = guards_of(decoder, PRODUCTS)
    blocks = [block(layer) for layer in decoder.layers]

    def strains() -> dict[str, float]:
        guards.reset()
        checked_pass(steps, decoder, blocks, guards, batch)
        return guards.strains()

    alarms = sum(not strain <= 1 for strain in strains().values())
    found: dict[str, Any] = {"n": count, "clean_alarms": alarms, "missed_highest_exponent_bit": 0}
    for kind, struck in (("outputs", struck_output), ("weights", struck_weight)):
        found[kind] = {}
        for name in PRODUCTS:
            seen, grew = np.zeros((BITS, count), bool), np.zeros((BITS, count), bool)
            for bit, trial in np.ndindex(*seen.shape):
                with struck(getattr(decoder.layers[0], name), bit, seed, trial) as was_set:
                    seen[bit, trial] = not strains()[f"0.{name}"] <= 1
                grew[bit, trial] = not was_set[0]
            found[kind][name] = seen.mean(1).tolist()
            found["missed_highest_exponent_bit"] += int((grew & ~seen)[HIGHEST_EXPONENT_BIT].sum())
    return found


def seen_in_graph(replay: Callable[[], object], decoder: Decoder, guards: Guards) -> bool:
    """Whether a captured pass sees a weight that was struck after it was captured, and is quiet again after it."""
    guards.reset()
    with struck_weight(decoder.layers[0].down, HIGHEST_EXPONENT_BIT, 0, 0):
        replay()
    seen = guards.strains()
    guards.reset()
    replay()
    return not seen["0.down"] <= 1 and all(strain <= 1 for strain in guards.strains().values())


@contextmanager
def struck_weight(product: Any, bit: int, seed: int, trial: int) -> Iterator[list[bool]]:
    """One bit of one weight, flipped and flipped back; whether it was set."""
    words = product.weight.view(torch.int16).view(-1)
    place = _place(words.numel(), bit, seed, trial)
    was_set = [_is_set(words[place], bit)]
    words[place] ^= _mask(bit)
    yield was_set
    words[place] ^= _mask(bit)


@contextmanager
def struck_output(product: Any, bit: int, seed: int, trial: int) -> Iterator[list[bool]]:
    """One bit of one value that the product stores, in each call; whether it was set."""
    was_set: list[bool] = []

    def strike(_module: Any, _arguments: Any, output: torch.Tensor) -> None:
        words = output.view(torch.int16).view(-1)
        place = _place(words.numel(), bit, seed, trial)
        was_set.append(_is_set(words[place], bit))
        words[place] ^= _mask(bit)

    hook = product.register_forward_hook(strike)
    yield was_set
    hook.remove()


def _place(count: int, bit: int, seed: int, trial: int) -> int:
    return int(generator(seed, trial, f"struck bit {bit}").integers(count))


def _is_set(word: torch.Tensor, bit: int) -> bool:
    return bool(int(word) >> bit & 1)


def _mask(bit: int) -> int:
    """The bit's value in a signed word."""
    return -(1 << bit) if bit == BITS - 1 else 1 << bit
