"""The parts of benchmarks.protect_voltage that a wrong figure could come from."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.protect_voltage import main
from benchmarks.recorded import Lines
from benchmarks.voltage_protocol import KEYS, Bench, Sizes, error_free, highest, schemes, voltage_of_harm
from benchmarks.voltage_recoveries import VOLTAGES, component, tiles_at
from benchmarks.voltage_summary import checks, summary
from benchmarks.voltage_trials import Setting, at_voltage, depth_passes, trial

from aftershock.hardware import (
    ApproxABFT,
    ClassicalABFT,
    CriticalRegion,
    Dataflow,
    Duplication,
    ErrorTable,
    StatisticalABFT,
    SystolicArray,
    Unprotected,
    error_table,
    relative_energy,
)
from aftershock.models import LoadedModel, load, text_perplexity, text_windows
from aftershock.protect import FittedRegion, GridPoint, Scope, changed_sums
from tiny_models import save_tiny

ARRAY = SystolicArray("output-stationary", 16, 16)
TABLE = ErrorTable("planted", ((0.9, 0.0), (0.84, 0.01), (0.6, 0.2)))
POINTS = [
    {"log_size": 9, "log_frequency": 0, "losses": [0.0, 0.0], "acceptable": True},
    {"log_size": 10, "log_frequency": 0, "losses": [9.0], "acceptable": False},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(str(save_tiny(tmp_path_factory.mktemp("voltage") / "llama", "llama")), arithmetic="w8a8-requantised")


@pytest.fixture(scope="module")
def windows(model: LoadedModel) -> torch.Tensor:
    return text_windows(model, "Nobody waits on the quay for the letters. " * 4, 2, 2, 20)


@pytest.mark.parametrize("dataflow", ["output-stationary", "weight-stationary"])
@pytest.mark.parametrize("component", ["k", "qk", "down"])
def test_every_error_is_seen_and_mended(
    model: LoadedModel, windows: torch.Tensor, component: str, dataflow: Dataflow
) -> None:
    array = SystolicArray(dataflow, 16, 16)
    clean = text_perplexity(model, windows)
    setting = Setting(component, 0.84, ClassicalABFT(), TABLE, array)
    found, tiles = trial(model, windows, setting, seed=1)
    assert found == clean
    assert 0 < tiles.again == tiles.alarms == tiles.corrupted < tiles.tiles
    found, unmended = trial(model, windows, Setting(component, 0.84, Unprotected(), TABLE, array), seed=1)
    assert found != clean
    assert (unmended.alarms, unmended.again) == (tiles.alarms, 0)
    other, _ = trial(model, windows, Setting(component, 0.84, Unprotected(), TABLE, array), seed=2)
    assert other not in (clean, found)


def test_errors_appear_at_the_rate_of_the_table(model: LoadedModel, windows: torch.Tensor) -> None:
    seen: list[torch.Tensor] = []

    def look(_: int, sums: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        seen.append(sums.clone())
        return sums

    with changed_sums(model, "gate", look):
        text_perplexity(model, windows)
        before = seen.copy()
        seen.clear()
        setting = Setting("gate", 0.6, Unprotected(), TABLE, ARRAY, bits=(3, 4))
    with at_voltage(model, setting, 5), changed_sums(model, "gate", look):
        text_perplexity(model, windows)
    flipped = before[0] ^ seen[0]
    assert set(torch.unique(flipped).tolist()) == {0, 8, 16}
    chance, n = 0.2, flipped.numel()
    assert abs(float((flipped != 0).float().mean()) - chance) < 5 * math.sqrt(chance * (1 - chance) / n)


def test_a_weight_stationary_array_cuts_by_depth(model: LoadedModel, windows: torch.Tensor) -> None:
    assert depth_passes(model, "down", windows, SystolicArray("weight-stationary", 16, 16)) == 3
    assert depth_passes(model, "down", windows, ARRAY) == 1
    # As deep as there are tokens.
    assert depth_passes(model, "sv", windows, SystolicArray("weight-stationary", 16, 16)) == 2


def test_the_voltage_of_harm_is_where_the_loss_passes_it(model: LoadedModel) -> None:
    """Losses are planted in the records: 30 perplexity from 700 mV down."""
    windows = torch.ones(1, 2, 5, dtype=torch.int64)
    bench = Bench(model, "w8a8", windows, windows, Lines(None, KEYS), Sizes(2, 2, 1, 120))

    tried = set()

    class Planted(Lines):
        def get(self, key: Mapping[str, Any], _: Any) -> dict[str, Any]:
            assert key.keys() <= set(KEYS)
            tried.add(key.get("millivolts"))
            return {"perplexity": 1.0, "loss": 30.0 if key.get("millivolts", 0) <= 700 else 1.0}

    planted = Bench(**{**vars(bench), "records": Planted(None, KEYS)})
    table = error_table("drift-active")
    assert voltage_of_harm(planted, Setting("k", 0.6, Unprotected(), table)) == 700
    # By halves: of some fifty voltages few are measured.
    assert len(tried) < 10


def record(scheme: str, millivolts: int, seed: int, loss: float, again: int) -> dict[str, Any]:
    run = {"model": "m", "arithmetic": "w8a8", "passes": 1, "windows": 1, "length": 5, "device": "cpu"}
    reading = {"table": "drift-active", "unit": "element", "bits": "all"}
    more = {"dataflow": "output-stationary", "scope": "tile", "text": "test", "component": "k"}
    tiles = {"tiles": 10, "alarms": 6, "corrupted": 6, "again": again}
    at = {"kind": "trial", "scheme": scheme, "millivolts": millivolts, "seed": seed, "loss": loss}
    return {**run, **reading, **more, **tiles, **at}


def test_the_summary_weighs_losses_recoveries_and_energy() -> None:
    trials = [
        *(record("none", 800, seed, 20.0 + seed, 0) for seed in range(2)),
        *(record("statistical ABFT", 800, seed, 0.1, 2) for seed in range(2)),
        *(record("ApproxABFT", 800, seed, 0.0, 4) for seed in range(2)),
        record("classical ABFT", 800, 0, 0.0, 6),
        record("duplication", 800, 0, 0.0, 6),
        *(record("zeroing", 800, seed, 1.0, 0) for seed in range(2)),
    ]
    fit = {**trials[0], "kind": "region", "tiles": 4, "clean": 9.0, "points": POINTS}
    (run,) = summary([fit, *trials])["runs"]
    (found,) = run["components"]
    assert found["least_harmful_msd"] == 1024
    at = found["at_voltage_of_harm"]
    assert at["voltage"] == 0.8
    assert at["none"]["loss"] == 20.5
    assert at["statistical ABFT"] == {"loss": 0.1, "upper": pytest.approx(0.1), "seeds": 2, "recovered": 0.2}
    assert found["range"]["mean_recovered"] == {"statistical ABFT": 0.2, "classical ABFT": 0.6, "ApproxABFT": 0.4}
    assert found["range"]["voltages_with_fewer_than"] == {"classical ABFT": 1, "ApproxABFT": 1}
    best = found["best"]["points"]
    assert best["none"] == best["zeroing"] == {"voltage": 0.85, "energy": pytest.approx((0.85 / 0.9) ** 2)}
    used = schemes(FittedRegion("k", CriticalRegion(2.0, 1.0), 4, 9.0, (GridPoint(1, 0, (9.0,), False),)), "tile")
    statistical = next(one for one in used if one.name == "statistical ABFT")
    assert best["statistical ABFT"]["energy"] == pytest.approx(
        float(min(relative_energy(statistical, [0.8, 0.85], [0.2, 0.0])))
    )
    assert best["classical ABFT"]["voltage"] == 0.85


def fitted_trials(component: str, loss: float, again: int) -> list[dict[str, Any]]:
    """A region and trials at one voltage: statistical ABFT loses `loss`, and recovers `again` of 10 tiles; ApproxABFT
    recovers 4, classical ABFT 6."""
    scheme = {"none": (20.0, 0), "statistical ABFT": (loss, again), "ApproxABFT": (0.0, 4), "classical ABFT": (0.0, 6)}
    more = {"duplication": (0.0, 6), "zeroing": (1.0, 0)}
    trials = [record(name, 800, seed, *found) for name, found in {**scheme, **more}.items() for seed in range(2)]
    fit = {**trials[0], "kind": "region", "tiles": 4, "clean": 9.0, "points": POINTS}
    return [{**one, "component": component} for one in (fit, *trials)]


@pytest.mark.parametrize(
    ("component", "loss", "again", "met"),
    [
        ("k", 0.3, 4, [True, True, True]),
        ("k", 0.31, 5, [False, True, False]),
        ("k", math.inf, 7, [False, False, False]),
        ("o", 5.0, 4, [True, True]),
    ],
)
def test_checks_are_of_the_loss_of_resilient_components_and_of_recoveries(
    component: str, loss: float, again: int, met: list[bool]
) -> None:
    found = list(checks(summary(fitted_trials(component, loss, again))))
    assert [one["met"] for one in found] == met
    values = dict(zip(("classical ABFT", "ApproxABFT"), (one["value"] for one in found[-2:]), strict=True))
    assert values == {"classical ABFT": pytest.approx(again / 10 - 0.6), "ApproxABFT": pytest.approx(again / 10 - 0.4)}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_records_of_either_form_are_summed_up_without_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    apart = [
        {
            "key": {name: value for name, value in one.items() if name in KEYS},
            "value": {name: value for name, value in one.items() if name not in KEYS},
        }
        for one in fitted_trials("k", 0.1, 2)
    ]
    old.write_text("".join(json.dumps(one) + "\n" for one in apart))
    new.write_text("".join(json.dumps(one) + "\n" for one in fitted_trials("v", 0.1, 2)))
    monkeypatch.setattr("sys.argv", ["protect_voltage", "--json", "--records", str(old), str(new)])
    main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [one["component"] for one in found["runs"][0]["components"]] == ["k", "v"]
    assert len(found["checks"]) == 6
    assert all(one["met"] for one in found["checks"])


def test_voltages_with_and_without_errors() -> None:
    table = error_table("drift-active")
    assert (highest(table), error_free(table)) == (840, 0.85)
    assert (highest(TABLE), error_free(TABLE)) == (840, 0.9)


def test_what_is_computed_twice_is_wrong_where_either_run_is() -> None:
    fit = {"kind": "region", "tiles": 4, "clean": 9.0, "points": POINTS}
    names = ("none", "statistical ABFT", "ApproxABFT", "classical ABFT", "duplication", "zeroing")
    trials = [{**record(name, 800, seed, 0.0, 0), "corrupted": 1} for name in names for seed in range(2)]
    (run,) = summary([{**trials[0], **fit}, *trials])["runs"]
    best = run["components"][0]["best"]["points"]["duplication"]
    energies = relative_energy(Duplication(), [0.8, 0.85], [1 - 0.9**2, 0.0])
    assert best == {"voltage": 0.8, "energy": pytest.approx(float(energies[0]))}


@pytest.mark.parametrize(("scope", "tiles"), [("tile", 4), ("product", 1)])
def test_thresholds_are_for_one_tile_or_a_whole_product(scope: Scope, tiles: int) -> None:
    fitted = FittedRegion("k", CriticalRegion(2.0, 1.0), 4, 9.0, (GridPoint(1, 0, (9.0,), False),))
    approx, statistical = schemes(fitted, scope)[-2:]
    assert approx == ApproxABFT(2.0 / tiles)
    assert statistical == StatisticalABFT(fitted.region.scaled(1 / tiles))


def test_recoveries_follow_from_the_errors_that_are_drawn() -> None:
    assert not tiles_at(0.85, 4).alarms.any()
    drawn = {voltage: tiles_at(voltage, 16) for voltage in VOLTAGES}
    points = (GridPoint(14, 0, (0.0, 0.0), True), GridPoint(16, 0, (9.0,), False))
    found = component(FittedRegion("o", CriticalRegion(2.0, 31.0), 4, 9.0, points), drawn)
    recovered = found["recovered"]
    assert recovered["classical ABFT"]["0.85"] == 0 < recovered["classical ABFT"]["0.84"] < 1
    assert recovered["classical ABFT"]["0.6"] == recovered["statistical ABFT"]["0.6"] == 1
    of_tile, of_product = (ApproxABFT(2.0**16 / tiles).share(drawn[0.8]) for tiles in (4, 1))
    assert recovered["ApproxABFT"]["0.8"] == of_tile > of_product
    assert found["more_at"]["classical ABFT"] == 0 < found["fewer_at"]["classical ABFT"]
    best = found["best"]["statistical ABFT"]
    assert found["saving_against_best_other"] == pytest.approx(1 - best["energy"] / found["best_other"]["energy"])
