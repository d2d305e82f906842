"""Studies in rounds: which trials come next, when a rule ends them, and what the records then say."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aftershock.cli import run as command
from aftershock.replay import ReferenceExecutor
from aftershock.report import markdown, trial_frame
from aftershock.report.tables import rate_frame
from aftershock.stats import Design, anytime_interval, weighted_interval
from aftershock.study import (
    ItemRecord,
    Plan,
    StoredStudy,
    StudySettings,
    TrialRecord,
    check_settings,
    compare_studies,
    load_study,
    make_plan,
    next_block,
    outlook,
    replay_trial,
    run_study,
    summarise,
    to_toml,
    verdict,
)
from aftershock.study.trial import trial_records
from tiny_study import tiny_settings

STRATA = {"plan": "neyman", "strata": ("site", "component"), "pilot": 12, "trials": 40}
FAULTS = {"components": ("q", "down", "norm"), "bit_classes": ("exponent",)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rounds")


@pytest.fixture(scope="module")
def plan(folder: Path) -> Plan:
    return make_plan(tiny_settings(folder, run=STRATA, faults=FAULTS))


@pytest.fixture(scope="module")
def study(plan: Plan, folder: Path) -> StoredStudy:
    return run_study(plan, folder / "study")


def made_up(number: int, failed: float, component: str = "q", **place: object) -> TrialRecord:
    """A trial of 8 items of which a share failed."""
    items = tuple(
        ItemRecord(
            item=str(item),
            outcome="subtle" if item < round(8 * failed) else "masked",
            eligible=True,
            right=None,
            output=None,
            score_change=0.0,
            first_difference=None,
            rmse=None,
            kl=None,
        )
        for item in range(8)
    )
    return TrialRecord(
        trial=number,
        faults=(),
        fault_count=1,
        site="weight",
        component=component,
        layer=None,
        bits=(),
        bit_class="sign",
        stage="persistent",
        strikes=(),
        strikes_digest="",
        items=items,
        **place,
    )


def answered(plan: Plan, trials: Sequence[int], failed: dict[str, float]) -> list[TrialRecord]:
    """Made-up records of a plan's trials: those of a stratum fail by its component's share, in turn all or nothing."""
    records = []
    for trial in trials:
        place = plan.place_of(trial)
        component = place.stratum.component
        harm = float(np.floor((trial + 1) * failed[component]) - np.floor(trial * failed[component]))
        records.append(
            made_up(
                trial,
                harm,
                component,
                stratum=place.stratum.name,
                stratum_chance=place.stratum.chance,
                round=place.round,
            )
        )
    return records


# which trials come next


@settings(max_examples=50)
@given(st.integers(2, 300), st.integers(1, 5000))
def test_rounds_end_at_fixed_numbers_and_are_never_small(pilot, trials):
    run = {"until": "sdc ±1%", "pilot": pilot, "trials": trials}
    ends = check_settings({"run": run}, "test").round_ends
    assert ends[-1] == trials
    assert all(2 * (end - begin) >= min(pilot, trials) for begin, end in pairwise((0, *ends)))
    longer = check_settings({"run": run | {"trials": 4 * trials + 4 * pilot}}, "test").round_ends
    assert longer[: len(ends) - 1] == ends[:-1]


def test_a_plain_study_is_one_round():
    assert StudySettings().round_ends == (400,)


def longer(plan: Plan, **run: object) -> Plan:
    """The plan with other settings of its rounds."""
    return make_plan(plan.settings.model_copy(update={"run": plan.settings.run.model_copy(update=run)}))


def test_the_first_round_is_proportional_and_later_ones_go_where_shares_vary(plan):
    plan = longer(plan, pilot=120, trials=600)
    first = next_block(plan, [])
    assert first.trials == tuple(range(120))
    assert first.plan.rounds == plan.rounds
    chances = [stratum.chance for stratum in plan.strata]
    assert plan.rounds[0].counts == pytest.approx(120 * np.array(chances), abs=1.5)
    records = answered(first.plan, first.trials, {"q": 0.5, "down": 0.0, "norm": 0.0})
    second = next_block(plan, records)
    assert second.trials == tuple(range(120, 240))
    counts = dict(zip([s.name for s in plan.strata], second.plan.rounds[1].counts, strict=True))
    assert sum(counts.values()) == 120
    assert min(counts.values()) >= 1
    assert counts["weight q"] > counts["weight down"]


@pytest.mark.parametrize("trials", [12, 17, 18, 19])
def test_what_is_too_small_for_a_round_goes_to_the_one_before(plan, trials):
    short = longer(plan, trials=trials)
    stored, block = [], next_block(short, [])
    while block.trials:
        stored += answered(block.plan, block.trials, {"q": 0.5, "down": 0.0, "norm": 0.0})
        block = next_block(short, stored)
    assert sorted(record.trial for record in stored) == list(range(trials))
    assert {record.round for record in stored} == ({0} if trials < 18 else {0, 1})


def test_blocks_depend_on_complete_rounds_alone_and_not_on_order(plan):
    first = next_block(plan, [])
    records = answered(first.plan, first.trials, {"q": 0.5, "down": 0.2, "norm": 0.0})
    second = next_block(plan, records)
    begun = answered(second.plan, second.trials[:5], {"q": 1.0, "down": 1.0, "norm": 1.0})
    shuffled = [*begun[::-1], *records[::-1]]
    again = next_block(next_block(plan, []).plan, shuffled)
    assert again.plan.rounds == second.plan.rounds
    assert again.trials == second.trials[5:]


def test_nothing_comes_after_the_last_round_or_a_decision(plan, study):
    assert next_block(plan, study.trials).trials == ()
    rule = longer(plan, pilot=120, trials=600, until="sdc ±20%")
    records = answered(rule, range(120), {"q": 0.25, "down": 0.0, "norm": 0.0})
    assert next_block(rule, records).trials == ()
    assert next_block(rule, records[:-1]).trials == (119,)


def until(rule: str, plan: Plan) -> dict[str, dict[str, object]]:
    return {"run": plan.settings.run.model_dump() | {"until": rule}}


# what is stored


def test_trials_lie_in_their_strata_and_say_so(plan, study):
    assert len(study.trials) == 40
    chances = {stratum.name: stratum.chance for stratum in plan.strata}
    for trial in study.trials:
        assert trial.stratum == f"{trial.site} {trial.component}"
        assert trial.stratum_chance == chances[trial.stratum]
        assert trial.round == sum(trial.trial >= end for end in plan.settings.round_ends)


def test_any_order_of_the_trials_and_a_kill_give_the_same_records(plan, folder, study):
    stored, block = [], next_block(plan, [])
    while block.trials:
        stored += trial_records(ReferenceExecutor(plan.model), block.plan, map(block.plan.trial, block.trials[::-1]))
        block = next_block(plan, stored)
    ordered = sorted(stored, key=lambda record: record.trial)
    assert [one.model_dump_json() for one in ordered] == [one.model_dump_json() for one in study.trials]

    class StopStudyError(Exception):
        pass

    def stop(progress):
        if progress.phase == "trials" and progress.done == 17:
            raise StopStudyError

    with pytest.raises(StopStudyError):
        run_study(plan, folder / "killed", watch=stop)
    killed = load_study(folder / "killed")
    assert (len(killed.trials), len(killed.counted), killed.complete) == (17, 12, False)
    assert summarise(killed).sdc_rate.n_faults <= 12
    assert run_study(plan, folder / "killed", resume=True).records_digest == study.records_digest


def test_one_trial_alone_is_the_stored_one(study):
    found = replay_trial(study.folder, 39)
    assert found.same_plan
    assert found.equal


def test_a_rule_on_a_uniform_plan_only_cuts_the_study_short(folder, tmp_path):
    plain = run_study(make_plan(tiny_settings(folder, run={"trials": 40})), tmp_path / "plain")
    rule = {"trials": 40, "until": "sdc +-49%", "pilot": 20}
    ended = run_study(make_plan(tiny_settings(folder, run=rule)), tmp_path / "ended")
    assert ended.complete
    assert len(ended.trials) == 20
    one, other = ([t.model_copy(update={"residual_error": None}) for t in s.trials] for s in (plain, ended))
    assert [t.model_dump_json() for t in other] == [t.model_dump_json() for t in one[: len(other)]]
    assert not {"stratum", "stratum_chance", "round"} & one[0].model_dump().keys()
    summary = summarise(ended)
    assert summary.sdc_rate.interval == "anytime-valid"
    assert summary.verdict.decided
    assert "stopped by  sdc ±49%" in summary.text()
    assert "Not complete" not in markdown(ended, summary)


# what the records say


def by_hand(study: StoredStudy, wanted: str | None = None) -> float:
    """Sum of N_r W_h / n_rh x share over the eligible trials, over that of the weights."""
    top = bottom = 0.0
    for trial in study.trials:
        if trial.sdc_share is not None and wanted in (None, trial.component):
            own = sum((t.round, t.stratum) == (trial.round, trial.stratum) for t in study.trials)
            weight = sum(t.round == trial.round for t in study.trials) * trial.stratum_chance / own
            top, bottom = top + weight * trial.sdc_share, bottom + weight
    return top / bottom


def test_rates_of_a_stratified_study_are_weighted(study):
    summary = summarise(study)
    assert summary.sdc_rate.estimate == pytest.approx(by_hand(study))
    assert summary.sdc_rate.interval == "fixed n"
    assert 0 < summary.sdc_rate.effective_faults <= summary.sdc_rate.n_faults
    assert summary.sdc_rate.low <= summary.sdc_rate.estimate <= summary.sdc_rate.high
    assert -1e-12 <= summary.sdc_rate.estimate - summary.sdc_rate.excess <= 1
    for rate in summary.groups["component"]:
        assert rate.estimate == pytest.approx(by_hand(study, rate.label))
    assert sum(one.trials for one in summary.strata) == 40
    assert sum(one.chance for one in summary.strata) == pytest.approx(1)
    assert f"{len(summary.strata)} strata" in summary.text()


def test_the_report_weighs_as_the_summary_does(study):
    summary = summarise(study)
    frame = rate_frame(trial_frame(study.counted), ["component"])
    rows = {row["component"]: row for row in frame.iter_rows(named=True) if row["site"] == "all"}
    for rate in summary.groups["component"]:
        assert (rows[rate.label]["estimate"], rows[rate.label]["high"]) == pytest.approx((rate.estimate, rate.high))
    assert "strata" in markdown(study, summary)


def test_a_stratified_study_is_compared_by_its_weighted_rates(study, folder, tmp_path):
    other = run_study(make_plan(tiny_settings(folder, run={"trials": 12}, faults=FAULTS)), tmp_path / "uniform")
    found = compare_studies(study, other)
    rates = [summarise(one).sdc_rate.estimate for one in (study, other)]
    assert found.difference.estimate == pytest.approx(rates[1] - rates[0])
    assert not found.difference.paired
    assert found.difference.n == sum(summarise(one).sdc_rate.n_faults for one in (study, other))


def test_weighted_and_uniform_studies_ask_about_the_same_population(plan):
    """Records whose shares are their strata's true rates: the weighted mean is the population's, to the last digit."""
    rates = {"q": 0.25, "down": 0.5, "norm": 1.0}
    stored, block = [], next_block(plan, [])
    while block.trials:
        for trial in block.trials:
            place = block.plan.place_of(trial)
            stored.append(
                made_up(
                    trial,
                    rates[place.stratum.component],
                    stratum=place.stratum.name,
                    stratum_chance=place.stratum.chance,
                    round=place.round,
                )
            )
        block = next_block(plan, stored)
    truth = sum(stratum.chance * rates[stratum.component] for stratum in plan.strata)
    names = [stratum.name for stratum in plan.strata]
    design = Design(
        np.array([names.index(trial.stratum) for trial in stored]),
        np.array([stratum.chance for stratum in plan.strata]),
        np.array([trial.round for trial in stored]),
    )
    assert weighted_interval([trial.sdc_share for trial in stored], design).estimate == pytest.approx(truth)


# the rules


def ranked(shares: dict[str, float], each: int, rule: str) -> tuple[StudySettings, list[TrialRecord]]:
    """A uniform study of components with these rates, `each` trials of all in turn."""
    names = tuple(shares)
    settings = check_settings(
        {"run": {"until": rule, "pilot": 10 * each, "trials": 20 * each}, "faults": {"components": names}}, "test"
    )
    records = []
    for number in range(10 * each):
        name = names[number % len(names)]
        turn = number // len(names)
        harm = float(np.floor((turn + 1) * shares[name]) - np.floor(turn * shares[name]))
        records.append(made_up(number, harm, name))
    return settings, records


def test_components_whose_intervals_are_apart_are_ranked():
    found = verdict(*ranked({"q": 0.9, "down": 0.1}, 60, "rank components ±5%"))
    assert found.decided
    assert [one.component for one in found.ranking] == ["q", "down"]
    assert [one.apart for one in found.ranking] == [True, None]
    assert found.undecided == ()


def test_components_that_are_alike_are_told_so_once_both_are_known_to_the_tolerance():
    few = verdict(*ranked({"q": 0.1, "down": 0.1, "norm": 0.9}, 30, "rank components ±6%"))
    assert not few.decided
    assert few.undecided == ("down", "q")
    many = verdict(*ranked({"q": 0.1, "down": 0.1, "norm": 0.9}, 200, "rank components ±6%"))
    assert many.decided
    assert [one.apart for one in many.ranking] == [True, False, None]


def test_a_component_without_a_trial_keeps_the_order_open():
    settings, records = ranked({"q": 0.9, "down": 0.1}, 60, "rank components ±5%")
    missing = check_settings(settings.model_dump() | {"faults": {"components": ("q", "down", "norm")}}, "test")
    found = verdict(missing, records)
    assert not found.decided
    assert "norm" in found.undecided


def test_intervals_of_a_ranking_hold_together():
    settings, records = ranked({"q": 0.5, "down": 0.1}, 40, "rank components ±5%")
    own = [record for record in records if record.component == "q"]
    shares = np.array([record.sdc_share for record in own])
    zeros = np.zeros(len(own), dtype=np.int64)
    alone = anytime_interval(shares, 0.05, Design(zeros, np.ones(1), zeros), confidence=0.975)
    top = verdict(settings, records).ranking[0]
    assert (top.low, top.high) == pytest.approx((alone.low, alone.high))


def test_ranking_spends_nothing_more_on_components_whose_place_is_known(plan):
    rule = longer(plan, until="rank components ±10%", pilot=240, trials=2000)
    assert rule.settings.faults.components == ("q", "down", "norm")
    first = next_block(rule, [])
    records = answered(first.plan, first.trials, {"q": 0.25, "down": 0.25, "norm": 1.0})
    seen = verdict(rule.settings, records)
    assert seen.undecided == ("down", "q")
    second = next_block(rule, records)
    counts = dict(zip([s.name for s in rule.strata], second.plan.rounds[1].counts, strict=True))
    first_counts = dict(zip([s.name for s in rule.strata], rule.rounds[0].counts, strict=True))
    assert counts["weight norm"] < 0.7 * first_counts["weight norm"]
    assert counts["weight q"] > 1.2 * first_counts["weight q"]


def test_the_largest_number_of_trials_ends_a_study_that_never_knew(study, plan):
    rule = check_settings(plan.settings.model_dump() | until("sdc ±0.01%", plan), "test")
    found = verdict(rule, study.trials)
    assert not found.decided
    assert found.looks == len(rule.round_ends)
    assert found.reason.startswith("the largest number of trials is reached")


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"run": {"until": "sdc 0.5"}}, "can't be read: write 'sdc ±0.5%'"),
        ({"run": {"until": "rank layers"}}, "can't be read"),
        ({"run": {"until": "sdc ±60%"}}, "between 0 and 50"),
        ({"run": {"plan": "optimal"}}, "run.plan"),
        ({"run": {"plan": "neyman", "strata": ["layer"]}}, "run.strata"),
        ({"run": {"plan": "neyman", "strata": ["bit"], "until": "rank components"}}, "needs strata by component"),
        ({"run": {"until": "rank components"}, "faults": {"count": 2}}, "one fault a trial"),
        ({"run": {"until": "sdc ±1%"}, "fault_list": ["x"]}, "your own fault list"),
        ({"run": {"plan": "neyman"}, "faults": {"count": 2}}, "one fault into one word or bit"),
        ({"run": {**STRATA, "pilot": 4}}, "strata need rounds of at least"),
        ({"run": {"until": "sdc ±1%", "trials": 20}}, "the first round alone takes 100"),
    ],
)
def test_what_can_not_be_planned_is_refused(folder, tmp_path, capsys, tables, message):
    settings = tiny_settings(folder)
    file = tmp_path / "study.toml"
    whole = settings.model_dump(mode="json", exclude_none=True)
    lines = [f"fault_list = {tables.get('fault_list', [])}"]
    for name in ("model", "task", "faults", "run"):
        table = whole[name] | tables.get(name, {})
        lines += [f"[{name}]", *(f"{key} = {toml(value)}" for key, value in table.items())]
    file.write_text("\n".join(lines), encoding="utf-8")
    assert command(["study", str(file), "--dry-run", "--json"]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(list(value) if isinstance(value, tuple) else value)


@pytest.mark.parametrize("text", ["sdc ±0.5%", "sdc +-0.5 %", "sdc+/-0.5 points", " sdc ± .5 % "])
def test_a_margin_can_be_written_in_several_ways(text):
    rule = check_settings({"run": {"until": text}}, "test").run.rule
    assert (rule.ranks, rule.margin) == (False, pytest.approx(0.005))
    assert str(rule) == "sdc ±0.5%"


def test_a_rule_alone_leaves_trials_enough():
    assert check_settings({"run": {"until": "rank components"}}, "test").trials == 20_000
    assert check_settings({"run": {"until": "rank components", "trials": 300}}, "test").trials == 300
    assert check_settings({"run": {"until": "rank components"}}, "test").run.rule.margin == 0.01


def test_the_outlook_says_what_will_happen(plan):
    said = outlook(plan).text()
    assert f"{len(plan.strata)} strata by site x component" in said
    assert "looked at after 12, 24, 40 trials" in said
    rule = check_settings(plan.settings.model_dump() | until("sdc ±1%", plan), "test")
    assert "stops at the first look at which 'sdc ±1%' is reached" in outlook(replace(plan, settings=rule)).text()


def test_a_rule_on_the_command_line(folder, tmp_path, capsys):
    file = tmp_path / "study.toml"
    file.write_text(to_toml(tiny_settings(folder)), encoding="utf-8")
    arguments = ["study", str(file), "--trials", "300", "--until", "sdc +-49%", "--dry-run"]
    assert command(arguments) == 0
    assert "sdc ±49%" in capsys.readouterr().out
