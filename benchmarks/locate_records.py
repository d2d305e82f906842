"""What the records of `benchmarks.locate_text` come to. Part of `benchmarks.locate`."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from aftershock.stats import bootstrap_interval, exact

Record = dict[str, Any]
SETS = ("natural", "hard")
FOUND = ("block", "block_top3", "tensor", "exact", "trivial")


def figures(records: Sequence[Record], seed: int) -> dict[str, Any]:
    """Figures of each cell and over all. A cell without faults is one in which the healthy model itself has no finite
    loss: it is named, and left out of all shares."""
    names = dict.fromkeys(record["cell"] for record in records)
    finite = [name for name in names if any("loss" in record for record in records if record["cell"] == name)]
    own = {name: [record for record in records if record["cell"] == name] for name in finite}
    return {
        "n": len(records),
        "cells": {name: _figures(some, seed) for name, some in own.items()},
        "over_all": _figures([record for some in own.values() for record in some], seed),
        "left_out": {name: "model not finite in this format" for name in names if name not in finite},
    }


def _figures(records: list[Record], seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for which in SETS:
        if faults := [one for one in records if one["kind"].startswith(which)]:
            found[which] = of_faults(faults, seed)
    if alarms := [one["alarm"] for one in records if one["kind"] == "healthy"]:
        found["false_alarms"] = asdict(exact(sum(alarms), len(alarms)))
    if drawn := [one for one in records if one["kind"] == "drawn"]:
        found["drawn"] = [{key: value for key, value in one.items() if key != "kind"} for one in drawn]
    return found


def of_faults(faults: list[Record], seed: int) -> dict[str, Any]:
    """Shares of faults that were found, what of the lost accuracy and loss came back (sums over faults, one over the
    other, so that a fault that costs nothing weighs nothing), and the passes per layer that single flips took."""
    shares: dict[str, Any] = {key: asdict(exact(sum(one[key] for one in faults), len(faults))) for key in FOUND}
    for key in ("accuracy", "loss"):
        shares[f"recovered_{key}"] = recovered(np.array([one[key] for one in faults], dtype=np.float64), seed)
    if alone := [one["passes"] / one["layers"] for one in faults if len(one["flips"]) == 1]:
        mean = bootstrap_interval(alone, lambda samples: samples.mean(axis=1), seed)
        shares["passes_per_layer_of_one_flip"] = {**asdict(mean), "largest": max(alone)}
    return shares


def recovered(states: npt.NDArray[np.float64], seed: int) -> dict[str, Any] | None:
    """Recovered over lost of a figure that was clean, hurt, mended, shape (faults, 3), with an interval over faults;
    None where nothing was lost in all."""
    pairs = np.stack([states[:, 2] - states[:, 1], states[:, 0] - states[:, 1]], axis=1)
    if pairs[:, 1].sum() == 0:
        return None

    def share(samples: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        gained, lost = samples.sum(axis=1).T
        shares: npt.NDArray[np.float64] = np.divide(gained, lost, out=np.full(len(lost), np.nan), where=lost != 0)
        return shares

    return asdict(bootstrap_interval(pairs, share, seed))
