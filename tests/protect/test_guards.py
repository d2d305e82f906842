"""Guards of ranges: which outputs they look at, in which dtype and where, and what a first pass teaches."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from transformers import DynamicCache

from aftershock.errors import InputError
from aftershock.models import LoadedModel, load
from aftershock.numerics import words
from aftershock.protect import (
    FiniteScreen,
    FirstTokenBounds,
    Int8,
    Limit,
    Protected,
    Protection,
    RangeGuard,
    observe_bounds,
    protect,
)
from tiny_models import save_tiny, tiny_loaded

TOKENS = torch.arange(4, 28).view(2, 12)
DOWN = "model.layers.1.mlp.down_proj"


def logits(model: LoadedModel) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.module(input_ids=TOKENS, use_cache=False).logits
    return words(found)


def make_all(model: LoadedModel, name: str, value: float) -> Callable[[], None]:
    """Every output of a module becomes `value`, before any other hook sees it, until what is returned is called."""
    hook = model.module.get_submodule(name).register_forward_hook(
        lambda _module, _inputs, output: torch.full_like(output, value), prepend=True
    )
    return hook.remove


def wrong(protected: Protected) -> dict[str, int]:
    return {counts.site.module: counts.wrong for counts in protected.report() if counts.wrong}


def test_a_first_pass_of_nan_sets_no_bounds() -> None:
    model = tiny_loaded("llama")
    with protect(model, [FirstTokenBounds(("down",))]) as protected, torch.inference_mode():
        undo = make_all(model, DOWN, torch.nan)
        first = model.module(input_ids=TOKENS, use_cache=True)
        undo()
        protected.reset()
        later = model.module(input_ids=TOKENS[:, :1], past_key_values=first.past_key_values, use_cache=True)
        assert bool(first.logits.isfinite().all())
        assert bool(later.logits.isfinite().all())
        assert DOWN not in wrong(protected)


def test_values_wider_than_single_precision_keep_their_bounds() -> None:
    model = tiny_loaded("llama", torch.float64)
    clean = logits(model)
    with protect(model, [RangeGuard(observe_bounds(model, [TOKENS]))]) as protected:
        assert torch.equal(logits(model), clean)
        assert wrong(protected) == {}


def test_infinities_are_seen_in_double_precision() -> None:
    model = tiny_loaded("llama", torch.float64)
    with protect(model, [FiniteScreen(("down",))]) as protected:
        make_all(model, DOWN, torch.inf)
        logits(model)
        assert wrong(protected) == {DOWN: TOKENS.numel() * 32}


@pytest.mark.parametrize(
    "protection", [FiniteScreen(limit="clamp"), FirstTokenBounds()], ids=lambda one: type(one).__name__
)
def test_outputs_computed_in_integers_are_looked_at(tmp_path: Path, protection: Protection) -> None:
    model = load(str(save_tiny(tmp_path / "model", "llama")), arithmetic="w8a8")
    clean = logits(model)
    with protect(model, [protection]) as protected:
        assert torch.equal(logits(model), clean)
        seen = {counts.site.component for counts in protected.report()}
    assert seen >= {"v", "o", "up", "down"}
    with protect(tiny_loaded("llama"), [Int8(("down",)), FiniteScreen(("down",), "clamp")]) as protected:
        make_all(protected.model, DOWN, torch.inf)
        assert bool(logits(protected.model).view(torch.float32).isfinite().all())
        assert set(wrong(protected)) == {DOWN}


def test_observed_bounds_hold_every_pass_and_a_margin() -> None:
    model = tiny_loaded("llama")
    both = observe_bounds(model, [TOKENS[:1], TOKENS[1:]])
    alone = [observe_bounds(model, [row[None]]) for row in TOKENS]
    wider = observe_bounds(model, [TOKENS[:1], TOKENS[1:]], margin=0.25)
    for name, (low, high) in both.items():
        lows, highs = zip(*(one[name] for one in alone), strict=True)
        assert (low, high) == (min(lows), max(highs))
        more = 0.25 * (high - low)
        assert wider[name] == pytest.approx((low - more, high + more))
    assert any(alone[0][name] != alone[1][name] for name in both)


def test_modules_without_a_finite_value_have_no_bounds() -> None:
    model = tiny_loaded("llama")
    make_all(model, DOWN, torch.nan)
    with pytest.raises(InputError, match=f"{DOWN} gives no finite value"):
        observe_bounds(model, [TOKENS], ("down",))


@pytest.mark.parametrize(("limit", "left"), [("count", 9.0), ("clamp", 0.5), ("zero", 0.0)])
def test_what_is_done_beyond_the_bounds(limit: Limit, left: float) -> None:
    model, seen = tiny_loaded("llama"), []
    with protect(model, [RangeGuard({DOWN: (-0.5, 0.5)}, limit)]) as protected:
        make_all(model, DOWN, 9.0)
        model.module.get_submodule(DOWN).register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        logits(model)
        assert wrong(protected) == {DOWN: TOKENS.numel() * 32}
    assert seen[0].unique().tolist() == [left]


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_routers_and_experts_are_looked_at(family: str) -> None:
    model = tiny_loaded(family)
    clean = logits(model)
    with protect(model, [FiniteScreen(limit="clamp"), FirstTokenBounds(("router", "expert"))]) as protected:
        assert torch.equal(logits(model), clean)
        make_all(model, "model.layers.1.mlp.experts", torch.inf)
        assert bool(logits(model).view(torch.float32).isfinite().all())
        assert "model.layers.1.mlp.experts" in wrong(protected)
        assert {"router", "expert"} <= {counts.site.component for counts in protected.report() if counts.checked}


@pytest.mark.parametrize(
    "protection", [FiniteScreen(("fc2",)), FirstTokenBounds(("fc1", "fc2")), FiniteScreen(("qk",))]
)
def test_components_that_the_model_lacks_are_named(protection: FiniteScreen | FirstTokenBounds) -> None:
    with pytest.raises(InputError, match=f"no module of the model gives {', '.join(protection.components)}"):
        protect(tiny_loaded("llama"), [protection])


@pytest.mark.parametrize("limit", ["count", "clamp"])
def test_bounds_are_where_the_module_is(limit: Literal["count", "clamp"]) -> None:
    model = tiny_loaded("llama")
    clean = logits(model)
    elsewhere = replace(model, device=torch.device("meta"))
    guards = [FiniteScreen(limit=limit), FirstTokenBounds(), RangeGuard(observe_bounds(model, [TOKENS]))]
    with protect(elsewhere, guards) as protected:
        assert torch.equal(logits(model), clean)
        assert wrong(protected) == {}


@pytest.mark.parametrize("guard", [FirstTokenBounds(limit="count"), FirstTokenBounds()], ids=["count", "clamp"])
def test_bounds_of_a_first_pass_keep_compiled_graphs_whole_over_a_generation(guard: FirstTokenBounds) -> None:
    model, cache = tiny_loaded("llama"), DynamicCache()
    torch.compiler.reset()
    with protect(model, [guard]) as protected, torch.no_grad():
        compiled = torch.compile(model.module, fullgraph=True, backend="eager")
        compiled(TOKENS, past_key_values=cache, use_cache=True)
        for _ in range(10):  # more than the graphs that may be compiled of one function
            compiled(TOKENS[:, :1], past_key_values=cache, use_cache=True)
        assert {counts.calls for counts in protected.report()} == {10}
