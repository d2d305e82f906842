"""How well a corruption is found with nothing but the corrupted model and some text. Part of `benchmarks.locate`.

One cell is a model in a format. Its faults:

- natural: random single bits, components in turn, place and bit uniform, kept where they cost 5 % of perplexity;
- hard: in-range flips of the largest gradient x change (at most 5 a matrix), a word replaced by another value in range,
  four flips in one matrix, eight over the model; kept where they cost 5 % of perplexity on both texts and the trivial
  baseline (flip back the top exponent bit of the model's largest weight) misses them;
- none: healthy models under other texts.

Location reads one text; what is recovered is scored on another and on items of LAMBADA (is the last word the
likeliest?). Logits that are not finite count as chance.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

from aftershock.errors import ContractError
from aftershock.locate.by_text import PackedWords, PlainWords, Search, TextLoss, layer_of, text_rows
from aftershock.models import LoadedModel, load, model_hash
from aftershock.numerics import generator

HARMFUL = math.log(1.05)
RANKED = 400
"""How many of the flips with the largest gradient x change hard faults are drawn from."""

CELLS: dict[str, dict[str, Any]] = {
    "smollm2-135m bfloat16": {"spec": "demo:smollm2-135m", "dtype": "bfloat16"},
    "smollm2-135m float16": {"spec": "demo:smollm2-135m", "dtype": "float16"},
    "gemma3-270m bfloat16": {"spec": "demo:gemma3-270m", "dtype": "bfloat16"},
    "gemma3-270m float16": {"spec": "demo:gemma3-270m", "dtype": "float16"},
    "smollm2-135m int8": {"spec": "demo:smollm2-135m", "dtype": "bfloat16", "storage": "int8"},
    "smollm2-135m Q4_1": {"spec": "demo:smollm2-135m", "dtype": "bfloat16"},
}
Flip = tuple[str, int, int]
"""Parameter, place and bit."""


def plain_or_packed(name: str, spec: str, dtype: str, device: str, storage: str | None = None) -> LoadedModel:
    """The model of a cell; its words are numbers of the dtype unless the cell is one of a packed format."""
    model = load(spec, dtype, device, storage=storage)
    return model if name.split()[1] in ("int8", "Q4_1") else replace(model, stored=None)


def documents(data: Path, half: int) -> list[str]:
    """One half of texts of several kinds: prose, stories, sums, code, French."""

    def prompts(file: str, key: str) -> str:
        lines = (data / file).read_text(encoding="utf-8").splitlines()[half::2]
        return "\n\n".join(json.loads(line)[key] for line in lines)

    wiki = (data / "lm/wikitext2_test.raw.txt").read_text(encoding="utf-8")
    middle = len(wiki) // 2
    return [
        wiki[half * middle :][:middle],
        prompts("lm/lambada_openai_1000.jsonl", "context"),
        prompts("gen/gsm8k_test_500.jsonl", "prompt"),
        prompts("gen/humaneval_164.jsonl", "prompt"),
        prompts("multilingual/mgsm_fr.jsonl", "prompt"),
    ]


def rows_of(model: LoadedModel, texts: list[str], rows: int) -> torch.Tensor:
    """`rows` pieces of 128 tokens of each text."""
    return torch.cat([text_rows(model, text, rows) for text in texts])


class Items:
    """Items of LAMBADA: the share whose last word is the likeliest continuation, token by token."""

    def __init__(self, model: LoadedModel, data: Path, count: int) -> None:
        lines = (data / "lm/lambada_openai_1000.jsonl").read_text(encoding="utf-8").splitlines()[1::2]
        self.model = model
        begin = model.tokenizer("")["input_ids"]
        self.rows: list[tuple[list[int], list[int]]] = []
        for line in lines[:count]:
            item = json.loads(line)
            context = [*begin, *model.tokenizer(item["context"], add_special_tokens=False)["input_ids"]]
            answer = model.tokenizer(" " + item["answer"].strip(), add_special_tokens=False)["input_ids"]
            self.rows.append((context[-110:], answer))
        width = max(len(context) + len(answer) for context, answer in self.rows)
        # Rows end with filling that nothing before it sees.
        self.tokens = torch.tensor(
            [(context + answer + [context[-1]] * width)[:width] for context, answer in self.rows], device=model.device
        )

    @torch.inference_mode()
    def accuracy(self) -> float:
        """Share of items answered right; 0 where logits are not finite."""
        right = 0
        for begin in range(0, len(self.rows), 50):
            logits = self.model.module(input_ids=self.tokens[begin : begin + 50], use_cache=False).logits
            best = logits.argmax(-1)
            finite = torch.isfinite(logits.amax(-1)) & torch.isfinite(logits.amin(-1))
            best = torch.where(finite, best, -1).cpu()
            for row, (context, answer) in enumerate(self.rows[begin : begin + 50]):
                at = len(context) - 1
                right += best[row, at : at + len(answer)].tolist() == answer
        return right / len(self.rows)


@dataclass
class Cell:
    """A model in a format, its texts and its search."""

    name: str
    model: LoadedModel
    search: Search
    held_out: TextLoss
    items: Items
    seed: int
    drawn: int = 0
    ranked: int = 0
    searched: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, device: str, data: Path, rows: int, items: int, seed: int) -> "Cell":
        """Load a cell."""
        model = plain_or_packed(name, device=device, **CELLS[name])
        search = Search(model, rows_of(model, documents(data, 0), rows))
        held_out = TextLoss(model, rows_of(model, documents(data, 1), rows))
        return cls(name, model, search, held_out, Items(model, data, items), seed)

    def flip(self, flips: list[Flip]) -> None:
        """Flip bits; once more undoes it."""
        for name, place, bit in flips:
            self.search.words[name].flip(place, bit)

    def layers(self, flips: list[Flip]) -> list[int | None]:
        """Layers of flips."""
        return [layer_of(self.search.words[name].site) for name, _place, _bit in flips]

    def state(self) -> tuple[float, float]:
        """Loss on held-out text, at most chance, and accuracy."""
        config: Any = self.model.module.config
        chance = math.log(config.vocab_size)
        return min(float(self.held_out.refresh().mean()), chance), self.items.accuracy()


def natural(cell: Cell, count: int, tries: int) -> Iterator[tuple[str, list[Flip]]]:
    """Random single bits that cost 5 % of perplexity; the last value tells how many were drawn."""
    base = cell.search.text.refresh().mean()
    by_component: dict[str, list[str]] = {}
    for name, words in cell.search.words.items():
        by_component.setdefault(words.site.component, []).append(name)
    found = 0
    for number, component in zip(range(tries), cycle(sorted(by_component)), strict=False):
        if found == count:
            break
        draw = generator(cell.seed, number, "natural faults")
        name = by_component[component][int(draw.integers(len(by_component[component])))]
        words = cell.search.words[name]
        place = int(draw.integers(places_of(words)))
        flip = name, place, int(draw.integers(len(words.bits(place))))
        cell.flip([flip])
        cost = float((cell.search.text.after_flip(layer_of(words.site)) - base).mean())
        cell.flip([flip])
        cell.drawn = number + 1
        if cost >= HARMFUL:
            found += 1
            yield f"natural {component}", [flip]


def places_of(words: Any) -> int:
    """Number of places."""
    return len(words.blocks) if isinstance(words, PackedWords) else len(words.stored)


def hard(cell: Cell, count: int) -> Iterator[tuple[str, list[Flip]]]:
    """Faults in range that cost 5 % of perplexity on held-out text."""
    ranked: list[Any] = []
    cell.search.text.refresh()
    words = cell.search.words
    cell.search.text.visit_gradients(words, lambda name, slope: ranked.extend(list(words[name].promising(-slope))[:12]))
    taken: dict[str, int] = {}
    single: list[Flip] = []
    places = set()
    for one in sorted(ranked, key=lambda one: -one.gain):
        fresh = taken.get(one.parameter, 0) < 5 and (one.parameter, one.place) not in places
        if fresh and in_range(cell, (one.parameter, one.place, one.bit)):
            taken[one.parameter] = taken.get(one.parameter, 0) + 1
            places.add((one.parameter, one.place))
            single.append((one.parameter, one.place, one.bit))
    # Not the steepest ones alone: any of the first so many, in random order.
    order = generator(cell.seed, 0, "hard faults").permutation(min(len(single), RANKED))
    single = [single[place] for place in order]
    cell.ranked = len(single)
    texts = (cell.search.text, cell.held_out)
    bases = [float(text.refresh().mean()) for text in texts]

    def costs(flips: list[Flip]) -> bool:
        cell.flip(flips)
        layer = min(cell.layers(flips), key=_order)
        costly = all(
            float(text.after_flip(layer).mean()) - base >= HARMFUL for text, base in zip(texts, bases, strict=True)
        )
        hard_enough = costly and not trivial(cell, flips)
        cell.flip(flips)
        return hard_enough

    kinds: dict[str, Callable[[int], list[Flip]]] = {
        "in-range flip": lambda number: [single[number]],
        "value": lambda number: _value(cell, single[(3 * number) % len(single)], number),
        "4 words of a matrix": lambda number: _of_one(single, number),
        "8 words": lambda number: single[8 * number + 8 :][:8],
    }
    shares = {"in-range flip": 0.55, "value": 0.15, "4 words of a matrix": 0.15, "8 words": 0.15}
    for kind, make in kinds.items():
        found = number = 0
        wanted = max(1, round(count * shares[kind]))
        while found < wanted and number < len(single):
            flips = make(number)
            number += 1
            if flips and costs(flips):
                found += 1
                yield f"hard {kind}", flips
        cell.searched[kind] = number


def in_range(cell: Cell, flip: Flip) -> bool:
    """Whether no weight gets larger than the largest of its tensor by a flip."""
    values = cell.model.module.get_parameter(flip[0]).detach()
    largest = values.float().abs().max()
    cell.flip([flip])
    after = values.float().abs().max()
    cell.flip([flip])
    return bool(after <= largest)


def _order(layer: int | None) -> int:
    return -1 if layer is None else layer


def _value(cell: Cell, flip: Flip, number: int) -> list[Flip]:
    """A word replaced by another that lies in its tensor's range, as the bits that differ."""
    words = cell.search.words[flip[0]]
    if not isinstance(words, PlainWords):
        return []
    draw = generator(cell.seed, number, "values")
    other = int(words.stored[int(draw.choice(words.values.abs().float().topk(64).indices.cpu().numpy()))])
    differing = (other ^ int(words.stored[flip[1]])) & ((1 << len(words.bits(0))) - 1)
    return [(flip[0], flip[1], bit) for bit in words.bits(0) if differing >> bit & 1]


