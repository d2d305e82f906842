"""What is given to protections, looked at before anything is done with it: one sentence says what is wrong."""

from collections.abc import Mapping, Sequence
from math import isfinite
from numbers import Real

from aftershock.errors import InputError


def require_names(names: object, what: str) -> tuple[str, ...]:
    """The names. Raises InputError unless there are some, none of them empty; `what` says of what."""
    found = tuple(names) if isinstance(names, Sequence) and not isinstance(names, str) else (None,)
    if not all(isinstance(one, str) and one for one in found):
        raise InputError(f"{what} are given as {names!r}: give a tuple of names, as in ('one', 'other') or ('one',)")
    if not found:
        raise InputError(f"no {what} are given: give at least one")
    return found


def known_components(components: object, known: tuple[str, ...]) -> None:
    """Raise InputError unless components are named, all of them known."""
    if unknown := [one for one in require_names(components, "components") if one not in known]:
        raise InputError(f"{', '.join(unknown)} can't be protected so: choose from {', '.join(known)}")


def require_one_of(value: object, what: str, known: Sequence[str]) -> None:
    """Raise InputError for a value that is none of those known."""
    if value not in known:
        raise InputError(f"{what} is {value!r}: choose from {', '.join(known)}")


def require_kind(value: object, what: str, kind: type) -> None:
    """Raise InputError for a value that is no instance of a class."""
    if not isinstance(value, kind):
        raise InputError(f"{what} is {value!r}: give one of type {kind.__name__}")


def require_bounds(bounds: object) -> None:
    """Raise InputError unless bounds are two numbers by module, the lower one first."""
    if not isinstance(bounds, Mapping) or not bounds:
        raise InputError(f"bounds are given as {bounds!r}: give those of `observe_bounds`, of at least one module")
    for module, pair in bounds.items():
        two = isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(one, Real) for one in pair)
        if not two or not pair[0] <= pair[1]:
            raise InputError(f"the bounds of {module} are {pair!r}: give two numbers, the lower one first")


def require_finite(value: object, what: str, least: int) -> None:
    """Raise InputError unless a value is a finite number, `least` or more."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or value < least:
        raise InputError(f"{what} is {value!r}: give a finite number from {least}")
