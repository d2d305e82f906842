"""Drawing faults: reproducible, with the distribution that each setting promises, at a cost of the draws alone."""

import tracemalloc
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from aftershock.errors import InputError
from aftershock.faults import (
    ALWAYS,
    ActivationSite,
    Add,
    Drawn,
    Fault,
    Flip,
    Population,
    Replace,
    Selection,
    StuckAt,
    WeightSite,
    check,
    distinct,
    output_site,
    parameter_site,
    parse_trigger,
    sample_faults,
    scattered_weights,
    select,
)
from aftershock.models import FIRST_TOKEN, PREFILL, ComponentMap, ParameterSite, Rows, decode, stage_of
from aftershock.numerics import format_of, generator
from tiny_models import tiny_loaded

FP16 = format_of("float16")
LEAST_P = 1e-3
"""Seeds are fixed, so a test that passes once passes always; a wrong distribution gives far smaller values."""


@pytest.fixture(scope="module")
def llama() -> ComponentMap:
    return tiny_loaded("llama").components


def draw(model: ComponentMap, count: int, decode_passes: int = 6, /, **keys: Any) -> list[tuple[Fault, ...]]:
    selection = Selection(**keys)
    population = select(selection, model)
    return [sample_faults(selection, population, FP16, decode_passes, 11, index) for index in range(count)]


def chi_square(found: Counter[Any], expected: dict[Any, float]) -> float:
    """P-value of counts against shares; everything found must be expected."""
    assert found.keys() <= expected.keys()
    total = sum(found.values())
    scale = total / sum(expected.values())
    return float(chisquare([found[key] for key in expected], [share * scale for share in expected.values()]).pvalue)


@pytest.mark.parametrize("family", ["llama", "gemma3", "phi3", "gpt2", "gpt_neox", "qwen2_moe"])
def test_every_fault_drawn_is_one_the_model_has(family: str) -> None:
    components = tiny_loaded(family).components
    for faults in draw(components, 150, count=2, draw="by_tensor") + draw(components, 100, weight_trigger="transient"):
        for fault in faults:
            check(fault, components, FP16)


@settings(max_examples=10)
@given(order=st.permutations(range(12)), keys=st.sampled_from([{}, {"count": 3}, {"draw": "uniform"}]))
def test_a_trial_depends_on_seed_and_index_alone(order: list[int], keys: dict[str, Any]) -> None:
    components = tiny_loaded("llama").components
    selection = Selection(**keys)
    population = select(selection, components)

    def sample(seed: int, index: int) -> tuple[Fault, ...]:
        return sample_faults(selection, population, FP16, 6, seed, index)

    shuffled = {index: sample(5, index) for index in order}
    assert [shuffled[index] for index in range(12)] == [sample(5, index) for index in range(12)]
    assert len(set(shuffled.values())) > 6
    assert [sample(6, index) for index in range(12)] != [sample(5, index) for index in range(12)]


def test_uniform_gives_every_stored_value_the_same_chance(llama: ComponentMap) -> None:
    drawn = draw(llama, 1000, sites=["weight"], draw="uniform", components=["norm"], layers="0")
    elements = Counter((fault.site.parameter, fault.site.index) for (fault,) in drawn)
    names = [f"model.layers.0.{name}_layernorm.weight" for name in ("input", "post_attention")]
    shares = {(name, (i,)): 1.0 for name in names for i in range(32)}
    assert chi_square(elements, shares) > LEAST_P


def test_uniform_weighs_tensors_by_their_size(llama: ComponentMap) -> None:
    drawn = draw(llama, 1000, sites=["weight"], draw="uniform")
    sizes = {site.name: float(site.numel) for site in llama.parameters}
    assert chi_square(Counter(fault.site.parameter for (fault,) in drawn), sizes) > LEAST_P


def test_by_component_weighs_components_equally_and_values_within_them(llama: ComponentMap) -> None:
    drawn = draw(llama, 1000, sites=["weight"], draw="by_component")
    components = {site.component: 1.0 for site in llama.parameters}
    found = [parameter_site(fault, llama) for (fault,) in drawn]
    assert chi_square(Counter(site.component for site in found), components) > LEAST_P
    norms = {site.name: float(site.numel) for site in llama.parameters if site.component == "norm"}
    assert chi_square(Counter(site.name for site in found if site.component == "norm"), norms) > LEAST_P


