"""Single flips in live SmolLM2-135M (bf16), found by a clean recording of it. Part of `benchmarks.locate`.

One tensor after the other, word and bit uniform. Of the flips that change any word of any logit of the recorded
prompts: how many are found in the right block, in the right tensor among those that one module reads, and to the word.
A tied table is one tensor, found where it first shows: where it is read, or in the logits.
"""

from dataclasses import asdict
from typing import Any

import torch

from aftershock.capture import record
from aftershock.locate import LiveSuspect
from aftershock.models import live_words, load
from aftershock.numerics import generator, words
from aftershock.stats import exact
from aftershock.tasks import probe_items
from benchmarks.locate_faults import SPEC, Suspect, single

PROMPTS, TOKENS = 4, 32


def measure(count: int, seed: int) -> dict[str, Any]:
    """`count` flips."""
    model = load(SPEC, "bfloat16")
    texts = " ".join(item.contexts[0] for item in probe_items())
    ids = model.tokenizer(texts)["input_ids"]
    live = LiveSuspect(model, record(model, [ids[TOKENS * row :][:TOKENS] for row in range(PROMPTS)]))
    held = live_words(model.module)
    names = {name for name, _ in model.module.named_parameters()}
    tensors = tuple(tensor for tensor in held.tensors if tensor.name in names)
    sites = {site.name: site for site in model.components.parameters}
    struck, clean = Suspect(held, held), _logits(live)
    alarm = live.locate().divergent
    rows = []
    for index in range(count):
        fault = single(tensors, index, generator(seed, index, "flips found by activations"))
        ((name, changes),) = fault.items()
        struck.strike(fault)
        found, now = live.locate(), _logits(live)
        struck.strike(fault)
        site = sites[name]
        own = next(tensor for tensor in tensors if tensor.name == name)
        word = min(changes) // own.width
        place = tuple(int(index) for index in torch.unravel_index(torch.tensor(word), own.shape))
        hits = [element.tensor == name and element.index == place for element in found.elements]
        rows.append(
            {
                "changed": any(not torch.equal(words(one), words(two)) for one, two in zip(clean, now, strict=True)),
                "divergent": found.divergent,
                "block": found.layer == site.layer
                and found.block in (f"layer {site.layer}", *site.component.split("+")),
                "tensor": name in found.tensors and found.place == "output",
                "alone": found.tensors == (name,),
                "word": any(hits),
                "wrong_word": bool(hits) and not any(hits),
            }
        )
    changed = [row for row in rows if row["changed"]]
    figures = ("divergent", "block", "tensor", "alone", "word", "wrong_word")
    return {
        "n": count,
        "prompts": [PROMPTS, TOKENS],
        "changed_a_logit": asdict(exact(len(changed), count)),
        "false_alarm": alarm,
        "undone": not live.locate().divergent,
        "of_those": {key: asdict(exact(sum(row[key] for row in changed), len(changed))) for key in figures},
    }


@torch.inference_mode()
def _logits(live: LiveSuspect) -> list[torch.Tensor]:
    return [live.model.module(input_ids=batch.ids, use_cache=False).logits for batch in live.batches]
