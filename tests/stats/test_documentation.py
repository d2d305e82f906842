"""The snippets of docs/statistics.md run as they stand."""

import re
from pathlib import Path
from typing import Any


def test_snippets_run_from_top_to_bottom():
    page = (Path(__file__).parents[2] / "docs/statistics.md").read_text(encoding="utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    for snippet in snippets:
        exec(compile(snippet, "docs/statistics.md", "exec"), names)
    assert len(snippets) >= 8
