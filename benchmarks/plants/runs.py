"""From a case to what `aftershock.capture.capture` is asked: of the clean engine, and of the one with the error in it.

What an engine loads (weights, configuration) is changed in the files that it is given or by its own overrides; what it
computes, by a plug-in: a Python file, written here, that the capturing script runs in the engine's environment.
"""

import copy
import json
import shutil
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf

from aftershock.capture import CaptureRequest, engine_model
from benchmarks.plants.building import TINY, clean_target, planted_target
from benchmarks.plants.cases import Case, Plant
from benchmarks.plants.operations import (
    IN_CONFIGS,
    IN_FILES,
    IN_GRAPHS,
    IN_MODELS,
    IN_OPTIONS,
    IN_REQUESTS,
    IN_WEIGHTS,
    set_config,
)
from benchmarks.plants.targets import Sampling, Target

_REPOSITORY = Path(__file__).parents[2]
_PLUGIN = """import sys

sys.path.insert(0, {repository!r})

from benchmarks.plants.{module} import plug_in

change = plug_in({plants!r})
"""


def clean_request(case: Case, folder: Path) -> CaptureRequest:
    """What the case's engine is asked where nothing is wrong; `folder` is for files that it needs."""
    target = clean_target(case)
    return _request(case, target, _saved(case, target, folder / "model"), folder, {})


def suspect_request(case: Case, folder: Path) -> CaptureRequest:
    """What the case's engine is asked, and what is done to it; `folder` is for files that it needs."""
    folder.mkdir(parents=True, exist_ok=True)

    def those(operations: Container[str]) -> list[Plant]:
        return [one for one in case.plant if one.operation in operations]

    asked = planted_target(clean_target(case), those(IN_REQUESTS))
    loaded = those(_LOADED[case.engine])
    computed = [one for one in those({**IN_MODELS, **IN_GRAPHS}) if one not in loaded]
    options = _planted_options(case, asked, computed, folder)
    if files := those(IN_FILES):
        model = _edited(engine_model(case.engine, case.model), files, folder / "changed.gguf")
    else:
        target = planted_target(asked, loaded)
        model = _saved(case, target, folder / "changed") if loaded else _saved(case, target, folder / "model")
    request = _request(case, asked, model, folder, options)
    for plant in those(IN_OPTIONS):
        request = IN_OPTIONS[plant.operation].function(request, **plant.parameters)
    return request


_LOADED: dict[str, frozenset[str]] = {
    "transformers": frozenset(),
    "vllm": IN_WEIGHTS,
    "onnxruntime": IN_WEIGHTS | set(IN_CONFIGS),
    "llamacpp": frozenset(),
}
"""Operations that are done to the folder that an engine loads."""


def _saved(case: Case, target: Target, folder: Path) -> Path:
    """The model's path: its own, or a folder made here, where it has none or was changed."""
    if folder.name == "model" and not case.model.startswith(TINY):
        return engine_model(case.engine, case.model)
    if not folder.exists():
        module: Any = target.module
        module.save_pretrained(folder)
        target.model.tokenizer.save_pretrained(folder)
    return folder


def _edited(file: Path, plants: Sequence[Plant], copy_to: Path) -> Path:
    """A copy of a GGUF file with errors in it."""
    shutil.copy(file, copy_to)
    reader = gguf.GGUFReader(copy_to, "r+")
    for plant in plants:
        IN_FILES[plant.operation].function(reader, **plant.parameters)
    reader.data.flush()
    return copy_to


def _request(case: Case, target: Target, model: Path, folder: Path, options: Mapping[str, Any]) -> CaptureRequest:
    own = _OWN[case.engine]
    sampling = _sampling(case.engine, target.sampling)
    # llama.cpp has a tokenizer of its own, which a file can mislead.
    texts = case.prompts.texts if case.engine == "llamacpp" else ()
    return CaptureRequest(
        model=str(model),
        prompts=texts or target.prompts,
        max_new_tokens=max(1, case.prompts.new_tokens),
        dtype=case.dtype,
        batching="together" if target.together else "one_by_one",
        threads=target.threads,
        options={**own, **sampling, **case.options, **options},
        cache=str(folder),
    )


_OWN: dict[str, dict[str, Any]] = {
    "transformers": {"attention": "eager"},
    "vllm": {"enable_prefix_caching": False, "block_size": 32, "max_model_len": 512},
    "onnxruntime": {},
    "llamacpp": {"cache_type": "f32"},
}
"""Options that every run of an engine has."""


def _sampling(engine: str, sampling: Sampling) -> dict[str, Any]:
    """The settings as an engine calls them; those that it has no word for are left to a plug-in, and graphs and GGUF
    files are sampled greedily."""
    if engine in ("onnxruntime", "llamacpp"):
        return {}
    return {"sampling": _in_transformers(sampling) if engine == "transformers" else _in_vllm(sampling)}


def _in_transformers(sampling: Sampling) -> dict[str, Any]:
    settings = {"repetition_penalty": sampling.repetition_penalty, "eos_token_id": list(sampling.stop_ids)}
    if sampling.temperature == 0:
        return settings
    chosen = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    return {**settings, "do_sample": True, **chosen}


def _in_vllm(sampling: Sampling) -> dict[str, Any]:
    return {
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "stop_token_ids": list(sampling.stop_ids),
        "ignore_eos": True,
    }


def _planted_options(case: Case, target: Target, plants: Sequence[Plant], folder: Path) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for plant in case.plant:
        if plant.operation in IN_CONFIGS and plant.operation not in _LOADED[case.engine]:
            options |= {"hf_overrides": _overrides(target, plant.parameters["settings"])}
        if plant.operation == "kernel":
            options |= {"attention": plant.parameters["name"]}
    told = [(plant.operation, plant.parameters) for plant in plants if plant.operation != "kernel"]
    hidden = {name: getattr(target.sampling, name) for name in ("presence_penalty", "runner_up_every")}
    if case.engine == "transformers" and any(hidden.values()):
        told.append(("choice", hidden))
    if told:
        path = folder / "plugin.py"
        text = _PLUGIN.format(repository=str(_REPOSITORY), module=f"{case.engine}_plugin", plants=json.dumps(told))
        path.write_text(text, encoding="utf-8")
        options |= {"plugin": str(path)}
    return options


def _overrides(target: Target, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Changed values of a configuration; of one that is a table, all of it, since engines put it in the old one's
    place."""
    model: Any = target.module
    config = copy.deepcopy(model.config)
    set_config(config, settings)
    return {name: getattr(config, name) for name in settings}
