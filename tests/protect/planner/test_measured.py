"""Trials under protections: what is removed, what is seen, and what it costs, on a tiny model."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import pytest

from aftershock.errors import ContractError, InputError
from aftershock.hardware import ClassicalABFT, Scheme
from aftershock.protect import (
    Backup,
    Checksum,
    DualFirstToken,
    Duplication,
    FiniteScreen,
    Int8,
    Protection,
    RangeGuard,
    Scrub,
    detected_by,
    golden_alarms,
    measured_cost,
    measured_costs,
    protect,
    protected_records,
)
from aftershock.protect.planner import costs
from aftershock.replay import ReferenceExecutor
from aftershock.study import Plan, make_plan, trial_records
from tiny_study import tiny_settings

DOWN = "model.layers.1.mlp.down_proj"
FAULTS = (
    f"weight {DOWN}.weight[3,5] flip 30 always",
    f"activation {DOWN}[5] flip 30 at first_token",
    "weight model.layers.0.input_layernorm.weight[3] flip 26 always",
    f"activation {DOWN}[5] flip 30 at decode:1",
)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    settings = tiny_settings(tmp_path_factory.mktemp("measured"), run={"items_per_fault": 99})
    return make_plan(settings.model_copy(update={"fault_list": FAULTS}))


def harmful(plan: Plan, protections: Sequence[Protection]) -> list[bool]:
    """Of each trial whether any answer is not golden's."""
    records = protected_records(plan, map(plan.trial, range(len(FAULTS))), protections)
    found = {one.trial: any(item.outcome not in ("masked", "unreached") for item in one.items) for one in records}
    return [found[number] for number in range(len(FAULTS))]


@pytest.mark.parametrize(
    ("protections", "left"),
    [
        ([], [True, True, True, True]),
        ([Checksum(("down",))], [False, False, True, False]),
        ([Checksum(("o",))], [True, True, True, True]),
        ([Scrub()], [False, True, False, True]),
        ([Backup((f"{DOWN}.weight",))], [False, True, True, True]),
        ([Duplication(("down",))], [True, False, True, False]),
        ([Checksum(("down",)), Scrub()], [False, False, False, False]),
        # A fault in a later pass is out of its reach, though all passes of an answer are one call.
        ([DualFirstToken()], [True, False, True, True]),
    ],
    ids=lambda one: "+".join(repr(each).partition("(")[0] for each in one),
)
def test_protections_remove_what_they_can(plan: Plan, protections: list[Protection], left: list[bool]) -> None:
    assert harmful(plan, protections) == left


def test_without_protections_records_are_the_plain_ones(plan: Plan) -> None:
    trials = [plan.trial(number) for number in range(len(FAULTS))]
    plain = trial_records(ReferenceExecutor(plan.model), plan, trials)
    expected = [one.model_copy(update={"residual_error": None}).result for one in plain]
    assert [one.result for one in protected_records(plan, trials, [])] == expected


def test_the_model_is_free_afterwards(plan: Plan) -> None:
    records = protected_records(plan, [plan.trial(0), plan.trial(1)], [Scrub()])
    next(records)
    with pytest.raises(InputError, match="protected already"):
        protect(plan.model, [Scrub()])
    list(records)
    protect(plan.model, [Scrub()]).remove()


def test_what_changes_clean_outputs_has_golden_runs_of_its_own(plan: Plan) -> None:
    (record,) = protected_records(plan, [plan.trial(1)], [Int8(("down",))])
    assert {item.outcome for item in record.items} != {"crash"}


def test_a_protection_that_changes_clean_outputs_is_found_out(plan: Plan) -> None:
    hook = plan.model.module.get_submodule(DOWN).register_forward_hook(
        lambda module, inputs, output: output + 1 if hasattr(plan.model.module, "_aftershock_protected") else None
    )
    try:
        with pytest.raises(ContractError, match="other bits"):
            list(protected_records(plan, [plan.trial(1)], [Scrub()]))
    finally:
        hook.remove()


def test_who_sees_what(plan: Plan) -> None:
    bounds = {f"model.layers.{layer}.mlp.down_proj": (-1e6, 1e6) for layer in (0, 1)}
    protections: list[Protection] = [
        Checksum(("down",)),
        Checksum(("o",)),
        RangeGuard(bounds),
        Scrub(),
        Checksum(("o", "down")),
        FiniteScreen(("gate",)),
    ]
    found = detected_by(plan, map(plan.trial, range(len(FAULTS))), protections)
    saw = [[bool(seen.sites) for seen in detection.seen] for detection in found]
    assert [detection.trial for detection in found] == [0, 1, 2, 3]
    assert [row[:5] for row in saw] == [
        [True, False, True, True, True],
        [True, False, True, False, True],
        [False, False, False, True, False],
        [True, False, True, False, True],
    ]
    assert {site.module for site in found[0].seen[0].sites} == {DOWN}
    assert all(seen.false_alarms == 0 for detection in found for seen in detection.seen)


