"""The planner's choice against every possible one."""

from itertools import chain, combinations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aftershock.errors import InputError
from aftershock.protect import Choice, Offers, best_choice, pareto, parse_share

EIGHTHS = st.integers(0, 24).map(lambda number: number / 8)


@st.composite
def offers(draw: st.DrawFn) -> Offers:
    """A few faults and candidates; costs in eighths, so that ties are common and sums exact."""
    faults, candidates, others = draw(st.integers(1, 7)), draw(st.integers(1, 6)), draw(st.integers(0, 4))

    def several(values: st.SearchStrategy[float], count: int) -> list[float]:
        return draw(st.lists(values, min_size=count, max_size=count))

    def cells(rows: int) -> npt.NDArray[np.bool_]:
        return np.array([draw(st.booleans()) for _ in range(rows * candidates)], dtype=bool).reshape(rows, candidates)

    return Offers(
        cells(faults),
        np.array(several(EIGHTHS, faults)),
        cells(others),
        np.array(several(EIGHTHS, others)),
        np.array(several(EIGHTHS, candidates)),
        np.array(several(EIGHTHS, candidates)),
    )


def nobody(candidates: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """No fault that some candidate makes do harm."""
    return np.zeros((0, candidates), bool), np.zeros(0)


def every_choice(given: Offers) -> list[Choice]:
    numbers = range(len(given.latency))
    sets = chain.from_iterable(combinations(numbers, size) for size in range(len(numbers) + 1))
    return [
        Choice(one, given.removed(one), float(given.latency[list(one)].sum()), float(given.memory[list(one)].sum()))
        for one in sets
    ]


def worth(choice: Choice) -> tuple[float, float, float, int]:
    return choice.removed, -choice.latency, -choice.memory, -len(choice.chosen)


@given(offers(), EIGHTHS, EIGHTHS | st.just(np.inf))
def test_no_set_within_the_budgets_is_better(given: Offers, latency: float, memory: float) -> None:
    found = best_choice(given, latency, memory)
    allowed = [one for one in every_choice(given) if one.latency <= latency and one.memory <= memory]
    assert found in allowed
    assert worth(found) == max(map(worth, allowed))


@given(offers(), EIGHTHS | st.just(np.inf))
def test_the_curve_holds_every_set_worth_its_latency(given: Offers, memory: float) -> None:
    allowed = [one for one in every_choice(given) if one.memory <= memory]
    expected = {
        (one.removed, one.latency)
        for one in allowed
        if not any(
            (other.removed, -other.latency) != (one.removed, -one.latency)
            and other.removed >= one.removed
            and other.latency <= one.latency
            for other in allowed
        )
    }
    found = [(one.removed, one.latency) for one in pareto(given, memory)]
    assert expected <= set(found)
    assert set(found) - expected <= {(0.0, 0.0)}
    assert found == sorted(found)


def test_a_fault_counts_once() -> None:
    both = np.array([[True, True], [False, True]])
    given = Offers(both, np.array([2.0, 1.0]), *nobody(2), np.array([1.0, 1.5]), np.zeros(2))
    assert best_choice(given, 3.0) == Choice((1,), 3.0, 1.5, 0.0)
    assert best_choice(given, 1.0) == Choice((0,), 2.0, 1.0, 0.0)
    assert best_choice(given, 0.5).chosen == ()


def test_harm_that_is_caused_counts() -> None:
    alone = np.eye(2, dtype=bool)
    given = Offers(alone, np.array([2.0, 1.0]), alone[:1], np.array([1.5]), np.ones(2), np.zeros(2))
    assert best_choice(given, 1.0).chosen == (1,)
    assert best_choice(given, 2.0) == Choice((0, 1), 1.5, 2.0, 0.0)


def test_small_costs_are_told_apart() -> None:
    costs = np.array([1e-7, 2e-7]), np.array([3e9, 1e9])
    given = Offers(np.eye(2, dtype=bool), np.array([1.0, 2.0]), *nobody(2), *costs)
    assert best_choice(given, 2.5e-7).chosen == (1,)
    assert best_choice(given, 3.1e-7, 4e9).chosen == (0, 1)
    assert best_choice(given, 3.1e-7, 3.5e9).chosen == (1,)


def test_nothing_to_choose_from() -> None:
    nothing = Offers(np.zeros((2, 0), bool), np.ones(2), *nobody(0), np.zeros(0), np.zeros(0))
    assert best_choice(nothing, 1.0).chosen == ()
    assert [one.chosen for one in pareto(nothing)] == [()]


def test_percentages() -> None:
    assert [parse_share(text, "--budget") for text in ("2%", " 2.5 %", "0%", "250%")] == [0.02, 0.025, 0.0, 2.5]
    for text in ("2", "two%", "-1%", "nan%", "inf%", "2%%", "%", ""):
        with pytest.raises(InputError, match="--budget is"):
            parse_share(text, "--budget")


def test_bad_offers() -> None:
    ones = np.ones(2)
    with pytest.raises(InputError, match="as many weights and costs"):
        Offers(np.ones((3, 2), bool), ones, *nobody(2), ones, ones)
    with pytest.raises(InputError, match="below 0"):
        Offers(np.ones((2, 2), bool), ones, *nobody(2), -ones, ones)
    with pytest.raises(InputError, match="buy nothing"):
        best_choice(Offers(np.ones((2, 2), bool), ones, *nobody(2), ones, ones), -1.0)
