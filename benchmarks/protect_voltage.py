"""ReaLM's claim (arXiv 2503.24053) on our models: voltage, perplexity and energy of each component under six schemes.

    python -m benchmarks.protect_voltage DATA --json [--quick] [--lines FILE]
    python -m benchmarks.protect_voltage --json --records FILE...

For each component alone, in all layers: a critical region is fitted on WikiText-2's validation text; by bisection the
voltage at which the component without protection loses 15 perplexity; there, and over the range of voltages, what
schemes lose on the test text, and how many tiles they compute again. DATA is a folder with lm/wikitext2_*.txt.

Measured: perplexities, tiles. Modelled: the rates of errors (a published table), energy (docs/hardware.md). A rate is
the chance of a sum to have one of its 32 bits flipped, all alike, unless a variation says otherwise. Every record goes
to --lines at once, and a run that was killed goes on from there; --records sums up such files.
"""

import json
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path

from aftershock.hardware import SystolicArray, error_table
from aftershock.models import Arithmetic, LoadedModel, load, text_windows
from aftershock.protect import load_regions
from benchmarks.arguments import parser
from benchmarks.environment import environment
from benchmarks.recorded import Json, Lines, read_lines
from benchmarks.voltage_protocol import COMPONENTS, KEYS, Bench, Sizes, Variation, run_at_harm, run_range, run_variation
from benchmarks.voltage_summary import checks, summary

FULL = Sizes(fit_seeds=4, loss_seeds=5, sweep_seeds=3, sweep_step=20)
QUICK = Sizes(fit_seeds=2, loss_seeds=2, sweep_seeds=1, sweep_step=120)
FIT_TEXT, TEST_TEXT = "wikitext2_valid.tokens.txt", "wikitext2_test.raw.txt"
ACTIVE = error_table("drift-active")
VARIATIONS = (
    Variation("table drift-alternative", error_table("drift-alternative")),
    Variation("table drift-smooth", error_table("drift-smooth")),
    Variation("unit per bit", replace(ACTIVE, unit="bit")),
    Variation("bit 30 alone", ACTIVE, bits=(30,)),
    Variation("judged by whole product", ACTIVE, scope="product"),
    Variation("weight-stationary", ACTIVE, array=SystolicArray("weight-stationary")),
)


def arguments() -> ArgumentParser:
    """What the benchmark takes."""
    made = parser(__doc__, "one component, few seeds and voltages")
    made.add_argument("data", type=Path, nargs="?")
    made.add_argument("--model", default="demo:smollm2-135m")
    made.add_argument("--arithmetic", default="w8a8-requantised", choices=("w8a8", "w8a8-requantised"))
    made.add_argument("--device", default="cpu")
    made.add_argument("--passes", type=int, default=4, help="of which a trial's loss is the mean")
    made.add_argument("--windows", type=int, default=4, help="texts in one pass")
    made.add_argument("--length", type=int, default=512, help="tokens of each")
    made.add_argument("--step", type=int, default=20, help="millivolts between the voltages of the range")
    made.add_argument("--components", nargs="*", default=list(COMPONENTS))
    made.add_argument("--vary", nargs="*", default=[], help="components to measure under every variation too")
    made.add_argument("--lines", type=Path, default=Path("protect_voltage.jsonl"), help="what was measured, added to")
    made.add_argument("--records", type=Path, nargs="+", help="files that --lines wrote: nothing is run")
    made.add_argument("--regions", type=Path, help="regions fitted before, on this model; of others a fit is made")
    return made


def bench(options: Namespace, model: LoadedModel, records: Lines, sizes: Sizes, data: Path) -> Bench:
    """The texts of a model, cut into windows."""
    fit, test = (
        text_windows(model, (data / "lm" / name).read_text(), options.passes, options.windows, options.length)
        for name in (FIT_TEXT, TEST_TEXT)
    )
    regions = () if options.regions is None else load_regions(options.regions).components
    return Bench(model, options.arithmetic, fit, test, records, sizes, regions)


def run(options: Namespace) -> list[Json]:
    """Measure what is not there yet; all records."""
    sizes = QUICK if options.quick else replace(FULL, sweep_step=options.step)
    lines = Lines(options.lines, KEYS)
    arithmetic: Arithmetic = options.arithmetic
    model = load(options.model, device=options.device, arithmetic=arithmetic)
    made = bench(options, model, lines, sizes, options.data)
    components = options.components[: 1 if options.quick else None]
    for component in components:
        run_at_harm(made, component, ACTIVE)
    for component in components:
        run_range(made, component, ACTIVE)
    for component in options.vary:
        for variation in VARIATIONS:
            run_variation(made, component, variation)
    return lines.records


def main() -> None:
    """Measure, or read, and print the figures as one JSON object."""
    made = arguments()
    options = made.parse_args()
    if (options.data is None) == (options.records is None):
        made.error("give DATA, a folder of texts, or --records")
    found = summary(read_lines(options.records) if options.records else run(options))
    checked = list(checks(found))
    print(json.dumps({"benchmark": "protect_voltage", **environment(), **found, "checks": checked}))


if __name__ == "__main__":
    main()
