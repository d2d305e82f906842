import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aftershock.errors import InputError
from aftershock.tasks import Item, load_task


@pytest.fixture
def read(tmp_path):
    def read_lines(*lines: object) -> tuple[Item, ...]:
        path = tmp_path / "task.jsonl"
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        path.write_text(text, encoding="utf-8")
        return load_task(str(path)).items

    return read_lines


def line(**fields: object) -> dict[str, object]:
    return {"id": "set-0", **fields}


CHOICE = line(question="Q", choices=["x", "y"], answer=1)


@pytest.mark.parametrize(
    ("fields", "contexts", "continuations"),
    [
        (CHOICE, ("Question: Q\nAnswer:",), (" x", " y")),
        ({**CHOICE, "id": "hellaswag-3"}, ("Q",), (" x", " y")),
        ({**CHOICE, "mc2_choices": ["x", "y"], "mc2_labels": [0, 1]}, ("Q: Q\nA:",), (" x", " y")),
        ({**CHOICE, "context": "P."}, ("P.\nQuestion: Q?\nAnswer:",), (" x", " y")),
        (
            {**CHOICE, "subject": "logic"},
            ("The following are multiple choice questions (with answers) about logic.\n\nQ\nA. x\nB. y\nAnswer:",),
            (" A", " B"),
        ),
        (
            line(context="P.", question="Q", choices=["x", "y", "z"], answer=1),
            ("P.\nQuestion: Q\nAnswer A: x\nAnswer B: y\nAnswer C: z\nCorrect answer:",),
            (" A", " B", " C"),
        ),
        (
            line(context="P.", question="Q", choices=["x", "y", "z"], answer=1) | {"id": "belebele-deu-9"},
            ("P.\nFrage: Q\nAntwort A: x\nAntwort B: y\nAntwort C: z\nRichtige Antwort:",),
            (" A", " B", " C"),
        ),
        (
            line(context="It fell.", question="cause", choices=["It slipped.", "It flew."], answer=1),
            ("It fell because",),
            (" it slipped.", " it flew."),
        ),
        (
            line(context="Cadde.", question="effect", choices=["Si ruppe.", "Volò."], answer=1) | {"id": "xcopa-it-2"},
            ("Cadde quindi",),
            (" si ruppe.", " volò."),
        ),
    ],
)
def test_choices_become_prompts(read, fields, contexts, continuations):
    (item,) = read(fields)
    assert item.kind == "choice"
    assert item.contexts == contexts * len(continuations)
    assert (item.continuations, item.answer) == (continuations, 1)


def test_choice_between_contexts(read):
    (item,) = read(line(question="_ won", choices=["A", "B"], prompts=["So A", "So B"], suffix=" won.", answer=0))
    assert (item.contexts, item.continuations) == (("So A", "So B"), (" won.", " won."))


def test_groups_are_data_sets_and_subjects(read):
    assert read({**CHOICE, "id": "mgsm-es-12"})[0].group == "mgsm-es"
    assert read({**CHOICE, "id": "mmlu-0", "subject": "logic"})[0].group == "logic"


def test_cloze(read):
    (item,) = read(line(context="I have a", answer="dog"))
    assert (item.kind, item.continuations, item.answer) == ("cloze", (" dog",), " dog")


@pytest.mark.parametrize(("answer", "match"), [("1,200", "numeric"), ("-3.5", "numeric"), ("Paris", "exact")])
def test_generation_compares_numbers_as_numbers(read, answer, match):
    (item,) = read(line(prompt="P", answer=answer, solution="..."))
    assert (item.contexts, item.match, item.answer) == (("Question: P\nAnswer:",), match, answer)
    assert item.max_new_tokens > 0


def test_mathematics(read):
    (item,) = read(line(prompt="P", answer="2", subject="Algebra", level="Level 1", solution="..."))
    assert (item.contexts, item.match, item.group) == (("Problem: P\nSolution:",), "exact", "Algebra")


def test_own_items_keep_every_field(read):
    fields = {
        "id": "a",
        "kind": "generation",
        "group": "g",
        "contexts": ["c"],
        "answer": "x",
        "match": "letter",
        "max_new_tokens": 3,
        "stop": ["\n"],
    }
    assert read(fields) == (
        Item("a", "generation", "g", ("c",), (), "x", match="letter", max_new_tokens=3, stop=("\n",)),
    )


OWN = {"id": "a", "kind": "choice", "group": "g", "contexts": ["c", "c"], "continuations": ["x", "y"]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({**CHOICE, "answer": 2}, "answer is 2 but the choices are numbered 0 to 1"),
        ({**CHOICE, "answer": -1}, "answer: "),
        ({**CHOICE, "answer": True}, "answer: "),
        ({**CHOICE, "answer": "1"}, "answer: "),
        ({**CHOICE, "choices": ["x"]}, "choices: "),
        ({**CHOICE, "choices": ["x", ""]}, "choices.1: "),
        ({**CHOICE, "question": ""}, "question: "),
        ({"question": "Q", "choices": ["x", "y"]}, "id: "),
        (
            line(question="q", choices=["x", "y"], prompts=["a", "b", "c"], suffix=" s", answer=0),
            "3 prompts for 2 choices",
        ),
        ({**OWN, "answer": 2}, "index from 0 to 1"),
        ({**OWN, "answer": 0, "continuations": ["x"]}, "as many continuations"),
        ({**OWN, "answer": 0, "colour": 1}, "colour: "),
        ({**OWN, "answer": 0, "options": ["x", "y"]}, "this item asks for none"),
        ({"id": "a", "kind": "generation", "group": "g", "contexts": ["c"]}, "max_new_tokens"),
        ({"id": "a", "kind": "cloze", "group": "g", "contexts": ["c"]}, "one context and one continuation"),
        ({"id": "a", "kind": "riddle", "group": "g", "contexts": ["c"]}, "kind: "),
        (line(prompt="P", answer="x", tests=[]), "tests: "),
        (line(prompt="P", answer="x", test="t", entry_point=""), "entry_point: "),
        (line(riddle="R", answer="x"), "keys answer, id, riddle, which no known schema has"),
        ("[1, 2]", "not a JSON object"),
        ('{"id": ', "not valid JSON"),
    ],
)
def test_a_broken_first_line_is_named(read, fields, message):
    with pytest.raises(InputError, match=r"task\.jsonl line 1") as error:
        read(fields)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@given(st.integers(1, 6), st.integers(0, 3), st.sampled_from(['{"id": "x"', '{"id": "x", "question": "Q"}', "7"]))
def test_a_broken_later_line_is_named_by_its_number(tmp_path_factory, good, blank, broken):
    lines = [json.dumps({**CHOICE, "id": f"set-{n}"}) for n in range(good)]
    path = tmp_path_factory.mktemp("tasks") / "task.jsonl"
    path.write_text("\n".join([*lines, *[""] * blank, broken]), encoding="utf-8")
    with pytest.raises(InputError, match=f"line {good + blank + 1}[: ]"):
        load_task(str(path))


def test_an_id_used_twice_names_both_lines(read):
    with pytest.raises(InputError, match=r"line 3: id 'set-0' was used on line 1"):
        read(CHOICE, {**CHOICE, "id": "set-1"}, CHOICE)


def test_line_separators_within_strings_do_not_end_lines(read):
    text = json.dumps({**CHOICE, "question": "a\u2028b\u0085c"}, ensure_ascii=False)
    assert read(text)[0].contexts[0] == "Question: a\u2028b\u0085c\nAnswer:"
