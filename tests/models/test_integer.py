"""Projections in integers: exact sums, and what they are scaled back to."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_values import drawn

from aftershock.errors import InputError
from aftershock.models import OutputSite, load
from aftershock.models.components import Rows
from aftershock.models.integer import Int8Linear
from aftershock.numerics import words
from tiny_models import save_tiny


def sums_of(part: Int8Linear, inputs: torch.Tensor) -> torch.Tensor:
    found: list[torch.Tensor] = []
    hook = part.accumulator.register_forward_hook(lambda _, __, output: found.append(output.clone()))
    part(inputs)
    hook.remove()
    return found[0]


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 40), st.sampled_from([torch.float32, torch.bfloat16]))
def test_outputs_are_those_of_exact_integer_arithmetic(seed: int, rows: int, tokens: int, dtype: torch.dtype) -> None:
    weight, bias, smooth = drawn(seed, 24, 16), drawn(seed + 1, 24), drawn(seed + 2, 16).abs() + 0.1
    part = Int8Linear(weight.to(dtype), bias.to(dtype), smooth)
    inputs = (5 * drawn(seed + 3, rows, tokens, 16)).to(dtype)
    smoothed = inputs.float() / smooth
    scale = smoothed.abs().amax(-1, keepdim=True) / 127
    rounded = torch.round(smoothed / scale).long()
    expected = torch.einsum("rtk,ck->rtc", rounded, part.weight.long())
    sums = sums_of(part, inputs)
    assert sums.dtype == torch.int32
    assert torch.equal(sums.long(), expected)
    assert rounded.abs().max() <= 127
    by_hand = (expected.float() * scale * part.scale + bias.to(dtype).float()).to(dtype)
    assert torch.equal(words(part(inputs)), words(by_hand))
    exact = inputs.double() @ weight.to(dtype).double().T + bias.to(dtype).double()
    assert (part(inputs).double() - exact).abs().max() < 0.15 * exact.abs().max()


def test_a_token_does_not_depend_on_its_company() -> None:
    part, inputs = Int8Linear(drawn(1, 24, 16), None, torch.ones(16)), drawn(2, 6, 9, 16)
    together = part(inputs)
    assert torch.equal(words(part(inputs[2:3])), words(together[2:3]))
    assert torch.equal(words(part(inputs[:, 4:5])), words(together[:, 4:5]))
    # A NaN, and an infinity, stay in their token.
    inputs[1, 3, 2], inputs[4, 0, 5] = torch.nan, torch.inf
    broken = part(inputs)
    assert not broken[1, 3].isfinite().any()
    assert not broken[4, 0].isfinite().any()
    broken[1, 3], broken[4, 0] = together[1, 3], together[4, 0]
    assert torch.equal(words(broken), words(together))


def test_a_token_of_zeros_gives_the_bias() -> None:
    bias = drawn(3, 24)
    part = Int8Linear(drawn(1, 24, 16), bias, torch.ones(16))
    assert torch.equal(part(torch.zeros(1, 2, 16)), bias.expand(1, 2, 24))


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3", "phi3", "opt", "gpt2", "gpt_neox", "mixtral"])
def test_every_projection_of_a_layer_is_computed_in_integers(tmp_path: Path, family: str) -> None:
    save_tiny(tmp_path / family, family)
    plain = load(str(tmp_path / family))
    model = load(str(tmp_path / family), arithmetic="w8a8")
    wanted = {"q", "k", "v", "o", "gate", "up", "down", "fc1", "fc2"}
    per_layer = {site.component for site in plain.components.outputs if site.layer == 0} & wanted
    sums = [site for site in model.components.accumulators if isinstance(site, OutputSite)]
    assert {site.component for site in sums if site.layer == 0} == per_layer
    assert {site.layer for site in sums} == {0, 1}
    for site in sums:
        part = model.module.get_submodule(site.module.removesuffix(".accumulator"))
        assert isinstance(part, Int8Linear)
        # OPT flattens rows and tokens before its feed-forward projections.
        assert site.layout == ("nc" if site.component in ("fc1", "fc2") and family == "opt" else "btc")
    assert model.components.outputs == plain.components.outputs
    left = {site.component for site in model.components.parameters if len(site.shape) > 1}
    assert not left & wanted
    ids = torch.tensor([[5, 6, 7, 8]])
    ours, theirs = (one.module(input_ids=ids).logits.flatten() for one in (model, plain))
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.95
    assert not torch.equal(ours, theirs)


def test_ranges_move_from_activations_into_weights(tmp_path: Path) -> None:
    """SmoothQuant's equation 4, with the inputs that calibration saw."""
    save_tiny(tmp_path / "llama", "llama")
    plain = load(str(tmp_path / "llama"))
    model = load(str(tmp_path / "llama"), arithmetic="w8a8")
    name = "model.layers.1.mlp.down_proj"
    seen: list[torch.Tensor] = []
    hook = plain.module.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    from aftershock.models.loading import _SENTENCES

    for text in _SENTENCES:
        plain.module(input_ids=torch.tensor([plain.tokenizer(text)["input_ids"]]))
    hook.remove()
    largest = torch.cat([one.flatten(0, -2) for one in seen]).abs().amax(0)
    weight = plain.module.get_parameter(f"{name}.weight")
    part = model.module.get_submodule(name)
    torch.testing.assert_close(part.smooth, (largest / weight.abs().amax(0)).sqrt())


