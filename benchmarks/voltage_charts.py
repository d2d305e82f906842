"""Pictures and region files from the records of `benchmarks.protect_voltage`.

    python -m benchmarks.voltage_charts RECORDS DATA FOLDER

For every model and pass in RECORDS: its critical regions as a file (`aftershock.protect.load_regions`) and a picture,
and the losses without protection and with statistical ABFT against voltage. DATA as for the benchmark.
"""

import argparse
from pathlib import Path

from aftershock.models import load, model_hash
from aftershock.protect import CriticalRegions, save_regions, text_digest
from aftershock.report import VoltageLoss, region_chart, voltage_chart, write_charts
from benchmarks.protect_voltage import FIT_TEXT
from benchmarks.recorded import Json, read_lines
from benchmarks.voltage_protocol import ACCEPTED, FIT_SEED, SAME, region_of_record
from benchmarks.voltage_summary import component


def regions_file(fits: list[Json], text: str) -> CriticalRegions:
    """The regions of one run."""
    run = fits[0]
    return CriticalRegions(
        run["model"],
        run["arithmetic"],
        model_hash(load(run["model"]).module),
        text_digest(text),
        run["passes"],
        run["windows"],
        run["length"],
        ACCEPTED,
        run["seeds"],
        FIT_SEED,
        "output-stationary",
        tuple(map(region_of_record, fits)),
    )


def losses(records: list[Json], fit: Json) -> list[VoltageLoss]:
    """Losses over the range of voltages."""
    rows = component(records, fit)["range"]["rows"]
    return [
        VoltageLoss(row["voltage"], float(row["none"]["loss"]), float(row["statistical ABFT"]["loss"])) for row in rows
    ]


def main() -> None:
    """Write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("records", "data", "folder"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    text = (options.data / "lm" / FIT_TEXT).read_text()
    runs: dict[tuple[object, ...], list[Json]] = {}
    for record in read_lines([options.records]):
        runs.setdefault(tuple(record[name] for name in SAME), []).append(record)
    for own in runs.values():
        fits = [one for one in own if one["kind"] == "region"]
        if fits:
            name = f"{fits[0]['model'].removeprefix('demo:')}_{fits[0]['arithmetic']}"
            save_regions(regions_file(fits, text), options.folder / f"regions_{name}.json")
            charts = [region_chart(region_of_record(fit)) for fit in fits]
            write_charts(charts, options.folder / f"regions_{name}.png")
            drawn = [(fit["component"], losses(own, fit)) for fit in fits]
            pictures = [voltage_chart(component, found) for component, found in drawn if found]
            if pictures:
                write_charts(pictures, options.folder / f"voltage_{name}.png")


if __name__ == "__main__":
    main()
