"""The verb: protections on live models, what they see under faults, and that nothing is left of them after."""

from collections.abc import Sequence
from itertools import count

import pytest
import torch

from aftershock import Injection, parse_fault
from aftershock.errors import ContractError, InputError
from aftershock.faults import Fault
from aftershock.hardware import ClassicalABFT, Scheme, SystolicArray, Unprotected
from aftershock.models import LoadedModel, align, live_words, load, teacher_forced
from aftershock.numerics import words
from aftershock.protect import (
    Backup,
    Checksum,
    CorruptionError,
    DualFirstToken,
    Duplication,
    Ecc,
    FiniteScreen,
    FirstTokenBounds,
    Int8,
    Protection,
    RangeGuard,
    Scrub,
    observe_bounds,
    protect,
)
from tiny_models import save_tiny, tiny_loaded

TOKENS = torch.arange(4, 28).view(2, 12)
DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture
def model() -> LoadedModel:
    return tiny_loaded("llama")


@pytest.fixture(scope="module")
def integers(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(str(save_tiny(tmp_path_factory.mktemp("w8a8"), "llama")), arithmetic="w8a8")


def logits(model: LoadedModel) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.module(input_ids=TOKENS, use_cache=False).logits
    return words(found)


def struck_weight(
    model: LoadedModel, name: str = f"{DOWN}.weight", row: int = 3, column: int = 5, bits: int = 1 << 30
) -> None:
    """Corrupt a word in place, and leave it so."""
    with torch.no_grad():
        words(model.module.get_parameter(name))[row, column] ^= bits


class StrikeOnce:
    """As a fault in hardware: the next output of a module has one wrong value, before any other hook sees it."""

    def __init__(self, model: LoadedModel, name: str, value: float = 1e4) -> None:
        self.value, self.left = value, 1
        model.module.get_submodule(name).register_forward_hook(self, prepend=True)

    def __call__(self, module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        if self.left:
            self.left -= 1
            output.view(-1, output.shape[-1])[7, 2] = self.value


EVERYTHING: Sequence[Protection] = (
    Checksum(),
    Duplication(("down",)),
    FiniteScreen(limit="clamp"),
    FirstTokenBounds(),
    Scrub(),
    Backup((f"{DOWN}.weight",)),
    DualFirstToken(),
)


@pytest.mark.parametrize("protection", [*EVERYTHING, Checksum(action="count")], ids=lambda one: type(one).__name__)
def test_clean_outputs_stay_the_same_to_the_bit(model: LoadedModel, protection: Protection) -> None:
    clean = logits(model)
    with protect(model, [protection]) as protected:
        assert torch.equal(logits(protected.model), clean)
        assert all(counts.wrong == 0 for counts in protected.report())
        assert not protected.events
    assert torch.equal(logits(model), clean)


def test_all_protections_at_once_under_generate(model: LoadedModel) -> None:
    expected = model.module.generate(TOKENS, max_new_tokens=8, do_sample=False, pad_token_id=0)
    others = [one for one in EVERYTHING if not isinstance(one, FirstTokenBounds)]  # they clamp clean values too
    with protect(model, others) as protected:
        found = protected.model.module.generate(TOKENS, max_new_tokens=8, do_sample=False, pad_token_id=0)
        checks = [counts for counts in protected.report() if counts.protection == "Checksum"]
    assert torch.equal(found, expected)
    assert checks
    # The first of eight passes is run twice.
    assert all(counts.calls == 9 and counts.wrong == 0 for counts in checks)


def test_nothing_is_left_of_them(model: LoadedModel) -> None:
    def state() -> list[object]:
        parts = model.module.named_modules()
        hooks = [(name, len(part._forward_hooks), len(part._forward_pre_hooks)) for name, part in parts]
        return [hooks, sorted(vars(model.module)), [name for name, _ in model.module.named_buffers()]]

    before = state()
    handle = protect(model, [*EVERYTHING, Int8(("up",))])
    assert state() != before
    handle.remove()
    assert state() == before


@pytest.mark.parametrize("protection", [Checksum(), Duplication()], ids=lambda one: type(one).__name__)
def test_a_wrong_output_is_computed_again(model: LoadedModel, protection: Protection) -> None:
    clean = logits(model)
    with protect(model, [protection]) as protected:
        StrikeOnce(model, DOWN)
        assert torch.equal(logits(model), clean)
        (struck,) = [counts for counts in protected.report() if counts.wrong]
    assert (struck.site.module, struck.site.component, struck.site.layer, struck.wrong) == (DOWN, "down", 1, 1)
    assert (struck.calls, struck.checked) == (1, TOKENS.numel())
    assert struck.recomputed == int(isinstance(protection, Checksum))


def test_nan_in_both_runs_is_the_same_word(model: LoadedModel) -> None:
    with torch.no_grad():
        model.module.get_parameter(f"{DOWN}.weight")[3, 5] = torch.nan
    with protect(model, [Duplication(("down",))]) as protected:
        assert bool(logits(model).view(torch.float32).isnan().any())
        assert not any(counts.wrong for counts in protected.report())


def test_memory_is_that_of_all_copies(model: LoadedModel) -> None:
    copied, checked = f"{DOWN}.weight", "model.layers.0.mlp.down_proj.weight"
    sizes = [model.module.get_parameter(name).nbytes for name in (copied, checked)]
    with protect(model, [Backup((copied,)), Ecc((checked,))]) as protected:
        assert protected.extra_bytes == sizes[0] + sizes[1] // 8


def test_a_fingerprint_takes_two_sums_for_each_row_and_column(model: LoadedModel) -> None:
    lines = sum(one.rows + one.columns for one in live_words(model.module).tensors)
    with protect(model, [Scrub()]) as protected:
        assert protected.extra_bytes == 2 * 8 * lines


def test_faults_that_are_armed_later_are_seen(model: LoadedModel) -> None:
    fault = parse_fault(f"weight {DOWN}.weight[3,5] flip 30 always")
    clean = logits(model)
    with protect(model, [Checksum(action="count")]) as protected, Injection(model, [fault]):
        assert not torch.equal(logits(model), clean)
        assert [counts.site.module for counts in protected.report() if counts.wrong] == [DOWN]


def forced(model: LoadedModel, *lines: str) -> torch.Tensor:
    """Words of logits of two passes with faults in them."""
    block = align([(5, 6, 7, 8, 9)], [(10, 11)], model.device)
    with Injection(model, [parse_fault(line) for line in lines]) as injection:
        return words(teacher_forced(model, block, frozenset(), injection.begin_pass))


def test_outputs_that_are_struck_later_are_mended(model: LoadedModel) -> None:
    clean = forced(model)
    with protect(model, [Checksum()]) as protected:
        assert torch.equal(forced(model, f"activation {DOWN}[5] flip 30 at first_token"), clean)
        assert [counts.site.module for counts in protected.report() if counts.wrong] == [DOWN]


@pytest.mark.parametrize(
    ("line", "where"),
    [
        (f"activation {DOWN}.accumulator[5] flip 30 at first_token", (DOWN, "down")),
        ("qk_accumulator model.layers.1.self_attn[2,0.5] flip 30 at first_token", ("model.layers.1.self_attn", "qk")),
        ("sv_accumulator model.layers.1.self_attn[2,5] flip 30 at first_token", ("model.layers.1.self_attn", "sv")),
    ],
)
def test_sums_that_are_struck_later_are_mended(integers: LoadedModel, line: str, where: tuple[str, str]) -> None:
    clean = forced(integers)
    with protect(integers, [Checksum()]) as protected:
        assert torch.equal(forced(integers, line), clean)
        assert [(one.site.module, one.site.component) for one in protected.report() if one.wrong] == [where]


def test_products_that_share_a_module_are_checked_by_any_of_their_names() -> None:
    model, shared = tiny_loaded("gpt2"), "transformer.h.1.attn.c_attn"
    clean = logits(model)
    with protect(model, [Checksum(("k",))]) as protected:
        assert torch.equal(logits(model), clean)
        struck_weight(model, f"{shared}.weight")
        assert torch.equal(logits(model), clean)
        assert [(event.site.module, event.mended) for event in protected.events] == [(shared, True)]
        assert {counts.site.component for counts in protected.report()} == {"q+k+v"}


@pytest.mark.parametrize("bits", [1 << 30, 1 << 30 | 1 << 21])
def test_a_wrong_weight_is_put_back_to_the_bit(model: LoadedModel, bits: int) -> None:
    clean, before = logits(model), words(model.module.get_parameter(f"{DOWN}.weight")).clone()
    with protect(model, [Checksum(("down",))]) as protected:
        struck_weight(model, bits=bits)
        assert torch.equal(logits(model), clean)
        assert [(event.site.module, event.mended) for event in protected.events] == [(DOWN, True)]
    assert torch.equal(words(model.module.get_parameter(f"{DOWN}.weight")), before)


def test_a_wrong_weight_of_integers_is_put_back(integers: LoadedModel) -> None:
    clean, weight = logits(integers), integers.module.get_buffer(f"{DOWN}.weight")
    with protect(integers, [Checksum(("down",))]):
        weight[3, 5] ^= 64
        assert torch.equal(logits(integers), clean)
    assert torch.equal(logits(integers), clean)


@pytest.mark.parametrize("keeper", [Scrub(every=1000), Backup((f"{DOWN}.weight",))], ids=lambda one: type(one).__name__)
def test_two_wrong_words_of_a_column_come_from_elsewhere(model: LoadedModel, keeper: Protection) -> None:
    clean = logits(model)
    with protect(model, [Checksum(), keeper]):
        logits(model)  # the pass before which the scrubber looks
        struck_weight(model, row=3)
        struck_weight(model, row=4, bits=1 << 22)
        assert torch.equal(logits(model), clean)
    assert torch.equal(logits(model), clean)


def test_where_nothing_tells_the_clean_words_the_damage_is_told(model: LoadedModel) -> None:
    with protect(model, [Checksum()]) as protected:
        struck_weight(model, row=3)
        struck_weight(model, row=4, bits=1 << 22)
        logits(model)
        (event,) = [event for event in protected.events if event.site.module == DOWN]
    assert (event.action, event.mended) == ("recover", False)


def test_scrubbing_mends_what_no_product_reads(model: LoadedModel) -> None:
    clean = logits(model)
    with protect(model, [Scrub()]) as protected:
        struck_weight(model, "model.embed_tokens.weight", 9, 1)
        assert torch.equal(logits(model), clean)
        assert [(event.site.module, event.wrong, event.mended) for event in protected.events] == [
            ("model.embed_tokens.weight", 1, True)
        ]


def test_words_are_looked_at_before_every_so_many_passes(model: LoadedModel) -> None:
    with protect(model, [Scrub(every=4)]) as protected:
        logits(model)
        struck_weight(model)
        seen = []
        for _ in range(4):
            logits(model)
            seen.append(len(protected.events))
    assert seen == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("component", "line"),
    [
        ("qk", "score model.layers.1.self_attn[2,0.5] replace 3e5 at first_token"),
        ("sv", "probability model.layers.1.self_attn[2,0.5] replace 3e5 at first_token"),
    ],
)
def test_attention_in_steps_is_checked(component: str, line: str) -> None:
    model = tiny_loaded("llama", attn_implementation="eager")
    block = align([(5, 6, 7, 8, 9)], [(10, 11)], model.device)

    def run(*faults: Fault) -> torch.Tensor:
        with Injection(model, faults) as injection:
            return words(teacher_forced(model, block, frozenset(), injection.begin_pass))

    clean = run()
    with protect(model, [Checksum((component,))]) as protected:
        assert torch.equal(run(), clean)
        assert not any(counts.wrong for counts in protected.report())
        struck = run(parse_fault(line))
        wrong = [(counts.site.module, counts.site.component) for counts in protected.report() if counts.wrong]
    if component == "qk":
        assert torch.equal(struck, clean)
        assert wrong == [("model.layers.1.self_attn", "qk")]
    else:
        # A probability is struck before it is multiplied: the product is right for what it was given.
        assert not torch.equal(struck, clean)
        assert not wrong


@pytest.mark.parametrize(
    ("where", "named"),
    [
        (f"{DOWN}.accumulator", (DOWN, "down")),
        ("model.layers.1.self_attn.qk.accumulator", ("model.layers.1.self_attn", "qk")),
    ],
)
def test_integer_products_are_checked_exactly(integers: LoadedModel, where: str, named: tuple[str, str]) -> None:
    clean = logits(integers)
    strike = StrikeOnce(integers, where, 1)
    strike.left = 0
    with protect(integers, [Checksum()]) as protected:
        assert torch.equal(logits(integers), clean)
        strike.left = 1
        assert torch.equal(logits(integers), clean)
        assert [(one.site.module, one.site.component) for one in protected.report() if one.wrong] == [named]


def test_actions(model: LoadedModel) -> None:
    for action in ("log", "zero", "raise"):
        with protect(model, [Checksum(("down",), action=action)]) as protected:
            StrikeOnce(model, DOWN)
            if action == "raise":
                with pytest.raises(CorruptionError, match="1 rows of"):
                    logits(model)
                continue
            seen: list[torch.Tensor] = []
            hook = model.module.get_submodule(DOWN).register_forward_hook(
                lambda _, __, out, kept=seen: kept.append(out)
            )
            logits(model)
            hook.remove()
            assert [event.action for event in protected.events] == [action]
            row = seen[0].view(-1, seen[0].shape[-1])[7]
            assert bool((row == 0).all()) is (action == "zero")


def test_ranges_that_were_observed(model: LoadedModel) -> None:
    bounds = observe_bounds(model, [TOKENS], ("down",))
    assert set(bounds) == {DOWN, DOWN.replace("1", "0")}
    clean = logits(model)
    with protect(model, [RangeGuard(bounds)]) as protected:
        assert torch.equal(logits(model), clean)
        StrikeOnce(model, DOWN, float("nan"))
        found = logits(model).view(torch.float32)
        assert bool(found.isfinite().all())
        assert sum(counts.wrong for counts in protected.report()) == 1


def test_bounds_of_the_first_pass(model: LoadedModel) -> None:
    with protect(model, [FirstTokenBounds(("down",))]) as protected, torch.inference_mode():
        cache = model.module(input_ids=TOKENS, use_cache=True).past_key_values
        strike = StrikeOnce(model, DOWN, 1e9)
        strike.left = 0
        step = model.module(input_ids=TOKENS.repeat(1, 1)[:, :4], past_key_values=cache, use_cache=True).logits
        strike.left = 1
        struck = model.module(input_ids=TOKENS[:, :4], past_key_values=cache, use_cache=True).logits
        assert sum(counts.wrong for counts in protected.report()) == 1
        assert bool(struck.isfinite().all())
        assert step.shape == struck.shape


def test_the_first_token_twice(model: LoadedModel) -> None:
    expected = model.module.generate(TOKENS, max_new_tokens=8, do_sample=False, pad_token_id=0)
    with protect(model, [DualFirstToken()]) as protected:
        StrikeOnce(model, "model.layers.0.mlp.down_proj", 1e6)
        found = model.module.generate(TOKENS, max_new_tokens=8, do_sample=False, pad_token_id=0)
        assert [event.mended for event in protected.events] == [True]
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("wrong", "mended"), [((0,), True), ((1,), True), ((0, 1), False)])
def test_two_runs_of_the_first_token_that_agree_are_right(
    model: LoadedModel, wrong: tuple[int, ...], mended: bool
) -> None:
    clean, run = logits(model), count()

    def strike(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
        if (number := next(run)) in wrong:
            output[0, 7, 2] = 1e4 * (1 + number)

    with protect(model, [DualFirstToken()]) as protected:
        model.module.get_submodule(DOWN).register_forward_hook(strike)
        assert torch.equal(logits(model), clean)
        assert [event.mended for event in protected.events] == [mended]
    assert next(run) == 3


def test_mixed_precision_bounds_a_component(model: LoadedModel) -> None:
    clean = logits(model)
    with protect(model, [Int8(("down",)), Checksum()]) as protected:
        mixed = logits(protected.model)
        covered = {one.site.module: one.protections for one in protected.coverage}
        assert covered[DOWN] == ("Checksum",)
        assert {site.component for site in protected.model.components.accumulators} == {"down"}
    assert not torch.equal(mixed, clean)
    assert torch.equal(logits(model), clean)


def test_what_cannot_be_checked_is_named() -> None:
    with protect(tiny_loaded("mixtral"), [Checksum(action="count")]) as protected:
        reasons = {one.site.component: one.reason for one in protected.coverage if one.reason}
        covered = {name for one in protected.coverage if one.protections for name in one.site.components}
    assert "expert" in reasons
    assert "no linear map" in reasons["expert"]
    assert "eager" in reasons["qk"]
    assert covered >= {"q", "k", "v", "o", "lm_head"}


def looked_at(model: LoadedModel, *protections: Protection) -> dict[str, tuple[str, ...]]:
    """Which protections look at each component of the first layer."""
    with protect(model, protections) as protected:
        return {one.site.component: one.protections for one in protected.coverage if one.site.layer == 0}


def test_guards_of_outputs_cover_products_whatever_computes_them(integers: LoadedModel) -> None:
    fused = tiny_loaded("phi3")
    for model in (fused, integers, tiny_loaded("mixtral")):
        covered = looked_at(model, RangeGuard(observe_bounds(model, [TOKENS])), FiniteScreen())
        made = {name: own for name, own in covered.items() if name not in ("qk", "sv")}
        assert set(made.values()) == {("RangeGuard", "FiniteScreen")}
        if model is fused:
            assert set(made) == {"q+k+v", "o", "gate+up", "down"}
    assert looked_at(integers, Checksum(), FiniteScreen(("o",)))["o"] == ("Checksum", "FiniteScreen")


def test_renewed_after_a_change_on_purpose(model: LoadedModel) -> None:
    with protect(model, [Checksum(action="log")]) as protected:
        struck_weight(model, bits=1 << 26)
        logits(model)
        assert any(counts.wrong for counts in protected.report())
        assert protected.events
        protected.renew()
        logits(model)
        assert not any(counts.wrong for counts in protected.report())
        assert not protected.events


def test_counts_begin_anew(model: LoadedModel) -> None:
    with protect(model, [Checksum()]) as protected:
        StrikeOnce(model, DOWN)
        logits(model)
        assert protected.events
        protected.reset()
        assert not protected.events
        assert not any(counts.calls for counts in protected.report())


def test_misuse_is_told(model: LoadedModel) -> None:
    handle = protect(model, [Checksum()])
    with pytest.raises(InputError, match="is protected already"):
        protect(model, [Checksum()])
    handle.remove()
    for use in (
        handle.report,
        handle.reset,
        handle.remove,
        handle.renew,
        lambda: handle.coverage,
        lambda: handle.model,
    ):
        with pytest.raises(InputError, match="were removed"):
            use()
    with pytest.raises(InputError, match="nothing is asked for"):
        protect(model, [])
    with pytest.raises(InputError, match="put Checksum into one"):
        protect(model, Checksum())
    with pytest.raises(InputError, match="a LlamaForCausalLM can't be protected"):
        protect(model.module, [Checksum()])
    with pytest.raises(InputError, match="no parameter"):
        protect(model, [Backup(("nowhere",))])
    with pytest.raises(InputError, match="can't be protected so"):
        Checksum(("norm",))
    with pytest.raises(InputError, match="whose output is not known"):
        protect(model, [RangeGuard({"nowhere": (0.0, 1.0)})])
    with pytest.raises(InputError, match="no qk that can be checked"):
        protect(model, [Checksum(("qk",))])
    protect(model, [Checksum()]).remove()


def test_a_dtype_without_a_threshold_is_refused_and_leaves_the_model_alone() -> None:
    model = tiny_loaded("llama", torch.float64)
    with pytest.raises(InputError, match="float64"):
        protect(model, [Checksum()])
    assert not model.module.get_submodule(DOWN)._forward_hooks


def test_counting_does_not_break_a_compiled_graph(model: LoadedModel) -> None:
    clean = model.module(input_ids=TOKENS, use_cache=False).logits
    with protect(model, [Checksum(action="count"), FiniteScreen()]) as protected, torch.inference_mode():
        compiled = torch.compile(model.module.model, fullgraph=True, backend="eager")
        compiled(input_ids=TOKENS, use_cache=False)
        counts = [one for one in protected.report() if one.protection == "Checksum" and one.site.layer is not None]
        assert all(one.calls == 1 and not one.wrong for one in counts)
        struck_weight(model)
        compiled(input_ids=TOKENS, use_cache=False)
        wrong = [one.site.module for one in protected.report() if one.protection == "Checksum" and one.wrong]
    assert clean.shape[-1] > 0
    assert wrong == [DOWN]


@pytest.mark.parametrize(("scheme", "mended"), [(ClassicalABFT(), True), (Unprotected(), False)])
def test_schemes_say_which_tiles_are_computed_again(integers: LoadedModel, scheme: Scheme, mended: bool) -> None:
    clean = logits(integers)
    with protect(integers, [Checksum(("down",), scheme=scheme)]) as protected:
        assert torch.equal(logits(integers), clean)
        StrikeOnce(integers, f"{DOWN}.accumulator", 12345)
        assert torch.equal(logits(integers), clean) is mended
        (struck,) = [counts for counts in protected.report() if counts.wrong]
        assert (struck.checked, struck.wrong, struck.recomputed) == (2, 1, int(mended))
        assert [event.mended for event in protected.events] == [mended]


def test_tiles_are_those_of_the_array_that_is_given(integers: LoadedModel) -> None:
    array = SystolicArray("output-stationary", 8, 8)
    with protect(integers, [Checksum(("down",), scheme=ClassicalABFT(), array=array)]) as protected:
        StrikeOnce(integers, f"{DOWN}.accumulator", 12345)
        logits(integers)
        (struck,) = [counts for counts in protected.report() if counts.wrong]
        assert [event.mended for event in protected.events] == [True]
    # 24 tokens by 32 outputs.
    assert (struck.checked, struck.wrong, struck.recomputed) == (3 * 4, 1, 1)


def test_an_attention_of_other_products_is_told() -> None:
    model = tiny_loaded("llama", attn_implementation="eager")
    attention = model.module.get_submodule("model.layers.1.self_attn")
    with protect(model, [Checksum(("qk",))]):
        attention.get_submodule("o_proj").register_forward_pre_hook(
            lambda _, inputs: (torch.matmul(inputs[0], torch.eye(32)),)
        )
        with pytest.raises(ContractError, match="made 3 products"):
            logits(model)


def test_attention_is_not_watched_on_after_a_pass_that_failed() -> None:
    model = tiny_loaded("llama", attn_implementation="eager")
    with protect(model, [Checksum(("q", "qk"), action="raise")]) as protected:
        StrikeOnce(model, "model.layers.1.self_attn.q_proj")
        with pytest.raises(CorruptionError):
            logits(model)
        protected.reset()
        logits(model)
        assert {counts.calls for counts in protected.report()} == {1}


def test_a_scheme_for_floating_point_is_refused(model: LoadedModel) -> None:
    with pytest.raises(InputError, match="w8a8"):
        protect(model, [Checksum(scheme=ClassicalABFT())])


def test_protected_in_inference_mode_and_used_outside(model: LoadedModel) -> None:
    with torch.inference_mode():
        protected = protect(model, [Checksum(), FirstTokenBounds()])
    logits(model)
    with torch.no_grad():
        model.module(input_ids=TOKENS, use_cache=False)
    assert all(counts.wrong == 0 for counts in protected.report())
    protected.remove()


def test_outputs_as_tuples_and_static_caches_twice(model: LoadedModel) -> None:
    asked = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "cache_implementation": "static"}
    expected = model.module.generate(TOKENS, **asked)
    with protect(model, [DualFirstToken()]), torch.inference_mode():
        model.module(input_ids=TOKENS, use_cache=False, return_dict=False)
        assert torch.equal(model.module.generate(TOKENS, **asked), expected)


def test_protections_that_cannot_be_renewed_are_removed(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = protect(model, [Checksum()])

    def fails(*_: object) -> None:
        raise InputError("not now")

    with monkeypatch.context() as patched:
        patched.setattr("aftershock.protect.handle.attach", fails)
        with pytest.raises(InputError, match="not now"):
            handle.renew()
    with pytest.raises(InputError, match="were removed"):
        handle.report()
    protect(model, [Checksum()]).remove()
