"""Scattered sets and faults in outputs that last: exactly what they name, in whatever passes, and undone."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from live_models import ANSWERS, CONTEXTS, AllocatedBytes, all_words, block_of, captured, model_of, same_words

from aftershock.errors import ContractError, InputError
from aftershock.faults import TokenScatter, output_site, parameter_site, parse_fault, parse_faults, scattered_weights
from aftershock.inject import Injection
from aftershock.models import HeadSite, LoadedModel, align, decode, generate, load, teacher_forced
from aftershock.numerics import words
from tiny_models import save_tiny, tiny_loaded

UP, WEIGHT = "model.layers.1.mlp.up_proj", "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("amount", ["rate 0.05", "count 77"])
@pytest.mark.parametrize(
    ("corruption", "made"),
    [
        ("flip 3-9", lambda old, found: old ^ found.masks),
        ("stuck-at-1 1,14", lambda old, found: old | found.masks),
        ("stuck-at-0 1,14", lambda old, found: old & ~found.masks),
    ],
)
def test_bits_of_scattered_weights(
    dtype: torch.dtype, amount: str, corruption: str, made: Callable[..., np.ndarray]
) -> None:
    model = model_of("llama", dtype)
    before = all_words(model)
    fault = parse_fault(f"scattered weight {WEIGHT} {amount} key 8 {corruption}")
    found = scattered_weights(fault, parameter_site(fault, model.components))
    width = np.dtype(f"u{words(torch.empty(0, dtype=dtype)).element_size()}")
    old = before[WEIGHT].numpy().view(width)
    expected = old.copy().reshape(-1)
    expected[found.values] = made(expected[found.values], found).astype(width)
    with Injection(model, (fault,)) as injection:
        now = all_words(model)
    assert np.array_equal(now.pop(WEIGHT).numpy().view(width).reshape(-1), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in now.items())
    assert same_words(model, before)
    (struck,) = injection.struck
    assert struck.count == len(found.values)
    assert len(struck.first) == min(64, struck.count)
    for one in struck.first:
        assert (one.old_bits, one.new_bits) == (old[one.index], expected[np.ravel_multi_index(one.index, old.shape)])


def test_values_of_scattered_weights() -> None:
    model = model_of("llama")
    values = model.module.get_parameter(WEIGHT).detach()
    clean = values.clone()
    for corruption in ("replace 0.5", "add 0.5", "replace uniform[2.0,3.0]", "add uniform[2.0,3.0]"):
        fault = parse_fault(f"scattered weight {WEIGHT} rate 0.1 key 8 {corruption}")
        found = scattered_weights(fault, parameter_site(fault, model.components))
        with Injection(model, (fault,)):
            changed = values.clone().view(-1)[found.values]
        numbers = torch.from_numpy(found.numbers) if len(found.numbers) else torch.tensor(0.5, dtype=torch.float64)
        old = clean.view(-1)[found.values].double() * corruption.startswith("add")
        assert torch.equal(changed, (old + numbers).float().expand_as(changed))
        assert torch.equal(words(values), words(clean))


def test_digests_tell_sets_apart_and_an_empty_one_strikes_nothing() -> None:
    model = model_of("llama")

    def struck(rest: str):
        with Injection(model, parse_faults(f"scattered weight {WEIGHT} {rest}")) as injection:
            pass
        return injection.struck

    sets = [struck(f"rate 0.2 key {key} {corruption}") for key in (1, 1, 2) for corruption in ("flip 4", "flip 5")]
    digests = [one.digest for (one,) in sets]
    assert digests[:2] == digests[2:4]
    assert len(set(digests)) == 4
    assert struck("rate 1e-9 key 1 flip 4") == ()


def test_memory_goes_with_the_words_struck() -> None:
    model = tiny_loaded("llama", intermediate_size=40_000)
    fault = parse_fault(f"scattered weight {WEIGHT} count 900 key 8 flip 3")
    with AllocatedBytes() as allocated, Injection(model, (fault,)):
        pass
    assert allocated.total < 100 * 900 < model.module.get_parameter(WEIGHT).nbytes // 50


@pytest.mark.parametrize(
    "line",
    [
        f"scattered weight {WEIGHT} rate 0.1 key 1 flip 3 & weight {WEIGHT}[0,0] flip 3 from decode:1",
        f"weight {WEIGHT}[0,0] flip 3 from decode:1 to decode:3 & scattered weight {WEIGHT} rate 0.1 key 1 flip 3",
        f"scattered weight {WEIGHT} rate 0.1 key 1 flip 3 & scattered weight {WEIGHT} rate 0.1 key 2 flip 3 at prefill",
    ],
)
def test_a_set_that_overlaps_in_part_with_others_of_its_tensor_is_refused(line: str) -> None:
    with pytest.raises(InputError, match="overlaps in time"):
        Injection(model_of("llama"), parse_faults(line))


def test_sets_on_one_tensor_act_in_their_order() -> None:
    model = model_of("llama")
    before = all_words(model)
    line = f"scattered weight {WEIGHT} rate 0.9 key {{}} add 1.0"
    with Injection(model, parse_faults(f"{line.format(1)} & {line.format(2)} & weight {WEIGHT}[0,0] replace 9.0")):
        assert model.module.get_parameter(WEIGHT)[0, 0] == 9.0
    assert same_words(model, before)


def test_a_set_comes_and_goes_between_passes() -> None:
    model, before = model_of("llama"), all_words(model_of("llama"))
    fault = parse_fault(f"scattered weight {WEIGHT} rate 0.1 key 1 flip 3 from decode:1 to decode:2")
    seen = []

    def begin(call) -> None:
        injection.begin_pass(call)
        seen.append((call.first, same_words(model, before)))

    with Injection(model, (fault,)) as injection:
        teacher_forced(model, block_of(model), fault.trigger.boundaries, begin)
    assert seen == [(0, True), (decode(1), False), (decode(2), True)]


# Outputs.


def written(model: LoadedModel, line: str, cuts: frozenset[int]) -> tuple[dict[str, list[torch.Tensor]], Injection]:
    fault = parse_fault(line)
    sites = [site for site in model.components.outputs if site.module == fault.site.module]
    with Injection(model, (fault,)) as injection, captured(model, sites, len(CONTEXTS)) as outputs:
        teacher_forced(model, block_of(model), cuts, injection.begin_pass)
    return outputs, injection


def expected_places(model: LoadedModel, line: str) -> set[tuple[int, int, int]]:
    """(row, token, channel) of everything that the fault names, token by token."""
    fault = parse_fault(line)
    found = set()
    for row, (context, answer) in enumerate(zip(CONTEXTS, ANSWERS, strict=True)):
        for token in range(len(context) + len(answer)):
            if not fault.trigger.covers(max(0, token - len(context) + 2)):
                continue
            if line.startswith("activation"):
                found.add((row, token, fault.site.channel))
            else:
                part = output_site(fault, model.components)
                # A set of its own for each token: nothing else has a part in it.
                values = TokenScatter(fault, part).at(range(token, token + 1), len(context) - 1).values
                found |= {(row, token, int(value % part.features)) for value in values}
    return found


@pytest.mark.parametrize("trigger", ["always", "at prefill", "from first_token", "from decode:1 to decode:3"])
@pytest.mark.parametrize("cuts", [frozenset(), frozenset({1, 2, 3, 4})])
@pytest.mark.parametrize(
    "kind",
    [
        f"activation {UP}[5] flip 31",
        f"scattered activation {UP} rate 0.05 key 3 flip 31",
        f"scattered activation {UP} count 4 key 3 flip 31",
    ],
)
def test_outputs_are_struck_where_named_whatever_the_calls(kind: str, trigger: str, cuts: frozenset[int]) -> None:
    model, line = model_of("llama"), f"{kind} {trigger}"
    faulty, injection = written(model, line, cuts)
    clean, _ = written(model, f"{kind} from decode:1000", cuts)
    block = block_of(model)
    (name,) = faulty
    difference = (torch.cat(faulty[name], dim=1) ^ torch.cat(clean[name], dim=1)).nonzero().tolist()
    found = {(row, column - block.first_column(row), channel) for row, column, channel in difference}
    assert found == expected_places(model, line)
    assert sum(one.count for one in injection.struck) == len(found)
    assert {(one.row, *one.index) for some in injection.struck for one in some.first} <= found


@pytest.fixture(scope="module")
def integers(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(str(save_tiny(tmp_path_factory.mktemp("integers") / "llama", "llama")), arithmetic="w8a8")


@pytest.mark.parametrize("cuts", [frozenset(), frozenset({1, 2, 3, 4})])
@pytest.mark.parametrize("trigger", ["always", "at prefill", "from decode:1 to decode:3"])
@pytest.mark.parametrize("amount", ["rate 0.05", "count 2"])
@pytest.mark.parametrize("part", ["qk", "sv"])
def test_sums_of_attentions_products_are_struck_where_named(
    integers: LoadedModel, part: str, amount: str, trigger: str, cuts: frozenset[int]
) -> None:
    name = f"model.layers.1.self_attn.{part}.accumulator"
    fault = parse_fault(f"scattered activation {name} {amount} key 3 flip 29 {trigger}")
    heads = output_site(fault, integers.components)
    assert isinstance(heads, HeadSite)
    block = block_of(integers)
    found, sums = set(), []
    for own in ((), (fault,)):
        sums.append([])
        with Injection(integers, own) as injection:
            shown = integers.module.get_submodule(name)
            hook = shown.register_forward_hook(lambda _, __, output: sums[-1].append(output.clone()))
            teacher_forced(integers, block, cuts, injection.begin_pass)
            hook.remove()
    start = 0
    for clean, faulty in zip(*sums, strict=True):
        stop = start + clean.shape[2]
        changed = clean ^ faulty
        assert set(changed.unique().tolist()) <= {0, 1 << 29}
        for row, head, column, inner in changed.nonzero().tolist():
            first = block.first_column(row)
            # Keys end with the call's own.
            at = inner if part == "sv" else inner + stop - clean.shape[3] - first
            found.add((row, column + start - first, head, at))
        start = stop
    expected = set()
    for row, (context, answer) in enumerate(zip(CONTEXTS, ANSWERS, strict=True)):
        for token in range(len(context) + len(answer)):
            if fault.trigger.covers(max(0, token - len(context) + 2)):
                scattered, prefill = TokenScatter(fault, heads), len(context) - 1
                values = scattered.at(range(token, token + 1), prefill).values.tolist()
                per_head = heads.channels if part == "sv" else token + 1
                before = heads.heads * (token * heads.channels if part == "sv" else token * (token + 1) // 2)
                expected |= {(row, token, *divmod(value - before, per_head)) for value in values}
    assert found == expected
    assert expected
    assert sum(one.count for one in injection.struck) == len(expected)
    assert {(one.row, *one.index) for some in injection.struck for one in some.first} <= expected
    if trigger == "always":
        assert injection.reached_rows == {0, 1, 2, 3}


def test_sums_of_a_product_have_no_other_component_and_no_channel(integers: LoadedModel) -> None:
    name = "model.layers.1.self_attn.qk.accumulator"
    with pytest.raises(InputError, match="is that of qk"):
        Injection(integers, parse_faults(f"scattered activation {name} of down rate 0.1 key 3 flip 29"))
    with pytest.raises(InputError, match="is that of heads"):
        Injection(integers, parse_faults(f"activation {name}[3] flip 29 at first_token"))


@pytest.mark.parametrize("amount", ["rate 0.02", "count 3"])
def test_written_answers_are_struck_as_given_ones_are(amount: str) -> None:
    model = model_of("llama")
    faults = parse_faults(f"scattered activation {UP} {amount} key 3 flip 2 from first_token")
    limits, stops = [4] * len(CONTEXTS), [()] * len(CONTEXTS)
    with Injection(model, faults) as injection:
        answers = generate(
            model, align(CONTEXTS, [[]] * 4, model.device), limits, stops, frozenset(), injection.begin_pass
        )
    fed = [text[:-1] for text in answers.texts]
    with Injection(model, faults) as forced:
        teacher_forced(model, align(CONTEXTS, fed, model.device), frozenset(), forced.begin_pass)

    def places(struck) -> list[tuple[int, int, int]]:
        return sorted((one.row, *one.index) for some in struck for one in some.first)

    assert places(injection.struck) == places(forced.struck)
    assert len(places(forced.struck)) > 10
    alone = []
    for row, (context, text) in enumerate(zip(CONTEXTS, fed, strict=True)):
        with Injection(model, faults) as single:
            teacher_forced(model, align([context], [text], model.device), frozenset(), single.begin_pass)
        alone += [(row, *one.index) for some in single.struck for one in some.first]
    assert sorted(alone) == places(forced.struck)


def test_a_stuck_lane_reaches_every_row_and_one_without_its_passes_none() -> None:
    model = model_of("llama")
    _, injection = written(model, f"activation {UP}[5] stuck-at-1 30 always", frozenset())
    assert injection.reached_rows == {0, 1, 2, 3}
    _, injection = written(model, f"activation {UP}[5] stuck-at-1 30 from decode:2", frozenset())
    assert injection.reached_rows == {0, 2}
    _, injection = written(model, f"scattered activation {UP} rate 1e-9 key 1 flip 30 from decode:2", frozenset())
    assert injection.reached_rows == {0, 2}
    assert injection.struck == ()


def test_a_lasting_fault_of_a_module_that_does_not_run_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    monkeypatch.setattr(model.module.get_submodule("model.layers.1.mlp"), "forward", lambda hidden: hidden)
    with (
        pytest.raises(ContractError, match="was due in a forward call"),
        Injection(model, parse_faults(f"scattered activation {UP} rate 0.1 key 1 flip 3")) as injection,
    ):
        teacher_forced(model, block_of(model), frozenset(), injection.begin_pass)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("scattered weight model.norm.weight count 33 key 1 flip 3", "32 places are all that there are"),
        ("scattered weight model.norm.weight rate 0.1 key 1 flip 3 at prefill:2", "a weight has no token"),
        ("scattered weight model.norm.wieght rate 0.1 key 1 flip 3", "did you mean model.norm.weight"),
        ("scattered weight model.norm.weight of q rate 0.1 key 1 flip 3", "'model.norm.weight of norm'"),
        ("scattered activation model.norm rate 0.1 key 1 flip 3 at prefill:2", "lies in whole passes"),
        ("scattered activation model.norm count 33 key 1 flip 3", "32 places are all that there are"),
        ("scattered activation model.norm rate 0.1 key 1 flip 33", "bit 33 is outside"),
        ("scattered activation lm_head rate 0.1 key 1 flip 3 at prefill", "computed for answer tokens only"),
    ],
)
def test_what_can_not_be_scattered_is_refused(line: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Injection(model_of("llama"), parse_faults(line))


def test_a_fused_projection_wants_its_component() -> None:
    faults = parse_faults("scattered activation model.layers.0.self_attn.qkv_proj rate 0.1 key 1 flip 3")
    with pytest.raises(InputError, match="qkv_proj of q"):
        Injection(model_of("phi3"), faults)
