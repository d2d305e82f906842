"""What do strata and stop rules save? `python -m benchmarks.stopping --json`.

A study of SmolLM2 with Neyman allocation over site x component x bit class x stage, on prompts answered freely: a
fault's share is the share of the answers that it corrupts silently. From its records:

- **design effect**: variance of one fault of a uniform sample over that of one fault of a stratified one, by formula;
- **trials needed** for the same half width, a wide and a narrow one, by uniform and by stratified sampling, with the
  interval of a fixed number of faults and with the anytime-valid one, by simulated studies of the population that the
  records show;
- **time to "SDC rate of every component within ±1 point at 95 %"**: trials of each component's own stratified study x
  seconds of a fast trial, against 9,604 trials for each component (Leveugle et al., DATE 2009) x seconds of a trial
  that decodes every answer in full. The arithmetic is in `figures`.

The population that the records show: a fault of a stratum has the share of one of the stratum's own trials, or, as
often as if there had been two more trials, that of a trial of any stratum with the same kind of site and class of
bits. So a stratum of few trials that were all alike is not taken for one without variance.
"""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aftershock.numerics import generator
from aftershock.replay import FastExecutor, ReferenceExecutor
from aftershock.stats import (
    Design,
    Estimate,
    anytime_interval,
    cluster_interval,
    neyman_allocation,
    sample_size,
    stratum_variances,
    weighted_interval,
)
from aftershock.study import Plan, StoredStudy, check_settings, make_plan, run_study, summarise
from aftershock.tasks import probe_items
from benchmarks.arguments import model_parser
from benchmarks.environment import environment

KEYS = ("site", "component", "bit_class", "stage")
QUICK_KEYS = ("site", "component", "bit_class")
MARGINS = (0.01, 0.0025)
POINT = 0.01
GROWTH = 1.1
MOST = 60_000
TARGET = 15.0


@dataclass(frozen=True)
class Population:
    """Strata with the chance of each, its own shares, and those of the strata that it resembles."""

    chances: np.ndarray
    own: tuple[np.ndarray, ...]
    alike: tuple[np.ndarray, ...]

    def drawn(self, strata: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A share for each entry of `strata`, float64 of the same shape."""
        shares = np.empty(strata.size)
        for number in np.unique(strata):
            here = np.flatnonzero(strata == number)
            own, alike = self.own[number], self.alike[number]
            borrowed = rng.random(here.size) < 2 / (own.size + 2)
            shares[here] = np.where(borrowed, rng.choice(alike, here.size), rng.choice(own, here.size))
        return shares

    def part(self, kept: Sequence[int]) -> "Population":
        """The population of some strata."""
        chances = self.chances[list(kept)]
        return Population(chances / chances.sum(), tuple(self.own[i] for i in kept), tuple(self.alike[i] for i in kept))

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of the shares of each stratum."""
        mixed = [
            (own.size * np.array([own.mean(), (own**2).mean()]) + 2 * np.array([alike.mean(), (alike**2).mean()]))
            / (own.size + 2)
            for own, alike in zip(self.own, self.alike, strict=True)
        ]
        means, squares = np.array(mixed).T
        return means, squares - means**2


def main() -> None:
    """Measure, print, and end with one JSON object on the last line."""
    options = model_parser(__doc__, "fewer trials and simulated studies")
    options.add_argument("--prompts", type=int, help="the shortest ones of the probe set's questions")
    options.add_argument("--tokens", type=int, default=4)
    options.add_argument("--threads", type=int, default=2)
    arguments = options.parse_args()
    keys = QUICK_KEYS if arguments.quick else KEYS
    trials = arguments.trials or (200 if arguments.quick else 1200)
    prompts = arguments.prompts or (4 if arguments.quick else 8)
    simulated = 10 if arguments.quick else 40
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder) / "task.jsonl"
        task.write_text(questions(prompts, arguments.tokens), encoding="utf-8")
        run = {
            "trials": trials,
            "plan": "neyman",
            "strata": list(keys),
            "seed": 1,
            "items_per_fault": prompts,
            "batch_items": prompts,
            "noise": 2,
            "traced": 0,
            "threads": arguments.threads,
        }
        model = {"spec": arguments.model, "dtype": arguments.dtype, "device": arguments.device}
        plan = make_plan(check_settings({"model": model, "task": {"spec": str(task)}, "run": run}, "benchmark"))
        study = run_study(plan, Path(folder) / "study", executor=FastExecutor(plan.model))
        decoding = decoded_seconds(plan, 4 if arguments.quick else 20)
    population = population_of(plan, study)
    fast = study.seconds / len(study.trials)
    components = per_component(plan, population, simulated)
    time_to = time_to_a_point(components, fast, decoding)
    summary = summarise(study)
    needed = {f"±{100 * margin:g} points": trials_needed(population, margin, simulated) for margin in MARGINS}
    report = {
        "benchmark": "stopping",
        "what": f"{prompts} prompts x {arguments.tokens} tokens, single-bit faults by component, strata by "
        + " x ".join(keys),
        "model": arguments.model,
        "dtype": arguments.dtype,
        "device": plan.environment.device,
        **environment(),
        "quick": arguments.quick,
        "n": len(study.trials),
        "simulated_studies": simulated,
        "seconds": round(time.perf_counter() - started, 1),
        "figures": {
            "strata": len(plan.strata),
            "sdc_rate": [summary.sdc_rate.estimate, summary.sdc_rate.low, summary.sdc_rate.high],
            "audit": None if summary.audit is None else summary.audit.model_dump(),
            "design_effect": design_effects(plan, population, study),
            "trials_needed": needed,
            "components": components,
            "time_to_a_point": time_to,
        },
        "checks": [
            check("time to every component within ±1 point, fixed n", time_to["fixed_n"]["ratio"], TARGET),
            check("time to every component within ±1 point, anytime-valid", time_to["anytime"]["ratio"], TARGET),
        ],
    }
    print(json.dumps(report))


