"""What does a trial cost beside the model's own work? `python -m benchmarks.overhead --json`.

Time and bytes that one fault adds to the call it strikes (checked, armed, fired, undone, compared), and the clean path
under an empty `Injection`, on SmolLM2-135M in fp32.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from aftershock.faults import ActivationSite, Fault, WeightSite, parse_faults
from aftershock.inject import Injection
from aftershock.models import FIRST_TOKEN, PREFILL, LoadedModel, Pass, align, load
from benchmarks.arguments import parser
from benchmarks.environment import environment

MODEL = "demo:smollm2-135m"
PARAMETER = "model.layers.11.mlp.down_proj.weight"
WEIGHT = f"weight {PARAMETER}[120,7] flip 30 always"
ACTIVATION = "activation model.layers.11.mlp.up_proj[17] flip 30 at first_token"
PROMPT_TOKENS = 16
WARM_UP = 5
"""Repetitions that are run and not counted."""


def main() -> None:
    """Measure and end with one JSON object on the last line."""
    options = parser(__doc__, "a tenth of the repetitions")
    arguments = options.parse_args()

    started = time.perf_counter()
    model = load(MODEL, dtype="float32")
    repetitions, passes = (200, 30) if arguments.quick else (2000, 300)
    weight, activation = strike(model, WEIGHT), strike(model, ACTIVATION)
    tensor_bytes = model.module.get_parameter(PARAMETER).nbytes
    figures = {
        "weight fault, arm and undo": spread(added(weight, repetitions), 1e3, "ms"),
        "activation fault, arm and undo": spread(added(activation, repetitions), 1e3, "ms"),
        **clean_path(model, passes),
        "weight fault, bytes allocated": {"value": added_bytes(weight), "unit": "bytes"},
        "activation fault, bytes allocated": {"value": added_bytes(activation), "unit": "bytes"},
        "struck tensor": {"value": tensor_bytes, "unit": "bytes"},
    }
    if not arguments.json:
        for name, figure in figures.items():
            print(name, figure)
    report = {
        "benchmark": "overhead",
        "what": "time and memory of arming and undoing one fault; a forward pass under an empty Injection",
        "model": MODEL,
        "dtype": "float32",
        "device": "cpu",
        **environment(),
        "quick": arguments.quick,
        "faults": [WEIGHT, ACTIVATION],
        "prompt_tokens": PROMPT_TOKENS,
        "seconds": round(time.perf_counter() - started, 1),
        "figures": figures,
        "checks": checks(figures, tensor_bytes),
    }
    print(json.dumps(report))


@dataclass(frozen=True)
class Strike:
    """A fault and a call of the one module that it strikes, as it is and with the fault armed around it."""

    model: LoadedModel
    faults: tuple[Fault, ...]
    module: torch.nn.Module
    hidden: torch.Tensor
    call: Pass

    @torch.inference_mode()
    def plain(self) -> None:
        """The module alone."""
        self.module(self.hidden)

    def armed(self) -> None:
        """The fault checked and armed, its pass announced, the module run and so struck, the undo compared."""
        with Injection(self.model, self.faults) as injection:
            injection.begin_pass(self.call)
            self.plain()


def strike(model: LoadedModel, line: str) -> Strike:
    """What runs for one fault: a prompt of two tokens, in one forward call."""
    (fault,) = parse_faults(line)
    site = fault.site
    assert isinstance(site, WeightSite | ActivationSite)
    name = site.module if isinstance(site, ActivationSite) else site.parameter.removesuffix(".weight")
    module = model.module.get_submodule(name)
    inputs = model.module.get_parameter(f"{name}.weight").shape[1]
    block = align([[1000, 1001]], [[]], model.device)
    call = Pass(block, PREFILL, FIRST_TOKEN, 0, 2, 1, (True,), (0,))
    return Strike(model, (fault,), module, torch.ones(1, 2, inputs), call)


def added(one: Strike, repetitions: int) -> np.ndarray:
    """Seconds that the fault adds to its module's call, pair by pair; float64 of shape (repetitions,)."""
    plain, armed = timed_pairs(one.plain, one.armed, repetitions).T
    difference: np.ndarray = armed - plain
    return difference