def test_by_tensor_weighs_tensors_equally(llama: ComponentMap) -> None:
    drawn = draw(llama, 1000, sites=["weight"], draw="by_tensor")
    tensors = {site.name: 1.0 for site in llama.parameters}
    assert chi_square(Counter(fault.site.parameter for (fault,) in drawn), tensors) > LEAST_P


def test_activations_are_weighed_by_the_same_rules(llama: ComponentMap) -> None:
    drawn = draw(llama, 1000, sites=["activation"], stages=["decode"], draw="by_component")
    components = {site.component: 1.0 for site in llama.outputs}
    assert chi_square(Counter(output_site(fault, llama).component for (fault,) in drawn), components) > LEAST_P
    drawn = draw(llama, 1000, sites=["activation"], components=["gate"], layers="0", draw="uniform")
    assert chi_square(Counter(fault.site.channel for (fault,) in drawn), dict.fromkeys(range(48), 1.0)) > LEAST_P


def test_kinds_of_site_are_equally_likely(llama: ComponentMap) -> None:
    kinds = Counter(type(fault.site) for (fault,) in draw(llama, 1000))
    assert chi_square(kinds, {WeightSite: 1.0, ActivationSite: 1.0}) > LEAST_P


def test_stages_and_their_passes_are_equally_likely(llama: ComponentMap) -> None:
    for keys in ({"sites": ["activation"], "components": ["q"]}, {"sites": ["weight"], "weight_trigger": "transient"}):
        triggers = [fault.trigger for (fault,) in draw(llama, 1000, **keys)]
        assert all(trigger.transient for trigger in triggers)
        stages = Counter(stage_of(trigger.first) for trigger in triggers)
        assert chi_square(stages, {"prefill": 1.0, "first_token": 1.0, "decode": 1.0}) > LEAST_P
        steps = Counter(trigger.first for trigger in triggers if trigger.first > FIRST_TOKEN)
        assert chi_square(steps, {decode(step): 1.0 for step in range(1, 7)}) > LEAST_P


def test_words_of_the_cache_are_drawn_evenly(llama: ComponentMap) -> None:
    drawn = draw(llama, 1000, sites=["key", "value"], layers="1", cache_trigger="transient")
    sites = [fault.site for (fault,) in drawn]
    assert chi_square(Counter(site.part for site in sites), {"key": 1.0, "value": 1.0}) > LEAST_P
    places = {(head, channel): 1.0 for head in range(2) for channel in range(8)}
    assert chi_square(Counter((site.head, site.channel) for site in sites), places) > LEAST_P
    stages = Counter(stage_of(site.entry.number) for site in sites)
    assert chi_square(stages, {"prefill": 1.0, "first_token": 1.0, "decode": 1.0}) > LEAST_P
    # Read in a pass from its own to the last.
    reads = Counter(fault.trigger.first for (fault,) in drawn if fault.site.entry.number == decode(4))
    assert chi_square(reads, {decode(step): 1.0 for step in (4, 5, 6)}) > LEAST_P
    assert {fault.trigger for (fault,) in draw(llama, 50, sites=["key"])} == {ALWAYS}
    for (fault,) in drawn:
        check(fault, llama, FP16)


def test_values_of_attention_heads_are_drawn_evenly() -> None:
    components = tiny_loaded("llama", attn_implementation="eager").components
    drawn = draw(components, 1500, sites=["score", "probability", "head_output"], layers="1")
    sites = [fault.site for (fault,) in drawn]
    kinds = Counter(site.part for site in sites)
    assert chi_square(kinds, {"score": 1.0, "probability": 1.0, "head_output": 1.0}) > LEAST_P
    channels = {(head, channel): 1.0 for head in range(4) for channel in range(8)}
    assert chi_square(Counter((s.head, s.place) for s in sites if s.part == "head_output"), channels) > LEAST_P
    keys = [site for site in sites if site.part != "head_output"]
    assert chi_square(Counter(site.head for site in keys), dict.fromkeys(range(4), 1.0)) > LEAST_P
    assert kstest([site.place for site in keys], "uniform").pvalue > LEAST_P
    stages = Counter(stage_of(fault.trigger.first) for (fault,) in drawn)
    assert chi_square(stages, {"prefill": 1.0, "first_token": 1.0, "decode": 1.0}) > LEAST_P
    for (fault,) in drawn:
        check(fault, components, FP16)


