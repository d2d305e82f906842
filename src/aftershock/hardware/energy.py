"""Energy at lowered voltage, modelled, relative to the same array without protection at nominal voltage."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aftershock.errors import InputError
from aftershock.hardware.schemes import Scheme
from aftershock.hardware.voltage import NOMINAL, Floats


def relative_energy(scheme: Scheme, voltage: npt.ArrayLike, share: npt.ArrayLike) -> Floats:
    """(1 + overhead) (runs (V / 0.9)^2 + share): the array at V, and the share computed again at nominal voltage.

    ReaLM's model: switching energy, no leakage, no memory. `voltage` in volts and `share` of tiles broadcast. The
    hardware of the scheme is on in either run. Raises InputError for a voltage outside 0 to 0.9 or a share outside 0
    to 1.
    """
    volts, again = np.asarray(voltage, dtype=np.float64), np.asarray(share, dtype=np.float64)
    if not np.all((volts > 0) & (volts <= NOMINAL)):
        raise InputError(f"energy is modelled for voltages above 0 up to nominal, {NOMINAL} V: give one of them")
    if not np.all((again >= 0) & (again <= 1)):
        raise InputError("the share of tiles that is computed again lies outside 0 to 1: give shares")
    return np.asarray((1 + scheme.overhead) * (scheme.runs * (volts / NOMINAL) ** 2 + again))


def saving(energy: npt.ArrayLike, reference: npt.ArrayLike) -> Floats:
    """1 - energy / reference: the share that is saved, below 0 where none is."""
    return 1 - np.asarray(energy, dtype=np.float64) / np.asarray(reference, dtype=np.float64)


@dataclass(frozen=True)
class OperatingPoint:
    """A voltage, in volts, and the relative energy there."""

    voltage: float
    energy: float


def best_point(
    scheme: Scheme, voltage: npt.ArrayLike, share: npt.ArrayLike, acceptable: npt.ArrayLike
) -> OperatingPoint:
    """Of the voltages whose loss is acceptable that with the least energy; of equal ones the highest.

    All of shape (voltages,); `acceptable` is bool. Raises InputError where no voltage is acceptable.
    """
    volts, fine = np.asarray(voltage, dtype=np.float64), np.asarray(acceptable, dtype=np.bool_)
    energies = relative_energy(scheme, volts, share)
    if not volts.shape == energies.shape == fine.shape == (volts.size,) or not fine.any():
        raise InputError(
            "no voltage is acceptable, or voltages, shares and verdicts differ in number: try higher voltages"
        )
    energy, lowered = min(zip(energies[fine].tolist(), (-volts[fine]).tolist(), strict=True))
    return OperatingPoint(-lowered, energy)
