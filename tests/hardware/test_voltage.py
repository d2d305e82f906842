"""Published tables: their points, what lies between, above and outside; the unit of a rate; the delay."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aftershock.errors import InputError
from aftershock.hardware import ERROR_TABLES, error_table, first_errors, path_delay, per_bit, per_element

names = pytest.mark.parametrize("name", ERROR_TABLES)


@pytest.mark.parametrize(
    ("name", "voltage", "rate"),
    [("drift-active", 0.73, 4.04e-4), ("drift-alternative", 0.60, 4.59e-2), ("drift-smooth", 0.89, 4.0e-8)],
)
def test_published_points_are_themselves(name: str, voltage: float, rate: float) -> None:
    assert error_table(name).rate(voltage) == pytest.approx(rate, rel=1e-12)


@names
def test_every_point_is_met_and_rates_never_rise_with_the_voltage(name: str) -> None:
    table = error_table(name)
    voltages, rates = np.array(table.points).T
    assert table.rate(voltages) == pytest.approx(rates, rel=1e-12)
    assert (np.diff(table.rate(np.linspace(table.lowest, 0.9, 997))) <= 0).all()


def test_between_two_points_with_errors_the_logarithm_is_linear() -> None:
    assert error_table("drift-smooth").rate(0.675) == pytest.approx(np.sqrt(1.07e-2 * 2.17e-2))


@pytest.mark.parametrize(
    ("name", "first"), [("drift-active", 0.84), ("drift-alternative", 0.84), ("drift-smooth", 0.89)]
)
def test_above_the_first_point_with_errors_there_are_none(name: str, first: float) -> None:
    table = error_table(name)
    assert table.rate([first, first + 1e-6, 0.9])[1:].tolist() == [0, 0]
    assert table.rate(first) > 0


@pytest.mark.parametrize("voltage", [0.599, 0.901, float("nan")])
def test_voltages_outside_are_refused(voltage: float) -> None:
    with pytest.raises(InputError, match=r"from 0\.6 to 0\.9 V"):
        error_table("drift-active").rate([0.8, voltage])
    with pytest.raises(InputError, match=r"from 0\.6 to 0\.9 V"):
        path_delay(voltage)


def test_an_unknown_table_is_refused_with_the_names_of_the_others() -> None:
    with pytest.raises(InputError, match="drift-active, drift-alternative, drift-smooth"):
        error_table("drift")


def test_the_two_readings_of_a_table_differ_by_the_bits_of_an_accumulator() -> None:
    element = error_table("drift-active")
    bit = replace(element, unit="bit")
    assert element.element_rate(0.7) == element.rate(0.7) == bit.bit_rate(0.7)
    assert bit.element_rate(0.7) == pytest.approx(1 - (1 - 6.71e-4) ** 32)
    assert bit.element_rate(0.84) / element.element_rate(0.84) == pytest.approx(32, rel=1e-3)


@given(st.floats(0, 0.1), st.integers(1, 64))
def test_units_convert_there_and_back(rate: float, bits: int) -> None:
    assert per_bit(per_element(rate, bits), bits) == pytest.approx(rate, rel=1e-6)
    assert per_element(rate, bits) >= rate * (1 - 1e-12)


@pytest.mark.parametrize("rate", [-1e-9, 1.0, float("nan")])
def test_what_is_no_chance_is_refused(rate: float) -> None:
    with pytest.raises(InputError, match="outside 0 to 1"):
        per_element(rate)


def test_errors_begin_where_the_table_that_carries_the_delay_says() -> None:
    assert 0.84 < first_errors() < 0.845
    assert path_delay(first_errors()) == pytest.approx(500 / 439)
    assert error_table("drift-alternative").rate([0.845, 0.84]).tolist() == [0, pytest.approx(8.1e-6)]


def test_a_slower_clock_tolerates_a_lower_voltage() -> None:
    assert first_errors(clock=700) < first_errors(clock=600) < first_errors(clock=439) == 0.9


@pytest.mark.parametrize("clock", [430, 1000])
def test_a_clock_that_delays_do_not_reach_is_refused(clock: float) -> None:
    with pytest.raises(InputError, match="clock / critical path"):
        first_errors(clock)
