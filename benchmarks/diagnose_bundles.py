"""Bundles of planted targets: in this process, for transformers, or in an engine's own environment. Part of
`benchmarks.diagnose`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from aftershock.capture import Bundle, Request, capture, record
from benchmarks.plants.cases import Case
from benchmarks.plants.running import generate
from benchmarks.plants.runs import clean_request, suspect_request
from benchmarks.plants.targets import Sampling, Target


def bundle_of(target: Target, case: Case) -> Bundle:
    """What a target computes for its prompts and for the tokens that it samples after them, and what it says of itself:
    its model's configuration, and the sampling that it was asked for, whatever it does."""
    steps = case.prompts.new_tokens
    before = torch.get_num_threads()
    torch.set_num_threads(target.threads)
    try:
        sampled = generate(target, steps) if steps else [()] * len(target.prompts)
        fed = [[*prompt, *made[:-1]] for prompt, made in zip(target.prompts, sampled, strict=True)]
        bundle = record(target.model, fed) if target.together else joined([record(target.model, [row]) for row in fed])
    finally:
        torch.set_num_threads(before)
    requests = tuple(
        request.model_copy(update={"prompt_tokens": len(prompt), "sampled": tuple(made)})
        for request, prompt, made in zip(bundle.manifest.requests, target.prompts, sampled, strict=True)
    )
    config: Any = target.module.config
    settings = bundle.manifest.settings | {
        "config": config.to_dict(),
        "options": {"sampling": said(case.sampling)},
        "sampling": said(case.sampling) | {"max_new_tokens": steps},
    }
    return Bundle(bundle.manifest.model_copy(update={"requests": requests, "settings": settings}), bundle.tensors)


def captured(case: Case, folder: Path) -> Bundle:
    """What another engine computes with the error in it. Its options say the sampling that it should have done."""
    asked = clean_request(case, folder / "clean").options
    bundle = capture(case.engine, suspect_request(case, folder / "suspect"), folder / "bundle")
    settings = bundle.manifest.settings
    sampling = {"sampling": asked["sampling"]} if "sampling" in asked else {}
    options = {**settings.get("options", {}), **sampling}
    told = bundle.manifest.model_copy(update={"settings": {**settings, "options": options}})
    return Bundle(told, bundle.tensors)


def said(sampling: Sampling) -> dict[str, float]:
    """Sampling as settings say it."""
    names = ("temperature", "top_k", "top_p", "repetition_penalty", "presence_penalty")
    return {name: getattr(sampling, name) for name in names}


def joined(bundles: Sequence[Bundle]) -> Bundle:
    """Bundles of one model and one request each as one of all requests."""
    first = bundles[0].manifest
    requests: list[Request] = [
        request.model_copy(update={"id": str(number)})
        for number, bundle in enumerate(bundles)
        for request in bundle.manifest.requests
    ]
    places = [dict(zip((own.key for own in one.manifest.stored), one.manifest.stored, strict=True)) for one in bundles]
    tensors = {}
    renamed = {}
    for stored in first.stored:
        tensor = torch.cat([one.tensors[place[stored.key]] for one, place in zip(bundles, places, strict=True)])
        renamed[stored] = stored.model_copy(update={"shape": tuple(tensor.shape)})
        tensors[renamed[stored]] = tensor
    records = tuple(
        one.model_copy(
            update={"output": renamed[one.output], "input": None if one.input is None else renamed[one.input]}
        )
        for one in first.records
    )
    assert first.logits is not None
    logits = first.logits.model_copy(update={"stored": renamed[first.logits.stored]})
    manifest = first.model_copy(update={"requests": tuple(requests), "records": records, "logits": logits})
    return Bundle(manifest, tensors)