def test_heads_struck_together_have_one_key() -> None:
    components = tiny_loaded("llama", attn_implementation="eager").components
    for faults in draw(components, 20, sites=["score"], pattern="column", span=3):
        assert len({(fault.site.module, fault.site.place, fault.trigger) for fault in faults}) == 1
        first = faults[0].site.head
        assert [fault.site.head for fault in faults] == [first, first + 1, first + 2]


def test_decode_steps_stay_in_their_range(llama: ComponentMap) -> None:
    keys = {"sites": ["activation"], "stages": ["decode"], "decode_steps": (3, 5)}
    assert {fault.trigger.first for (fault,) in draw(llama, 200, 9, **keys)} == {decode(3), decode(4), decode(5)}
    # Answers may be shorter than the range asked for.
    assert {fault.trigger.first for (fault,) in draw(llama, 100, 4, **keys)} == {decode(3), decode(4)}
    with pytest.raises(InputError, match="raise max_new_tokens"):
        draw(llama, 1, 2, **keys)


def test_a_stage_that_can_not_occur_is_not_drawn(llama: ComponentMap) -> None:
    drawn = draw(llama, 100, 0, sites=["activation"], components=["q"])
    assert {fault.trigger.first for (fault,) in drawn} == {PREFILL, FIRST_TOKEN}


def test_prefill_tokens_stay_in_their_range_and_are_uniform(llama: ComponentMap) -> None:
    drawn = draw(llama, 1000, sites=["activation"], stages=["prefill"], tokens=(0.25, 0.75))
    shares = [fault.trigger.token for (fault,) in drawn]
    assert kstest(shares, "uniform", (0.25, 0.5)).pvalue > LEAST_P
    assert min(shares) >= 0.25
    assert max(shares) < 0.75


def test_the_head_is_struck_at_answer_tokens_only(llama: ComponentMap) -> None:
    drawn = draw(llama, 200, sites=["activation"], components=["lm_head"])
    assert PREFILL not in {fault.trigger.first for (fault,) in drawn}
    beside = draw(llama, 400, sites=["activation"], components=["lm_head", "norm"], stages=["prefill"])
    assert {output_site(fault, llama).component for (fault,) in beside} == {"norm"}
    with pytest.raises(InputError, match="no prefill stage"):
        draw(llama, 1, sites=["activation"], components=["lm_head"], stages=["prefill"])


def test_weight_faults_take_the_trigger_given(llama: ComponentMap) -> None:
    drawn = draw(llama, 20, sites=["weight"], weight_trigger="from decode:2 to decode:4")
    assert {str(fault.trigger) for (fault,) in drawn} == {"from decode:2 to decode:4"}


def test_lasting_weight_faults_begin_in_a_pass_of_the_stages(llama: ComponentMap) -> None:
    drawn = [fault.trigger for (fault,) in draw(llama, 400, sites=["weight"], weight_trigger="lasting")]
    assert {trigger.end for trigger in drawn} == {None}
    begins = Counter(min(trigger.first, decode(1)) for trigger in drawn)
    assert chi_square(begins, dict.fromkeys([PREFILL, FIRST_TOKEN, decode(1)], 1.0)) > LEAST_P
    late = draw(llama, 20, sites=["weight"], weight_trigger="lasting", stages=["first_token"])
    assert {str(fault.trigger) for (fault,) in late} == {"from first_token"}


def test_bits_are_drawn_from_their_class_evenly(llama: ComponentMap) -> None:
    drawn = draw(llama, 1000, sites=["weight"], bit_classes=["exponent"])
    bits = Counter(bit for (fault,) in drawn for bit in fault.corruption.bits)
    assert chi_square(bits, dict.fromkeys(range(10, 15), 1.0)) > LEAST_P


def test_several_bits_of_a_word_differ(llama: ComponentMap) -> None:
    drawn = draw(llama, 300, sites=["weight"], bits=[1, 5, 9, 15], bits_per_word=3)
    sets = Counter(fault.corruption.bits for (fault,) in drawn)
    assert chi_square(sets, dict.fromkeys([(1, 5, 9), (1, 5, 15), (1, 9, 15), (5, 9, 15)], 1.0)) > LEAST_P
    with pytest.raises(InputError, match="only 4 bits are selected"):
        draw(llama, 1, sites=["weight"], bits=[1, 5, 9, 15], bits_per_word=5)


