"""The seventeen takeaways, each on a planted effect, its contrary, and too little to tell."""

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations

import pytest

from aftershock.stats import weighted_interval
from aftershock.study import StoredStudy, Takeaway, summarise, takeaways
from aftershock.study.takeaways.cells import cells
from planted_study import (
    ITEMS,
    LAYERS,
    Planted,
    activation,
    cached,
    faults,
    golden_record,
    study,
    weight,
)

MANY, SOME = 1500, 200
HIGH, LOW = 0.4, 0.1
CHOICES = tuple(golden_record(number, "choice") for number in range(ITEMS))
HALF_RIGHT = tuple(golden_record(number, right=number % 2 == 0) for number in range(ITEMS))


def against(worse: tuple[str, str, int], better: tuple[str, str, int]) -> Callable[[bool], list[StoredStudy]]:
    """A study in which the faults of one place do more harm than those of another, or the other way round."""

    def planted(holds: bool) -> list[StoredStudy]:
        rates = (HIGH, LOW) if holds else (LOW, HIGH)
        return [study(faults(worse, SOME, rates[0]) + faults(better, SOME, rates[1]))]

    return planted


def degrades(holds: bool) -> list[StoredStudy]:
    return [study(faults(weight(), MANY, HIGH if holds else 0.0))]


def stage_decides(holds: bool) -> list[StoredStudy]:
    early, late = activation("at prefill:0.5"), activation("at decode:2")
    return [study(faults(early, MANY, LOW if holds else 0.0) + faults(late, MANY, HIGH if holds else 0.0))]


def decode_harmless(holds: bool) -> list[StoredStudy]:
    early, late = activation("at first_token"), activation("at decode:2")
    return [study(faults(early, SOME, HIGH) + faults(late, MANY, 0.0 if holds else HIGH), CHOICES)]


def baseline(holds: bool) -> list[StoredStudy]:
    high, low = (HIGH, LOW) if holds else (LOW, 1.0)
    return [
        study(faults(weight(), SOME, high), task={"spec": "easy"}),
        study(faults(weight(), SOME, low), HALF_RIGHT, task={"spec": "hard"}),
    ]


def rewording(holds: bool) -> list[StoredStudy]:
    return [study(faults(weight(), MANY, HIGH if holds else 0.0, "benign"))]


def heals(holds: bool) -> list[StoredStudy]:
    error = tuple(0.0 if place < 6 else 2.0**-place if holds else 2.0**place for place in range(LAYERS + 1))
    return [study(faults(weight(), 60, LOW, residual_error=error))]


def early_steps(holds: bool) -> list[StoredStudy]:
    steps = range(1, 11)
    return [
        study(
            [
                one
                for step in steps
                for one in faults(activation(f"at decode:{step}"), 40, HIGH if (step < 5) == holds else 0.0)
            ]
        )
    ]


def flat_cache(holds: bool) -> list[StoredStudy]:
    return [
        study(
            [one for layer in range(LAYERS) for one in faults(cached(layer), 100, 0.3 if holds or layer > 7 else 0.0)]
        )
    ]


def formats(holds: bool) -> list[StoredStudy]:
    rates = (0.05, 0.2, 0.4, 0.6) if holds else (0.6, 0.4, 0.2, 0.05)
    packed = ("stored model.layers.5.mlp.down_proj.weight.quant[0,0] flip 3 always", "down", 5)
    quantised = study(
        faults(packed, SOME, rates[0]),
        faults={"sites": ["stored"]},
        storage="int8",
    )
    plain = [
        study(faults(weight(), SOME, rate), dtype=dtype, faults={"sites": ["weight"]})
        for dtype, rate in zip(("float16", "float32", "bfloat16"), rates[1:], strict=True)
    ]
    return [quantised, *plain]


def experts(holds: bool) -> list[StoredStudy]:
    router, expert = (0.8, 0.05) if holds else (0.05, 0.8)
    mixture = faults(weight("router"), SOME, router) + faults(weight("expert"), 4 * SOME, expert)
    return [study(mixture, model="mixture"), study(faults(weight(), SOME, 0.4), model="dense")]


CASES: dict[int, Callable[[bool], list[StoredStudy]]] = {
    1: degrades,
    2: stage_decides,
    3: decode_harmless,
    4: against(activation("at first_token"), weight(trigger="from first_token")),
    5: baseline,
    6: rewording,
    7: against(weight(layer=LAYERS - 4), weight(layer=LAYERS - 5)),
    8: heals,
    9: against(weight("down"), weight("up")),
    10: early_steps,
    11: against(weight(), activation("at prefill:0.5")),
    12: against(weight(), cached()),
    13: flat_cache,
    14: against(weight(bits="30"), weight(bits="29")),
    15: formats,
    16: experts,
    17: against(weight(bits="3,14"), weight(bits="14")),
}


