"""Strata of stored words: fields of several widths, tensors that share them out differently."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from aftershock.faults import Fault, Selection, cell_faults, labels, sample_faults, select, stratify
from aftershock.models import ComponentMap, StoredSite
from aftershock.numerics import format_of
from tiny_models import tiny_loaded

FP16, FP32 = format_of("float16"), format_of("float32")
KEYS = ("site", "component", "bit_class", "stage")
STEPS, DRAWS = 4, 1000
LEAST_P = 1e-3
"""Seeds are fixed, so a test that passes once passes always."""

SELECTIONS: list[dict[str, Any]] = [
    {},
    {"draw": "uniform", "weight_trigger": "transient"},
    {"draw": "by_tensor", "stages": ("prefill", "decode"), "weight_trigger": "transient"},
    {"draw": "by_tensor", "bits": (3, 14, 30)},
    # Tensors without such a bit are not drawn.
    {"draw": "by_tensor", "bits": (30,)},
    {"bits": (30, 31)},
    {"draw": "by_component", "bits": (0, 1, 2, 3, 10, 15), "fields": ("scale", "quant")},
]


@pytest.fixture(scope="module")
def packed() -> ComponentMap:
    """A Llama: every other tensor has 4-bit quants and many scales in fp16, the others bytes and one in fp32 a row."""
    components = tiny_loaded("llama").components
    stored = []
    for number, share in enumerate(share for share in components.parameters if share.component in ("q", "k", "down")):
        if number % 2:
            stored += [StoredSite(share, "quant", 32, 4, None), StoredSite(share, "scale", 8, 16, FP16)]
            stored += [StoredSite(share, "zero", 8, 4, None)]
        else:
            stored += [StoredSite(share, "quant", 32, 8, None), StoredSite(share, "scale", 1, 32, FP32)]
    return replace(components, stored=tuple(stored))


def strata_of(model: ComponentMap, by: tuple[Any, ...], keys: dict[str, Any]):
    selection = Selection(sites=("stored",), **keys)
    return stratify(selection, select(selection, model), FP16, by, 1.0)


def whole(model: ComponentMap, keys: dict[str, Any], count: int, seed: int) -> list[Fault]:
    selection = Selection(sites=("stored",), **keys)
    population = select(selection, model)
    return [sample_faults(selection, population, FP16, STEPS, seed, index)[0] for index in range(count)]


def name_of(fault: Fault, model: ComponentMap) -> str:
    found = labels((fault,), model, FP16)
    return " ".join(getattr(found, key) for key in KEYS)


@pytest.mark.parametrize("keys", SELECTIONS)
def test_chances_are_those_of_the_draws_of_the_whole_selection(packed: ComponentMap, keys: dict[str, Any]) -> None:
    expected = {stratum.name: stratum.chance for stratum in strata_of(packed, KEYS, keys)}
    assert sum(expected.values()) == pytest.approx(1)
    assert min(expected.values()) > 0
    found = Counter(name_of(fault, packed) for fault in whole(packed, keys, DRAWS, 3))
    assert found.keys() <= expected.keys()
    names = [name for name, chance in expected.items() if chance * DRAWS >= 5]
    counts, shares = [found[name] for name in names], [expected[name] for name in names]
    if sum(shares) < 1 - 1e-9:
        counts.append(DRAWS - sum(counts))
        shares.append(1 - sum(shares))
    if len(counts) > 1:
        assert chisquare(counts, np.array(shares) / sum(shares) * DRAWS).pvalue > LEAST_P


@pytest.mark.parametrize("keys", SELECTIONS)
@pytest.mark.parametrize("by", [("component",), ("bit",)])
def test_a_draw_within_a_stratum_is_the_selections_given_the_stratum(
    packed: ComponentMap, by: tuple[str, ...], keys: dict[str, Any]
) -> None:
    """Tensor, field and bit of drawn faults: drawn whole, or a stratum first and then in it."""
    strata = strata_of(packed, by, keys)
    chances = np.array([stratum.chance for stratum in strata])
    picked = np.random.default_rng(1).choice(len(strata), DRAWS, p=chances / chances.sum())
    own = [
        cell_faults(strata[place].cell(7, index), FP16, STEPS, 7, index)[0]
        for index, place in enumerate(picked.tolist())
    ]
    counted = [
        Counter((fault.site.parameter, fault.site.field, max(fault.corruption.bits) // 8) for fault in faults)
        for faults in (whole(packed, keys, DRAWS, 5), own)
    ]
    # Rare ones together.
    outcomes = [name for name in counted[0] | counted[1] if counted[0][name] + counted[1][name] >= 10]
    pairs = np.array([[one[name] for name in outcomes] for one in counted])
    expected = pairs.sum(axis=0) * pairs.sum(axis=1, keepdims=True) / pairs.sum()
    assert chisquare(pairs.ravel(), expected.ravel(), ddof=len(outcomes)).pvalue > LEAST_P


def test_every_fault_of_a_stratum_bears_its_labels(packed: ComponentMap) -> None:
    keys = {"draw": "by_tensor", "weight_trigger": "transient"}
    strata = strata_of(packed, KEYS, keys)
    assert {stratum.name.split(" ", 2)[2] for stratum in strata} == {
        f"{what} {stage}"
        for what in ("quant", "zero", "scale sign", "scale exponent", "scale mantissa")
        for stage in ("prefill", "first_token", "decode")
    }
    for stratum in strata:
        for index in range(4):
            (fault,) = cell_faults(stratum.cell(1, index), FP16, STEPS, 1, index)
            assert name_of(fault, packed) == stratum.name


def test_bits_are_named_with_their_field(packed: ComponentMap) -> None:
    strata = strata_of(packed, ("bit",), {"bits": (3, 30)})
    assert [stratum.name for stratum in strata] == ["quant bit 3", "scale bit 3", "scale bit 30", "zero bit 3"]
