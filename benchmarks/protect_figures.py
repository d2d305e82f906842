"""What the records of faults under schemes come to: SDC removed and coverage, by part."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from aftershock.stats import Estimate, bootstrap_interval, cluster_interval, wilson
from benchmarks.protect_parts import REDUCING

Json = dict[str, Any]
COST = "cost"
Floats = npt.NDArray[np.float64]
NONE, SEEN, NOISE = "none", "seen", "noise"
OWN = ("choice",)
"""Records that are no scheme's."""

SELECTIVE, FULL = 0.80, 0.99
"""Least coverage by selective checksums in the products that they check; least share of the SDC in excess of noise that
full checksums with a fingerprint are to remove."""

ENOUGH = 300
"""Faults that did harm, of each part in fp32."""


def figures(records: Sequence[Json]) -> Json:
    """Figures by part."""
    parts = dict.fromkeys(one["part"] for one in records if one["part"] != COST)
    return {part: part_figures([one for one in records if one["part"] == part]) for part in parts}


def prices(records: Sequence[Json]) -> Json:
    """What schemes cost, by name: shares of the time of a pass, with intervals, and bytes."""
    found = {one["scheme"]: one["cost"] for one in records if one["part"] == COST}
    return {name: {key: cost[key] for key in ("prefill", "decode", "nbytes")} for name, cost in found.items()}


def part_figures(records: Sequence[Json]) -> Json:
    """Figures of one part."""
    by_scheme: dict[str, dict[int, Json]] = {}
    for one in records:
        by_scheme.setdefault(one["scheme"], {})[one["trial"]] = one
    plain = {number: one for number, one in by_scheme.pop(NONE, {}).items() if one["sdc"] is not None}
    seen = by_scheme.pop(SEEN, {})
    noise = [one["sdc"] for one in by_scheme.pop(NOISE, {}).values() if one["sdc"] is not None]
    clean = {name.removeprefix("clean, "): by_scheme.pop(name)[0] for name in list(by_scheme) if "clean, " in name}
    harmful = {number: one for number, one in plain.items() if one["sdc"]}
    floor = float(np.mean(noise)) if noise else 0.0
    found: Json = {
        "faults": len(plain),
        "harmful": len(harmful),
        "sdc": _told(cluster_interval([one["sdc"] for one in plain.values()])) if plain else None,
        "noise_floor": _told(cluster_interval(noise)) if len(noise) > 1 else None,
        "schemes": {
            name: scheme_figures(plain, own, floor)
            for name, own in by_scheme.items()
            if name not in OWN and set(own) & set(harmful)
        },
        "clean_texts_changed": {name: f"{one['changed']} of {one['texts']}" for name, one in clean.items()},
    }
    if seen and set(seen) & set(harmful):
        found["coverage"] = coverage(harmful, seen)
        kinds = next(iter(seen.values()))["false_alarms"]
        found["false_alarms"] = {kind: sum(one["false_alarms"][kind] for one in seen.values()) for kind in kinds}
    return found


def scheme_figures(plain: dict[int, Json], own: dict[int, Json], floor: float) -> Json:
    """What one scheme removes, of the faults that were run both ways.

    `removed`: the share of the SDC that is gone, interval by resampling faults. `cured`: the share of harmful faults
    after which no answer is silently wrong (Wilson). `excess_removed`: the same as `removed` over what meaningless
    changes do: of the SDC that all draws behind these faults brought, noise would have brought `floor` a draw.
    """
    both = [
        (plain[number]["sdc"], one["sdc"]) for number, one in own.items() if number in plain and plain[number]["sdc"]
    ]
    left = [(before, 0.0 if after is None else after) for before, after in both]
    before, after = (np.array(column) for column in zip(*left, strict=True))
    rate = len([one for one in plain.values() if one["sdc"]]) / len(plain)
    noise = floor * len(left) / rate
    excess = before.sum() - noise

    def removed(sample: Floats) -> Floats:
        shares: Floats = 1 - sample[..., 1].sum(1) / sample[..., 0].sum(1)
        return shares

    harmless = [one["sdc"] for number, one in own.items() if number in plain and plain[number]["sdc"] == 0]
    return {
        "removed": _told(bootstrap_interval(np.array(left), removed, 0)),
        "cured": _told(wilson(int((after == 0).sum()), len(left))),
        "excess_removed": float(min(1.0, (before.sum() - after.sum()) / excess)) if excess > 0 else None,
        "harmed": f"{sum(bool(one) for one in harmless)} of {len(harmless)} harmless faults",
        "ran": sum(one["ran"] for one in own.values()),
    }


def coverage(harmful: dict[int, Json], seen: dict[int, Json]) -> Json:
    """Shares of harmful faults that checks see: full ones, selective ones (of faults in their products, and of all),
    range guards, screens."""
    both = [(one, seen[number]["seen"]) for number, one in harmful.items() if number in seen]
    reducing = [(one, sites) for one, sites in both if one["component"] in REDUCING]
    chosen = set(REDUCING)

    def share(pairs: Sequence[tuple[Json, Json]], kind: str, components: set[str] | None = None) -> Json | None:
        if not pairs:
            return None
        told = [bool(set(sites[kind]) & components if components else sites[kind]) for _, sites in pairs]
        return _told(wilson(sum(told), len(told)))

    return {
        "full checksums": share(both, "Checksum"),
        "selective checksums, in their products": share(reducing, "Checksum", chosen),
        "selective checksums, anywhere": share(both, "Checksum", chosen),
        "range guards": share(both, "RangeGuard"),
        "finite screen": share(both, "FiniteScreen"),
    }


def checks(found: Json) -> list[Json]:
    """What the comparison set out to reach."""
    return list(_checks(found))


def _checks(found: Json) -> Iterator[Json]:
    for part, own in found.items():
        full = own["schemes"].get("full checksums + fingerprint")
        if full is not None and full["excess_removed"] is not None:
            value = full["excess_removed"]
            yield _check(f"{part}: excess SDC removed by full checksums + fingerprint", value, FULL)
        selective = own.get("coverage", {}).get("selective checksums, in their products")
        if selective is not None:
            yield _check(f"{part}: coverage of selective checksums in their products", selective["estimate"], SELECTIVE)
        if part.startswith("float32"):
            yield _check(f"{part}: harmful faults", own["harmful"], ENOUGH)


def _check(name: str, value: float, target: float) -> Json:
    return {"name": name, "value": value, "target": target, "met": value >= target}


def _told(estimate: Estimate) -> Json:
    return asdict(estimate)