def one(number: int, studies: list[StoredStudy]) -> Takeaway:
    return takeaways(studies)[number - 1]


@pytest.mark.parametrize("number", CASES)
def test_a_planted_effect_holds_and_its_contrary_does_not(number: int):
    for holds, verdict in ((True, "holds"), (False, "does not hold")):
        found = one(number, CASES[number](holds))
        assert found.verdict == verdict, found
        assert found.tested
        assert found.p_value <= found.p_holm < 0.05
        assert found.effect.low <= found.effect.estimate <= found.effect.high
        assert min(found.n.values()) >= 20
        assert found.cells
        assert found.why is None


@pytest.mark.parametrize("number", CASES)
def test_a_few_faults_are_not_enough_evidence(number: int):
    few = [replace(full, trials=full.trials[:: max(len(full.trials) // 12, 1)][:12]) for full in CASES[number](True)]
    found = one(number, few)
    assert found.verdict == "not enough evidence"
    assert not found.tested
    assert "of 20 needed" in found.why or found.why.startswith("no ")


def test_there_are_always_seventeen_and_the_labels_are_the_pages():
    for studies in ([], degrades(True), baseline(True)):
        assert [found.number for found in takeaways(studies)] == list(range(1, 18))
    confirmed = {found.number for found in takeaways([]) if found.label == "confirmed"}
    assert confirmed == {5, 7, 8, 9, 10, 11}
    assert all(found.verdict == "not enough evidence" and found.why for found in takeaways([]))


def test_no_effect_and_wide_intervals_leave_it_open():
    equal = study(faults(weight("down"), 60, 0.2) + faults(weight("up"), 60, 0.2))
    found = one(9, [equal])
    assert (found.verdict, found.tested) == ("not enough evidence", True)
    assert found.effect.low < 0 < found.effect.high
    assert "once corrected" in found.why


def test_studies_are_compared_with_themselves_only():
    """Simpson: faults in `down` are mostly those of the fragile study, so they look worse without being it."""
    fragile = study(faults(weight("down"), 400, 0.8) + faults(weight("up"), 50, 0.8), task={"spec": "one"})
    robust = study(faults(weight("down"), 50, 0.1) + faults(weight("up"), 400, 0.1), task={"spec": "two"})
    found = one(9, [fragile, robust])
    assert found.effect.estimate == pytest.approx(0, abs=1.0)
    assert found.verdict == "not enough evidence"
    assert len(found.cells) == 2
    assert found.n == {"faults in o, down, fc2": 450, "faults in gate, up, fc1": 450}


def test_kinds_of_fault_are_not_mixed():
    """Activation faults are harmless here and mostly in `up`; among weights both components are alike."""
    planted = faults(weight("down"), 200, 0.5) + faults(weight("up"), 50, 0.5)
    planted += faults(activation("at prefill:0.5", "down"), 50, 0.0) + faults(
        activation("at prefill:0.5", "up"), 200, 0.0
    )
    assert one(9, [study(planted)]).effect.estimate == pytest.approx(0, abs=0.5)


def test_the_order_of_studies_does_not_matter():
    for studies in permutations(formats(True)[:3]):
        found = one(15, list(studies))
        assert (found.verdict, len(found.cells)) == ("holds", 3)
    names = [cell.name for cell in cells([degrades(True)[0]] * 3)]
    assert len(set(names)) == 3


def test_one_step_against_the_order_refutes_it():
    studies = formats(True)
    swapped = [studies[0], studies[2], studies[1], studies[3]]
    types = ("float32", "float16", "float32", "bfloat16")
    renamed = [
        replace(
            one,
            environment=one.environment.model_copy(update={"dtype": dtype}),
            settings=one.settings.model_copy(update={"model": one.settings.model.model_copy(update={"dtype": dtype})}),
        )
        for one, dtype in zip(swapped, types, strict=True)
    ]
    assert one(15, renamed).verdict == "does not hold"


def test_near_chance_studies_are_left_out_of_all_but_the_fifth():
    guessing = tuple(golden_record(number, "choice", right=number % 3 == 0) for number in range(24))
    sure = tuple(golden_record(number, "choice") for number in range(24))
    hidden = study(faults(weight("down"), 60, HIGH) + faults(weight("up"), 60, LOW), guessing, task={"spec": "hidden"})
    clear = study(faults(weight("down"), 60, HIGH) + faults(weight("up"), 60, LOW), sure, task={"spec": "clear"})
    (alone,) = one(9, [hidden]).left_out
    assert "above chance (25.0 %)" in alone.why
    assert "above chance" in one(9, [hidden]).why
    together = one(9, [hidden, clear])
    assert together.verdict == "holds"
    assert [left.cell for left in together.left_out] == ["planted · hidden · float32"]
    assert together.cells == ("planted · clear · float32",)
    assert len(one(5, [hidden, clear]).cells) == 2


def test_letters_have_the_chance_of_their_options():
    letters = tuple(golden_record(number, letter=True) for number in range(8))
    (cell,) = cells([study([], letters)])
    assert cell.chance == 0.25
    (text,) = cells([study([])])
    assert text.chance == 0


@pytest.mark.parametrize(
    ("tables", "word"),
    [
        ({"search": {"values": 3}, "faults": {"sites": ["weight"]}}, "search"),
        ({"fault_list": [weight()[0]] * MANY}, "by hand"),
        ({"model": "experts (random)"}, "random weights"),
    ],
)
def test_chosen_faults_and_random_weights_prove_nothing(tables, word):
    stored = study(faults(weight(), MANY, HIGH), **tables)
    for found in takeaways([stored]):
        assert found.verdict == "not enough evidence"
        assert found.p_value is None
        assert word in found.why


def test_answers_without_a_reference_prove_nothing():
    open_ended = tuple(golden_record(number).model_copy(update={"right": None}) for number in range(ITEMS))
    assert all("reference" in found.why for found in takeaways([study(faults(weight(), MANY, HIGH), open_ended)]))


def test_detected_errors_count_as_lost_answers():
    found = one(1, [study(faults(weight(), 200, HIGH, "non_finite"))])
    assert found.effect.estimate == pytest.approx(100 * HIGH)


def test_a_stratified_study_is_weighed_as_it_was_drawn():
    rare = {"stratum": "rare", "stratum_chance": 0.05, "round": 0}
    common = {"stratum": "common", "stratum_chance": 0.95, "round": 0}
    planted = faults(weight("down"), 100, 0.9, **rare) + faults(weight("down"), 100, 0.0, **common)
    planted += faults(weight("up"), 100, 0.9, **rare) + faults(weight("up"), 100, 0.0, **common)
    stored = study(planted, run={"plan": "neyman", "pilot": 400})
    (cell,) = cells([stored])
    shares = cell.shares(cell.golden)
    everything = cell.rate(shares, shares > -1)
    assert everything == weighted_interval(shares, cell.drawn)
    assert everything.estimate == pytest.approx(0.05 * 0.9)
    assert one(1, [stored]).effect.estimate == pytest.approx(4.5)


def test_faults_without_one_place_say_nothing_of_places():
    sets = [Planted(*weight(), "subtle", (("fault_count", 2), ("layer", None), ("component", "several")))] * 100
    found = takeaways([study(sets)])
    assert not any(found[number - 1].tested for number in (1, 2, 7, 9, 14, 17))


def test_late_answers_are_compared_with_themselves():
    """Only fragile answers are long enough for decode; earlier faults do as much harm to them."""
    golden = tuple(map(golden_record, range(ITEMS)))
    early = study(faults(activation("at prefill:0.5"), 200, 0.5), golden)
    late = study(faults(activation("at decode:2"), 200, 0.5), golden)

    def fragile(trial, reached):
        items = [
            item.model_copy(update={"outcome": "masked" if reached else "unreached", "eligible": reached})
            if number > 1
            else item
            for number, item in enumerate(trial.items)
        ]
        return trial.model_copy(update={"items": tuple(items)})

    trials = [fragile(trial, True) for trial in early.trials] + [fragile(trial, False) for trial in late.trials]
    numbered = tuple(trial.model_copy(update={"trial": number}) for number, trial in enumerate(trials))
    assert one(2, [replace(early, trials=numbered)]).effect.estimate == pytest.approx(0)


def test_the_summary_holds_them_and_prints_them():
    stored = degrades(True)[0]
    summary = summarise(stored)
    assert summary.takeaways == takeaways([stored])
    assert '"takeaways":[{"number":1,' in summary.model_dump_json()
    for found in summary.takeaways:
        assert str(found.number) in found.text()
        assert found.verdict in found.text()


def test_faults_in_one_place_tell_no_trend():
    found = one(13, [study(faults(cached(layer=5), SOME, HIGH))])
    assert found.verdict == "not enough evidence"
    assert "one place" in (found.why or "")


def test_sets_of_faults_are_no_single_faults():
    line = "scattered weight model.layers.5.mlp.down_proj.weight rate 0.001 key 7 flip 13-14 always"
    (cell,) = cells([study(faults((line, "down", 5), SOME, HIGH))])
    assert set(cell.faults) == {None}
    assert set(cell.kind.tolist()) == {""}
    assert one(1, [cell.study]).verdict == "not enough evidence"
