"""What a worker tells: results, and errors by what is to be done about them."""

import pickle

import pytest
import torch

from aftershock.errors import ContractError, InputError
from aftershock.study import make_plan
from aftershock.study.worker import Failed, Free, Lost, Result, Worker, WorkerError, orders_of
from tiny_models import save_tiny
from tiny_study import tiny_settings

pytestmark = pytest.mark.workers


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return make_plan(tiny_settings(tmp_path_factory.mktemp("tiny"), run={"trials": 6}))


def loaded(plan):
    worker = Worker(orders_of(plan, "fast"))
    assert list(worker.load()) == [Free()]
    return worker


def test_results_survive_the_way_between_processes(plan):
    trials = [plan.trial(number) for number in range(4)]
    *results, last = loaded(plan).work("trials", pickle.loads(pickle.dumps(trials)))
    assert last == Free()
    assert all(isinstance(result, Result) for result in results)
    for result in results:
        again = pickle.loads(pickle.dumps(result))
        assert again.record.model_dump_json() == result.record.model_dump_json()
        assert again.record.trial == again.number


def test_another_model_in_the_same_place_is_refused(plan, tmp_path):
    settings = tiny_settings(tmp_path)
    orders = orders_of(make_plan(settings), "fast")
    save_tiny(tmp_path / "llama", "llama", intermediate_size=56)
    (message,) = Worker(orders).load()
    assert isinstance(message, Failed)
    assert isinstance(message.error, InputError)
    assert "a worker would run another study: model_hash " in str(message.error)
    assert "threads" not in str(message.error)


def test_orders_name_places_from_the_root(tmp_path, monkeypatch):
    settings = tiny_settings(tmp_path)
    monkeypatch.chdir(tmp_path)
    relative = settings.model_copy(
        update={
            "model": settings.model.model_copy(update={"spec": "llama"}),
            "task": settings.task.model_copy(update={"spec": "task.jsonl"}),
        }
    )
    orders = orders_of(make_plan(relative), "fast")
    monkeypatch.chdir("/")
    assert list(Worker(orders).load()) == [Free()]


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (InputError("give another"), Failed),
        (ContractError("it did not fire"), Failed),
        (MemoryError("no more"), Lost),
        (torch.OutOfMemoryError("no more"), Lost),
    ],
)
def test_errors_are_told_by_what_is_to_be_done(plan, monkeypatch, raised, told):
    def fail(*_):
        raise raised

    worker = loaded(plan)
    monkeypatch.setattr("aftershock.study.crew.trial_records", fail)
    (message,) = worker.work("trials", [plan.trial(0)])
    assert isinstance(message, told)
    if isinstance(message, Failed):
        assert pickle.loads(pickle.dumps(message)).error.args == raised.args
    else:
        assert message.reason == f"{type(raised).__name__}: no more"


def test_an_internal_error_comes_with_its_traceback(plan, monkeypatch):
    worker = loaded(plan)
    monkeypatch.setattr("aftershock.study.crew.trial_records", lambda *_: 1 // 0)
    (message,) = worker.work("trials", [plan.trial(0)])
    assert isinstance(message.error, WorkerError)
    assert "ZeroDivisionError" in str(message.error)


def test_a_changed_model_is_found_by_the_check(plan):
    worker = loaded(plan)
    assert list(worker.work("check", ())) == [Free()]
    worker._plan.model.module.get_parameter("model.norm.weight").data[0] += 1
    (message,) = worker.work("check", ())
    assert isinstance(message.error, ContractError)
