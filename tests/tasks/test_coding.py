"""Tasks whose answers are programs: what is asked, what is right, what became of it."""

import json

import pytest
from letters import Letters

from aftershock.tasks import RowResult, classify, judge, load_task, matches
from sandboxed import needs_sandbox

LETTERS = Letters()

BODY = {
    "id": "HumanEval/0",
    "prompt": 'def double(x):\n    """Twice x."""\n',
    "answer": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(3) == 6\n",
    "entry_point": "double",
}
WHOLE = {
    "id": "mbpp-11",
    "prompt": "Double a number.",
    "answer": "def double(x):\r\n    return 2 * x",
    "tests": ["assert double(3) == 6", "assert double(BASE) == 8"],
    "setup": "BASE = 4",
}

pytestmark = needs_sandbox


@pytest.fixture
def one(tmp_path):
    def item_of(fields):
        path = tmp_path / "code.jsonl"
        path.write_text(json.dumps(fields), encoding="utf-8")
        return load_task(str(path)).items[0]

    return item_of


def written(item, text):
    return judge(item, (RowResult(tuple(map(ord, text)), (), True),), LETTERS)


def test_the_head_of_a_function_is_completed(one):
    item = one(BODY)
    assert (item.kind, item.match, item.group, item.chance) == ("generation", "program", "HumanEval", 0.0)
    assert item.contexts == (BODY["prompt"],)
    assert item.stop == ("\nclass", "\ndef", "\n#", "\nif", "\nprint")


def test_a_program_is_written_after_its_description(one):
    assert one(WHOLE).contexts == ('"""\nDouble a number.\nassert double(3) == 6\n"""\n',)


@pytest.mark.parametrize("fields", [BODY, WHOLE])
def test_solutions_are_right_and_nothing_is_wrong(one, fields):
    item = one(fields)
    assert matches(item, fields["answer"]) == (True, 1.0)
    assert matches(item, "") == (False, 0.0)


def test_a_test_that_is_not_shown_judges_too(one):
    assert not written(one(WHOLE), "def double(x):\n    return 6").right


def test_the_text_keeps_its_indent_and_ends_where_the_function_does(one):
    answer = written(one(BODY), "    return x + x  \n\n\ndef other():\n    return 1 / 0")
    assert (answer.output, answer.right) == ("    return x + x", True)


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("    return 2 * x\n\n\n", "masked"),
        ("    return x + x", "benign"),
        ("    return x ** 2", "subtle"),
        ("    return x x x x x x x x x x x x", "distorted"),
        ("", "distorted"),
    ],
)
def test_outcomes(one, text, outcome):
    item = one(BODY)
    assert classify(item, written(item, "    return 2 * x"), written(item, text)) == outcome


@pytest.mark.parametrize("file", ["humaneval_164.jsonl", "mbpp_test_500.jsonl"])
def test_published_solutions_pass_and_empty_ones_fail(shared_data, file):
    items = load_task(str(shared_data / "gen" / file)).items
    chosen = items[:: len(items) // 20][:20]
    assert [item.id for item in chosen if not matches(item, str(item.answer).rstrip())[0]] == []
    assert [item.id for item in chosen if matches(item, "")[0]] == []
