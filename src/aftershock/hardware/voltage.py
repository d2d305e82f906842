"""Timing errors against supply voltage: three published tables, and the path delay that they agree with.

All of it describes arrays in a 14 nm process with 0.9 V nominal, from the code of DRIFT (arXiv 2604.09073), by the
group that wrote ReaLM (arXiv 2503.24053, DAC'25). Nothing here was measured by aftershock.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt

from aftershock.errors import InputError

Floats = npt.NDArray[np.float64]
RateUnit = Literal["element", "bit"]
"""What a rate counts: "element" is the chance that one bit of an accumulator flips, "bit" that a given bit does."""

NOMINAL = 0.9
"""Volts."""

ACCUMULATOR_BITS = 32

CLOCK_PS, CRITICAL_PATH_PS = 500.0, 439.0
"""ReaLM's clock period and critical path at nominal voltage, in picoseconds."""


@dataclass(frozen=True)
class ErrorTable:
    """Published (voltage, rate) pairs, voltages in volts, falling; rates as printed.

    The tables say "bit error rate" and no more. `unit` is "element" because the injector that ReaLM published draws
    once for each element of the output and then flips one bit; `dataclasses.replace(table, unit="bit")` is the other
    reading, in which 32 times as many bits flip.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    unit: RateUnit = "element"

    @property
    def lowest(self) -> float:
        """The lowest voltage that the table knows."""
        return self.points[-1][0]

    def rate(self, voltage: npt.ArrayLike) -> Floats:
        """The rate at some voltages, in the table's unit; float64, the shape of `voltage`.

        log(rate) is linear in voltage between two points with errors; above the first of them the rate is 0. Raises
        InputError for a voltage below the table's lowest or above nominal.
        """
        volts = _within(voltage, self.lowest, f"table {self.name}")
        known, rates = np.array([point for point in reversed(self.points) if point[1] > 0]).T
        return np.where(volts > known[-1], 0.0, np.exp(np.interp(volts, known, np.log(rates))))

    def element_rate(self, voltage: npt.ArrayLike) -> Floats:
        """The chance that an accumulator of 32 bits is struck at all."""
        return self.rate(voltage) if self.unit == "element" else per_element(self.rate(voltage))

    def bit_rate(self, voltage: npt.ArrayLike) -> Floats:
        """The chance for each bit, all alike and independent, that strikes as many accumulators."""
        return self.rate(voltage) if self.unit == "bit" else per_bit(self.rate(voltage))


def per_element(rate: npt.ArrayLike, bits: int = ACCUMULATOR_BITS) -> Floats:
    """The chance that any of `bits` flips, each with chance `rate`: 1 - (1 - rate)^bits."""
    return np.asarray(-np.expm1(bits * np.log1p(-_chances(rate))))


def per_bit(rate: npt.ArrayLike, bits: int = ACCUMULATOR_BITS) -> Floats:
    """The chance of each of `bits` with which any of them flips with chance `rate`; the inverse of `per_element`."""
    return np.asarray(-np.expm1(np.log1p(-_chances(rate)) / bits))


def error_table(name: str) -> ErrorTable:
    """One of `ERROR_TABLES` by name; InputError for another name."""
    if name not in ERROR_TABLES:
        raise InputError(f"there is no table of errors {name!r}: take one of {', '.join(ERROR_TABLES)}")
    return ERROR_TABLES[name]


def path_delay(voltage: npt.ArrayLike) -> Floats:
    """Delay of a path relative to nominal voltage, linear between the published points; the shape of `voltage`.

    That the published numbers are this delay is inferred, not printed. Raises InputError outside 0.60 to 0.90 V.
    """
    volts = _within(voltage, _DELAYS[-1][0], "table of path delays")
    known, delays = np.array(_DELAYS[::-1]).T
    return np.asarray(np.interp(volts, known, delays))


def first_errors(clock: float = CLOCK_PS, critical_path: float = CRITICAL_PATH_PS) -> float:
    """The voltage below which the critical path misses the clock: path_delay(V) > clock / critical_path.

    `clock`, `critical_path`: picoseconds, the path at nominal voltage. A model; for ReaLM's array (500 / 439) it gives
    0.841 V, between the last point of `drift-alternative` without errors, 0.845 V, and the first with, 0.84 V. Raises
    InputError when there is no slack at nominal voltage, or more than the table of delays reaches.
    """
    slack = clock / critical_path
    known, delays = np.array(_DELAYS).T
    if not delays[0] <= slack <= delays[-1]:
        raise InputError(f"clock / critical path is {slack:.3g}: the delays known reach from 1 to {delays[-1]}")
    return float(np.interp(slack, delays, known))


def _within(voltage: npt.ArrayLike, lowest: float, where: str) -> Floats:
    volts = np.asarray(voltage, dtype=np.float64)
    # Written so that NaN is refused too.
    if not np.all((volts >= lowest) & (volts <= NOMINAL)):
        raise InputError(f"the {where} reaches from {lowest} to {NOMINAL} V: give voltages within it")
    return volts


def _chances(rate: npt.ArrayLike) -> Floats:
    chances = np.asarray(rate, dtype=np.float64)
    if not np.all((chances >= 0) & (chances < 1)):
        raise InputError("a rate of errors lies outside 0 to 1 (not included): give chances")
    return chances


# fmt: off
_ACTIVE = (
    (.90, 0.), (.85, 0.), (.84, 9.58e-6), (.83, 1.93e-5), (.82, 3.82e-5), (.81, 8.38e-5), (.80, 1.13e-4),
    (.79, 2.24e-4), (.78, 2.27e-4), (.77, 2.55e-4), (.76, 2.70e-4), (.75, 2.87e-4), (.74, 3.99e-4), (.73, 4.04e-4),
    (.72, 4.50e-4), (.71, 5.67e-4), (.70, 6.71e-4), (.69, 8.11e-4), (.68, 9.85e-4), (.67, 1.04e-3), (.66, 1.15e-3),
    (.65, 1.29e-3), (.64, 1.47e-3), (.63, 1.63e-3), (.62, 1.78e-3), (.61, 1.90e-3), (.60, 2.17e-3),
)
_ALTERNATIVE = (
    (.90, 0.), (.87, 0.), (.85, 0.), (.845, 0.), (.84, 8.1e-6), (.82, 3.2e-5), (.80, 9.5e-5), (.78, 1.95e-4),
    (.76, 2.45e-4), (.74, 3.75e-4), (.72, 4.45e-4), (.70, 8.5e-4), (.68, 2.43e-3), (.66, 6.74e-3), (.64, 1.63e-2),
    (.62, 2.91e-2), (.60, 4.59e-2),
)
_SMOOTH = (
    (.89, 4.0e-8), (.88, 3.4e-7), (.87, 1.24e-6), (.86, 3.2e-6), (.85, 9.9e-6), (.84, 3.3e-5), (.83, 8.1e-5),
    (.82, 1.5e-4), (.80, 5.8e-4), (.78, 1.3e-3), (.76, 2.6e-3), (.74, 4.2e-3), (.72, 6.9e-3), (.70, 1.07e-2),
    (.65, 2.17e-2), (.605, 3.1e-2),
)
_DELAYS = (
    (.90, 1.), (.87, 1.066), (.85, 1.116), (.845, 1.129), (.84, 1.143), (.82, 1.201), (.80, 1.265), (.78, 1.334),
    (.76, 1.409), (.74, 1.491), (.72, 1.578), (.70, 1.671), (.68, 1.769), (.66, 1.871), (.64, 1.975), (.62, 2.081),
    (.60, 2.187),
)
# fmt: on

ERROR_TABLES: Mapping[str, ErrorTable] = MappingProxyType(
    {
        "drift-active": ErrorTable("drift-active", _ACTIVE),
        "drift-alternative": ErrorTable("drift-alternative", _ALTERNATIVE),
        "drift-smooth": ErrorTable("drift-smooth", _SMOOTH),
    }
)
"""The tables in DRIFT's code, as printed. Its script uses the first, and multiplies the rates by 3."""
