"""Weights of experts drawn by how often tokens choose them."""

from collections import Counter

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import chisquare

from aftershock.errors import InputError
from aftershock.faults import (
    Population,
    Selection,
    WeightSite,
    by_expert,
    cell_faults,
    check,
    labels,
    parse_faults,
    sample_faults,
    select,
    stratify,
)
from aftershock.numerics import format_of
from tiny_models import tiny_loaded

FP32 = format_of("float32")
EXPERTS = {"sites": ("weight",), "components": ("expert",), "draw": "by_use"}
USE = {0: (0.9, 0.1, 0.0, 1.0), 1: (0.5, 0.5, 0.5, 0.5)}
DRAWS = 1200


def population_of(family: str, **keys: object) -> tuple[Selection, Population]:
    selection = Selection(**{**EXPERTS, **keys})
    return selection, by_expert(select(selection, tiny_loaded(family).components), USE)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_experts_share_out_the_values_of_their_tensors(family: str) -> None:
    components = tiny_loaded(family).components
    selection, population = population_of(family)
    whole = {site.name: site for site in select(selection, components).parameters}
    held: dict[str, list[int]] = {}
    for site in population.parameters:
        held.setdefault(site.name, []).extend(site.locate(np.arange(site.numel)).tolist())
    assert held.keys() == whole.keys()
    for name, places in held.items():
        assert sorted(places) == list(range(whole[name].numel))


@pytest.mark.parametrize("keys", [{}, {"pattern": "row", "span": 3}, {"count": 2}])
def test_each_weight_is_as_likely_as_its_expert_is_used(keys: dict[str, object]) -> None:
    model = tiny_loaded("qwen2_moe").components
    selection, population = population_of("qwen2_moe", **keys)
    drawn: Counter[tuple[int | None, int | None]] = Counter()
    for index in range(DRAWS):
        for fault in sample_faults(selection, population, FP32, 4, 3, index)[:1]:
            check(fault, model, FP32)
            found = labels((fault,), model, FP32)
            assert found.component == "expert"
            drawn[found.layer, found.expert] += 1
    # Values of one expert, and of the one that all tokens share: three matrices each.
    routed, shared = 3 * 24 * 32, 3 * 20 * 32
    expected = {(layer, expert): share * routed for layer in (0, 1) for expert, share in enumerate(USE[layer])}
    expected |= {(layer, None): 1.0 * shared for layer in (0, 1)}
    assert drawn[0, 2] == 0
    names = [name for name, size in expected.items() if size]
    sizes = np.array([expected[name] for name in names])
    tolerance = 1e-3 if not keys else 1e-4
    assert chisquare([drawn[name] for name in names], sizes / sizes.sum() * DRAWS).pvalue > tolerance


def test_an_expert_is_named_by_its_number() -> None:
    model = tiny_loaded("mixtral")
    name = "model.layers.1.mlp.experts.down_proj"
    one, other = f"weight {name}[3,4,5] flip 3", f"weight {name}[1,4,5] flip 3"
    assert labels(parse_faults(one), model.components, model.format).expert == 3
    assert labels(parse_faults(f"{one} & {other}"), model.components, model.format).expert is None
    assert labels(parse_faults("weight model.norm.weight[3] flip 3"), model.components, model.format).expert is None


def test_strata_of_experts_draw_by_use_too() -> None:
    selection, population = population_of("mixtral", layers="0")
    strata = stratify(selection, population, FP32, ("bit_class",), 1.0)
    assert sum(stratum.chance for stratum in strata) == pytest.approx(1)
    chosen: Counter[int] = Counter()
    for index in range(600):
        (fault,) = cell_faults(strata[0].cell(1, index), FP32, 4, 1, index)
        assert isinstance(fault.site, WeightSite)
        chosen[fault.site.index[0]] += 1
    assert chosen[2] == 0
    assert chisquare([chosen[0], chosen[1], chosen[3]], np.array([0.45, 0.05, 0.5]) * 600).pvalue > 1e-3


def test_more_faults_than_used_experts_hold_are_refused() -> None:
    selection = Selection(**{**EXPERTS, "layers": "0", "count": 5000})
    unused = dict.fromkeys((0, 1), (0.0, 0.0, 0.0, 0.001))
    population = by_expert(select(selection, tiny_loaded("mixtral").components), unused)
    with pytest.raises(InputError, match="do not fit in the experts"):
        sample_faults(selection, population, FP32, 4, 1, 0)


@pytest.mark.parametrize("keys", [{"sites": ("weight", "activation")}, {"components": ("expert", "q")}])
def test_by_use_is_for_weights_of_experts(keys: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="is for weights of experts"):
        Selection(**{**EXPERTS, **keys})
