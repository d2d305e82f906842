"""Searches with nothing but a model and some text: in a tiny model that knows its text, and in the demo model."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aftershock.locate import TextVerdict, locate_by_text, mend_by_text
from aftershock.locate.by_text import Search, search, text_rows
from aftershock.locate.by_text.branches import Branch, Damped
from aftershock.locate.by_text.search import CONVINCING, Found, Tried
from aftershock.locate.by_text.suspects import Suspect
from aftershock.locate.by_text.text_loss import LAST
from aftershock.models import LoadedModel, load, model_hash
from demo_model import SPEC, needs_demo_model
from learnt_model import TEXT, learnt, learnt_weights

Flip = tuple[str, int, int]

EMBEDDING, NORM = "model.embed_tokens.weight", "model.norm.weight"
DOWN, Q = "model.layers.0.mlp.down_proj.weight", "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return learnt_weights(TEXT, 12, 64)


def rows_of(model: LoadedModel) -> torch.Tensor:
    return text_rows(model, TEXT, 12, 64)


def strike(one: Search, flips: Sequence[Flip]) -> None:
    for name, place, bit in flips:
        one.words[name].flip(place, bit)


def flips_of(found: Found) -> list[Flip]:
    return [(one.suspect.parameter, one.suspect.place, one.suspect.bit) for one in found.flips]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_found_in_a_healthy_model(weights: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    model = learnt(weights, dtype)
    before = model_hash(model.module)
    found = Search(model, rows_of(model)).run()
    assert not found.corrupted
    assert found.flips == ()
    assert len(found.branches) == 4
    assert all(one.gain < CONVINCING for one in found.branches)
    assert torch.equal(found.before, found.after)
    assert found.before.shape == (12,)
    assert found.passes > 4
    assert model_hash(model.module) == before


@pytest.mark.parametrize(
    ("name", "place", "layer"),
    [(DOWN, 777, 0), (Q, 77, 1), (EMBEDDING, 32 * 60 + 3, None), (NORM, 5, LAST)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_flipped_top_exponent_bit_is_found(
    weights: dict[str, torch.Tensor], dtype: torch.dtype, name: str, place: int, layer: int | None
) -> None:
    model = learnt(weights, dtype)
    healthy = model_hash(model.module)
    one = Search(model, rows_of(model))
    flip = name, place, 8 * dtype.itemsize - 2
    strike(one, [flip])
    broken = model_hash(model.module)
    found = one.run()
    assert found.corrupted
    assert flips_of(found) == [flip]
    assert found.branches == ()
    assert found.layers[0] == layer
    assert found.flips[0].gain == pytest.approx(float((found.before - found.after).mean()))
    assert found.flips[0].gain > 1
    assert torch.equal(found.after, Search(model, rows_of(model)).text.refresh())
    assert model_hash(model.module) == healthy
    one.undo()
    assert model_hash(model.module) == broken


@pytest.mark.parametrize(
    ("name", "place", "bit"),
    [("model.layers.1.input_layernorm.weight", 5, 15), ("model.layers.0.post_attention_layernorm.weight", 9, 15)],
)
def test_a_fault_in_range_is_found_by_the_gradient(
    weights: dict[str, torch.Tensor], name: str, place: int, bit: int
) -> None:
    model = learnt(weights)
    healthy = model_hash(model.module)
    one = Search(model, rows_of(model))
    strike(one, [(name, place, bit)])
    found = one.run()
    assert flips_of(found) == [(name, place, bit)]
    assert found.flips[0].suspect.gain > 0
    assert found.flips[0].suspect.likelier == 0
    assert model_hash(model.module) == healthy


def test_layers_come_by_what_flips_in_them_brought(
    weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = learnt(weights)
    one = Search(model, rows_of(model))
    small, large = (
        Tried(Suspect(name, 0, 1, 0.0, 0.0), torch.full((4,), gain)) for name, gain in ((DOWN, 0.1), (Q, 2.0))
    )
    rounds = iter([[small], [large], []])
    monkeypatch.setattr(one, "_round", lambda base, seen: next(rounds))
    found = one.run()
    assert found.flips == (small, large)
    assert found.layers[:2] == (1, 0)


def test_several_flips_are_found_and_undone_in_turn(weights: dict[str, torch.Tensor]) -> None:
    model = learnt(weights)
    healthy = model_hash(model.module)
    one = Search(model, rows_of(model))
    flips = [(DOWN, 777, 14), ("model.layers.1.input_layernorm.weight", 5, 15)]
    strike(one, flips)
    broken = model_hash(model.module)
    found = one.run()
    assert sorted(flips_of(found)) == sorted(flips)
    assert set(found.layers[:2]) == {0, 1}
    assert model_hash(model.module) == healthy
    assert sum(each.gain for each in found.flips) == pytest.approx(float((found.before - found.after).mean()))
    one.undo()
    assert model_hash(model.module) == broken


def test_a_rejected_flip_leaves_no_trace(weights: dict[str, torch.Tensor]) -> None:
    """Two flips that claim more than they bring, beside one that is true: what is tried next meets the mended model."""
    model = learnt(weights)
    healthy = model_hash(model.module)
    one = Search(model, rows_of(model))
    strike(one, [(DOWN, 777, 14)])
    base = one.text.refresh()
    claims = [Tried(Suspect(name, 5, 13, 0.0, 0.0), torch.full((12,), 3.0)) for name in (NORM, Q)]
    kept = one._keep([one._try(Suspect(DOWN, 777, 14, 0.0, 9.0), base), *claims], base)
    assert [each.suspect.place for each in kept] == [777]
    assert model_hash(model.module) == healthy
    assert torch.equal(one.text.after_flip(LAST), Search(model, rows_of(model)).text.refresh())


@pytest.mark.parametrize("search_by_text", [locate_by_text, mend_by_text])
def test_a_search_that_does_not_end_leaves_the_model_as_it_came(
    weights: dict[str, torch.Tensor], search_by_text: Callable[..., TextVerdict]
) -> None:
    model = learnt(weights)
    for name, place in ((DOWN, 777), (Q, 77)):
        model.module.get_parameter(name).detach().view(-1).view(torch.int16)[place] ^= 1 << 14
    broken = model_hash(model.module)
    seen = []

    def stop(message: str) -> None:
        seen.append(model_hash(model.module))
        if seen[-1] != broken:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search_by_text(model, TEXT, 12, 64, stop)
    assert len(set(seen)) == 2
    assert model_hash(model.module) == broken


def test_flips_that_hide_each_other_are_found(weights: dict[str, torch.Tensor]) -> None:
    model = learnt(weights)
    flips = [(DOWN, 777, 14), ("model.norm.weight", 5, 14)]
    one = Search(model, rows_of(model))
    strike(one, flips)
    found = one.run()
    assert sorted(flips_of(found)) == sorted(flips)
    one.undo()


def test_of_words_flipped_all_at_once_those_that_do_not_matter_stay_as_they_were(
    weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = learnt(weights)
    healthy = model_hash(model.module)
    one = Search(model, rows_of(model))
    flips = [(DOWN, 777, 14), (NORM, 5, 14)]
    strike(one, flips)
    suspects = [Suspect(*flip, 0.0, 20.0) for flip in [*flips, (Q, 77, 0)]]
    monkeypatch.setattr(one, "_implausible", lambda: iter(suspects))
    kept = one._jointly(one.text.refresh())
    assert [each.suspect for each in kept] == suspects[:2]
    assert model_hash(model.module) == healthy


def test_passes_are_those_of_one_search(weights: dict[str, torch.Tensor]) -> None:
    model = learnt(weights)
    one = Search(model, rows_of(model))
    assert one.run().passes == pytest.approx(one.run().passes)


def test_a_branch_that_no_flip_mends_is_named(weights: dict[str, torch.Tensor]) -> None:
    model = learnt(weights)
    model.module.get_parameter(DOWN).fill_(math.nan)
    found = Search(model, rows_of(model)).run()
    assert found.corrupted
    assert found.flips == ()
    assert str(found.branches[0].branch) == "layer 0 mlp"
    assert found.branches[0].alpha == 0
    assert found.branches[0].gain > 1
    assert found.layers[0] == 0


@needs_demo_model
def test_a_flip_in_the_demo_model_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_WORDS_PER_LAYER", 1)  # fewer tries, for time
    model = replace(load(SPEC, "bfloat16"), stored=None)
    docs = Path(__file__).parents[2] / "docs"
    text = "".join((docs / name).read_text(encoding="utf-8") for name in ("architecture.md", "faults.md"))
    one = Search(model, text_rows(model, text, rows=6, length=32))
    flip = "model.layers.27.mlp.down_proj.weight", 12345, 14
    weight = model.module.get_parameter(flip[0])
    healthy = weight.clone()
    strike(one, [flip])
    broken = weight.clone()
    found = one.run()
    assert flips_of(found)[:1] == [flip]
    assert found.layers[0] == 27
    assert float(found.after.mean()) < float(found.before.mean()) - 1
    assert [each for each in flips_of(found) if each[0] == flip[0]] == [flip]
    assert torch.equal(weight, healthy)
    one.undo()
    assert torch.equal(weight.view(torch.int16), broken.view(torch.int16))


def tried(falls: Sequence[float], likelier: float = 0.0) -> Tried:
    return Tried(Suspect("weight", 0, 0, 0.0, likelier), torch.tensor(falls, dtype=torch.float64))


def test_a_fall_has_a_mean_and_an_error() -> None:
    one = tried([0.1, 0.2, 0.3, 0.4])
    assert one.gain == pytest.approx(0.25)
    assert one.error == pytest.approx(math.sqrt(sum((x - 0.25) ** 2 for x in (0.1, 0.2, 0.3, 0.4)) / 3) / 2)


@pytest.mark.parametrize(
    ("falls", "likelier", "convincing"),
    [
        ([0.05] * 4, 0.0, True),
        ([0.03] * 4, 0.0, False),
        ([-0.5] * 4, 0.0, False),
        ([0.05, 0.05, 0.05, 0.5], 0.0, False),  # within chance: 0.16 +- 0.11
        ([0.2, 0.25, 0.2, 0.25], 0.0, True),
        ([0.03] * 4, 20.0, True),
        ([0.03] * 4, 5.0, False),
        ([0.001] * 4, 20.0, False),
    ],
)
def test_what_convinces(falls: list[float], likelier: float, convincing: bool) -> None:
    assert tried(falls, likelier).convincing == convincing


def test_a_branch_better_left_out_is_a_corruption() -> None:
    losses = torch.ones(4, dtype=torch.float64)
    branch = Branch(3, "mlp", "model.layers.3.mlp.down_proj")
    gains = {gain: Found((), (Damped(branch, 0.0, gain),), losses, losses, (3,), 9.0) for gain in (0.03, 0.05)}
    assert not gains[0.03].corrupted
    assert gains[0.05].corrupted
    assert Found((tried([0.1] * 4),), (), losses, losses, (3,), 9.0).corrupted
    assert not Found((), (), losses, losses, (), 9.0).corrupted
