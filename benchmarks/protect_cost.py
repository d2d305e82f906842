"""What checking every row of every product costs on one GPU, by the steps between them.

    python -m benchmarks.protect_cost --json [--quick] [--layers 32] [--turns 100] [--settings prefill ...]

A decoder of Llama 3 8B's shape (bf16, random weights), q, k and v as one product and gate and up as one, each pass one
CUDA graph. Base lines: the plain decoder by torch.compile, and the steps of `protect.fused` without checks; costs
are over the faster of the two, in turns, so that a machine's moods strike all alike. `again` is the plain one captured
once more: what noise comes to. Beside it sdcguard 0.4.0, where it is installed, on a decoder of few layers.
"""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from aftershock.protect.fused import triton_steps
from benchmarks.arguments import parser
from benchmarks.cuda_timing import captured, milliseconds
from benchmarks.environment import environment
from benchmarks.llama_shaped import (
    Batch,
    Decoder,
    Guards,
    Shape,
    batch_of,
    block,
    checked_pass,
    guards_of,
    no_guards,
    plain_pass,
    random_decoder,
)
from benchmarks.locate_speed import ratio, spread
from benchmarks.protect_cost_detection import detection, seen_in_graph

SEED = 20261123
ALL = ("qkv", "o", "gate_up", "down", "head")
SELECTED = ("o", "down")
GUARD_LAYERS = 4


@dataclass(frozen=True)
class Setting:
    """`tokens` of each of `rows` sequences at once, the last of a `context`; the most that checks may cost there, as a
    share: all products, and `o` and `down` alone."""

    rows: int
    tokens: int
    context: int
    most: float
    most_selected: float | None


SETTINGS = {
    "prefill": Setting(1, 4096, 4096, 0.03, 0.015),
    "decode 1": Setting(1, 1, 1024, 0.06, None),
    "decode 16": Setting(16, 1, 1024, 0.06, 0.03),
    "decode 64": Setting(64, 1, 1024, 0.06, 0.03),
}

Passes = dict[str, Callable[[], object]]


def plain(decoder: Decoder, batch: Batch) -> Callable[[], object]:
    """The plain decoder, its layers compiled: one compilation, as all have the same shapes."""
    run = torch.compile(lambda layer, *arguments: layer(*arguments), fullgraph=True, dynamic=False)
    return captured(lambda: plain_pass(decoder, batch, run))


def checked(decoder: Decoder, guards: Guards, batch: Batch) -> Callable[[], object]:
    """The decoder by fused steps, with what is guarded checked."""
    blocks = [block(layer) for layer in decoder.layers]
    return captured(lambda: checked_pass(triton_steps, decoder, blocks, guards, batch))


def measure(decoder: Decoder, guarded: dict[str, Guards], setting: Setting, turns: int) -> dict[str, Any]:
    """All passes of a setting in turns, and what the checks of clean passes came to."""
    batch = batch_of(decoder, setting.rows, setting.tokens, setting.context, SEED)
    guarded["all"].reset()
    passes: Passes = {
        "plain": plain(decoder, batch),
        "steps": checked(decoder, no_guards(decoder), batch),
        **{name: checked(decoder, guards, batch) for name, guards in guarded.items()},
        "again": plain(decoder, batch),
    }
    found = milliseconds(passes, turns)
    strains = guarded["all"].strains()
    seen = seen_in_graph(passes["all"], decoder, guarded["all"])
    rows = setting.rows * setting.tokens * 4 * decoder.shape.layers + setting.rows
    return _costs(found, "all", "o + down", "again", base=("plain", "steps")) | {
        "checks_a_pass": rows,
        "largest_clean_strain": max(strains.values()),
        "clean_alarms": sum(not strain <= 1 for strain in strains.values()),
        "struck_weight_seen": seen,
    }


def _costs(found: dict[str, list[float]], *names: str, base: tuple[str, ...]) -> dict[str, Any]:
    faster = min(base, key=lambda name: float(np.median(found[name])))
    return {
        "n": len(found[faster]),
        "base": faster,
        "cost": {name: _less_one(ratio(found[name], found[faster])) for name in names},
        "over_plain": {name: _less_one(ratio(found[name], found["plain"])) for name in names},
        "milliseconds": {name: spread(own) for name, own in found.items()},
    }


