"""Keys of [task] beside the file: what they make of a study, and of its digest."""

import json

import pytest

from aftershock.errors import InputError
from aftershock.study import load_study, make_plan, run_study
from aftershock.study.worker import orders_of
from sandboxed import needs_sandbox
from tiny_study import tiny_settings

CHOICES = [{"id": f"set-{n}", "question": f"Q{n}", "choices": ["x", "y", "z", "w"], "answer": n % 4} for n in range(5)]
CODE = [
    {"id": f"code-{n}", "prompt": f"Give {n}.", "answer": f"def f(): return {n}", "tests": [f"assert f() == {n}"]}
    for n in range(2)
]


@pytest.fixture
def settings(tmp_path):
    """Settings of a tiny study on lines of a task file, which keys of [task] may follow."""

    def settings_on(lines, **task):
        path = tmp_path / "lines.jsonl"
        path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        keys = {"spec": str(path), **task}
        return tiny_settings(tmp_path, task=keys, run={"trials": 2, "traced": 0, "noise": 2, "audit": 0.0})

    return settings_on


def others(folder, name="others.jsonl"):
    path = folder / name
    path.write_text("\n".join(json.dumps({**line, "question": "other"}) for line in CHOICES), encoding="utf-8")
    return str(path)


def test_every_key_that_changes_the_questions_changes_the_digest_and_no_place_does(settings, tmp_path):
    tables = [
        {},
        {"answers": "letter"},
        {"shots": 1},
        {"shots": 2},
        {"shots": 1, "shots_from": others(tmp_path)},
    ]
    digests = [make_plan(settings(CHOICES, **task)).digest for task in tables]
    assert len(set(digests)) == len(tables)
    moved = {"shots": 1, "shots_from": others(tmp_path, "moved.jsonl")}
    assert make_plan(settings(CHOICES, **moved)).digest == digests[-1]


def test_orders_name_the_examples_from_the_root(settings, tmp_path, monkeypatch):
    others(tmp_path)
    monkeypatch.chdir(tmp_path)
    orders = orders_of(make_plan(settings(CHOICES, shots=1, shots_from="others.jsonl")), "fast")
    assert orders.settings.task.shots_from == str(tmp_path / "others.jsonl")


@pytest.mark.parametrize(("answers", "kind"), [("likelihood", "choice"), ("letter", "generation")])
def test_golden_records_keep_options_and_chance(settings, tmp_path, answers, kind):
    run_study(make_plan(settings(CHOICES, answers=answers)), tmp_path / "out")
    records = load_study(tmp_path / "out").golden
    assert {(record.kind, record.chance, len(record.options)) for record in records} == {(kind, 0.25, 4)}


@needs_sandbox
def test_a_study_of_programs_judges_them(settings, tmp_path):
    study = run_study(make_plan(settings(CODE, max_new_tokens=4)), tmp_path / "out")
    assert [(record.right, record.chance) for record in study.golden] == [(False, 0.0)] * 2
    assert all(item.right is False for trial in study.trials for item in trial.items if item.outcome != "crash")


def test_keys_that_do_not_fit_the_task_are_refused(settings):
    with pytest.raises(InputError, match="say how many examples"):
        make_plan(settings(CHOICES, shots_from="others.jsonl"))