def test_corruptions_are_the_ones_asked_for(llama: ComponentMap) -> None:
    def corruptions(**keys: Any) -> set[Any]:
        return {fault.corruption for (fault,) in draw(llama, 60, sites=["weight"], **keys)}

    assert corruptions(bits=[3]) == {Flip((3,))}
    assert corruptions(bits=[3], corruption="stuck-at-0") == {StuckAt((3,), 0)}
    assert corruptions(bits=[3], corruption="stuck-at-1") == {StuckAt((3,), 1)}
    assert corruptions(value=2.5, corruption="replace") == {Replace(2.5)}
    amounts = [corruption.amount for corruption in corruptions(uniform=(-2, 6), corruption="add")]
    assert kstest(amounts, "uniform", (-2, 8)).pvalue > LEAST_P
    assert {type(corruption) for corruption in corruptions(uniform=(0, 1), corruption="add")} == {Add}


def test_count_gives_that_many_different_words(llama: ComponentMap) -> None:
    for mode in ("uniform", "by_component", "by_tensor"):
        for faults in draw(llama, 10, sites=["weight"], draw=mode, components=["norm"], layers="0", count=60):
            assert len({fault.site for fault in faults}) == 60
    with pytest.raises(InputError, match="65 faults do not fit in the 64 values"):
        draw(llama, 1, sites=["weight"], components=["norm"], layers="0", count=65)


def test_a_tied_tensor_is_one_site(llama: ComponentMap) -> None:
    drawn = draw(llama, 20, sites=["weight"], components=["embedding+lm_head"])
    assert {fault.site.parameter for (fault,) in drawn} == {"model.embed_tokens.weight"}


@pytest.mark.parametrize("family", ["phi3", "gpt_neox", "gpt2"])
@pytest.mark.parametrize("component", ["q", "k", "v"])
def test_draws_from_a_fused_projection_lie_in_the_rows_of_the_component(family: str, component: str) -> None:
    components = tiny_loaded(family).components
    keys = {"components": [component], "draw": "uniform", "layers": "0"}
    weights = [fault for (fault,) in draw(components, 600, sites=["weight"], **keys)]
    assert {parameter_site(fault, components).component for fault in weights} == {component}
    outputs = [fault for (fault,) in draw(components, 600, sites=["activation"], **keys)]
    assert {output_site(fault, components).component for fault in outputs} == {component}
    # Nothing of the component is left out.
    (site,) = [site for site in components.outputs if site.component == component and site.layer == 0]
    assert len({fault.site.channel for fault in outputs}) == site.features
    (matrix,) = [site for site in components.parameters if site.component == component and site.layer == 0][:1]
    assert len({fault.site.index[matrix.dim] for fault in weights if len(fault.site.index) == 2}) == site.features


def test_a_rate_gives_a_scattered_set_for_each_tensor_in_which_it_strikes(llama: ComponentMap) -> None:
    rate = 2e-4
    keys = {"sites": ["weight"], "draw": "uniform", "components": ["q"], "rate": rate}
    for faults in draw(llama, 20, **keys, bit_classes=["mantissa"]):
        assert {fault.corruption for fault in faults} == {Flip(tuple(range(10)))}
        assert {(fault.site.scatter.amount, fault.site.component) for fault in faults} <= {(rate, None)}
        assert len({fault.site.scatter.key for fault in faults}) <= 1
        for part in (part for part in llama.parameters if part.component == "q"):
            named = [fault for fault in faults if fault.site.parameter == part.name]
            struck = [len(scattered_weights(fault, part).values) for fault in named]
            assert struck == [count for count in struck if count > 0]
    drawn = draw(llama, 20, **keys, corruption="replace", value=0.5)
    assert {fault.corruption for faults in drawn for fault in faults} == {Replace(0.5)}
    drawn = draw(llama, 20, **keys, corruption="add", uniform=(-1.0, 2.0))
    assert {fault.corruption for faults in drawn for fault in faults} == {Drawn("add", -1.0, 2.0)}


def test_a_rate_may_draw_no_fault(llama: ComponentMap) -> None:
    for keys in ({}, {"corruption": "add", "value": 1.0}):
        drawn = draw(llama, 5, sites=["weight"], draw="uniform", components=["norm"], rate=1e-9, **keys)
        assert drawn == [()] * 5


