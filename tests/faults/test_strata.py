"""Strata: chances that add up, and draws that are the selection's own, given the stratum."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare, ks_2samp

from aftershock.errors import InputError
from aftershock.faults import Fault, Selection, Stratum, cell_faults, labels, sample_faults, select, stratify
from aftershock.models import ComponentMap
from aftershock.numerics import format_of, generator
from tiny_models import tiny_loaded

FP16 = format_of("float16")
KEYS = ("site", "component", "bit_class", "stage")
STEPS = 4
DRAWS = 1200
LEAST_P = 1e-3
"""Seeds are fixed, so a test that passes once passes always."""


@pytest.fixture(scope="module")
def llama() -> ComponentMap:
    return tiny_loaded("llama").components


def strata_of(model: ComponentMap, by: tuple[Any, ...] = KEYS, /, decode_chance: float = 1.0, **keys: Any):
    selection = Selection(**keys)
    return stratify(selection, select(selection, model), FP16, by, decode_chance)


def label(fault: Fault, model: ComponentMap) -> tuple[str, str, str, str]:
    found = labels((fault,), model, FP16)
    return found.site, found.component, found.bit_class, found.stage


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"draw": "uniform"},
        {"draw": "by_tensor", "weight_trigger": "transient"},
        {"weight_trigger": "from decode:2", "stages": ("first_token", "decode"), "bit_classes": ("sign", "exponent")},
        {"corruption": "replace", "value": 0.0, "sites": ("activation",), "components": ("lm_head", "q")},
    ],
)
@pytest.mark.parametrize("decode_chance", [1.0, 0.3])
def test_chances_add_up_to_one(llama, keys, decode_chance):
    strata = strata_of(llama, decode_chance=decode_chance, **keys)
    assert sum(stratum.chance for stratum in strata) == pytest.approx(1)
    assert min(stratum.chance for stratum in strata) > 0
    assert len({stratum.name for stratum in strata}) == len(strata)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"draw": "uniform", "stages": ("prefill", "decode")},
        {"draw": "by_tensor", "weight_trigger": "transient", "bits": (3, 10, 14, 15)},
        {"weight_trigger": "lasting", "sites": ("weight",), "components": ("q", "norm")},
        {"sites": ("key", "value", "weight"), "components": ("kv", "q", "o")},
        {"sites": ("head_output", "activation"), "components": ("sv", "q", "lm_head"), "draw": "uniform"},
    ],
)
def test_chances_are_those_of_the_draws_of_the_whole_selection(llama, keys):
    keys = {"components": ("q", "norm", "lm_head", "embedding+lm_head"), **keys}
    selection = Selection(**keys)
    population = select(selection, llama)
    expected = {stratum.name: stratum.chance for stratum in strata_of(llama, **keys)}
    drawn = Counter(
        " ".join(label(sample_faults(selection, population, FP16, STEPS, 3, index)[0], llama)) for index in range(DRAWS)
    )
    assert drawn.keys() <= expected.keys()
    common = [name for name, chance in expected.items() if chance * DRAWS >= 5]
    rest = DRAWS - sum(drawn[name] for name in common)
    shares = [expected[name] for name in common]
    counts = [drawn[name] for name in common]
    if sum(shares) < 1 - 1e-9:
        counts.append(rest)
        shares.append(1 - sum(shares))
    assert chisquare(counts, np.array(shares) / sum(shares) * DRAWS).pvalue > LEAST_P


@pytest.mark.parametrize("draw", ["by_component", "uniform", "by_tensor"])
def test_a_draw_within_a_stratum_is_the_selections_given_the_stratum(llama, draw):
    """Tensor, channel, bit, pass and token of the faults of one component, drawn whole and kept, or drawn there."""
    keys = {"draw": draw, "components": ("q", "down"), "weight_trigger": "transient"}
    selection = Selection(**keys)
    population = select(selection, llama)
    strata = {stratum.name: stratum for stratum in strata_of(llama, ("component",), **keys)}
    whole = [sample_faults(selection, population, FP16, STEPS, 5, index)[0] for index in range(DRAWS)]
    kept = [fault for fault in whole if labels((fault,), llama, FP16).component == "q"]
    own = draws(strata["q"], len(kept))
    for view in (
        lambda fault: (type(fault.site).__name__, str(fault.site).split("[")[0], fault.trigger.first),
        lambda fault: fault.corruption.bits,
    ):
        counted = [Counter(map(view, faults)) for faults in (kept, own)]
        outcomes = [name for name in counted[0] | counted[1] if counted[0][name] + counted[1][name] >= 10]
        pairs = np.array([[one[name] for name in outcomes] for one in counted])
        expected = pairs.sum(axis=0) * pairs.sum(axis=1, keepdims=True) / pairs.sum()
        assert chisquare(pairs.ravel(), expected.ravel(), ddof=len(outcomes)).pvalue > LEAST_P
    tokens = [[f.trigger.token for f in faults if f.trigger.token is not None] for faults in (kept, own)]
    assert ks_2samp(*tokens).pvalue > LEAST_P


def draws(stratum: Stratum, count: int) -> list[Fault]:
    faults = []
    for index in range(count):
        (fault,) = cell_faults(stratum.cell(7, index), FP16, STEPS, 7, index)
        faults.append(fault)
    return faults


def test_every_fault_of_a_stratum_bears_its_labels(llama):
    for stratum in strata_of(llama, weight_trigger="transient"):
        for index in range(3):
            (fault,) = cell_faults(stratum.cell(1, index), FP16, STEPS, 1, index)
            assert " ".join(label(fault, llama)) == stratum.name


def test_bits_one_by_one(llama):
    strata = strata_of(llama, ("bit",), bit_classes=("exponent",))
    assert [stratum.name for stratum in strata] == [f"bit {bit}" for bit in FP16.bits_of("exponent")]
    assert [stratum.chance for stratum in strata] == pytest.approx([0.2] * 5)
    for fault in draws(strata[2], 20):
        assert fault.corruption.bits == (12,)


def test_the_head_has_no_prefill(llama):
    strata = strata_of(llama, ("component", "stage"), sites=("activation",))
    assert not any(stratum.name == "lm_head prefill" for stratum in strata)
    assert any(stratum.name == "lm_head decode" for stratum in strata)


@pytest.mark.parametrize("has_decode", [True, False])
def test_items_are_drawn_until_they_allow_the_stage(llama, has_decode):
    """Given items without decode steps, prefill and first_token share the draws that decode would have had."""
    cells = {c.labels["stage"]: c for s in strata_of(llama, ("stage",), sites=("activation",)) for c in s.cells}
    random = generator(2, 0, "test")
    allowed = {name: np.mean([cell.allows(has_decode, random) for _ in range(2000)]) for name, cell in cells.items()}
    expected = {name: 1 / 3 if has_decode else 0.5 * (name != "decode") for name in allowed}
    assert allowed == pytest.approx(expected, abs=0.04)


def test_decode_takes_its_share_of_the_trials_that_have_it(llama):
    chances = {s.name: s.chance for s in strata_of(llama, ("stage",), sites=("activation",), decode_chance=0.4)}
    assert chances == pytest.approx({"prefill": 0.4 / 3 + 0.3, "first_token": 0.4 / 3 + 0.3, "decode": 0.4 / 3})


@pytest.mark.parametrize(
    "keys", [{"count": 2}, {"bits_per_word": 2}, {"rate": 1e-6, "sites": ("weight",), "draw": "uniform"}]
)
def test_several_faults_in_a_trial_are_refused(llama, keys):
    with pytest.raises(InputError, match="one fault"):
        strata_of(llama, **keys)


def test_a_pattern_is_not_cut_into_strata() -> None:
    components = tiny_loaded("llama").components
    selection = Selection(sites=("weight",), pattern="row", span=2)
    with pytest.raises(InputError, match="leave count, rate, bits_per_word and pattern out"):
        stratify(selection, select(selection, components), format_of("float16"), ("component",), 1.0)
