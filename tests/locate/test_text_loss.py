"""Losses after a change in one layer, against full runs."""

import math
from collections.abc import Callable

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from aftershock.errors import InputError
from aftershock.locate.by_text import TextLoss, text_loss, text_rows
from aftershock.locate.by_text.text_loss import LAST
from aftershock.models import LoadedModel
from aftershock.numerics import generator
from tiny_models import FAMILIES, tiny_loaded

LAYERS = (None, 0, 1, LAST)


def tokens(rows: int = 3, length: int = 20) -> torch.Tensor:
    return torch.from_numpy(generator(3, 0, "tokens").integers(4, 100, (rows, length)))


def strike(model: LoadedModel, layer: int | None) -> None:
    """Change a weight that belongs to a layer, to the embedding (None) or to the final norm."""
    component = {None: "embedding", LAST: "norm"}.get(layer, "o")
    within = layer if layer in (0, 1) else None
    site = next(
        site for site in model.components.parameters if site.layer == within and site.component.startswith(component)
    )
    model.module.get_parameter(site.name).mul_(-3)


def fresh(model: LoadedModel) -> torch.Tensor:
    return TextLoss(model, tokens()).refresh()


@pytest.mark.parametrize("call", [TextLoss.after_change, TextLoss.after_flip])
@pytest.mark.parametrize("family", FAMILIES)
def test_after_a_change_the_losses_are_those_of_a_full_run(
    family: str, call: Callable[[TextLoss, int | None], torch.Tensor]
) -> None:
    for layer in LAYERS:
        model = tiny_loaded(family)
        text = TextLoss(model, tokens())
        before = text.refresh()
        strike(model, layer)
        after = call(text, layer)
        assert after.shape == (3,)
        assert after.dtype == torch.float64
        assert not torch.equal(after, before)
        assert torch.equal(after, fresh(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_lies_before_the_layer_does_not_run(family: str) -> None:
    for changed, asked in ((None, 1), (None, LAST), (0, 1), (0, LAST), (1, LAST)):
        model = tiny_loaded(family)
        if changed is None and "embedding+lm_head" in {site.component for site in model.components.parameters}:
            continue  # it serves behind the layers too
        text = TextLoss(model, tokens())
        before = text.refresh()
        strike(model, changed)
        assert torch.equal(text.after_change(asked), before)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "opt"])
def test_a_second_refresh_keeps_what_the_layers_give_now(family: str) -> None:
    model = tiny_loaded(family)
    text = TextLoss(model, tokens())
    text.refresh()
    strike(model, 0)
    assert torch.equal(text.refresh(), fresh(model))
    strike(model, 1)
    assert torch.equal(text.after_change(1), fresh(model))


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma3"])
def test_the_layers_forward_is_the_models_own_again(family: str) -> None:
    model = tiny_loaded(family)
    text = TextLoss(model, tokens())
    text.refresh()
    for layer in LAYERS:
        text.after_change(layer)
        assert all("forward" not in vars(module) for module in text.layers)

    def fails(*_arguments: object) -> None:
        raise ZeroDivisionError

    handle = model.module.get_output_embeddings().register_forward_hook(fails)
    with pytest.raises(ZeroDivisionError):
        text.after_change(LAST)
    assert all("forward" not in vars(module) for module in text.layers)
    with pytest.raises(ZeroDivisionError):
        text.refresh()
    handle.remove()
    assert all(not module._forward_hooks for module in text.layers)
    assert torch.equal(text.after_change(1), fresh(model))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_weights_that_are_not_finite_give_the_worst_loss(family: str, value: float) -> None:
    model = tiny_loaded(family)
    text = TextLoss(model, tokens())
    text.refresh()
    site = next(site for site in model.components.parameters if site.layer == 1 and site.component == "o")
    model.module.get_parameter(site.name).fill_(value)
    worst = torch.full((3,), 2 * math.log(model.module.config.vocab_size), dtype=torch.float64)
    assert torch.allclose(text.after_change(1), worst, rtol=1e-6)
    assert torch.allclose(text.refresh(), worst, rtol=1e-6)


def test_each_tokens_loss_is_bounded() -> None:
    model = tiny_loaded("llama")
    text = TextLoss(model, tokens())
    worst = 2 * math.log(model.module.config.vocab_size)
    size = model.module.config.vocab_size
    logits = torch.zeros(1, 6, size)
    logits[0, 1, 7] = math.nan
    logits[0, 2, 8] = math.inf
    logits[0, 3, 4] = -math.inf
    logits[0, 4, 9] = 1e4
    ids = torch.full((1, 6), 4)
    expected = torch.tensor([[math.log(size), worst, worst, worst, worst]])
    assert torch.allclose(text.bounded(logits, ids), expected)
    assert text.bounded(logits.repeat(2, 1, 1), ids.repeat(2, 1)).shape == (2, 5)


def test_the_loss_is_that_of_the_next_token() -> None:
    """Against the loss that transformers computes."""
    model, ids = tiny_loaded("llama"), tokens(1)
    expected = model.module(input_ids=ids, labels=ids).loss
    text = TextLoss(model, ids)
    assert text.targets == 19
    assert text.refresh()[0] == pytest.approx(float(expected), rel=1e-5)


