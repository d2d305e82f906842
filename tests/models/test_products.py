"""Attention's two products in integers: exact sums, scales that keep causality, and nothing else changed."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_values import drawn

from aftershock.errors import InputError
from aftershock.models import HeadSite, component_map, load
from aftershock.models.components import Rows
from aftershock.models.products import ProbabilitiesByValues, QueriesByKeys, exact_sums, products_to_integers
from aftershock.numerics import words
from tiny_models import save_tiny, tiny_loaded, tiny_model

WHOLE = (Rows(0, 1, 1),)


def sums_of(product: torch.nn.Module, *operands: torch.Tensor) -> torch.Tensor:
    found: list[torch.Tensor] = []
    hook = product.accumulator.register_forward_hook(lambda _, __, output: found.append(output.clone()))
    product(*operands)
    hook.remove()
    return found[0]


@pytest.mark.parametrize("length", [1, 8, 1040, 1041, 2500])
def test_sums_are_exact_at_every_length(length: int) -> None:
    """The largest whole numbers, of one sign, are where fp32 would round first."""
    left, right = torch.full((2, 3, 4, length), 127.0), torch.full((2, 3, length, 5), 127.0)
    left[0, 0, 0, length // 2] = -126.0
    right[1, 2, length // 2, 3] = 125.0
    found = exact_sums(left, right)
    assert found.dtype == torch.int32
    assert torch.equal(found.long(), torch.einsum("rhqk,rhkn->rhqn", left.long(), right.long()))


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 30), st.sampled_from([torch.float32, torch.bfloat16]))
def test_products_are_those_of_exact_integer_arithmetic(seed: int, queries: int, keys: int, dtype: torch.dtype) -> None:
    query, key = drawn(seed, 2, 3, queries, 8).to(dtype), drawn(seed + 1, 2, 3, keys, 8).to(dtype)
    scale, key_scale = (states.float().abs().amax(-1, keepdim=True) / 127 for states in (query, key))
    whole, key_whole = torch.round(query.float() / scale).long(), torch.round(key.float() / key_scale).long()
    expected = torch.einsum("rhqd,rhkd->rhqk", whole, key_whole)
    product = QueriesByKeys()
    assert torch.equal(sums_of(product, query, key.transpose(2, 3)).long(), expected)
    by_hand = (expected.float() * scale * key_scale.transpose(2, 3)).to(dtype)
    assert torch.equal(words(product(query, key.transpose(2, 3))), words(by_hand))

    probabilities, value = torch.softmax(by_hand.float(), -1).to(dtype), drawn(seed + 2, 2, 3, keys, 8).to(dtype)
    value_scale = value.float().abs().amax(-1, keepdim=True) / 127
    value_whole = torch.round(value.float() / value_scale).long()
    weighed = probabilities.float() * value_scale.transpose(2, 3)
    scale = weighed.amax(-1, keepdim=True) / 127
    expected = torch.einsum("rhqk,rhkd->rhqd", torch.round(weighed / scale).long(), value_whole)
    outputs = ProbabilitiesByValues(())
    assert torch.equal(sums_of(outputs, probabilities, value).long(), expected)
    assert torch.equal(words(outputs(probabilities, value)), words((expected.float() * scale).to(dtype)))
    exact = probabilities.double() @ value.double()
    assert (outputs(probabilities, value).double() - exact).abs().max() < 0.05 * value.double().abs().max()


def test_outputs_of_heads_quantised_again_saturate_by_query_and_head() -> None:
    probabilities, values = torch.softmax(drawn(1, 2, 3, 4, 6), -1), drawn(2, 2, 3, 6, 8)
    clean = ProbabilitiesByValues(())(probabilities, values)
    scale = clean.abs().amax(-1, keepdim=True) / 127
    product = ProbabilitiesByValues(WHOLE)
    again = product(probabilities, values)
    assert torch.equal(again, torch.round(clean / scale).clamp(-127, 127) * scale)

    def strike(_: object, __: object, sums: torch.Tensor) -> None:
        sums[1, 2, 3, 5] = -(2**30)

    hook = product.accumulator.register_forward_hook(strike)
    faulty = product(probabilities, values)
    hook.remove()
    assert (faulty != again).nonzero().tolist() == [[1, 2, 3, 5]]
    torch.testing.assert_close(faulty[1, 2, 3, 5], -clean[1, 2, 3].abs().max())


def test_a_nan_stays_with_its_query_and_its_key() -> None:
    query, key = drawn(1, 2, 3, 4, 8), drawn(2, 2, 3, 6, 8)
    clean = QueriesByKeys()(query, key.transpose(2, 3))
    query[0, 1, 2, 3], key[1, 0, 4, 0] = torch.nan, torch.inf
    broken = QueriesByKeys()(query, key.transpose(2, 3))
    assert not broken[0, 1, 2].isfinite().any()
    assert not broken[1, 0, :, 4].isfinite().any()
    broken[0, 1, 2], broken[1, 0, :, 4] = clean[0, 1, 2], clean[1, 0, :, 4]
    assert torch.equal(words(broken), words(clean))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "qwen3", "phi3", "opt", "gpt2", "gpt_neox"])
def test_attention_multiplies_in_integers_and_sees_nothing_that_comes_later(tmp_path: Path, family: str) -> None:
    plain = tiny_loaded(family, attn_implementation="eager").module
    model = load(str(save_tiny(tmp_path / family, family)), arithmetic="w8a8-requantised")
    assert model.attention == "eager"
    sums = [site for site in model.components.accumulators if isinstance(site, HeadSite)]
    assert [(site.part, site.component, site.layer) for site in sums] == [
        (f"{component}_accumulator", component, layer) for layer in (0, 1) for component in ("qk", "sv")
    ]
    seen: list[str] = []
    for site in sums:
        product = model.module.get_submodule(f"{site.module}.{site.component}.accumulator")
        product.register_forward_hook(lambda _, __, output, part=site.part: seen.append(f"{part} {output.dtype}"))
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    ours, theirs = model.module(input_ids=ids).logits, plain(input_ids=ids).logits
    assert seen == ["qk_accumulator torch.int32", "sv_accumulator torch.int32"] * 2
    assert torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.9
    changed = torch.tensor([[5, 6, 7, 8, 90, 91]])
    other = model.module(input_ids=changed).logits
    assert torch.equal(words(other[:, :4]), words(ours[:, :4]))
    assert not torch.equal(other[:, 4:], ours[:, 4:])
    assert torch.overrides._get_current_function_mode() is None


def test_an_attention_that_multiplies_otherwise_is_refused() -> None:
    module = tiny_model("gpt2", attn_implementation="eager", reorder_and_upcast_attn=True)
    products_to_integers(module, ["transformer.h.0.attn"], ())
    with pytest.raises(InputError, match="two products of torch"):
        component_map(module)
    assert torch.overrides._get_current_function_mode() is None