def check(name: str, value: float, target: float) -> dict[str, Any]:
    """One figure beside its target."""
    return {"name": name, "value": value, "target": target, "unit": "times", "met": value >= target}


def questions(prompts: int, tokens: int) -> str:
    """The shortest questions of the probe set as a task file: answers of so many tokens, judged against golden's."""
    asked = [item for item in probe_items() if item.kind == "generation"]
    asked.sort(key=lambda item: len(item.contexts[0]))
    lines = [
        {
            "id": item.id,
            "group": item.group,
            "kind": "generation",
            "contexts": list(item.contexts),
            "max_new_tokens": tokens,
        }
        for item in asked[:prompts]
    ]
    return "\n".join(map(json.dumps, lines))


def decoded_seconds(plan: Plan, count: int) -> list[float]:
    """Seconds of trials of the per-trial loop: all prompts decoded token by token under the fault, in one batch."""
    reference = ReferenceExecutor(plan.model)
    (batch,) = plan.batches
    reference.decoded(batch, ())
    seconds = []
    for trial in np.linspace(0, sum(plan.rounds[0].counts) - 1, count).astype(int).tolist():
        faults = plan.faults_of(trial)
        begin = time.perf_counter()
        reference.decoded(batch, faults)
        seconds.append(time.perf_counter() - begin)
    return seconds


def population_of(plan: Plan, study: StoredStudy) -> Population:
    """What the records show of each stratum."""
    shares: dict[str, list[float]] = {stratum.name: [] for stratum in plan.strata}
    alike: dict[tuple[str, str], list[float]] = {}
    kind = {
        stratum.name: (stratum.cells[0].labels["site"], stratum.cells[0].labels["bit_class"]) for stratum in plan.strata
    }
    for record in study.trials:
        if record.sdc_share is not None and record.stratum is not None:
            shares[record.stratum].append(record.sdc_share)
            alike.setdefault(kind[record.stratum], []).append(record.sdc_share)
    return Population(
        np.array([stratum.chance for stratum in plan.strata]),
        tuple(np.array(shares[stratum.name] or alike[kind[stratum.name]]) for stratum in plan.strata),
        tuple(np.array(alike[kind[stratum.name]]) for stratum in plan.strata),
    )


def design_effects(plan: Plan, population: Population, study: StoredStudy) -> dict[str, Any]:
    """Variance of a uniform fault over that of a stratified one, for the best allocation and for the one of which half
    is proportional; the spread is over resampled trials of each stratum."""
    rng = generator(1, 0, "design effect")

    def effects(of: Population) -> tuple[float, float]:
        means, variances = of.moments()
        uniform = float(of.chances @ (variances + means**2) - (of.chances @ means) ** 2)
        best = float((of.chances * np.sqrt(variances)).sum() ** 2)
        floored = 0.5 * of.chances + 0.5 * of.chances * np.sqrt(variances) / (of.chances * np.sqrt(variances)).sum()
        return uniform / best, uniform / float((of.chances**2 * variances / floored).sum())

    resampled = np.array(
        [
            effects(
                Population(
                    population.chances,
                    tuple(rng.choice(own, own.size) for own in population.own),
                    population.alike,
                )
            )
            for _ in range(400)
        ]
    )
    best, floored = effects(population)
    return {
        "best_allocation": {"value": round(best, 2), "spread": quartiles(resampled[:, 0].tolist())},
        "with_a_proportional_half": {"value": round(floored, 2), "spread": quartiles(resampled[:, 1].tolist())},
        "trials_by_stratum": quartiles([float(own.size) for own in population.own]),
        "trials": len(study.trials),
        "strata": len(plan.strata),
    }


Half = Callable[[np.ndarray, Design], Estimate]