def test_rows_looked_at_apart_have_the_same_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_loaded("qwen2")
    whole = TextLoss(model, tokens()).refresh()
    monkeypatch.setattr(text_loss, "_LOGITS", 2 * 20 * model.module.config.vocab_size)
    apart = TextLoss(model, tokens())
    assert torch.equal(apart.refresh(), whole)
    assert gradients(apart, model).keys() == dict(model.module.named_parameters()).keys()


def test_passes_are_counted_by_the_layers_that_ran() -> None:
    model = tiny_loaded("llama")
    text = TextLoss(model, tokens())
    counts = [text.passes]
    text.refresh()
    counts.append(text.passes)
    for layer in LAYERS:
        text.after_change(layer)
        counts.append(text.passes)
    text.after_flip(1)
    counts.append(text.passes)
    gradients(text, model)
    counts.append(text.passes)
    assert counts == pytest.approx([0, 1, 2, 3, 3 + 2 / 3, 4, 4 + 2 / 3, 7 + 2 / 3])


def gradients(text: TextLoss, model: LoadedModel) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}

    def visit(name: str, slope: torch.Tensor) -> None:
        assert name not in found
        found[name] = slope.clone()

    text.visit_gradients([name for name, _ in model.module.named_parameters()], visit)
    return found


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "gpt_neox", "qwen2_moe", "phi3", "opt"])
def test_gradients_are_those_of_autograd(family: str) -> None:
    model, twin = tiny_loaded(family), tiny_loaded(family)
    found = gradients(TextLoss(model, tokens()), model)
    twin.module.requires_grad_(True)
    logits = twin.module(input_ids=tokens()).logits[:, :-1]
    chances = logits.log_softmax(-1).gather(-1, tokens()[:, 1:, None])
    (-chances.mean()).backward()
    expected = {name: parameter.grad for name, parameter in twin.module.named_parameters()}
    assert found.keys() == {name for name, slope in expected.items() if slope is not None}
    assert found
    for name, slope in found.items():
        largest = float(expected[name].abs().max())
        assert largest > 0 or torch.equal(slope, expected[name])
        assert torch.allclose(slope, expected[name], rtol=1e-3, atol=1e-5 * max(largest, 1e-3)), name
    for parameter in model.module.parameters():
        assert parameter.grad is None
        assert not parameter.requires_grad


def test_a_gradient_has_its_parameters_dtype() -> None:
    model = tiny_loaded("llama", torch.bfloat16)
    found = gradients(TextLoss(model, tokens()), model)
    assert {slope.dtype for slope in found.values()} == {torch.bfloat16}


def test_only_named_parameters_are_shown() -> None:
    model = tiny_loaded("llama")
    seen: list[str] = []
    name = "model.layers.1.mlp.up_proj.weight"
    TextLoss(model, tokens()).visit_gradients([name], lambda shown, _slope: seen.append(shown))
    assert seen == [name]


def test_gradients_that_are_not_finite_are_shown_too() -> None:
    model = tiny_loaded("llama")
    model.module.get_parameter("model.norm.weight")[3] = math.nan
    found = gradients(TextLoss(model, tokens()), model)
    assert len(found) == len(list(model.module.parameters()))
    assert found["model.layers.0.mlp.up_proj.weight"].isnan().any()


def test_nothing_is_left_where_a_visit_fails() -> None:
    model = tiny_loaded("llama")

    def visit(_name: str, _slope: torch.Tensor) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        TextLoss(model, tokens()).visit_gradients([name for name, _ in model.module.named_parameters()], visit)
    for parameter in model.module.parameters():
        assert parameter.grad is None
        assert not parameter.requires_grad
        assert not parameter._post_accumulate_grad_hooks


WRITTEN = "".join(chr(33 + place * place % 90) for place in range(1000))


def test_rows_are_pieces_at_even_distances() -> None:
    model = tiny_loaded("llama")
    rows = text_rows(model, WRITTEN, rows=4, length=30)
    assert rows.shape == (4, 30)
    assert rows.dtype == torch.int64
    assert [model.tokenizer.decode(row) for row in rows] == [WRITTEN[start:][:30] for start in (0, 250, 500, 750)]


@pytest.mark.parametrize(("special", "first"), [("<bos> $A", [1]), ("$A <eos>", []), ("<bos> $A <eos>", [1])])
def test_rows_begin_as_the_tokenizer_begins(special: str, first: list[int]) -> None:
    model = tiny_loaded("llama")
    model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=special, special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    rows = text_rows(model, WRITTEN, rows=3, length=20)
    body = 20 - len(first)
    assert rows.shape == (3, 20)
    assert rows[:, : len(first)].tolist() == [first] * 3
    assert [model.tokenizer.decode(row[len(first) :]) for row in rows] == [
        WRITTEN[start:][:body] for start in (0, 333, 666)
    ]


def test_one_token_may_begin_and_end_a_text() -> None:
    model = tiny_loaded("llama")
    model.tokenizer.eos_token = "<bos>"
    model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    assert text_rows(model, WRITTEN, rows=3, length=20)[:, 0].tolist() == [1] * 3


def test_a_text_may_be_just_long_enough() -> None:
    model = tiny_loaded("llama")
    assert text_rows(model, WRITTEN[:120], rows=4, length=30).shape == (4, 30)
    with pytest.raises(InputError, match="the text is too short: 4 pieces of 30 tokens are read, piece 4 has 29"):
        text_rows(model, WRITTEN[:116], rows=4, length=30)
    for few in ("", WRITTEN[:3]):
        with pytest.raises(InputError, match="too short"):
            text_rows(model, few, rows=16, length=3)