def _less_one(measured: dict[str, Any]) -> dict[str, Any]:
    return measured | {name: measured[name] - 1 for name in ("estimate", "low", "high")}


def measure_sdcguard(decoder: Decoder, guards: Guards, setting: Setting, turns: int) -> dict[str, Any] | None:
    """The same for sdcguard and the checks here, on a decoder of few layers, since its are compiled one by one."""
    try:
        from sdcguard import ServeGuard
    except ImportError:
        return None
    batch = batch_of(decoder, setting.rows, setting.tokens, setting.context, SEED)
    passes: Passes = {
        "plain": plain(decoder, batch),
        "steps": checked(decoder, no_guards(decoder), batch),
        "all": checked(decoder, guards, batch),
    }
    watched = deepcopy(decoder)
    guard = ServeGuard().attach(watched)
    passes["sdcguard"] = plain(watched, batch)
    found = milliseconds(passes, turns)
    done = guard.coverage_report()
    guard.detach()
    return _costs(found, "sdcguard", "all", base=("plain", "steps")) | {
        "layers": decoder.shape.layers,
        "sdcguard_checked": done["layers_checked"],
        "sdcguard_layers": done["layers"],
    }


def checks(settings: dict[str, Any], flips: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry for each target."""
    found = []
    for name, own in settings.items():
        most = {"all": SETTINGS[name].most, "o + down": SETTINGS[name].most_selected}
        found += [
            _check(f"{name}: cost of {which}", own["cost"][which]["estimate"], target, "share")
            for which, target in most.items()
            if target is not None
        ]
        found.append(_check(f"{name}: clean alarms", own["clean_alarms"], 0, "checks"))
        found.append(_check(f"{name}: a struck weight missed", not own["struck_weight_seen"], 0, "faults"))
    found.append(_check("flips of the highest exponent bit missed", flips["missed_highest_exponent_bit"], 0, "flips"))
    return found


def _check(name: str, value: float, target: float, unit: str) -> dict[str, Any]:
    return {"name": name, "value": value, "target": target, "unit": unit, "met": bool(value <= target)}


def main() -> None:
    """Run it."""
    arguments = parser(__doc__, "few layers and turns")
    arguments.add_argument("--layers", type=int, default=32)
    arguments.add_argument("--turns", type=int, default=100)
    arguments.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    arguments.add_argument("--without-sdcguard", action="store_true")
    given = arguments.parse_args()
    layers, turns = (2, 5) if given.quick else (given.layers, given.turns)
    chosen = {name: SETTINGS[name] for name in given.settings}
    torch._dynamo.config.recompile_limit = 256  # sdcguard's layers are compiled one by one
    with torch.inference_mode():
        decoder = random_decoder(Shape(layers), "cuda", torch.bfloat16, SEED)
        guarded = {"all": guards_of(decoder, ALL), "o + down": guards_of(decoder, SELECTED)}
        settings = {}
        for name, setting in chosen.items():
            settings[name] = measure(decoder, guarded, setting, turns)
            print(name, json.dumps(settings[name]["cost"]), settings[name]["milliseconds"], flush=True)
        few = random_decoder(Shape(min(layers, GUARD_LAYERS)), "cuda", torch.bfloat16, SEED)
        others: dict[str, Any] = {}
        if not given.without_sdcguard:
            guards = guards_of(few, ALL)
            for name, setting in chosen.items():
                others[name] = measure_sdcguard(few, guards, setting, turns)
                print(name, "sdcguard", json.dumps(others[name]), flush=True)
        flips = detection(triton_steps, few, SEED, 2 if given.quick else 20)
    found = {
        "benchmark": "protect_cost",
        "environment": environment() | {"device": torch.cuda.get_device_name()},
        "seed": SEED,
        "layers": layers,
        "settings": settings,
        "sdcguard": others,
        "detection": flips,
        "checks": checks(settings, flips),
    }
    print(json.dumps(found) if given.json else json.dumps(found["checks"], indent=1))


if __name__ == "__main__":
    main()