def trials_until(population: Population, margin: float, interval: Half, *, pilot: int, index: int) -> int:
    """Trials of a simulated study, allocated anew round by round, until its interval is +- `margin` wide."""
    rng = generator(1, index, "simulated study")
    size = population.chances.size
    empty = np.empty(0, dtype=np.int64)
    shares, design, number, end = np.empty(0), Design(empty, population.chances, empty), 0, pilot
    while True:
        spreads = np.sqrt(stratum_variances(shares, design)) if number else np.ones(size)
        more = end - shares.size
        strata = np.repeat(np.arange(size), neyman_allocation(population.chances, spreads, more))
        shares = np.append(shares, population.drawn(strata, rng))
        rounds = np.append(design.rounds, np.full(more, number))
        design = Design(np.append(design.strata, strata), population.chances, rounds)
        if (number and wide(interval(shares, design)) <= margin) or end >= MOST:
            return end
        number, end = number + 1, end + max(size, pilot // 2, round(end * (GROWTH - 1)))


def wide(found: Estimate) -> float:
    """The larger distance from the estimate to a bound."""
    return max(found.high - found.estimate, found.estimate - found.low)


def uniform_until(population: Population, margin: float, interval: Half, *, pilot: int, index: int) -> int:
    """The same for faults drawn as the population has them."""
    rng = generator(1, index, "simulated uniform study")
    strata = rng.choice(population.chances.size, MOST, p=population.chances)
    shares = population.drawn(strata, rng)
    ends = [pilot]
    while ends[-1] < MOST:
        ends.append(min(MOST, ends[-1] + max(pilot // 2, round(ends[-1] * (GROWTH - 1)))))
        end = ends[-1]
        zeros = np.zeros(end, dtype=np.int64)
        rounds = np.searchsorted(ends, np.arange(end), side="right")
        if wide(interval(shares[:end], Design(zeros, np.ones(1), rounds))) <= margin:
            break
    return ends[-1]


def fixed(shares: np.ndarray, design: Design) -> Estimate:
    """The interval of a fixed number of faults."""
    return weighted_interval(shares, design)


def plain(shares: np.ndarray, _: Design) -> Estimate:
    """The interval of a fixed number of faults drawn uniformly."""
    return cluster_interval(shares)


def anytime(margin: float) -> Half:
    """The interval that holds at every look, made for a margin."""
    return lambda shares, design: anytime_interval(shares, margin, design)


def trials_needed(population: Population, margin: float, simulated: int) -> dict[str, Any]:
    """Trials for the overall rate within the margin, each way, and the ratio of the means."""
    pilot = 2 * population.chances.size

    def each(until: Callable[..., int], interval: Half) -> list[int]:
        return [until(population, margin, interval, pilot=pilot, index=index) for index in range(simulated)]

    found = {
        "fixed_n": (each(uniform_until, plain), each(trials_until, fixed)),
        "anytime": (each(uniform_until, anytime(margin)), each(trials_until, anytime(margin))),
    }
    return {
        name: {
            "uniform": {"mean": round(float(np.mean(uniform))), "spread": quartiles(uniform)},
            "stratified": {"mean": round(float(np.mean(stratified))), "spread": quartiles(stratified)},
            "ratio": round(float(np.mean(uniform) / np.mean(stratified)), 2),
        }
        for name, (uniform, stratified) in found.items()
    }


def per_component(plan: Plan, population: Population, simulated: int) -> dict[str, Any]:
    """Trials for each component's own rate within a point: strata of bit class x stage x kind of site within it."""
    found = {}
    for component in dict.fromkeys(stratum.component for stratum in plan.strata):
        own = population.part([n for n, stratum in enumerate(plan.strata) if stratum.component == component])
        pilot = max(100, 2 * own.chances.size)
        counts = {
            name: [trials_until(own, POINT, interval, pilot=pilot, index=index) for index in range(simulated)]
            for name, interval in (("fixed_n", fixed), ("anytime", anytime(POINT)))
        }
        found[component] = {
            "rate": round(float(own.chances @ own.moments()[0]), 4),
            "strata": own.chances.size,
            **{name: {"mean": round(float(np.mean(n))), "spread": quartiles(n)} for name, n in counts.items()},
        }
    return found


def time_to_a_point(components: dict[str, Any], fast: float, decoding: Sequence[float]) -> dict[str, Any]:
    """Trials x seconds on both sides."""
    each = sample_size(2**62, POINT)
    slow = float(np.mean(decoding))
    baseline = each * len(components) * slow
    figures: dict[str, Any] = {
        "baseline": {
            "trials": each * len(components),
            "seconds_per_trial": round(slow, 4),
            "spread": quartiles(decoding),
            "hours": round(baseline / 3600, 2),
            "arithmetic": f"{each} trials x {len(components)} components x {slow:.4f} s",
        },
        "fast_seconds_per_trial": round(fast, 4),
    }
    for name in ("fixed_n", "anytime"):
        trials = sum(one[name]["mean"] for one in components.values())
        figures[name] = {
            "trials": trials,
            "hours": round(trials * fast / 3600, 2),
            "ratio": round(baseline / (trials * fast), 2),
            "of_trials": round(each * len(components) / trials, 2),
            "of_seconds_per_trial": round(slow / fast, 2),
            "arithmetic": f"{baseline:.0f} s / ({trials} trials x {fast:.4f} s)",
        }
    return figures


def quartiles(values: Sequence[float]) -> list[float]:
    """Minimum, quartiles and maximum."""
    return [round(float(value), 4) for value in np.quantile(values, [0, 0.25, 0.5, 0.75, 1])]


if __name__ == "__main__":
    main()
