"""Figures of the comparison of protections, from records made by hand; what is kept and resumed; all parts joined."""

from typing import Any

import pytest
import torch
from benchmarks.protect import joined
from benchmarks.protect_figures import checks, figures, part_figures
from benchmarks.protect_ranges import held_out, needed_margin

from aftershock.protect import observe_bounds
from aftershock.protect.observed import widened
from tiny_models import tiny_loaded

PART = "float32 output"
FULL = "full checksums + fingerprint"


def record(scheme: str, trial: int, sdc: float | None, component: str = "down") -> dict[str, Any]:
    return {"part": PART, "scheme": scheme, "trial": trial, "sdc": sdc, "component": component, "ran": True}


def seen(trial: int, *components: str) -> dict[str, Any]:
    found = {"Checksum": list(components), "RangeGuard": [], "FiniteScreen": []}
    alarms = {"Checksum": 0, "RangeGuard": 2, "FiniteScreen": 0}
    return {"part": PART, "scheme": "seen", "trial": trial, "seen": found, "false_alarms": alarms}


PLAIN = [record("none", trial, 0.5 if trial < 4 else 0.0) for trial in range(8)]


def test_the_share_of_harm_that_is_gone() -> None:
    own = [
        record(FULL, 0, 0.0),
        record(FULL, 1, 0.0),
        record(FULL, 2, 0.0),
        record(FULL, 3, 0.5),
        record(FULL, 4, 0.25),
    ]
    found = part_figures([*PLAIN, *own])
    assert (found["faults"], found["harmful"]) == (8, 4)
    full = found["schemes"][FULL]
    assert full["removed"]["estimate"] == full["cured"]["estimate"] == full["excess_removed"] == 0.75
    assert full["harmed"] == "1 of 1 harmless faults"


def test_what_noise_does_anyway_is_not_asked_of_a_scheme() -> None:
    noise = [record("noise", trial, 0.0625) for trial in range(4)]
    # Of 8 draws that did harm of 2 in all, noise alone would have done 0.5.
    full = part_figures([*PLAIN, *noise, *(record(FULL, trial, 0.125) for trial in range(4))])["schemes"][FULL]
    assert full["removed"]["estimate"] == 0.75
    assert full["excess_removed"] == pytest.approx(1.5 / 1.5)


def test_a_crash_or_nan_is_no_silent_harm() -> None:
    own = [record(FULL, trial, None) for trial in range(4)]
    assert part_figures([*PLAIN, *own])["schemes"][FULL]["cured"]["estimate"] == 1.0


def test_coverage_of_what_is_in_protected_products_and_anywhere() -> None:
    plain = [record("none", trial, 1.0, component) for trial, component in enumerate(("down", "o", "q", "v"))]
    found = part_figures([*plain, seen(0, "down"), seen(1, "lm_head"), seen(2, "q"), seen(3, "v", "o")])
    shares = {name: one["estimate"] for name, one in found["coverage"].items()}
    assert shares["full checksums"] == 1.0
    assert shares["selective checksums, in their products"] == 0.5
    assert shares["selective checksums, anywhere"] == 0.5
    assert found["false_alarms"] == {"Checksum": 0, "RangeGuard": 8, "FiniteScreen": 0}


def test_checks_name_what_was_missed() -> None:
    own = [record(FULL, trial, 0.0) for trial in range(4)]
    told = {one["name"]: one["met"] for one in checks(figures([*PLAIN, *own, *(seen(trial) for trial in range(4))]))}
    assert told == {
        f"{PART}: excess SDC removed by {FULL}": True,
        f"{PART}: coverage of selective checksums in their products": False,
        f"{PART}: harmful faults": False,
    }


@pytest.mark.parametrize(("harmful", "met"), [(299, False), (300, True)])
def test_a_target_that_is_just_reached_is_met(harmful: int, met: bool) -> None:
    (check,) = checks({PART: {"schemes": {}, "harmful": harmful}})
    assert (check["value"], check["target"], check["met"]) == (harmful, 300, met)


def test_margins() -> None:
    bounds = {"up": (-1.0, 1.0), "down": (0.0, 4.0)}
    need, module = needed_margin(bounds, {"up": (-1.5, 1.0), "down": (1.0, 4.5)})
    assert (need, module) == (0.25, "up")
    assert widened(bounds, need) == {"up": (-1.5, 1.5), "down": (-1.0, 5.0)}
    assert needed_margin(bounds, {"up": (-0.5, 0.5), "down": (1.0, 3.0)})[0] < 0


def test_clean_values_are_held_against_bounds_with_a_margin() -> None:
    model = tiny_loaded("llama")
    ids = torch.arange(40).view(4, 10) % 64
    seen = observe_bounds(model, [ids])
    own = held_out(model, ids, 2, seen, 0.0)
    assert (own["tokens"], own["outside"], own["needed_margin"]) == (40, 0, 0.0)
    narrow = widened(seen, -0.25)
    found = held_out(model, ids, 2, narrow, 0.0)
    assert found["outside"] > 0
    assert found["needed_margin"] == pytest.approx(0.5)
    assert held_out(model, ids, 4, narrow, 0.501)["outside"] == 0


def test_parts_are_joined_with_all_their_checks() -> None:
    check = {"name": "alarms", "value": 0, "target": 0, "met": True}
    bad = {**check, "met": False}
    found = joined([{"benchmark": "one", "checks": own} for own in ([check], [bad], [bad, check])])
    assert [one["part"] for one in found["checks"]] == ["one", "one 2", "one 3", "one 3"]
    assert found["met"] == "2 of 4"


def test_a_plan_stands_beside_the_benchmarks() -> None:
    assert joined([{"chosen": ["Checksum"]}])["parts"] == {"plan of protections": {"chosen": ["Checksum"]}}
