"""Single flips in live models, found by a clean recording."""

import pytest
import torch

from aftershock.capture import Bundle, record
from aftershock.errors import InputError
from aftershock.locate.live import LiveSuspect
from aftershock.models import load
from aftershock.numerics import generator, words
from demo_model import SPEC, needs_demo_model
from tiny_models import tiny_loaded

PROMPTS = ["hello world, this is", "a prompt of 20 chars", "wxyz!"]


def flipped(tensor, flat, bit):
    """Flip one bit in place; doing it again takes it back."""
    stored = words(tensor.data).view(-1)
    stored[flat] ^= torch.tensor(1 << bit, dtype=torch.int64).to(stored.dtype)


def logits_of(suspect):
    """Logits of plain passes over the recorded prompts."""
    with torch.no_grad():
        return [suspect.model.module(input_ids=batch.ids).logits for batch in suspect.batches]


def same(first, second):
    return all(torch.equal(words(one), words(other)) for one, other in zip(first, second, strict=True))


def measured(suspect, flips):
    """Of flips (name, offset, bit): how many changed a logit, and of those how many were found in the right block, in
    the right tensor among others of its module, in the right tensor alone, and to the word."""
    model = suspect.model
    sites = {site.name: site for site in model.components.parameters}
    clean = logits_of(suspect)
    counts = dict.fromkeys(("changed", "block", "tensor", "alone", "word", "wrong word"), 0)
    for name, flat, bit in flips:
        tensor = model.module.get_parameter(name)
        flipped(tensor, flat, bit)
        try:
            found, changed = suspect.locate(), not same(logits_of(suspect), clean)
        finally:
            flipped(tensor, flat, bit)
        if not changed:
            continue
        counts["changed"] += 1
        layer, component = sites[name].layer, sites[name].component
        counts["block"] += found.layer == layer and found.block in (f"layer {layer}", *component.split("+"))
        counts["tensor"] += found.place == "output" and name in found.tensors
        counts["alone"] += found.tensors == (name,)
        index = tuple(int(place) for place in torch.unravel_index(torch.tensor(flat), tensor.shape))
        right = any((word.tensor, word.index) == (name, index) for word in found.elements)
        counts["word"] += right
        counts["wrong word"] += bool(found.elements) and not right
    return counts


def drawn_flips(module, each):
    """So many flips of every parameter."""
    for number, (name, tensor) in enumerate(module.named_parameters()):
        draws = generator(0, number, "flips that activations locate")
        for _ in range(each):
            yield name, int(draws.integers(tensor.numel())), int(draws.integers(8 * tensor.element_size()))


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("qwen2", torch.bfloat16),
        ("gemma3", torch.float32),
        ("phi3", torch.bfloat16),
        ("opt", torch.float16),
        ("gpt2", torch.float32),
        ("gpt_neox", torch.bfloat16),
        ("qwen2_moe", torch.bfloat16),
    ],
)
def test_every_flip_that_changes_a_logit_is_found_in_its_block_and_tensor(family, dtype):
    model = tiny_loaded(family, dtype)
    suspect = LiveSuspect(model, record(model, PROMPTS))
    flips = list(drawn_flips(model.module, 2))
    counts = measured(suspect, flips)
    assert counts["changed"] > len(flips) / 3
    assert counts["block"] == counts["tensor"] == counts["changed"]
    assert counts["wrong word"] == 0
    assert counts["word"] > counts["changed"] / 2
    assert counts["alone"] > counts["changed"] / 2
    assert not suspect.locate().divergent


@needs_demo_model
def test_flips_in_the_demo_model_are_found_in_block_and_tensor():
    model = load(SPEC, "bfloat16")
    draws = generator(0, 0, "flips in the demo model")
    suspect = LiveSuspect(model, record(model, [[int(token) for token in draws.integers(49152, size=16)]]))
    parameters = list(model.module.named_parameters())
    flips = []
    for _ in range(6):
        name, tensor = parameters[int(draws.integers(len(parameters)))]
        flips.append((name, int(draws.integers(tensor.numel())), int(draws.integers(4, 16))))
    counts = measured(suspect, flips)
    assert counts["block"] == counts["alone"] == counts["changed"] > 2
    assert counts["wrong word"] == 0


def find(model, prompts=PROMPTS):
    """A function that runs the model once more and locates."""
    return LiveSuspect(model, record(model, prompts)).locate


def test_a_model_that_is_as_recorded_shows_nothing():
    found = find(tiny_loaded("qwen3", torch.bfloat16))()
    assert not found.divergent
    assert found.place is None