def _of_one(single: list[Flip], number: int) -> list[Flip]:
    names = list(dict.fromkeys(name for name, _place, _bit in single))
    own = [flip for flip in single if flip[0] == names[number % len(names)]]
    return own[:4] if len(own) >= 4 else []


def baseline(cell: Cell) -> tuple[str, int]:
    """The model's largest weight: NaN before infinity before numbers; parameter and place."""
    best = (-1.0, "", -1)
    for name in cell.search.words:
        values = cell.model.module.get_parameter(name).detach().flatten()
        sizes = values.float().abs().nan_to_num(math.inf, math.inf)
        largest = float(sizes.max())
        if largest > best[0]:
            best = (largest, name, int(sizes.argmax()))
    words = cell.search.words[best[1]]
    if isinstance(words, PackedWords):
        return best[1], best[2] // words.form.elements
    return best[1], best[2]


def trivial(cell: Cell, flips: list[Flip]) -> bool:
    """Whether the trivial baseline repairs a fault."""
    name, place = baseline(cell)
    words = cell.search.words[name]
    bit = 14 if isinstance(words, PlainWords) else -1
    scales = [fault[2] for fault in flips if fault[:2] == (name, place)]
    return [(name, place, bit)] == flips if bit == 14 else len(flips) == 1 and bool(scales)


