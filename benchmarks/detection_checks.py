"""What `benchmarks.detection` set out to reach, of the cells that it found."""

from collections.abc import Iterator, Sequence
from typing import Any

from aftershock.numerics import format_of


def checks(found: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What no flip may escape: values that became NaN or infinite, the highest exponent bit, and sums of integers (of
    which rows see single flips, columns all)."""
    flips = [one for one in found if "bit" in one]
    missed = [one for one in flips if one["largest_missed"] == float("inf")]
    name = "kinds of flips that made a value NaN or infinite and were missed"
    yield {"name": name, "value": len(missed), "target": 0, "unit": "kinds", "met": not missed}
    rows, columns = (("int32 sum", check) for check in ("rows", "columns"))
    kinds = [((one["site"], one["check"]), one) for one in flips]
    top = [one for kind, one in kinds if kind not in (rows, columns) and one["bit"] == top_bit(one)]
    single = [one for kind, one in kinds if kind == rows and one["pattern"] == "single"]
    for name, own in (
        ("flips of the highest exponent bit that are seen", top),
        ("single flips of int32 sums that rows see", single),
        ("flips of int32 sums that columns see", [one for kind, one in kinds if kind == columns]),
    ):
        if own:
            value = sum(one["seen"] for one in own) / sum(one["trials"] for one in own)
            yield {"name": name, "value": value, "target": 1.0, "unit": "share", "met": value >= 1.0}


def top_bit(flip: dict[str, Any]) -> int:
    """The highest bit of the exponent of what a flip struck: below the sign."""
    return (32 if flip["site"] == "sum" else format_of(flip["dtype"]).bits) - 2