def test_false_alarms_are_counted_apart(plan: Plan) -> None:
    (found,) = detected_by(plan, [plan.trial(2)], [RangeGuard({DOWN: (-1e-9, 1e-9)})])
    assert found.seen[0].false_alarms > 0


def test_guards_of_one_place_are_told_apart(plan: Plan) -> None:
    wide, narrow = RangeGuard({DOWN: (-3e38, 3e38)}), RangeGuard({DOWN: (-1e-9, 1e-9)})
    (found,) = detected_by(plan, [plan.trial(2)], [wide, narrow])
    assert found.seen[0].false_alarms == 0
    assert found.seen[1].false_alarms > 0


def test_what_sees_nothing_is_refused(plan: Plan) -> None:
    with pytest.raises(InputError, match="sees nothing"):
        detected_by(plan, [plan.trial(0)], [Int8()])


def test_costs(plan: Plan) -> None:
    batches = plan.batches[:2]
    weight = plan.model.module.get_parameter(f"{DOWN}.weight")
    copy, nothing, often, rarely = measured_costs(
        plan.model, [[Backup((f"{DOWN}.weight",))], [], [Scrub(1)], [Scrub(1000)]], batches, rounds=3
    )
    assert copy.nbytes == weight.nbytes
    assert (nothing.latency.estimate, nothing.nbytes) == (0.0, 0)
    assert rarely.latency.estimate == pytest.approx(often.latency.estimate / 1000)
    assert often.nbytes == rarely.nbytes > 0
    assert measured_cost(plan.model, [Checksum(("down",))], batches, rounds=3).nbytes == 2 * 20 * weight.shape[1]
    with pytest.raises(InputError, match="at least 3 rounds"):
        measured_cost(plan.model, [Scrub()], [])
    assert not hasattr(plan.model.module, "_aftershock_protected")


def test_each_part_of_a_set_has_its_own_time(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    # Prefill and decode without protections, with copies and with a scrub before every pass.
    planted = cycle([(1.0, 2.0), (1.5, 2.5), (3.0, 3.0)])
    monkeypatch.setattr(costs, "_seconds", lambda *_: next(planted))
    copies, scrub = Backup((f"{DOWN}.weight",)), Scrub(2)
    alone, rare, both = measured_costs(plan.model, [[copies], [scrub], [copies, scrub]], plan.batches[:1], rounds=3)
    assert (alone.prefill.estimate, alone.decode.estimate) == (0.5, 0.25)
    assert (rare.prefill.estimate, rare.decode.estimate) == (1.0, 0.25)
    assert (both.prefill.estimate, both.decode.estimate) == (1.5, 0.5)
    passes = plan.batches[0].decode_passes
    assert alone.latency.estimate == pytest.approx((1.5 + 2.5 * passes) / (1.0 + 2.0 * passes) - 1)


def test_sums_of_a_transposed_weight_are_as_long_as_its_inputs(tmp_path: Path) -> None:
    plan = make_plan(tiny_settings(tmp_path, "gpt2"))
    inputs, outputs = plan.model.module.get_parameter("transformer.h.1.mlp.c_proj.weight").shape
    assert inputs != outputs
    assert measured_cost(plan.model, [Checksum(("fc2",))], plan.batches[:1], rounds=3).nbytes == 2 * 20 * inputs


@pytest.mark.parametrize("scheme", [None, ClassicalABFT()])
def test_a_scheme_is_credited_with_sums_and_not_with_weights(scheme: Scheme | None, tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, model={"arithmetic": "w8a8"}, run={"items_per_fault": 99})
    faults = (f"activation {DOWN}.accumulator[5] flip 30 at first_token",)
    plan = make_plan(settings.model_copy(update={"fault_list": faults}))
    checksum = Checksum(("down",), scheme=scheme)
    (found,) = detected_by(plan, [plan.trial(0)], [checksum])
    assert found.seen[0].sites
    assert not found.seen[0].false_alarms

    def strike(*_: object) -> None:
        # Once the model is protected.
        plan.model.module.get_buffer(f"{DOWN}.weight").fill_(1)

    plan.model.module.register_forward_pre_hook(strike)
    wrong, checked = golden_alarms(plan, [checksum])
    assert checked
    assert bool(wrong) is (scheme is None)
