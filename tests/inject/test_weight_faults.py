"""Weight faults: armed exactly as named, in exactly the passes named, and undone word by word."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from live_models import CONTEXTS, all_words, block_of, hooked, model_of, same_words

from aftershock.errors import ContractError, InputError
from aftershock.faults import Fault, Flip, WeightSite, parse_fault, parse_faults, splits
from aftershock.inject import Injection, Struck
from aftershock.models import LoadedModel, Pass, generate, teacher_forced
from aftershock.numerics import FORMATS, format_of, words
from tiny_models import FAMILIES, tiny_loaded

NORM = "model.norm.weight"
UP = "model.layers.1.mlp.up_proj.weight"


def word(model: LoadedModel, struck: Struck) -> int:
    """The word, unsigned, that the model holds now at a struck place."""
    parameter = model.module.get_parameter(struck.tensor).detach()
    return int(words(parameter)[struck.index]) & ((1 << format_of(parameter.dtype).bits) - 1)


@pytest.fixture
def llama() -> Iterator[LoadedModel]:
    """A shared model that must be found unchanged, and without hooks, when the test ends."""
    model = model_of("llama")
    before = all_words(model)
    yield model
    assert same_words(model, before)
    assert hooked(model) == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_exactly_the_words_named_change_and_come_back(family: str) -> None:
    model = model_of(family)
    before = all_words(model)
    faults = []
    for part in model.components.parameters:
        offset = part.locate(np.array([part.numel - 1]))
        index = tuple(int(axis[0]) for axis in np.unravel_index(offset, part.stored_shape))
        faults.append(Fault(WeightSite(part.name, index), Flip((3, 30))))
    named = {(fault.site.parameter, fault.site.index) for fault in faults}
    with Injection(model, faults) as injection:
        changed = {
            (name, tuple(index))
            for name, parameter in model.module.named_parameters()
            for index in (words(parameter.detach()) != before[name]).nonzero().tolist()
        }
        assert changed == named
        assert {(struck.tensor, struck.index) for struck in injection.struck} == named
        for struck in injection.struck:
            assert struck.old_bits == int(before[struck.tensor][struck.index]) & 0xFFFFFFFF
            assert struck.new_bits == word(model, struck) == struck.old_bits ^ (1 << 3 | 1 << 30)
    assert same_words(model, before)


def test_the_record_keeps_bits_and_values() -> None:
    model = model_of("llama", torch.bfloat16)
    parameter = model.module.get_parameter(NORM).detach()
    old = float(parameter[4])
    with Injection(model, parse_faults(f"weight {NORM}[4] replace -2.0")) as injection:
        assert float(parameter[4]) == -2.0
    (struck,) = injection.struck
    assert (struck.fault, struck.tensor, struck.index, struck.row) == (0, NORM, (4,), None)
    assert (struck.old_value, struck.new_value, struck.new_bits) == (old, -2.0, 0xC000)
    assert float(parameter[4]) == old


@pytest.mark.parametrize("number_format", FORMATS, ids=lambda f: f.name)
@settings(max_examples=30)
@given(data=st.data())
def test_any_word_comes_back_nan_payloads_too(number_format, data: st.DataObject) -> None:
    model = model_of("llama", number_format.dtype)
    stored = words(model.module.get_parameter(NORM).detach())
    top = 1 << (number_format.bits - 1)
    kept = stored.clone()
    value = st.integers(-top, top - 1)
    stored[:8] = torch.tensor(data.draw(st.lists(value, min_size=8, max_size=8)), dtype=number_format.word)
    planted = stored.clone()
    corruption = data.draw(st.sampled_from(["flip 0", "stuck-at-1 3", "replace nan", "add 1.0", "add inf"]))
    faults = [parse_fault(f"weight {NORM}[{place}] {corruption}") for place in range(8)]
    try:
        with Injection(model, faults):
            pass
        assert torch.equal(stored, planted)
    finally:
        stored.copy_(kept)


def test_a_parameter_need_not_be_contiguous() -> None:
    model = tiny_loaded("llama")
    parameter = model.module.get_parameter(UP)
    parameter.data = parameter.data.t().contiguous().t()
    old = parameter.data.clone()
    with Injection(model, parse_faults(f"weight {UP}[5,7] flip 31")):
        assert (parameter.data != old).nonzero().tolist() == [[5, 7]]
    assert torch.equal(parameter.data, old)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_undone_when_the_model_fails(llama: LoadedModel, error: type[BaseException]) -> None:
    faults = parse_faults(
        f"weight {UP}[1,1] flip 30 & weight {NORM}[3] replace nan from first_token & "
        "activation model.norm[2] flip 3 at first_token"
    )

    def fail(module: torch.nn.Module, inputs: object) -> None:
        raise error

    handle = llama.module.get_submodule("model.layers.1").register_forward_pre_hook(fail)
    before = all_words(llama)
    try:
        with pytest.raises(error), Injection(llama, faults) as injection:
            teacher_forced(llama, block_of(llama), splits(faults), injection.begin_pass)
    finally:
        handle.remove()
    assert len(injection.struck) == 1
    assert same_words(llama, before)


def test_undone_when_arming_itself_fails(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = parse_faults(f"weight {UP}[1,1] flip 30 & weight {NORM}[3] flip 30")
    answers = iter([True, False])
    real = torch.equal
    monkeypatch.setattr(torch, "equal", lambda a, b: next(answers, True) and real(a, b))
    with pytest.raises(ContractError, match="was armed but its word did not change"), Injection(llama, faults):
        raise AssertionError


def test_an_undo_that_fails_is_an_error_and_the_rest_is_undone(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = parse_faults(f"weight {UP}[1,1] flip 30 & weight {NORM}[3] flip 30")
    real = torch.equal
    injection = Injection(llama, faults).__enter__()
    answers = iter([False])
    monkeypatch.setattr(torch, "equal", lambda a, b: next(answers, True) and real(a, b))
    with pytest.raises(ContractError, match=r"undo of 'weight model\.norm.*did not restore"):
        injection.__exit__(None, None, None)


def test_faults_on_one_word_act_one_after_the_other(llama: LoadedModel) -> None:
    place = f"weight {NORM}[3]"
    with Injection(llama, parse_faults(f"{place} replace 2.0 & {place} add 1.5 & {place} flip 31")) as injection:
        assert float(llama.module.get_parameter(NORM)[3]) == -3.5
    assert [struck.fault for struck in injection.struck] == [0, 1, 2]
    assert [struck.new_value for struck in injection.struck] == [2.0, 3.5, -3.5]
    assert [struck.old_value for struck in injection.struck][1:] == [2.0, 3.5]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("always", "at first_token"),
        ("from first_token", "always"),
        ("from first_token to decode:3", "from decode:2 to decode:5"),
        ("from decode:2 to decode:5", "from first_token to decode:3"),
    ],
)
def test_faults_on_one_word_that_overlap_in_part_are_refused(llama: LoadedModel, one: str, other: str) -> None:
    faults = parse_faults(f"weight {NORM}[3] flip 1 {one} & weight {NORM}[3] flip 2 {other}")
    with pytest.raises(InputError, match="overlaps in time"):
        Injection(llama, faults)
    Injection(llama, parse_faults(f"weight {NORM}[3] flip 1 {one} & weight {NORM}[4] flip 2 {other}"))


def test_faults_on_one_word_may_follow_each_other(llama: LoadedModel) -> None:
    place = f"weight {NORM}[3]"
    faults = parse_faults(f"{place} replace 5.0 at prefill & {place} replace 6.0 from first_token to decode:2")
    seen = values_in_passes(llama, faults, (NORM, (3,)))
    clean = float(llama.module.get_parameter(NORM)[3])
    assert seen == {"0-0": 5.0, "1-2": 6.0, "3-4": clean}


def values_in_passes(model: LoadedModel, faults: tuple[Fault, ...], place: tuple[str, tuple[int, ...]]) -> dict:
    """The value of one weight while each forward call of a teacher-forced run is under way."""
    seen: dict[str, float] = {}
    calls: list[Pass] = []

    def look(module: torch.nn.Module, inputs: object, output: object) -> None:
        seen[f"{calls[-1].first}-{calls[-1].last}"] = float(model.module.get_parameter(place[0])[place[1]])

    handle = model.module.get_submodule("model.layers.0").register_forward_hook(look)
    try:
        with Injection(model, faults) as injection:

            def begin(call: Pass) -> None:
                injection.begin_pass(call)
                calls.append(call)

            teacher_forced(model, block_of(model), splits(faults), begin)
    finally:
        handle.remove()
    return seen


@pytest.mark.parametrize(
    ("trigger", "present"),
    [
        ("always", {"0-4"}),
        ("at prefill", {"0-0"}),
        ("at first_token", {"1-1"}),
        ("during decode", {"2-4"}),
        ("at decode:2", {"3-3"}),
        ("from decode:2", {"3-4"}),
        ("from first_token to decode:2", {"1-2"}),
        ("from prefill to decode:3", {"0-3"}),
        ("at decode:9", set()),
    ],
)
def test_a_fault_is_present_in_its_passes_and_in_no_other(llama: LoadedModel, trigger: str, present: set[str]) -> None:
    faults = parse_faults(f"weight {NORM}[3] replace 77.0 {trigger}")
    seen = values_in_passes(llama, faults, (NORM, (3,)))
    assert {call for call, value in seen.items() if value == 77.0} == present
    spans = [range(int(call.split("-")[0]), int(call.split("-")[1]) + 1) for call in seen]
    assert [number for span in spans for number in span] == list(range(5))


def test_intervals_hold_while_decoding_with_a_cache(llama: LoadedModel) -> None:
    faults = parse_faults(f"weight {NORM}[3] replace 7.0 from decode:2 to decode:4")
    parameter = llama.module.get_parameter(NORM)
    present: dict[int, bool] = {}
    with Injection(llama, faults) as injection:

        def begin(call: Pass) -> None:
            injection.begin_pass(call)
            present[call.last] = float(parameter[3]) == 7.0

        generate(llama, block_of(llama, ((),) * 4), [6] * 4, [()] * 4, splits(faults), begin)
    assert present == {1: False, 2: False, 3: True, 4: True, 5: False, 6: False}
    assert len(injection.struck) == 1


def test_rows_that_took_part_while_a_fault_was_there_are_reached(llama: LoadedModel) -> None:
    reached = {}
    for trigger in ("at prefill", "at first_token", "at decode:2", "at decode:3", "at decode:4", "always"):
        faults = parse_faults(f"weight {NORM}[3] flip 1 {trigger}")
        with Injection(llama, faults) as injection:
            teacher_forced(llama, block_of(llama), splits(faults), injection.begin_pass)
        reached[trigger] = set(injection.reached_rows)
    # Row 2 has a prompt of one token, so no prefill; rows answer with 3, 1, 2 and 0 tokens fed.
    assert reached == {
        "at prefill": {0, 1, 3},
        "at first_token": {0, 1, 2, 3},
        "at decode:2": {0, 2},
        "at decode:3": {0},
        "at decode:4": set(),
        "always": {0, 1, 2, 3},
    }


def test_a_run_that_is_not_cut_is_refused(llama: LoadedModel) -> None:
    faults = parse_faults(f"weight {NORM}[3] flip 1 from decode:2")
    with pytest.raises(ContractError, match="begins or ends inside a forward call"), Injection(llama, faults) as armed:
        teacher_forced(llama, block_of(llama), frozenset(), armed.begin_pass)


def test_a_fault_that_waits_for_a_pass_needs_to_be_told_of_it(llama: LoadedModel) -> None:
    tokens = torch.tensor([CONTEXTS[0]])
    for line in (f"weight {NORM}[3] flip 1 from decode:2", "activation model.norm[3] flip 1 at first_token"):
        with pytest.raises(ContractError, match="none was announced"), Injection(llama, parse_faults(line)):
            llama.module(input_ids=tokens)


def test_a_fault_that_is_always_there_needs_no_announcement(llama: LoadedModel) -> None:
    tokens = torch.tensor([CONTEXTS[0]])
    clean = llama.module(input_ids=tokens).logits
    with Injection(llama, parse_faults(f"weight {NORM}[3] replace 9.0")):
        assert not torch.equal(llama.module(input_ids=tokens).logits, clean)
    assert torch.equal(llama.module(input_ids=tokens).logits, clean)


def test_a_place_the_model_does_not_have_is_refused_before_anything_is_touched(llama: LoadedModel) -> None:
    with pytest.raises(InputError, match="no parameter"):
        Injection(llama, parse_faults(f"weight {NORM}[3] flip 1 & weight model.nrom.weight[3] flip 1"))


def test_weight_faults_put_no_hook_anywhere(llama: LoadedModel) -> None:
    with Injection(llama, parse_faults(f"weight {NORM}[3] flip 1")):
        assert hooked(llama) == {}
