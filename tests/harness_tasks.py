"""Tasks of lm-evaluation-harness written by the tests: a YAML file with its documents beside it."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any


def mean(metric: str, **more: Any) -> dict[str, Any]:
    """An entry of a metric_list."""
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True, **more}


ANIMALS: tuple[dict[str, Any], ...] = tuple(
    {"id": n, "q": f"What does a {animal} say?\n", "options": [f"{one}!" for one in sounds], "right": n % 3}
    for n, (animal, sounds) in enumerate(
        {
            "cow": ("moo", "miaow", "a"),
            "cat": ("no", "purr, and then miaow", "woof"),
            "dog": ("é", "baa", "woof"),
            "owl": ("hoo", "who is it", "x"),
            "pig": ("oink", "grunt", "oo"),
        }.items()
    )
)
"""Questions with three options of unlike lengths; the context ends with a line end, which belongs to the options."""

CHOICE: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "q",
    "doc_to_target": "right",
    "doc_to_choice": "options",
}
CLOZE: dict[str, Any] = {"output_type": "loglikelihood", "doc_to_text": "q", "doc_to_target": " {{options[right]}}"}
ROLLING: dict[str, Any] = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{q * 3}}",
    "metric_list": [{"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}],
}
TEXT: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_text": "q",
    "doc_to_target": "{{right}}",
    "generation_kwargs": {"until": ["z"], "do_sample": False, "max_gen_toks": 12},
    "filter_list": [
        {"name": "letter", "filter": [{"function": "regex", "regex_pattern": "([0-9])"}, {"function": "take_first"}]},
        {"name": "whole", "filter": [{"function": "take_first"}]},
    ],
    "metric_list": [mean("exact_match")],
}


def write_task(
    folder: Path,
    settings: Mapping[str, Any],
    documents: Iterable[Mapping[str, Any]] = ANIMALS,
    functions: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """The YAML file of a task `animals` in a folder, which is made; `functions` are keys that name Python functions of
    files in that folder, which takes a tag."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "documents.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
    content = {
        "task": "animals",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        **settings,
    }
    path = folder / "animals.yaml"
    # JSON is YAML.
    lines = [f"{key}: {json.dumps(value)}" for key, value in content.items()]
    lines += [f"{key}: !function {name}" for key, name in functions.items()]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path
