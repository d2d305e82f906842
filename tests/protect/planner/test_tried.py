"""What protections do to recorded faults: harm that is removed, and harm that is caused."""

import numpy as np
import pytest

from aftershock.protect import (
    Backup,
    Checksum,
    Cost,
    DualFirstToken,
    FiniteScreen,
    Protection,
    RangeGuard,
    Scrub,
    protected_records,
)
from aftershock.protect.planner.candidates import Candidate, may_act
from aftershock.protect.planner.offering import Tried
from aftershock.protect.planner.tried import caused, due_share, recorded, removal
from aftershock.stats import Estimate
from aftershock.study import Plan, TrialRecord, make_plan
from tiny_study import tiny_settings

DOWN = "model.layers.1.mlp.down_proj"
FAULTS = (
    f"weight {DOWN}.weight[3,5] flip 30 always",
    f"activation {DOWN}[5] flip 30 at first_token",
    f"activation {DOWN}[9] flip 30 at decode:1",
)
OFFERED = (
    Candidate("checksum", Checksum(("down",))),
    Candidate("guard", RangeGuard({DOWN: (-1e15, 1e15)})),
    Candidate("scrub", Scrub()),
)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    settings = tiny_settings(tmp_path_factory.mktemp("tried"), run={"items_per_fault": 99})
    return make_plan(settings.model_copy(update={"fault_list": FAULTS}))


@pytest.fixture(scope="module")
def records(plan: Plan) -> list[TrialRecord]:
    return list(protected_records(plan, map(plan.trial, range(3)), []))


@pytest.mark.parametrize(
    ("protection", "component", "acts"),
    [
        (Checksum(("down",)), "down", [True, True, True]),
        (Checksum(("k",)), "q+k+v", [True, True, True]),
        (Checksum(("o",)), "down", [False, False, False]),
        (Checksum(("o",)), "several", [True, True, True]),
        (Scrub(), "down", [True, False, False]),
        (Backup((f"{DOWN}.weight",)), "down", [True, False, False]),
        (Backup(("lm_head.weight",)), "down", [False, False, False]),
        (DualFirstToken(), "down", [False, True, False]),
        (FiniteScreen(), "down", [True, True, True]),
    ],
)
def test_which_faults_a_protection_might_undo(
    plan: Plan, protection: Protection, component: str, acts: list[bool]
) -> None:
    assert [may_act(protection, plan.trial(number), component) for number in range(3)] == acts


def test_each_candidate_is_tried_alone(plan: Plan, records: list[TrialRecord]) -> None:
    harmful = [record for record in records if record.sdc_share]
    assert [record.trial for record in harmful] == [0, 1]
    found = removal(plan, harmful, OFFERED, lambda _: None)
    assert found[:, 0].tolist() == [True, True]
    assert found[:, 2].tolist() == [True, False]


def test_what_showed_by_itself_is_silent_under_a_guard(plan: Plan, records: list[TrialRecord]) -> None:
    assert due_share(records[2]) == 0.5
    assert caused(plan, records[2:], OFFERED, lambda _: None).tolist() == [[False, True, False]]


def test_a_guard_that_changes_nothing_causes_nothing(plan: Plan, records: list[TrialRecord]) -> None:
    idle = Candidate("idle", RangeGuard({"model.layers.0.mlp.down_proj": (-3e38, 3e38)}))
    assert caused(plan, records, [idle], lambda _: None).tolist() == [[False], [False], [False]]


def test_harm_in_silence_does_not_show(records: list[TrialRecord]) -> None:
    # Of four answers one is wrong in silence, and three end in NaN.
    assert records[1].sdc_share == 0.25
    assert due_share(records[1]) == 0.75


def test_rates_before_and_after(records: list[TrialRecord]) -> None:
    found = recorded(records, {0: 0.0, 1: 1.0})
    shares = [record.sdc_share or 0.0 for record in records]
    assert found.before.estimate == pytest.approx(sum(shares) / 3)
    assert found.after.estimate == pytest.approx((1 + shares[2]) / 3)


@pytest.fixture(scope="module")
def tried(records: list[TrialRecord]) -> Tried:
    """Of three that were offered the first and the last help: the checksum removes all harm; the screen that of trial
    1, and makes both trials that showed by themselves do more."""
    screen = Candidate("screen", FiniteScreen(limit="clamp"))
    slow, fast = (Estimate(share, share - 0.1, share + 0.1, 3) for share in (0.5, -0.25))
    return Tried(
        harmful=(records[0], records[1]),
        showing=(records[1], records[2]),
        offered=(OFFERED[0], OFFERED[2], screen),
        useful=(OFFERED[0], screen),
        removes=np.array([[True, False], [True, True]]),
        causes=np.array([[False, True], [False, True]]),
        costs=(Cost(slow, slow, slow, 48), Cost(fast, fast, fast, 0)),
    )


def test_harm_that_chosen_guards_cause_is_recorded_beside_what_they_remove(tried: Tried) -> None:
    added = {2: (tried.showing[1].sdc_share or 0.0) + due_share(tried.showing[1])}
    assert added[2] > 0
    assert tried.after([1]) == {1: 0.0, **added}
    assert tried.after([0]) == {0: 0.0, 1: 0.0}
    assert tried.after([0, 1]) == {0: 0.0, 1: 0.0, **added}
    assert tried.after([]) == {}


def test_what_was_tried_is_weighed_and_listed(tried: Tried) -> None:
    offers = tried.offers
    assert offers.weights.tolist() == [one.sdc_share for one in tried.harmful]
    assert offers.harm.tolist() == [0.75, 0.5]
    # What is measured to be faster than nothing is taken to be free.
    assert (offers.latency.tolist(), offers.memory.tolist()) == ([0.5, 0.0], [48.0, 0.0])
    listed = tried.listed([1])
    assert [(one.name, one.removes, one.causes, one.nbytes, one.chosen) for one in listed] == [
        ("checksum", 2, 0, 48, False),
        ("scrub", 0, 0, None, False),
        ("screen", 1, 2, 0, True),
    ]
    assert listed[1].latency is None
    assert tried.names([1, 0]) == ("screen", "checksum")