def test_a_tied_tensor_is_one_wherever_it_shows():
    model = tiny_loaded("llama")
    locate = find(model)
    table = model.module.model.embed_tokens.weight
    read, unread = model.tokenizer("h")["input_ids"][0], model.tokenizer("Q")["input_ids"][0]
    for row, module in ((read, "model.embed_tokens"), (unread, "lm_head")):
        flipped(table, row * 32 + 5, 29)
        found = locate()
        flipped(table, row * 32 + 5, 29)
        assert found.module == module
        assert found.tensors == ("model.embed_tokens.weight",)
        assert found.components == ("embedding+lm_head",)
        assert found.modules == ("model.embed_tokens", "lm_head")
        assert [word.index for word in found.elements] == [(row, 5)]


@pytest.mark.parametrize(
    ("family", "name", "row", "component"),
    [
        ("phi3", "self_attn.qkv_proj", 40, "k"),
        ("phi3", "mlp.gate_up_proj", 50, "up"),
        ("gpt_neox", "attention.query_key_value", 24 + 17, "v"),
        ("gpt2", "attn.c_attn", 70, "v"),
    ],
)
def test_rows_of_fused_projections_are_those_of_one_tensor(family, name, row, component):
    model = tiny_loaded(family)
    locate = find(model)
    path = next(path for path, _ in model.module.named_modules() if path.endswith(f"1.{name}"))
    weight = model.module.get_parameter(f"{path}.weight")
    index = (3, row) if family == "gpt2" else (row, 3)
    flipped(weight, index[0] * weight.shape[1] + index[1], 30)
    found = locate()
    assert (found.module, found.block, found.components) == (path, "layer 1", (component,))
    assert found.channels == (row,)
    assert [word.index for word in found.elements] == [index]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 3e38])
def test_words_that_are_not_finite_or_nearly_so_are_data(value):
    model = tiny_loaded("llama")
    locate = find(model)
    with torch.no_grad():
        model.module.model.layers[0].mlp.up_proj.weight[7, 11] = value
    found = locate()
    assert found.tensors == ("model.layers.0.mlp.up_proj.weight",)
    assert found.channels == (7,)
    expected = () if value != value else ((7, 11),)
    assert tuple(word.index for word in found.elements) == expected


def test_several_words_of_a_row_are_no_single_word():
    model = tiny_loaded("llama")
    locate = find(model)
    with torch.no_grad():
        model.module.model.layers[1].mlp.down_proj.weight[4, [3, 20]] += torch.tensor([0.5, -0.7])
    found = locate()
    assert (found.tensors, found.channels) == (("model.layers.1.mlp.down_proj.weight",), (4,))
    assert found.elements == ()


def test_the_onset_counts_and_not_the_largest():
    model = tiny_loaded("llama")
    locate = find(model)
    with torch.no_grad():
        model.module.model.layers[0].mlp.gate_proj.weight[0, 0] += 0.01
        model.module.model.layers[1].self_attn.q_proj.weight[0, 0] += 100.0
    assert locate().module == "model.layers.0.mlp.gate_proj"


def test_of_several_passes_the_earliest_onset_counts():
    model = tiny_loaded("llama", tie_word_embeddings=False)
    locate = find(model, ["abc", "defgh"])
    (seen,) = model.tokenizer("g")["input_ids"]
    with torch.no_grad():
        model.module.model.embed_tokens.weight[seen, 4] += 1.0
        model.module.model.layers[1].mlp.up_proj.weight[3, 3] += 1.0
    found = locate()
    assert (found.module, found.block) == ("model.embed_tokens", "embedding")
    assert [word.index for word in found.elements] == [(seen, 4)]


def test_a_fault_between_modules_is_in_no_tensor():
    model = tiny_loaded("llama")
    locate = find(model)
    model.module.model.rotary_emb.inv_freq[0] *= 2
    found = locate()
    assert (found.place, found.module) == ("input", "model.layers.0.self_attn.o_proj")
    assert (found.layer, found.tensors) == (0, ())


def test_a_recording_of_another_model_is_refused():
    llama = record(tiny_loaded("llama"), PROMPTS)
    with pytest.raises(InputError, match="has other modules"):
        LiveSuspect(tiny_loaded("qwen3"), llama)
    with pytest.raises(InputError, match="has other tensors"):
        LiveSuspect(tiny_loaded("llama", intermediate_size=64), llama)
    with pytest.raises(InputError, match="recorded in float32"):
        LiveSuspect(tiny_loaded("llama", torch.bfloat16), llama)
    settings = {**llama.manifest.settings, "threads": 99}
    elsewhere = Bundle(llama.manifest.model_copy(update={"settings": settings}), llama.tensors)
    with pytest.raises(InputError, match="recorded with another threads"):
        LiveSuspect(tiny_loaded("llama"), elsewhere)
    later = llama.manifest.requests[0].model_copy(update={"positions": tuple(range(3, 23))})
    requests = (later, *llama.manifest.requests[1:])
    with pytest.raises(InputError, match="does not begin at position 0"):
        LiveSuspect(tiny_loaded("llama"), Bundle(llama.manifest.model_copy(update={"requests": requests}), {}))
