"""Several studies from one file."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aftershock.errors import ContractError, InputError
from aftershock.study import (
    Member,
    campaign,
    check_settings,
    expand,
    is_campaign_folder,
    load_study,
    make_plan,
    run_campaign,
    run_study,
    summarise_campaign,
)
from tiny_study import tiny_settings, tiny_tables


def test_a_study_goes_over_what_the_file_has_for_all():
    tables = {"run": {"trials": 5, "seed": 1}, "study": [{"name": "a", "run": {"trials": 7}}, {"name": "b"}]}
    assert expand(tables, "f") == (
        ("a", {"run": {"trials": 7, "seed": 1}}),
        ("b", {"run": {"trials": 5, "seed": 1}}),
    )


def test_across_makes_a_study_for_each_combination_in_order():
    entry = {
        "name": "t",
        "across": {
            "model": {"spec": ["demo:x", "some/where/y.gguf"]},
            "faults": {"sites": [["weight"], ["key", "value"]]},
        },
        "faults": {"draw": "uniform"},
    }
    found = expand({"model": {"dtype": "bfloat16"}, "study": [entry]}, "f")
    assert [name for name, _ in found] == ["t-x-weight", "t-x-key+value", "t-y-weight", "t-y-key+value"]
    assert found[2][1] == {
        "model": {"dtype": "bfloat16", "spec": "some/where/y.gguf"},
        "faults": {"draw": "uniform", "sites": ["weight"]},
    }


@pytest.mark.parametrize(
    ("studies", "said"),
    [
        ([], "one or more"),
        ({"name": "a"}, "one or more"),
        ([{}], "has the name None"),
        ([{"name": "../up"}], "has the name '../up'"),
        ([{"name": "a"}, {"name": "a"}], "two studies are named 'a'"),
        ([{"name": "a", "across": {"model": {"spec": []}}}], "without values"),
        ([{"name": "a", "across": {"model": {"spec": "x"}}}], "without values"),
        ([{"name": "a", "across": ["x"]}], "is no table"),
        ([{"name": "a", "run": 3}], "is no table"),
        ([{"name": "a" * 201}], "another, shorter name"),
        ([{"name": "report.html"}], "another, shorter name"),
    ],
)
def test_what_is_no_campaign_is_refused(studies, said):
    with pytest.raises(InputError, match=said):
        expand({"study": studies}, "f")


def _members(folder):
    tables = tiny_tables(folder)
    spoilt = {**tables, "task": {"spec": str(folder / "absent.jsonl")}}
    own = {
        "whole": tables,
        "spoilt": spoilt,
        "other": {**tables, "run": {**tables["run"], "seed": 1, "trials": 4}},
    }
    return tuple(Member(name, check_settings(table, name)) for name, table in own.items())


def test_members_have_the_records_of_studies_by_themselves_and_a_spoilt_one_holds_none_up(tmp_path):
    out = tmp_path / "out"
    states = list(run_campaign(_members(tmp_path), out))
    assert [state.name for state in states] == ["whole", "spoilt", "other"]
    assert [state.outcome for state in states] == ["done", "refused", "done"]
    assert "absent.jsonl" in states[1].why
    alone = run_study(make_plan(tiny_settings(tmp_path)), tmp_path / "alone")
    assert load_study(out / "whole").records_digest == alone.records_digest

    found = summarise_campaign(out)
    assert [study.name for study in found.studies] == ["whole", "other"]
    assert [state.name for state in found.failed] == ["spoilt"]
    assert found.studies[1].summary.trials == 4
    assert json.loads(found.model_dump_json())["missing"] == []


def test_a_campaign_goes_on_where_it_was_stopped(tmp_path):
    members, out = _members(tmp_path), tmp_path / "out"
    stopped = run_campaign(members, out)
    next(stopped)
    stopped.close()
    assert summarise_campaign(out).missing == ("spoilt", "other")
    first = load_study(out / "whole").records_digest

    with pytest.raises(InputError, match="--resume"):
        next(run_campaign(members, out))
    again = run_campaign(members, out, resume=True)
    assert [state.outcome for state in again] == ["done", "refused", "done"]
    assert load_study(out / "whole").records_digest == first
    assert summarise_campaign(out).missing == ()
    with pytest.raises(InputError, match="another campaign"):
        next(run_campaign(members[:1], out, resume=True))


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(ContractError("lost a word"), "contract failed"), (torch.OutOfMemoryError("no room"), "refused")],
)
def test_a_member_that_fails_holds_none_up(tmp_path, monkeypatch, error, outcome):
    whole, _, other = _members(tmp_path)

    def run(plan, folder, **more):
        if folder.name == "whole":
            raise error
        return run_study(plan, folder, **more)

    monkeypatch.setattr(campaign, "run_study", run)
    states = list(run_campaign((whole, other), tmp_path / "out"))
    assert [state.outcome for state in states] == [outcome, "done"]
    assert summarise_campaign(tmp_path / "out").failed == (states[0],)


def test_a_study_is_no_campaign(tmp_path):
    run_study(make_plan(tiny_settings(tmp_path)), tmp_path / "alone")
    assert not is_campaign_folder(tmp_path / "alone")
    with pytest.raises(InputError, match="holds studies already"):
        next(run_campaign(_members(tmp_path), tmp_path / "alone"))
    with pytest.raises(InputError, match="single study"):
        next(run_campaign(_members(tmp_path), tmp_path / "alone", resume=True))


def test_what_is_no_table_is_told():
    with pytest.raises(InputError, match=r"'model' is no table"):
        expand({"model": "x", "study": [{"name": "a", "model": {"dtype": "float32"}}]}, "f")


def test_an_audit_that_disagrees_is_a_contract_that_failed(tmp_path, monkeypatch):
    (whole, *_) = _members(tmp_path)

    def run(plan, folder, **more):
        stored = run_study(plan, folder, **more)
        return replace(stored, audits={0: False, 1: True})

    monkeypatch.setattr(campaign, "run_study", run)
    (state,) = run_campaign((whole,), tmp_path / "out")
    assert state.outcome == "contract failed"
    assert "1 of 2 audited" in state.why


def test_a_members_threads_are_its_own(tmp_path):
    before = torch.get_num_threads()
    tables = tiny_tables(tmp_path, run={"threads": before + 1, "trials": 2})
    list(run_campaign([Member("a", check_settings(tables, "a"))], tmp_path / "out"))
    assert torch.get_num_threads() == before


def test_a_damaged_campaign_is_one_sentence(tmp_path):
    (tmp_path / "campaign.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="damaged"):
        summarise_campaign(tmp_path)


@pytest.mark.workers
def test_members_at_once_have_the_same_records(tmp_path):
    members = _members(tmp_path)
    list(run_campaign(members, tmp_path / "one"))
    states = list(run_campaign(members, tmp_path / "two", workers=2))
    assert sorted(state.name for state in states if state.outcome == "done") == ["other", "whole"]
    for name in ("whole", "other"):
        assert load_study(tmp_path / "two" / name).records_digest == load_study(tmp_path / "one" / name).records_digest


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for the workers in /proc")
def test_workers_end_with_a_campaign_that_is_killed(tmp_path):
    tables = tiny_tables(tmp_path) | {"study": [{"name": name, "run": {"trials": 100_000}} for name in ("one", "two")]}
    (tmp_path / "campaign.json").write_text(json.dumps(tables))
    script = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from aftershock.study import Member, check_settings, expand, run_campaign\n"
        "if __name__ == '__main__':\n"
        "    tables = json.loads(Path('campaign.json').read_text())\n"
        "    found = [Member(name, check_settings(own, name)) for name, own in expand(tables, 'it')]\n"
        "    list(run_campaign(found, Path('out'), workers=2))\n"
    )
    (tmp_path / "run.py").write_text(script)
    parent = subprocess.Popen([sys.executable, "run.py"], cwd=tmp_path)
    try:
        wait_for(lambda: len(list((tmp_path / "out").glob("*/study.sqlite"))) == 2 or parent.poll() is not None)
        assert parent.poll() is None
        workers = [pid for pid in children_of(parent.pid) if "spawn_main" in command_of(pid)]
        assert len(workers) == 2
    finally:
        parent.kill()
        parent.wait()
    wait_for(lambda: not any("spawn_main" in command_of(pid) for pid in workers))


def wait_for(true, seconds=120):
    """Until it is true; a deadline, no measurement."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