def judge(cell: Cell, kind: str, flips: list[Flip], clean: tuple[float, float]) -> dict[str, Any]:
    """One fault: put in, looked for, scored, taken back."""
    cell.flip(flips)
    hurt = cell.state()
    by_trivial = trivial(cell, flips)
    found = cell.search.run()
    got = [(one.suspect.parameter, one.suspect.place, one.suspect.bit) for one in found.flips]
    mended = cell.state()
    cell.search.undo()
    cell.flip(flips)
    layers = cell.layers(flips)
    return {
        "cell": cell.name,
        "kind": kind,
        "flips": flips,
        "block": bool(found.layers) and found.layers[0] in layers,
        "block_top3": any(layer in layers for layer in found.layers[:3]),
        "tensor": bool(got) and got[0][0] in {name for name, _place, _bit in flips},
        "exact": sorted(got) == sorted(flips),
        "trivial": by_trivial,
        "loss": [clean[0], hurt[0], mended[0]],
        "accuracy": [clean[1], hurt[1], mended[1]],
        "found": got[:8],
        "gains": [round(one.gain, 4) for one in found.flips[:8]],
        "branches": [(str(one.branch), one.alpha, round(one.gain, 4)) for one in found.branches[:3]],
        "passes": found.passes,
        "layers": len(cell.search.text.layers),
    }


def healthy(cell: Cell, data: Path, count: int, rows: int) -> Iterator[dict[str, Any]]:
    """Searches in the model as it is, under other pieces of text."""
    texts = documents(data, 1)
    for number in range(count):
        draw = generator(cell.seed, number, "healthy")
        pieces = [text[int(draw.integers(len(text) // 2)) :] for text in texts]
        search = Search(cell.model, rows_of(cell.model, pieces, rows))
        found = search.run()
        search.undo()
        best = [(str(one.branch), one.alpha, round(one.gain, 4)) for one in found.branches[:1]]
        yield {
            "cell": cell.name,
            "kind": "healthy",
            "alarm": found.corrupted,
            "flips": [(one.suspect.parameter, one.suspect.place, one.suspect.bit, one.gain) for one in found.flips],
            "branches": best,
            "passes": found.passes,
        }


def run_cell(name: str, device: str, data: Path, counts: tuple[int, int, int], rows: int, seed: int) -> list[Any]:
    """All records of a cell: `counts` natural and hard faults and healthy searches."""
    cell = Cell.of(name, device, data, rows, 200, seed)
    clean = cell.state()
    before = model_hash(cell.model.module)
    records = []
    for kind, flips in [*hard(cell, counts[1]), *natural(cell, counts[0], 60 * counts[0])]:
        records.append(judge(cell, kind, flips, clean))
        print(json.dumps(records[-1]), flush=True)
    for record in healthy(cell, data, counts[2], rows):
        records.append(record)
        print(json.dumps(record), flush=True)
    if model_hash(cell.model.module) != before:
        raise ContractError(f"{name} is not what it was before its faults")
    drawn = {"natural": cell.drawn, "ranked": cell.ranked, "hard": cell.searched}
    records.append({"cell": name, "kind": "drawn", **drawn})
    print(json.dumps(records[-1]), flush=True)
    return records
