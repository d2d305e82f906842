"""Do the intervals hold what they promise? `python -m benchmarks.coverage --json`.

Studies of simulated faults whose true rate is known: strata of given chances and rates, items that share their fault's
fate (beta-binomial), rounds allocated by Neyman's rule from what the rounds before found. For each population:

- the share of studies whose fixed-n interval holds the truth at the end;
- the share whose anytime-valid interval holds it at every look, and at the look at which the study stops (the first at
  which it is as narrow as asked);
- beside them a uniform sample of as many faults with `cluster_interval`, at its end and looked at in the same way;
- the mean half widths, in points, and the bias of the weighted estimate in its own standard errors;
- the bias, as a share of the truth, of weights that take all rounds together, which are not used for that reason.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from aftershock.numerics import generator
from aftershock.stats import (
    Design,
    Estimate,
    anytime_interval,
    cluster_interval,
    neyman_allocation,
    stratum_variances,
    weighted_interval,
    wilson,
)
from benchmarks.arguments import parser
from benchmarks.environment import environment

ITEMS = 8
ENDS = (120, 180, 270, 405, 600, 900, 1350, 2000)
MARGIN = 0.015


@dataclass(frozen=True)
class Population:
    """Strata: their chances (summing to 1), the rate of each, and how far items share their fault's fate."""

    name: str
    chances: tuple[float, ...]
    rates: tuple[float, ...]
    correlation: float

    @property
    def truth(self) -> float:
        """The rate of the whole population."""
        return float(np.dot(self.chances, self.rates))


BITS = (1 / 32, 8 / 32, 23 / 32)
POPULATIONS = tuple(
    Population(f"{name}, correlation {correlation}", chances, rates, correlation)
    for correlation in (0.3, 1.0)
    for name, chances, rates in (
        ("one stratum, 5 %", (1.0,), (0.05,)),
        ("one stratum, 0.3 %", (1.0,), (0.003,)),
        ("three bit classes", BITS, (0.2, 0.15, 0.002)),
        ("three bit classes, harm in the one least sampled", BITS, (0.0, 0.0, 0.005)),
        ("one bit that always harms", BITS, (1.0, 0.0, 0.0)),
        (
            "nine components of three bit classes",
            tuple(share / 9 for _ in range(9) for share in BITS),
            tuple(rate * scale / 4 for scale in range(9) for rate in (0.3, 0.14, 0.003)),
        ),
        ("sixty thin strata, all rare", (1 / 60,) * 60, (0.003,) * 60),
    )
)


def main() -> None:
    """Simulate, print, and end with one JSON object on the last line."""
    options = parser(__doc__, "fewer studies")
    options.add_argument("--studies", type=int, help="simulated studies of each population")
    arguments = options.parse_args()
    studies = arguments.studies or (200 if arguments.quick else 2000)
    started = time.perf_counter()
    figures = {population.name: figures_of(population, studies) for population in POPULATIONS}
    print(
        json.dumps(
            {
                "benchmark": "coverage",
                "what": f"simulated studies of {ENDS[-1]} faults x {ITEMS} items, looked at after {list(ENDS)}",
                **environment(),
                "quick": arguments.quick,
                "n": studies,
                "margin": MARGIN,
                "seconds": round(time.perf_counter() - started, 1),
                "populations": [asdict(population) for population in POPULATIONS],
                "figures": figures,
                "checks": checks(figures, studies),
            }
        )
    )


def figures_of(population: Population, studies: int) -> dict[str, Any]:
    """Coverage, widths and bias for one population."""
    truth = population.truth
    ends, looks, stops, uniform, peeked, pooled = [], [], [], [], [], []
    for index in range(studies):
        shares, design = stratified(population, index)
        ends.append(weighted_interval(shares, design))
        seen = [anytime_interval(*until(shares, design, end)) for end in ENDS]
        looks.append(all(holds(one, truth) for one in seen))
        stops.append(next((one for one in seen if (one.high - one.low) / 2 <= MARGIN), seen[-1]))
        one_round = Design(design.strata, design.chances, np.zeros_like(design.rounds))
        pooled.append(weighted_interval(shares, one_round).estimate)
        plain = uniform_shares(population, index)
        uniform.append(cluster_interval(plain))
        peeked.append(all(holds(cluster_interval(plain[:end]), truth) for end in ENDS))
    estimates = np.array([one.estimate for one in ends])
    error = float(estimates.std() / np.sqrt(studies))
    return {
        "truth": truth,
        "fixed_n": coverage([holds(one, truth) for one in ends]),
        "anytime_every_look": coverage(looks),
        "anytime_where_it_stops": coverage([holds(one, truth) for one in stops]),
        "uniform_fixed_n": coverage([holds(one, truth) for one in uniform]),
        "uniform_fixed_n_every_look": coverage(peeked),
        "half_width_points": {
            "fixed_n": half_width(ends),
            "uniform_fixed_n": half_width(uniform),
        },
        "bias_of_pooled_weights": round(float(np.mean(pooled)) / truth - 1, 4),
        # Below 1e-9 there is nothing but rounding: every study found the truth.
        "bias_in_standard_errors": round((float(estimates.mean()) - truth) / max(error, 1e-9), 2),
    }


