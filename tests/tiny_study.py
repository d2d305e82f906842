"""A whole study in a second: a tiny random model and a few items of every kind."""

import json
from pathlib import Path
from typing import Any

from aftershock.study import StudySettings, check_settings
from tiny_models import save_tiny

ITEMS: tuple[dict[str, Any], ...] = (
    *(
        {
            "id": f"choice-{n}",
            "kind": "choice",
            "contexts": ["ab" * (n + 1)] * 3,
            "continuations": [" yes", " no", " c"],
        }
        for n in range(3)
    ),
    *({"id": f"cloze-{n}", "kind": "cloze", "contexts": ["one"[n:]], "continuations": ["xy"]} for n in range(2)),
    *({"id": f"text-{n}", "kind": "generation", "contexts": ["what is"[n:]], "max_new_tokens": 5} for n in range(4)),
)


def tiny_tables(folder: Path, family: str = "llama", **tables: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Tables of a study file on a tiny model saved in `folder`; `tables` override keys of those they name."""
    model, task = folder / family, folder / "task.jsonl"
    if not model.exists():
        save_tiny(model, family)
    lines = [{"group": "tiny", **item} | ({"answer": 0} if item["kind"] == "choice" else {}) for item in ITEMS]
    task.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    content: dict[str, dict[str, Any]] = {
        "model": {"spec": str(model)},
        "task": {"spec": str(task)},
        "run": {"trials": 12, "items_per_fault": 4, "batch_items": 2, "noise": 2, "traced": 3, "threads": 1},
    }
    for name, table in tables.items():
        content[name] = {**content.get(name, {}), **table}
    return content


def tiny_settings(folder: Path, family: str = "llama", **tables: dict[str, Any]) -> StudySettings:
    """The settings of `tiny_tables`."""
    return check_settings(tiny_tables(folder, family, **tables), "tiny study")
