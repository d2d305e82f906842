"""Records beside plain `generate`, against counts made by hand."""

from types import SimpleNamespace

import pytest
from test_audit import trial
from test_generated import golden

from aftershock.stats import mcnemar, paired_difference
from aftershock.study import GeneratedAnswer, GeneratedItem, GeneratedTrial
from aftershock.study.against_generate import against_generate

MASKED = ("masked", None)
WRONG = ("subtle", "other")
REPHRASED = ("benign", "another")
NAN = ("non_finite", "n")


def study(*trials):
    """A study of trials, each a list of (record, whole, reshaped), outcomes with outputs; whole None: a choice."""
    records, generated = [], []
    for number, answers in enumerate(trials):
        (pattern,) = trial(number, False).items
        items = [
            pattern.model_copy(
                update={"item": "choice" if whole is None else str(place), "outcome": record[0], "output": record[1]}
                | {"eligible": record[0] != "unreached"}
            )
            for place, (record, whole, _) in enumerate(answers)
        ]
        records.append(trial(number, False).model_copy(update={"items": tuple(items)}))
        decoded = tuple(
            GeneratedItem(
                item=str(place),
                whole=GeneratedAnswer(outcome=whole[0], output=whole[1]),
                reshaped=GeneratedAnswer(outcome=other[0], output=other[1]),
            )
            for place, (_, whole, other) in enumerate(answers)
            if whole is not None
        )
        generated.append(GeneratedTrial(trial=number, items=decoded))
    texts = [golden("generation").model_copy(update={"item": str(place)}) for place in range(8)]
    return SimpleNamespace(
        trials=tuple(records),
        golden=(*texts, golden("choice").model_copy(update={"item": "choice"})),
        generated=tuple(generated),
        settings=SimpleNamespace(run=SimpleNamespace(seed=3)),
    )


def test_rates_are_means_over_trials_of_the_answers_that_were_reached():
    found = against_generate(
        study(
            [(WRONG, WRONG, MASKED), (MASKED, REPHRASED, REPHRASED), (WRONG, None, None)],
            [(MASKED, MASKED, MASKED), (("unreached", None), WRONG, WRONG)],
        )
    )
    assert (found.trials, found.answers) == (2, 3)
    assert found.disagreement.estimate == pytest.approx(1 / 4)
    assert found.batch_size.estimate == pytest.approx(1 / 4)
    assert found.disagreement.n == 2


def test_what_shows_by_itself_is_the_same_whatever_text_was_there():
    found = against_generate(study([(("non_finite", "m"), NAN, NAN), (NAN, ("crash", None), NAN)]))
    assert found.disagreement.estimate == pytest.approx(1 / 2)
    assert found.batch_size.estimate == pytest.approx(1 / 2)


def test_the_verdicts_on_the_same_answers_are_paired():
    same, alone, other = (WRONG, WRONG, WRONG), (WRONG, MASKED, MASKED), (MASKED, WRONG, WRONG)
    trials = [[same, alone, alone, other], [same, same], [alone, (MASKED, MASKED, MASKED)]]
    test = against_generate(study(*trials)).sdc
    assert test.answers == 8
    assert (test.records_alone, test.generate_alone) == (3, 1)
    assert test.mcnemar_p_value == mcnemar(3, 1)
    assert test.records.estimate == pytest.approx((3 / 4 + 1 + 1 / 2) / 3)
    assert test.generate.estimate == pytest.approx((2 / 4 + 1 + 0) / 3)
    assert test.difference == pytest.approx(test.generate.estimate - test.records.estimate)
    assert test.p_value == paired_difference([3 / 4, 1, 1 / 2], [1 / 2, 1, 0], 3).p_value


def test_the_conclusion_says_what_can_not_be_told():
    same = against_generate(study(*[[(MASKED, MASKED, MASKED)]] * 20))
    assert same.sdc.p_value == 1
    assert "no difference of the SDC rates was found" in same.sdc.conclusion
    assert "a smaller one is not" in same.text()
    apart = against_generate(study(*[[(MASKED, WRONG, WRONG)]] * 20))
    assert "the SDC rates differ: generate's less the records' is +100.00 points" in apart.sdc.conclusion
    assert "still holds zero" not in apart.sdc.conclusion
    close = apart.sdc.model_copy(update={"low": -0.01})
    assert "(95 % interval -1.00 to " in close.conclusion
    assert "still holds zero)" in close.conclusion


def test_without_an_eligible_or_any_answer_nothing_is_made_up():
    wrong = study([(MASKED, MASKED, MASKED)])
    (record,) = wrong.trials
    wrong.trials = (record.model_copy(update={"items": (record.items[0].model_copy(update={"eligible": False}),)}),)
    assert against_generate(wrong).sdc is None
    assert against_generate(wrong).text().endswith("change with the batch size")
    assert against_generate(study()) is None
    assert against_generate(study([(("unreached", None), MASKED, MASKED)])) is None