def timed_pairs(first: Callable[[], object], second: Callable[[], object], repetitions: int) -> np.ndarray:
    """Seconds of both calls after the warm-up; float64 of shape (repetitions, 2).

    Every other pair begins with the second one, so that drift of the machine's speed falls on both.
    """

    def pair(number: int) -> tuple[float, float]:
        if number % 2:
            return seconds(first), seconds(second)
        later = seconds(second)
        return seconds(first), later

    return np.array([pair(number) for number in range(WARM_UP + repetitions)])[WARM_UP:]


def seconds(action: Callable[[], object]) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def clean_path(model: LoadedModel, passes: int) -> dict[str, dict[str, Any]]:
    """A forward pass plain and under an empty `Injection`, in alternation, and the ratio of each such pair."""
    tokens = torch.arange(PROMPT_TOKENS)[None] + 1000

    @torch.inference_mode()
    def plain() -> None:
        model.module(tokens, use_cache=False)

    def armed() -> None:
        with Injection(model, ()):
            plain()

    times = timed_pairs(plain, armed, passes)
    ratios = times[:, 1] / times[:, 0]
    # Interval of a median from order statistics: ranks n/2 -+ 1.96 sqrt(n)/2 (binomial, Conover 1999, 3.2).
    half_width = 0.98 / np.sqrt(len(ratios))
    low, high = np.quantile(ratios, [0.5 - half_width, 0.5 + half_width])
    return {
        "forward pass, plain": spread(times[:, 0], 1e3, "ms"),
        "forward pass, empty Injection": spread(times[:, 1], 1e3, "ms"),
        "clean path over plain": {
            **spread(ratios, 1.0, "ratio"),
            "median_low": round(float(low), 5),
            "median_high": round(float(high), 5),
        },
    }


def spread(values: np.ndarray, scale: float, unit: str) -> dict[str, Any]:
    """Median with the quartiles, the 99th percentile and the number of measurements."""
    low, middle, high, rare = np.quantile(values * scale, [0.25, 0.5, 0.75, 0.99]).round(5).tolist()
    return {"value": middle, "quartiles": [low, high], "p99": rare, "n": len(values), "unit": unit}


def added_bytes(one: Strike) -> int:
    """Bytes that torch allocates, in all, for arming, striking and undoing one fault."""
    return allocated(one.armed) - allocated(one.plain)


def allocated(action: Callable[[], object]) -> int:
    """Bytes that torch allocates in one call, freed or not."""
    action()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    return sum(max(0, event.self_cpu_memory_usage) for event in profiler.events())


def checks(figures: dict[str, dict[str, Any]], tensor_bytes: int) -> list[dict[str, Any]]:
    """What the figures were to reach."""
    arm = [
        {
            "name": f"{kind} fault, arm and undo, median",
            "value": figures[f"{kind} fault, arm and undo"]["value"],
            "target": "below 1",
            "unit": "ms",
            "met": figures[f"{kind} fault, arm and undo"]["value"] < 1.0,
        }
        for kind in ("weight", "activation")
    ]
    bytes_allocated = [
        {
            "name": f"{kind} fault, bytes allocated, of {tensor_bytes} in the struck weight",
            "value": figures[f"{kind} fault, bytes allocated"]["value"],
            "target": "below 4096",
            "unit": "bytes",
            "met": figures[f"{kind} fault, bytes allocated"]["value"] < 4096,
        }
        for kind in ("weight", "activation")
    ]
    ratio = figures["clean path over plain"]
    clean = {
        "name": "clean path over plain, median of pairs with its 95 % interval",
        "value": ratio["value"],
        "interval": [ratio["median_low"], ratio["median_high"]],
        "target": "interval begins at 1 or below, or median below 1.01",
        "unit": "ratio",
        "met": ratio["median_low"] <= 1.0 or ratio["value"] < 1.01,
    }
    return [*arm, *bytes_allocated, clean]


if __name__ == "__main__":
    main()