def test_keys_of_trials_differ(llama: ComponentMap) -> None:
    drawn = draw(llama, 30, sites=["weight"], draw="uniform", components=["down"], rate=0.1)
    assert len({fault.site.scatter.key for faults in drawn for fault in faults}) == 30


@pytest.mark.parametrize("family", ["phi3", "gpt_neox", "gpt2"])
def test_a_rate_on_a_fused_projection_strikes_the_component_alone(family: str) -> None:
    components = tiny_loaded(family).components
    for faults in draw(components, 3, sites=["weight"], draw="uniform", components=["k"], rate=0.05):
        assert {fault.site.component for fault in faults} == {"k"}
        for fault in faults:
            check(fault, components, FP16)
            part = parameter_site(fault, components)
            index = np.unravel_index(scattered_weights(fault, part).values, part.stored_shape)
            assert part.rows.contains(index[part.dim]).all()


def test_outputs_are_struck_in_whole_passes(llama: ComponentMap) -> None:
    keys = {"sites": ["activation"], "draw": "uniform", "components": ["o", "lm_head"], "bits": [14]}
    triggers = Counter()
    for (first, *_), scattered in zip(
        draw(llama, 60, **keys, rate=1e-3), draw(llama, 60, **keys, per_pass=3), strict=True
    ):
        triggers[str(first.trigger).split(":")[0]] += 1
        assert {(fault.trigger, fault.site.scatter.key) for fault in scattered} == {
            (first.trigger, first.site.scatter.key)
        }
        outputs = {output_site(fault, llama).component for fault in scattered}
        assert outputs == ({"o"} if str(first.trigger) == "at prefill" else {"o", "lm_head"})
        assert {fault.site.scatter.amount for fault in scattered} == {3}
        for fault in scattered:
            check(fault, llama, FP16)
    assert triggers.keys() == {"at prefill", "at first_token", "at decode"}


@pytest.mark.parametrize("trigger", ["always", "from decode:2", "at prefill", "from prefill to first_token"])
def test_faults_in_outputs_can_be_given_a_trigger(trigger: str, llama: ComponentMap) -> None:
    for keys in ({}, {"draw": "uniform", "rate": 0.01}, {"draw": "uniform", "per_pass": 2}):
        keys = {"sites": ["activation"], "components": ["o", "lm_head"], "activation_trigger": trigger, **keys}
        drawn = draw(llama, 20, **keys)
        assert {fault.trigger for faults in drawn for fault in faults} == {parse_trigger(trigger)}
        parts = {output_site(fault, llama).component for faults in drawn for fault in faults}
        assert ("lm_head" in parts) == (trigger in ("always", "from decode:2"))
        for faults in drawn:
            for fault in faults:
                check(fault, llama, FP16)


@settings(max_examples=80)
@given(st.integers(1, 300), st.data(), st.integers(0, 2**32))
def test_distinct_gives_different_values_below_the_population(population: int, data: st.DataObject, seed: int) -> None:
    count = data.draw(st.integers(0, population))
    drawn = distinct(generator(seed, 0, "test"), population, count).tolist()
    assert len(drawn) == len(set(drawn)) == count
    assert all(0 <= value < population for value in drawn)


@pytest.mark.parametrize(("population", "count"), [(5, 2), (5, 3), (4, 4), (6, 3)])
def test_distinct_gives_every_ordered_choice_the_same_chance(population: int, count: int) -> None:
    drawn = Counter(tuple(distinct(generator(3, i, "test"), population, count).tolist()) for i in range(3000))
    choices = [tuple(choice) for choice in np.ndindex(*[population] * count) if len(set(choice)) == count]
    assert chi_square(drawn, dict.fromkeys(choices, 1.0)) > LEAST_P


def test_memory_grows_with_the_draws_not_with_the_population() -> None:
    rows = 2**20
    site = ParameterSite("w", "up", 0, (rows, 1024), (rows, 1024), 0, Rows(0, rows, rows))
    selections = [
        Selection(sites=("weight",), draw="uniform", rate=1e-8),
        Selection(sites=("weight",), draw="uniform", count=500),
    ]
    for selection in selections:
        tracemalloc.start()
        try:
            faults = sample_faults(selection, Population((site,), (), ()), FP16, 4, 1, 0)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert len(faults) in (1, 500)
        assert peak < 5_000 * 170
