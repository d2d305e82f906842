"""Activation faults: one element in each row, at the token named, seen by what runs next, then gone."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from live_models import CONTEXTS, all_words, block_of, by_token, captured, hooked, model_of, same_words

from aftershock.errors import ContractError
from aftershock.faults import ActivationSite, Fault, Flip, Trigger, parse_faults
from aftershock.inject import Injection
from aftershock.models import FIRST_TOKEN, PREFILL, LoadedModel, OutputSite, Pass, decode, generate, teacher_forced
from tiny_models import FAMILIES, tiny_loaded

WIDTH = max(map(len, CONTEXTS))
NO_CUT: frozenset[int] = frozenset()


@pytest.fixture
def llama() -> Iterator[LoadedModel]:
    """A shared model that must be found unchanged, and without hooks, when the test ends."""
    model = model_of("llama")
    before = all_words(model)
    yield model
    assert same_words(model, before)
    assert hooked(model) == {}


def faults_on(site: OutputSite) -> tuple[Fault, ...]:
    """One fault in each stage, each on another channel of the site's own."""
    positions = np.array([0, site.features // 2, site.features - 1])
    first, middle, last = site.rows.locate(positions).tolist()
    stages = [
        (first, Trigger(FIRST_TOKEN, decode(1))),
        (middle, Trigger(decode(1), decode(2))),
        (last, Trigger(decode(2), decode(3))),
    ]
    if site.component != "lm_head":
        stages += [(last, Trigger(PREFILL, FIRST_TOKEN, 0.5)), (first, Trigger(PREFILL, FIRST_TOKEN, 3))]
    return tuple(Fault(ActivationSite(site.module, channel), Flip((22, 31)), trigger) for channel, trigger in stages)


def places(fault: Fault, columns: int) -> set[tuple[int, int, int]]:
    """(row, column, channel) that a fault on the test block must strike, worked out by hand.

    Prompts have 5, 2, 1 and 3 tokens and end at column 5; answers fed have 3, 1, 2 and 0. `columns` is how
    many of the block's 8 columns the output holds, its last ones.
    """
    at = {
        Trigger(PREFILL, FIRST_TOKEN, 0.5): {0: 2, 1: 3, 3: 3},
        Trigger(PREFILL, FIRST_TOKEN, 3): {0: 3},
        Trigger(FIRST_TOKEN, decode(1)): {0: 4, 1: 4, 2: 4, 3: 4},
        Trigger(decode(1), decode(2)): {0: 5, 1: 5, 2: 5},
        Trigger(decode(2), decode(3)): {0: 6, 2: 6},
    }[fault.trigger]
    return {(row, column - (8 - columns), fault.site.channel) for row, column in at.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_exactly_the_elements_named_change_in_every_output(family: str) -> None:
    model = model_of(family)
    strikes_exactly(model, teacher_forced_outputs(model))


def test_a_projection_before_the_head_is_struck_at_its_own_columns() -> None:
    model = tiny_loaded("opt", word_embed_proj_dim=16)
    clean = teacher_forced_outputs(model)
    assert "model.decoder.project_out" in clean
    strikes_exactly(model, clean)


def teacher_forced_outputs(model: LoadedModel, faults: tuple[Fault, ...] = ()) -> dict[str, torch.Tensor]:
    """Words of every mapped output, (row, column, channel), in a run of one call."""
    sites = list(model.components.outputs)
    with Injection(model, faults) as injection, captured(model, sites, len(CONTEXTS)) as outputs:
        teacher_forced(model, block_of(model), NO_CUT, injection.begin_pass)
    return {module: torch.cat(calls, dim=1) for module, calls in outputs.items()}


def strikes_exactly(model: LoadedModel, clean: dict[str, torch.Tensor]) -> None:
    block = block_of(model)
    for site in model.components.outputs:
        faults = faults_on(site)
        expected = set().union(*(places(fault, clean[site.module].shape[1]) for fault in faults))
        with (
            Injection(model, faults) as injection,
            captured(model, [site], block.rows) as outputs,
        ):
            teacher_forced(model, block, NO_CUT, injection.begin_pass)
        (faulty,) = outputs[site.module]
        old = clean[site.module]
        assert {tuple(place) for place in (faulty != old).nonzero().tolist()} == expected, site
        columns = old.shape[1]
        for struck in injection.struck:
            token, channel = struck.index
            assert struck.row is not None
            column = token + WIDTH - len(CONTEXTS[struck.row]) - (8 - columns)
            assert struck.tensor == site.module
            assert struck.old_bits == int(old[struck.row, column, channel]) & 0xFFFFFFFF
            assert struck.new_bits == int(faulty[struck.row, column, channel]) & 0xFFFFFFFF
        assert len(injection.struck) == len(expected)
        assert injection.reached_rows == {row for row, _, _ in expected}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_words_of_half_width_are_struck_too(dtype: torch.dtype) -> None:
    model = model_of("gemma3", dtype)
    sites = [site for site in model.components.outputs if site.component in ("down", "qk_norm", "lm_head")]
    for site in sites:
        fault = Fault(ActivationSite(site.module, 1), Flip((15,)), Trigger(FIRST_TOKEN, decode(1)))
        with Injection(model, (fault,)) as injection:
            teacher_forced(model, block_of(model), NO_CUT, injection.begin_pass)
        assert {struck.old_bits ^ struck.new_bits for struck in injection.struck} == {0x8000}
        assert [struck.new_value for struck in injection.struck] == [-s.old_value for s in injection.struck]


@pytest.mark.parametrize("family", ["llama", "gemma3", "phi3", "gpt2", "opt", "gpt_neox", "qwen3_moe"])
def test_decode_steps_under_a_cache_strike_their_own_pass(family: str) -> None:
    model = tiny_loaded(family)
    model.module.generation_config.eos_token_id = None
    block = block_of(model, ((),) * 4)
    sites = [site for site in model.components.outputs if site.layer in (1, None)]
    for site in {site.component: site for site in sites}.values():
        fault = Fault(ActivationSite(site.module, site.rows.offset), Flip((22, 31)), Trigger(decode(2), decode(3)))
        runs = []
        for faults in ((), (fault,)):
            with Injection(model, faults) as injection, captured(model, [site], block.rows) as outputs:
                generate(model, block, [4, 4, 2, 4], [()] * 4, NO_CUT, injection.begin_pass)
            runs.append(outputs[site.module])
        clean, faulty = runs
        # Calls: prompt, decode 1, decode 2, decode 3. A limit of two tokens ends row 2 before decode 2.
        assert torch.equal(clean[0], faulty[0])
        assert torch.equal(clean[1], faulty[1])
        assert (clean[2] != faulty[2]).nonzero().tolist() == [[row, 0, site.rows.offset] for row in (0, 1, 3)]
        assert [struck.row for struck in injection.struck] == [0, 1, 3]
        assert injection.reached_rows == {0, 1, 3}


def test_what_runs_next_sees_the_struck_value(llama: LoadedModel) -> None:
    faults = parse_faults("activation model.layers.1.post_attention_layernorm[3] replace 41.0 at first_token")
    seen = []
    following = [llama.module.get_submodule(f"model.layers.1.mlp.{name}_proj") for name in ("gate", "up")]
    handles = [m.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone())) for m in following]
    try:
        with Injection(llama, faults) as injection:
            teacher_forced(llama, block_of(llama), NO_CUT, injection.begin_pass)
    finally:
        for handle in handles:
            handle.remove()
    assert [(inputs == 41.0).nonzero().tolist() for inputs in seen] == [[[row, 4, 3] for row in range(4)]] * 2


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_a_router_chooses_experts_by_its_struck_logits(family: str) -> None:
    model = model_of(family)
    block = block_of(model)
    router = "model.layers.1.mlp.gate"
    returned: list[tuple[torch.Tensor, ...]] = []
    for value in (-50.0, 50.0):
        faults = parse_faults(f"activation {router}[2] replace {value} at first_token")
        with Injection(model, faults) as injection:
            gate = model.module.get_submodule(router)
            handle = gate.register_forward_hook(lambda module, inputs, output: returned.append(output))
            try:
                teacher_forced(model, block, NO_CUT, injection.begin_pass)
            finally:
                handle.remove()
    struck = [row * 8 + 4 for row in range(4)]
    others = [token for token in range(32) if token not in struck]
    for logits, weights, chosen in returned:
        raised = bool(logits[struck[0], 2] == 50.0)
        assert ((chosen[struck] == 2).any(-1) == raised).all()
        if raised:
            assert (weights[struck].max(-1).values > 0.99).all()
    (low, high) = returned
    for before, after in zip(low, high, strict=True):
        assert torch.equal(before[others], after[others])


def test_a_struck_router_changes_the_answer() -> None:
    model = model_of("mixtral")
    block = block_of(model)
    clean = teacher_forced(model, block, NO_CUT, lambda call: None)
    with Injection(
        model, parse_faults("activation model.layers.0.mlp.gate[1] replace 30.0 at first_token")
    ) as injection:
        assert not torch.equal(teacher_forced(model, block, NO_CUT, injection.begin_pass), clean)


def test_several_faults_on_one_module_act_in_order(llama: LoadedModel) -> None:
    place = "activation model.norm[3]"
    faults = parse_faults(
        f"{place} replace 2.0 at first_token & {place} add 1.5 at first_token & "
        "activation model.norm[4] flip 31 at first_token"
    )
    with Injection(llama, faults) as injection:
        teacher_forced(llama, block_of(llama), NO_CUT, injection.begin_pass)
    assert [struck.new_value for struck in injection.struck if struck.index[1] == 3] == [2.0] * 4 + [3.5] * 4


def test_a_run_cut_elsewhere_strikes_the_same_elements(llama: LoadedModel) -> None:
    faults = faults_on(next(site for site in llama.components.outputs if site.component == "down"))
    struck = []
    for cuts in (NO_CUT, frozenset({FIRST_TOKEN}), frozenset({FIRST_TOKEN, decode(1), decode(2), decode(3)})):
        with Injection(llama, faults) as injection:
            teacher_forced(llama, block_of(llama), cuts, injection.begin_pass)
        struck.append({(one.fault, one.row, one.index) for one in injection.struck})
    assert struck[0] == struck[1] == struck[2]


def test_a_module_that_does_not_run_is_an_error(llama: LoadedModel) -> None:
    faults = parse_faults("activation model.norm[3] flip 1 at first_token")
    block = block_of(llama)
    call = Pass(block, 0, block.last_pass, 0, 8, 4, (True,) * 4, (0, 1, 2, 3))
    injection = Injection(llama, faults).__enter__()
    injection.begin_pass(call)
    with pytest.raises(ContractError, match="never made what it strikes"):
        injection.__exit__(None, None, None)
    injection = Injection(llama, faults).__enter__()
    injection.begin_pass(call)
    with pytest.raises(ContractError, match="never made what it strikes"):
        injection.begin_pass(call)
    injection.__exit__(None, None, None)


def test_one_hook_on_the_target_and_none_after(llama: LoadedModel) -> None:
    faults = parse_faults(
        "activation model.layers.0.mlp.down_proj[3] flip 1 at first_token & "
        "activation model.layers.0.mlp.down_proj[4] flip 1 at decode:1 & "
        "activation model.norm[4] flip 1 at decode:1"
    )
    with Injection(llama, faults) as injection:
        assert hooked(llama) == {"model.layers.0.mlp.down_proj": 1, "model.norm": 1}
        teacher_forced(llama, block_of(llama), NO_CUT, injection.begin_pass)
    assert hooked(llama) == {}


def test_hooks_are_gone_when_a_run_breaks_off(llama: LoadedModel) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        Injection(llama, parse_faults("activation model.norm[3] flip 1 at first_token")),
    ):
        raise KeyboardInterrupt
    assert hooked(llama) == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_with_no_fault_due_the_bits_are_the_unmodified_models(family: str) -> None:
    model = model_of(family)
    block = block_of(model)
    clean = teacher_forced(model, block, NO_CUT, lambda call: None)
    module = next(site.module for site in model.components.outputs if site.component == "residual")
    for line in ("", f"activation {module}[3] flip 1 at decode:9", f"activation {module}[3] flip 1 at prefill:77"):
        with Injection(model, parse_faults(line) if line else ()) as injection:
            again = teacher_forced(model, block, NO_CUT, injection.begin_pass)
        assert torch.equal(again.view(torch.int32), clean.view(torch.int32))
        assert injection.struck == ()
        assert injection.reached_rows == frozenset()


def test_layouts_are_told_apart() -> None:
    """The helper the tests above rest on: the same values in each layout read the same."""
    model = model_of("llama")
    (site,) = [s for s in model.components.outputs if s.component == "down" and s.layer == 0]
    values = torch.arange(2 * 3 * 8, dtype=torch.float32).reshape(2, 3, 8)
    expected = by_token(site, values, 2)
    for layout, output in {
        "nc": values.reshape(6, 8),
        "bthc": values.reshape(2, 3, 2, 4),
        "bhtc": values.reshape(2, 3, 2, 4).transpose(1, 2),
    }.items():
        moved = OutputSite(site.module, site.component, 0, 8, 8, site.rows, layout)
        assert torch.equal(by_token(moved, output, 2), expected)
