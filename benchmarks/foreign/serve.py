"""What every tool's process does: flips in, losses out, a line of JSON each. Needs torch and
transformers alone."""

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

INTEGERS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


@dataclass(frozen=True)
class Flip:
    """One bit to invert. `kind` weight: `index` is (row, column) of a Linear's weight. `kind` activation: `index` is
    (token, channel) of its output, struck in every row of the batch."""

    kind: str
    module: str
    index: tuple[int, int]
    bit: int


Trial = Callable[[Flip], torch.Tensor]
"""Logits of shape (rows, tokens, vocabulary) under one flip, the model as before afterwards."""


def load(folder: str, dtype: torch.dtype = torch.float32) -> Any:
    """The model of a folder, in evaluation mode, without gradients."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return model.eval().requires_grad_(False)


def flip_words(values: torch.Tensor, bit: int) -> torch.Tensor:
    """Copies of the values with one bit inverted, through an integer view."""
    integers = INTEGERS[values.dtype]
    width = 8 * values.element_size()
    mask = torch.tensor((1 << bit) - (1 << width if bit == width - 1 else 0), dtype=integers)
    return (values.view(integers) ^ mask).view(values.dtype)


def mean_loss(logits: torch.Tensor, tokens: torch.Tensor) -> float:
    """Mean negative log-likelihood per token, in nats; tokens of shape (rows, 1 + positions)."""
    losses = [
        torch.nn.functional.cross_entropy(row.float(), targets, reduction="sum").double()
        for row, targets in zip(logits, tokens[:, 1:], strict=True)
    ]
    return float(torch.stack(losses).sum()) / tokens[:, 1:].numel()


@torch.no_grad()
def serve(make: Callable[[Any, torch.Tensor], Trial]) -> None:
    """Read folder, tokens and threads from the first line, then run the flip of each line that follows."""
    setup = json.loads(sys.stdin.readline())
    torch.set_num_threads(setup["threads"])
    tokens = torch.tensor(setup["tokens"])
    trial = make(load(setup["folder"]), tokens[:, :-1].contiguous())
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        flip = Flip(asked["kind"], asked["module"], tuple(asked["index"]), asked["bit"])
        print(json.dumps(mean_loss(trial(flip), tokens)), flush=True)


def main(make: Callable[[Any, torch.Tensor], Trial], tries: dict[str, Callable[[str], str]]) -> None:
    """Serve trials; with a folder as argument, print what came of every attempt instead."""
    if len(sys.argv) > 1:
        print(json.dumps(try_all(tries, sys.argv[1])))
    else:
        serve(make)


def try_all(tries: dict[str, Callable[[str], str]], folder: str) -> dict[str, str]:
    """What each attempt came to: its own words, or the exception that ended it."""
    logging.disable(logging.CRITICAL)
    found = {}
    for name, attempt in tries.items():
        try:
            with torch.no_grad():
                found[name] = attempt(folder)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return found


def mentions(package: str, words: tuple[str, ...]) -> str:
    """In how many lines of a package's Python source each word occurs."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    lines = [line for path in sorted(Path(spec.origin).parent.rglob("*.py")) for line in path.read_text().splitlines()]
    return ", ".join(f"{word} {sum(word in line.casefold() for line in lines)}" for word in words)
