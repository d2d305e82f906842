"""Alignment finds every point of a healthy target, however its engine names and lays out its values."""

from collections.abc import Callable

import pytest
import torch
from engine_like import PROMPTS, Arrange, Values, bundle_of, named, outcome, replica_of, tokens_of, values_of

from aftershock.capture import record
from aftershock.diagnose.alignment import align
from aftershock.diagnose.families import FAMILIES
from aftershock.diagnose.points import Point
from aftershock.models import LoadedModel
from aftershock.numerics import generator
from tiny_models import tiny_loaded

TINY = {"gemma3_text": "gemma3"}

DTYPES = (torch.float32, torch.bfloat16)

Rearrange = Callable[[torch.Tensor], torch.Tensor]


def model(family: str = "llama", dtype: torch.dtype = torch.float32) -> LoadedModel:
    return tiny_loaded(family, dtype, num_hidden_layers=3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_transformers_bundle_shows_all_but_what_is_inside_modules(family: str, dtype: torch.dtype) -> None:
    loaded = tiny_loaded(TINY.get(family, family), dtype)
    found = outcome(replica_of(loaded), record(loaded, PROMPTS))
    assert {point.kind for point in found.alignment.unmatched_points} <= {"q_rope", "k_rope", "mixture"}
    assert {match.evidence for match in found.alignment.matches.values()} == {"value"}
    assert not found.wrong
    assert not found.alignment.disagreements


def fused(values: Values) -> dict[str, torch.Tensor]:
    """q, k and v one after another in one tensor, gate and up in another."""
    return _together(values, lambda parts: torch.cat(parts, -1))


def shared_out(values: Values) -> dict[str, torch.Tensor]:
    """For each key head its queries, its key, its value, as GPT-NeoX has them; gate and up channel by channel."""

    def merge(parts: list[torch.Tensor]) -> torch.Tensor:
        groups = 2 if len(parts) == 3 else parts[0].shape[-1]
        return torch.cat([part.unflatten(-1, (groups, -1)) for part in parts], -1).flatten(1)

    return _together(values, merge)


def _together(values: Values, merge: Callable[[list[torch.Tensor]], torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {}
    for name, (point, own) in zip(named(values), values.items(), strict=True):
        family = next((kinds for kinds in (("q", "k", "v"), ("gate", "up")) if point.kind in kinds), (point.kind,))
        if len(family) == 1:
            found[name] = own
        elif point.kind == family[0]:
            found[f"h.{point.layer}.w{len(family)}"] = merge([values[Point(kind, point.layer)] for kind in family])
    return found


def rearranged(rearrange: Rearrange, *kinds: str) -> Arrange:
    """Some kinds with their channels rearranged."""

    def arrange(values: Values) -> dict[str, torch.Tensor]:
        records = zip(named(values), values.items(), strict=True)
        return {name: rearrange(own) if point.kind in kinds else own for name, (point, own) in records}

    return arrange


def pairs_interleaved(values: torch.Tensor) -> torch.Tensor:
    """Channels of a head as an engine has them that turns neighbours."""
    return values.unflatten(-1, (-1, 2, 4)).transpose(-1, -2).flatten(1)


def heads_reversed(values: torch.Tensor) -> torch.Tensor:
    return values.unflatten(-1, (-1, 8)).flip(1).flatten(1)


def heads_first(values: torch.Tensor) -> torch.Tensor:
    """(heads, tokens, channels) in memory, under the shape (tokens, channels)."""
    return values.unflatten(-1, (-1, 8)).transpose(0, 1).reshape(values.shape)


def heads_first_by_request(values: torch.Tensor) -> torch.Tensor:
    return torch.cat([heads_first(part) for part in torch.split(values, [len(prompt) for prompt in PROMPTS])])


def pairs_of_sums(values: Values) -> dict[str, torch.Tensor]:
    """The residual stream as two values that are yet to be added."""
    found = {}
    for number, (name, (point, own)) in enumerate(zip(named(values), values.items(), strict=True)):
        if point.kind in ("residual", "attn_residual"):
            part = torch.from_numpy(generator(0, number, "pairs").standard_normal(tuple(own.shape))).to(own.dtype)
            found |= {f"{name}.hidden": own - part, f"{name}.residual": part}
        else:
            found[name] = own
    return found


def among_others(values: Values) -> dict[str, torch.Tensor]:
    """Behind every value two of no meaning."""
    found = {}
    for number, (name, own) in enumerate(named(values).items()):
        noise = torch.from_numpy(generator(0, number, "noise").standard_normal(tuple(own.shape))).to(own.dtype)
        found |= {name: own, f"{name}.noise": noise, f"{name}.wide": noise[:, :32].repeat(1, 2)}
    return {**{name: own for name, own in found.items() if name != "logits"}, "logits": found["logits"]}


def numbered(values: Values) -> dict[str, torch.Tensor]:
    """Names that tell nothing."""
    order = generator(0, 0, "names").permutation(len(values))
    return {
        "logits" if point.kind == "logits" else f"node_{number}": own
        for number, (point, own) in zip(order, values.items(), strict=True)
    }


ROTATED = ("q", "k", "q_norm", "k_norm", "q_rope", "k_rope")

ARRANGEMENTS: dict[str, Arrange] = {
    "as they are": named,
    "fused": fused,
    "shared out to key heads": shared_out,
    "interleaved pairs": rearranged(pairs_interleaved, *ROTATED),
    "heads in another order": rearranged(heads_reversed, *ROTATED, "v", "attention"),
    "heads before tokens": rearranged(heads_first, *ROTATED, "v"),
    "heads before tokens of each request": rearranged(heads_first_by_request, *ROTATED, "v"),
    "hidden and residual": pairs_of_sums,
    "among others": among_others,
    "names without meaning": numbered,
    "queries scaled": rearranged(lambda values: values * 8**-0.5, "q_rope"),
    "sign": rearranged(lambda values: -values, "down"),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("arrange", ARRANGEMENTS.values(), ids=list(ARRANGEMENTS))
def test_every_point_is_found_in_any_arrangement(arrange: Arrange, family: str, dtype: torch.dtype) -> None:
    replica = replica_of(model(family, dtype))
    found = outcome(replica, bundle_of(arrange(values_of(replica))))
    assert not found.alignment.unmatched_points
    assert {match.evidence for match in found.alignment.matches.values()} == {"value"}
    assert not found.wrong


def test_layouts_are_told() -> None:
    replica = replica_of(model())
    values = values_of(replica)
    assert outcome(replica, bundle_of(fused(values))).layouts("k") == {"channels 32:48"}
    assert outcome(replica, bundle_of(shared_out(values))).layouts("q") == {"channels 0:16, 32:48"}
    assert outcome(replica, bundle_of(shared_out(values))).layouts("up") == {"channels 1:97:2"}
    reversed_heads = outcome(replica, bundle_of(ARRANGEMENTS["heads in another order"](values)))
    assert reversed_heads.layouts("attention") == {"channels 24:32, 16:24, 8:16, 0:8"}
    transposed = outcome(replica, bundle_of(ARRANGEMENTS["heads before tokens of each request"](values)))
    assert transposed.layouts("v") == {"2 heads before the tokens of each request"}
    assert outcome(replica, bundle_of(ARRANGEMENTS["sign"](values))).layouts("down") == {"times -1"}


def test_an_embedding_may_be_shown_before_it_is_multiplied() -> None:
    replica = replica_of(tiny_loaded("gemma3"))
    records = named(values_of(replica))
    factor = replica.architecture.embedding_multiplier
    found = outcome(replica, bundle_of({**records, "embedding": records["embedding"] / factor}))
    assert found.layouts("embedding") == {f"times {factor:.6g}"}
    assert not found.wrong


def test_points_that_are_not_shown_stay_unmatched() -> None:
    replica = replica_of(model())
    values = values_of(replica)
    hidden = {"k_rope", "attn_norm", "up", "final_norm", "attn_residual"}
    records = zip(named(values), values.items(), strict=True)
    found = outcome(replica, bundle_of({name: own for name, (point, own) in records if point.kind not in hidden}))
    assert {point.kind for point in found.alignment.unmatched_points} == hidden
    assert not found.alignment.unmatched_values
    assert not found.wrong


def test_requests_in_another_order_are_put_in_order() -> None:
    replica = replica_of(model())
    shuffled = (PROMPTS[2], PROMPTS[0], PROMPTS[1])
    found = outcome(replica, bundle_of(named(values_of(replica, shuffled))))
    ids = [token for prompt in PROMPTS for token in prompt]
    assert found.alignment.order is not None
    assert [ids[number] for number in found.alignment.order] == [token for prompt in shuffled for token in prompt]
    assert not found.alignment.unmatched_points
    assert not found.wrong


def test_tokens_in_any_order_are_put_in_order() -> None:
    replica = replica_of(model())
    prompts = (PROMPTS[0], (*PROMPTS[0][:10], 3, 3), PROMPTS[1])
    order = torch.from_numpy(generator(0, 0, "order").permutation(sum(map(len, prompts))))
    records = {name: values[order] for name, values in named(values_of(replica, prompts)).items()}
    found = outcome(replica, bundle_of(records, prompts))
    assert not found.alignment.unmatched_points
    assert not found.wrong


def test_rows_that_were_not_computed_are_no_hindrance() -> None:
    replica = replica_of(model())
    records = named(values_of(replica))
    rows = {name: list(range(20, 60)) for name in records if name.startswith("h.")} | {"logits": [29, 37, 59]}
    shown = {name: values[rows[name]] if name in rows else values for name, values in records.items()}
    found = outcome(replica, bundle_of(shown, rows=rows))
    assert not found.alignment.unmatched_points
    assert not found.wrong


def test_what_is_no_point_is_named() -> None:
    replica = replica_of(model())
    found = outcome(replica, bundle_of(among_others(values_of(replica))))
    names = {place.record for place in found.alignment.unmatched_values}
    assert all(name.endswith((".noise", ".wide")) for name in names)
    assert "h.1.q.noise" in names


def test_a_bundle_of_other_weights_is_not_aligned_by_value() -> None:
    values = named(values_of(replica_of(model("llama"))))
    bundle = bundle_of({name: torch.roll(own, 1, 0) * 1.5 + 0.3 for name, own in values.items()})
    found = align(replica_of(model("llama")), tokens_of(bundle.manifest.requests), bundle)
    assert "value" not in {match.evidence for match in found.matches.values()}