def test_what_can_not_be_combined_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path / "llama", "llama")
    with pytest.raises(InputError, match="takes one device, and no storage"):
        load(str(tmp_path / "llama"), arithmetic="w8a8", storage="int8")


def struck(part: Int8Linear, inputs: torch.Tensor, places: list[tuple[int, int, int]], amount: int) -> torch.Tensor:
    def strike(_: object, __: object, sums: torch.Tensor) -> None:
        sums[tuple(torch.tensor(places).unbind(1))] += amount

    hook = part.accumulator.register_forward_hook(strike)
    outputs = part(inputs)
    hook.remove()
    return outputs


def test_outputs_quantised_again_lie_on_the_grid_of_the_fault_free_outputs_and_saturate() -> None:
    # Two components, interleaved in blocks of 3 and 5 channels; a third of 4 stays as it is.
    again = (Rows(0, 3, 12), Rows(3, 5, 12))
    weight, bias, inputs = drawn(1, 24, 16), drawn(2, 24), drawn(3, 4, 5, 16)
    plain = Int8Linear(weight, bias, torch.ones(16))
    part = Int8Linear(weight, bias, torch.ones(16), again)
    clean, places = plain(inputs), [(1, 2, 4), (1, 2, 9), (3, 0, 14)]
    channels = np.arange(24) % 12
    first, second, third = channels < 3, (channels >= 3) & (channels < 8), channels >= 8
    expected = clean.clone()
    for own in (first, second):
        scale = clean[..., own].abs().amax(-1, keepdim=True) / 127
        expected[..., own] = torch.round(clean[..., own] / scale).clamp(-127, 127) * scale
    assert torch.equal(part(inputs), expected)
    assert not torch.equal(expected[..., first], clean[..., first])
    for amount in (2**28, -(2**28)):
        faulty = struck(part, inputs, places, amount)
        changed = (faulty != expected).nonzero().tolist()
        assert changed == [list(place) for place in places]
        # Channels 4 and 14 are of groups quantised again: they reach the group's largest size, and no further.
        for row, token, channel in (places[0], places[2]):
            own = second if channel % 12 >= 3 else first
            largest = clean[row, token, own].abs().max()
            torch.testing.assert_close(faulty[row, token, channel], largest * np.sign(amount))
        assert third[9]
        assert faulty[1, 2, 9] == struck(plain, inputs, places, amount)[1, 2, 9]
        assert faulty[1, 2, 9].abs() > 1000


@pytest.mark.parametrize(
    ("family", "again"),
    [
        ("llama", {"q": 1, "k": 1, "v": 1, "gate": 1, "up": 1}),
        ("phi3", {"q": 3, "gate": 2}),
        ("opt", {"q": 1, "k": 1, "v": 1, "fc1": 1}),
        ("gpt_neox", {"q": 3, "fc1": 1}),
    ],
)
def test_outputs_of_some_components_are_quantised_again(tmp_path: Path, family: str, again: dict[str, int]) -> None:
    """A module of several components has a group for each."""
    save_tiny(tmp_path / family, family)
    model = load(str(tmp_path / family), arithmetic="w8a8-requantised")
    first = {site.module: site.component for site in reversed(model.components.outputs) if site.layer == 0}
    parts = {name: model.module.get_submodule(name) for name in first}
    found = {first[name]: len(part._again) for name, part in parts.items() if isinstance(part, Int8Linear)}
    assert {component: count for component, count in found.items() if count} == again
    assert {"o"} < found.keys() - again.keys()


def test_a_fused_kernel_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path / "llama", "llama")
    with pytest.raises(InputError, match='leave attention = "sdpa" out'):
        load(str(tmp_path / "llama"), attention="sdpa", arithmetic="w8a8")
