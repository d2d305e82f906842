"""ReaLM's characterisation beside ours, from the records of studies/realm.toml.

    python -m benchmarks.characterisation DIR --json

Ours: the mean accuracy over faults, with its 95 % interval over faults, and the share of golden's that is gone. Theirs
(arXiv 2503.24053): read off the figures by eye where no number is printed; the model and the task are not ours.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from aftershock.study import Summary, SweptRate, load_members, summarise
from benchmarks.environment import environment

OPT = "OPT-1.3B, LAMBADA accuracy %, clean about 74, bit 30"
LLAMA = "LLaMA-2-7B, X-Sum ROUGE-1, clean about 31.7, bit 30"
COMPONENT = {
    **{f"components = {name}, rate = {rate}": f"{OPT}: {value}" for name in ("o", "down") for rate, value in {
        "1e-07": "~62", "1e-06": "~15", "1e-05": "~0", "0.0001": "~0", "0.001": "~0"}.items()},
    **{f"components = up, rate = {rate}": f"{OPT}: {value}" for rate, value in {
        "1e-07": "unharmed", "1e-06": "unharmed", "1e-05": "unharmed", "0.0001": "~69", "0.001": "~12"}.items()},
    **{f"components = {name}, rate = 0.001": f"{OPT}: ~72" for name in ("q", "k", "v", "sv")},
}  # fmt: skip
"""FC1 of OPT stands beside `up`, its FC2 beside `down`."""

BIT = {
    **{f"components = k, bits = {bit}, rate = {rate}": f"K of OPT-1.3B: {said}" for rate in ("1e-05", "0.001")
       for bit, said in {"10": "no harm", "14": "mild", "22": "as bit 30", "30": "as bit 22"}.items()},
    **{f"components = o, bits = {bit}, rate = {rate}": f"O of OPT-1.3B: {said}" for rate in ("1e-05", "0.001")
       for bit, said in {"10": "no harm", "14": "hurts from 1e-5 on", "22": "close to bit 30", "30": "worst"}.items()},
}  # fmt: skip
LAYER = {
    f"layers = {layer}": f"{OPT}, rate 1e-5, layer {layer if layer < 24 else 23} of 24: {value}"
    for layer, value in {0: 4, 6: 24, 12: 52, 18: 65, 24: 73}.items()
}
STAGE = {
    f"activation_trigger = {trigger}, rate = {rate}": f"{LLAMA}: {value}"
    for trigger, row in {
        "during decode": (31.69, 31.62, 31.23, 29.53),
        "from prefill to decode:1": (31.51, 29.61, 14.38, 6.93),
        "always": (31.59, 15.01, 14.58, 7.21),
    }.items()
    for rate, value in zip(("1e-08", "1e-07", "1e-06", "1e-05"), row, strict=True)
}
PUBLISHED = {"component": COMPONENT, "bit": BIT, "layer": LAYER, "stage": STAGE, "magnitude": {}}


def row(found: SweptRate, published: dict[str, str]) -> dict[str, Any]:
    """One combination of a sweep, with what is published of it."""
    name = ", ".join(f"{key} = {value}" for key, value in found.values.items())
    accuracy = None if found.accuracy is None else found.accuracy.model_dump()
    return {
        "at": name,
        "trials": found.trials,
        "accuracy": accuracy,
        "relative_loss": found.relative_loss,
        "published": published.get(name),
    }


def member(name: str, summary: Summary) -> dict[str, Any]:
    """One study of the campaign."""
    return {
        "trials": summary.trials,
        "records": summary.records_digest,
        "golden": summary.golden.model_dump(),
        "audit": None if summary.audit is None else summary.audit.model_dump(),
        "sensitivity": None if summary.sensitivity is None else summary.sensitivity.model_dump(),
        "rows": [row(found, PUBLISHED.get(name, {})) for found in summary.sweep],
    }


def main() -> None:
    """Print both as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the --out folder of the campaign")
    parser.add_argument("--json", action="store_true", help="the only form there is")
    members = {name: summarise(study) for name, study in load_members(parser.parse_args().folder)}
    print(
        json.dumps(
            {
                "benchmark": "characterisation",
                **environment(),
                "n": sum(summary.trials for summary in members.values()),
                "studies": {name: member(name, summary) for name, summary in members.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
