"""What `import aftershock` gives."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

import aftershock

ROOMS = ("numerics", "stats", "hardware", "models", "tasks", "faults", "inject", "replay", "study", "report")


def typed_names() -> dict[str, str]:
    """Module of each name that type checkers see: the imports under `if TYPE_CHECKING`."""
    tree = ast.parse(Path(aftershock.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    return {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}


@pytest.mark.parametrize("name", aftershock.__all__)
def test_public_name_resolves_to_what_type_checkers_see(name):
    assert getattr(aftershock, name) is getattr(import_module(typed_names()[name]), name)
    assert getattr(aftershock, name).__doc__


def test_public_names_are_sorted_and_the_same_everywhere():
    assert aftershock.__all__ == sorted(set(aftershock.__all__))
    assert set(aftershock.__all__) == typed_names().keys()
    assert typed_names() == {name: f"aftershock.{home}" for name, home in aftershock._HOMES.items()}


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'aftershock' has no attribute 'nonsense'"):
        _ = aftershock.nonsense


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_what_it_lists(room):
    module = import_module(f"aftershock.{room}")
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert hasattr(module, name), name