def stratified(population: Population, index: int) -> tuple[np.ndarray, Design]:
    """Shares and design of one study, allocated round by round."""
    chances, rates = np.array(population.chances), np.array(population.rates)
    rng = generator(1, index, f"stratified {population.name}")
    empty = np.empty(0, dtype=np.int64)
    shares, design = np.empty(0), Design(empty, chances, empty)
    for number, (begin, end) in enumerate(pairwise((0, *ENDS))):
        spreads = np.sqrt(stratum_variances(shares, design)) if begin else np.ones(chances.size)
        strata = np.repeat(np.arange(chances.size), neyman_allocation(chances, spreads, end - begin))
        shares = np.append(shares, drawn(rates[strata], population.correlation, rng))
        rounds = np.append(design.rounds, np.full(end - begin, number))
        design = Design(np.append(design.strata, strata), chances, rounds)
    return shares, design


def uniform_shares(population: Population, index: int) -> np.ndarray:
    """Shares of as many faults, drawn as the population has them."""
    rng = generator(1, index, f"uniform {population.name}")
    strata = rng.choice(len(population.chances), ENDS[-1], p=population.chances)
    return drawn(np.array(population.rates)[strata], population.correlation, rng)


def drawn(rates: np.ndarray, correlation: float, rng: np.random.Generator) -> np.ndarray:
    """Share of failed items of faults with these rates, beta-binomial; correlation 1: all items or none."""
    if correlation == 1:
        return (rng.random(rates.size) < rates).astype(np.float64)
    scale = 1 / correlation - 1
    inside = rates.clip(1e-9, 1 - 1e-9)
    chances = rng.beta(inside * scale, (1 - inside) * scale)
    return np.asarray(rng.binomial(ITEMS, chances) / ITEMS)


def until(shares: np.ndarray, design: Design, end: int) -> tuple[np.ndarray, float, Design]:
    """A study as it stood after `end` faults, with the margin asked for."""
    return shares[:end], MARGIN, Design(design.strata[:end], design.chances, design.rounds[:end])


def holds(interval: Estimate, truth: float) -> bool:
    """Whether the interval contains the truth (rounding aside)."""
    return interval.low - 1e-12 <= truth <= interval.high + 1e-12


def coverage(covered: Sequence[bool]) -> dict[str, float]:
    """Share of studies, with its 95 % interval."""
    found = wilson(sum(covered), len(covered))
    return {"value": round(found.estimate, 4), "low": round(found.low, 4), "high": round(found.high, 4)}


def half_width(intervals: Sequence[Estimate]) -> float:
    """Mean half width in percentage points."""
    return round(float(np.mean([50 * (one.high - one.low) for one in intervals])), 3)


def checks(figures: dict[str, dict[str, Any]], studies: int) -> list[dict[str, Any]]:
    """The lowest coverage over the populations, against 95 % less three standard errors of the simulation."""
    target = round(0.95 - 3 * (0.05 * 0.95 / studies) ** 0.5, 4)
    names = {
        "fixed_n": "fixed-n interval of a stratified study",
        "anytime_every_look": "anytime-valid interval, at every look",
        "anytime_where_it_stops": "anytime-valid interval, where the study stops",
    }
    covered = [(text, min(found[key]["value"] for found in figures.values())) for key, text in names.items()]
    bias = max(abs(found["bias_in_standard_errors"]) for found in figures.values())
    return [
        {
            "name": f"{text}, lowest coverage of {len(figures)} populations",
            "value": value,
            "target": target,
            "unit": "share",
            "met": value >= target,
        }
        for text, value in covered
    ] + [
        {
            "name": "largest bias of the weighted estimate",
            "value": bias,
            "target": "below 4",
            "unit": "standard errors",
            "met": bias < 4,
        }
    ]


if __name__ == "__main__":
    main()
