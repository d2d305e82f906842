"""The same lines asked by letter, and with worked examples before them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from letters import Letters

from aftershock.errors import InputError
from aftershock.tasks import Asking, RowResult, judge, load_task
from sandboxed import needs_sandbox

LETTER = Asking("letter")


def write(folder, *lines, name="task.jsonl"):
    path = folder / name
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return str(path)


def choice(number=0, **fields):
    return {"id": f"set-{number}", "question": f"Q{number}", "choices": ["x", "y"], "answer": 1, **fields}


def number(n, **fields):
    return {"id": f"sum-{n}", "prompt": f"P{n}", "answer": str(n), **fields}


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        (choice(), "Question: Q0\nA. x\nB. y\nAnswer:"),
        (choice(id="hellaswag-3", question="She"), "She\nA. x\nB. y\nAnswer:"),
        (choice(mc2_choices=["x", "y"]), "Question: Q0\nA. x\nB. y\nAnswer:"),
        (choice(context="P.", question="is it"), "P.\nQuestion: is it?\nA. x\nB. y\nAnswer:"),
        (
            choice(subject="logic"),
            "The following are multiple choice questions (with answers) about logic.\n\nQ0\nA. x\nB. y\nAnswer:",
        ),
        (
            choice(id="belebele-deu-1", context="P.", choices=["x", "y", "z"]),
            "P.\nFrage: Q0\nAntwort A: x\nAntwort B: y\nAntwort C: z\nRichtige Antwort:",
        ),
        (
            choice(id="xcopa-it-1", context="Cadde.", question="effect", choices=["Volò.", "Si ruppe."]),
            "Cadde quindi\nA. Volò.\nB. Si ruppe.\nAnswer:",
        ),
        (choice(prompts=["So x", "So y"], suffix=" won."), "So _ won.\nA. x\nB. y\nAnswer:"),
    ],
)
def test_every_question_with_options_can_be_asked_by_letter(tmp_path, fields, prompt):
    (item,) = load_task(write(tmp_path, fields), asking=LETTER).items
    assert (item.kind, item.match, item.answer, item.contexts) == ("generation", "letter", "B", (prompt,))
    assert item.options == tuple(fields["choices"])
    assert item.chance == 1 / len(fields["choices"])
    assert item.max_new_tokens > 1


def test_the_first_letter_is_the_answer_whatever_follows(tmp_path):
    (item,) = load_task(write(tmp_path, choice()), asking=LETTER).items

    def right(text):
        return judge(item, (RowResult(tuple(map(ord, text)), (), True),), Letters()).right

    assert right(" B")
    assert right(" B or A")
    assert not right(" A, not B")


def test_chance_is_one_option_of_all(tmp_path):
    task = load_task(write(tmp_path, choice(choices=["x", "y", "z", "w"])))
    assert [item.chance for item in task.items] == [0.25]
    assert [item.chance for item in load_task(write(tmp_path, number(1))).items] == [0.0]


MANY = [str(n) for n in range(27)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (number(1), "no options to choose by letter"),
        ({"id": "l-0", "context": "c", "answer": "d"}, "no options to choose by letter"),
        (choice(choices=MANY), "27 choices, more than there are letters"),
        (choice(prompts=["So x", "But y"], suffix=" won."), "prompts are not one text"),
        (
            {"id": "o", "kind": "lm", "group": "g", "contexts": [""], "continuations": ["t"]},
            "says itself how it is asked",
        ),
    ],
)
def test_what_can_not_be_asked_by_letter_is_refused(tmp_path, fields, message):
    with pytest.raises(InputError, match=f"answers = .letter. does not fit '{fields['id']}'.*{message}"):
        load_task(write(tmp_path, fields), asking=LETTER)


@given(st.integers(2, 7), st.integers(1, 6), st.booleans(), st.sampled_from(["likelihood", "letter"]))
def test_examples_stand_before_every_question_and_are_not_asked(tmp_path_factory, count, shots, own, answers):
    folder = tmp_path_factory.mktemp("tasks")
    path = write(folder, *map(choice, range(count)))
    others = None if own else write(folder, *map(choice, range(10, 10 + shots)), name="others.jsonl")
    asking = Asking(answers, shots, others)
    if own and shots >= count:
        with pytest.raises(InputError, match=f"shots = {shots}, but .* has too few lines to show so many and ask one"):
            load_task(path, asking=asking)
        return
    plain, items = load_task(path, asking=Asking(answers)).items, load_task(path, asking=asking).items
    assert [item.id for item in items] == [item.id for item in plain[: count - shots if own else count]]
    shown = range(count - shots, count) if own else range(10, 10 + shots)
    options, right = ("\nA. x\nB. y", "B") if answers == "letter" else ("", "y")
    examples = "".join(f"Question: Q{n}{options}\nAnswer: {right}\n\n" for n in shown)
    for item, bare in zip(items, plain, strict=False):
        assert item.contexts == tuple(examples + context for context in bare.contexts)
        assert (item.answer, item.continuations, item.stop) == (bare.answer, bare.continuations, bare.stop)


def test_examples_show_their_reasoning(tmp_path):
    others = write(tmp_path, number(1, solution="1 is\n1. #### 1"), number(2), name="others.jsonl")
    (item,) = load_task(write(tmp_path, number(7)), asking=Asking(shots=2, shots_from=others)).items
    shown = "Question: P1\nAnswer: 1 is\n1. #### 1\n\nQuestion: P2\nAnswer: 2\n\n"
    assert item.contexts == (f"{shown}Question: P7\nAnswer:",)


def test_examples_are_of_the_questions_subject_and_the_preamble_stands_once(tmp_path):
    others = [choice(n, subject=subject) for n, subject in enumerate(("art", "law", "law", "art"))]
    path = write(tmp_path, choice(8, subject="law"), choice(9, subject="art"))
    asking = Asking(shots=1, shots_from=write(tmp_path, *others, name="others.jsonl"))
    law, art = (item.contexts[0] for item in load_task(path, asking=asking).items)
    about = "The following are multiple choice questions (with answers) about"
    assert law == f"{about} law.\n\nQ1\nA. x\nB. y\nAnswer: B\n\nQ8\nA. x\nB. y\nAnswer:"
    assert art == f"{about} art.\n\nQ0\nA. x\nB. y\nAnswer: B\n\nQ9\nA. x\nB. y\nAnswer:"


def test_each_option_of_a_blank_has_the_examples(tmp_path):
    def blank(n):
        return choice(n, prompts=[f"{n} x", f"{n} y"], suffix=" won.")

    (item,) = load_task(write(tmp_path, blank(0), blank(1)), asking=Asking(shots=1)).items
    assert item.contexts == ("1 y won.\n\n0 x", "1 y won.\n\n0 y")


@needs_sandbox
def test_examples_are_shown_to_the_model_and_not_run(tmp_path):
    lines = [{"id": f"c-{n}", "prompt": "Do.", "answer": "1 / 0", "tests": ["assert f()"]} for n in range(2)]
    (item,) = load_task(write(tmp_path, *lines), asking=Asking(shots=1)).items
    assert "1 / 0" in item.contexts[0]
    assert item.program is not None
    assert "1 / 0" not in item.program.before + item.program.after


def test_a_limit_counts_questions(tmp_path):
    task = load_task(write(tmp_path, *map(choice, range(9))), 3, asking=Asking(shots=4))
    assert [item.id for item in task.items] == ["set-0", "set-1", "set-2"]


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([choice(5)], "too few lines to show so many: choose fewer"),
        ([number(5), number(6)], "has other keys than"),
        ([choice(5), choice(0)], "both hold 'set-0', whose answer would be shown"),
        ([], "is empty"),
    ],
)
def test_examples_that_do_not_fit_are_refused(tmp_path, others, message):
    path = write(tmp_path, choice(0), choice(1))
    with pytest.raises(InputError, match=message):
        load_task(path, asking=Asking(shots=2, shots_from=write(tmp_path, *others, name="others.jsonl")))


@pytest.mark.parametrize("asking", [LETTER, Asking(shots=1)])
def test_texts_and_written_out_items_are_asked_as_they_stand(tmp_path, asking):
    path = tmp_path / "story.txt"
    path.write_text("Once.", encoding="utf-8")
    with pytest.raises(InputError, match="is a text, which asks no questions: leave answers and shots out"):
        load_task(str(path), asking=asking)
    with pytest.raises(InputError, match=r"does not fit 'e.*' of the probe set"):
        load_task("probe", asking=asking)


def test_keys_that_say_nothing_together_are_refused():
    with pytest.raises(InputError, match=r"shots_from names f\.jsonl, but shots is 0"):
        Asking(shots_from="f.jsonl")
    with pytest.raises(InputError, match="shots is -1: choose 0 or more"):
        Asking(shots=-1)


@pytest.mark.parametrize(
    ("file", "others", "shots"),
    [
        ("gen/gsm8k_test_500.jsonl", "gen/gsm8k_train_fewshot16.jsonl", 8),
        ("mc/mmlu_mini_570.jsonl", "mc/mmlu_dev_5shot.jsonl", 5),
        ("mc/arc_challenge_500.jsonl", None, 10),
    ],
)
def test_published_shots(shared_data, file, others, shots):
    asking = Asking(shots=shots, shots_from=None if others is None else str(shared_data / others))
    items, plain = load_task(str(shared_data / file), asking=asking).items, load_task(str(shared_data / file)).items
    assert len(items) == len(plain) - (0 if others else shots)
    for item in items:
        assert item.contexts[0].count("Answer:") == shots + 1


@pytest.mark.parametrize("name", ["arc_easy_500", "boolq_500", "truthfulqa_en", "winogrande_500", "mmlu_mini_570"])
def test_published_questions_by_letter(shared_data, name):
    items = load_task(str(shared_data / "mc" / f"{name}.jsonl"), asking=LETTER).items
    assert {(item.kind, item.match) for item in items} == {("generation", "letter")}
    assert all(0 < item.chance <= 0.5 for item in items)
