"""From a case to a clean target and to the target with the case's errors in it, in transformers."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from aftershock.models import LoadedModel, load
from aftershock.numerics import generator
from aftershock.tasks import probe_items
from benchmarks.plants.cases import Case, Plant, Prompts
from benchmarks.plants.operations import IN_CONFIGS, IN_MODELS, IN_REQUESTS
from benchmarks.plants.targets import Target
from benchmarks.tiny_serving import loaded, tiny_loaded

TINY = "tiny:"
_FIRST_CHARACTER = 7
"""The tiny tokenizer's first id that is no special token."""


def clean_target(case: Case, dtype: torch.dtype | None = None) -> Target:
    """What the case is about, nothing wrong: attention step by step, stopping where the model says. In the
    case's dtype where no other is given."""
    model = load_model(case.model, getattr(torch, case.dtype) if dtype is None else dtype)
    module: Any = model.module
    stops = module.generation_config.eos_token_id
    stop_ids = case.sampling.stop_ids or ((stops,) if isinstance(stops, int) else tuple(stops or ()))
    # vLLM puts requests one after another; transformers pads them, which moves rows of the cache.
    together = case.engine == "vllm"
    sampling = replace(case.sampling, stop_ids=stop_ids)
    return asked(Target(model, (), sampling=sampling, together=together), case.prompts)


def load_model(spec: str, dtype: torch.dtype) -> LoadedModel:
    """`tiny:FAMILY`, or whatever `aftershock.load` takes; float64 as well."""
    if spec.startswith(TINY):
        return tiny_loaded(spec.removeprefix(TINY), dtype)
    if dtype == torch.float64:
        narrow = load(spec, torch.float32, attention="eager")
        for parameter in narrow.module.parameters():
            parameter.data = parameter.data.double()
        return loaded(narrow.module, narrow.tokenizer, spec)
    return load(spec, dtype, attention="eager")


def asked(target: Target, prompts: Prompts) -> Target:
    """The target with its prompts."""
    tokenizer = target.model.tokenizer
    if prompts.texts:
        rows = tuple(tuple(tokenizer(text)["input_ids"]) for text in prompts.texts)
        return replace(target, prompts=rows, texts=prompts.texts)
    if prompts.chats:
        chats = tuple(({"role": "user", "content": text},) for text in prompts.chats)
        rows = tuple(
            tuple(tokenizer.apply_chat_template(list(chat), add_generation_prompt=True)["input_ids"]) for chat in chats
        )
        return replace(target, prompts=rows, chats=chats)
    if target.model.spec.startswith(TINY):
        return replace(target, prompts=tuple(map(_characters, range(len(prompts.lengths)), prompts.lengths)))
    words = tokenizer(" ".join(item.contexts[0] for item in probe_items()))["input_ids"]
    starts = islice(cycle(range(0, len(words), 97)), len(prompts.lengths))
    return replace(target, prompts=tuple(map(_cut, cycle([words]), starts, prompts.lengths)))


def _characters(index: int, length: int) -> tuple[int, ...]:
    drawn = generator(0, index, "planted prompts").integers(_FIRST_CHARACTER, 100, length - 1)
    return (1, *drawn.tolist())


def _cut(words: Sequence[int], start: int, length: int) -> tuple[int, ...]:
    """So many tokens of a text from a place on, after its first one, which may be BOS."""
    return (words[0], *islice(cycle(words[1:]), start, start + length - 1))


def planted_target(target: Target, plants: Sequence[Plant]) -> Target:
    """The target with errors in it, those of its configuration first. Its model is changed in place: build another for
    what is to stay clean."""
    for plant in sorted(plants, key=lambda plant: plant.operation not in IN_CONFIGS):
        target = _with(target, plant)
    return target


@torch.no_grad()
def _with(target: Target, plant: Plant) -> Target:
    if plant.operation in IN_REQUESTS:
        changed: Target = IN_REQUESTS[plant.operation].function(target, **plant.parameters)
        return changed
    if plant.operation in IN_MODELS:
        IN_MODELS[plant.operation].function(target.module, **plant.parameters)
        return target
    return replace(target, model=_built_otherwise(target.model, plant))


def _built_otherwise(model: LoadedModel, plant: Plant) -> LoadedModel:
    """The same weights in a model that another configuration made."""
    old: Any = model.module
    config = copy.deepcopy(old.config)
    IN_CONFIGS[plant.operation].function(config, **plant.parameters)
    module = AutoModelForCausalLM.from_config(
        config,
        dtype=model.dtype,
        attn_implementation=config._attn_implementation,
        experts_implementation="eager",
    )
    module.load_state_dict(old.state_dict())
    module.generation_config = old.generation_config
    return loaded(module.eval().requires_grad_(False), model.tokenizer, model.spec)
