"""Words of a weight that are put back by their own sums, or from elsewhere where these do not tell."""

import pytest
import torch

from aftershock.models import LoadedModel
from aftershock.numerics import generator, words
from aftershock.protect import Backup, Checksum, Protection, Scrub, protect
from aftershock.protect.guards import RowGuard
from aftershock.protect.memory import ScrubbedWords
from aftershock.protect.passes import Alarm
from aftershock.protect.products import KeptWords, LinearProduct
from aftershock.protect.tally import Event, Site, Tally
from tiny_models import tiny_loaded

DOWN = "model.layers.1.mlp.down_proj"
TOKENS = torch.arange(4, 28).view(2, 12)


def logits(model: LoadedModel) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.module(input_ids=TOKENS, use_cache=False).logits
    return words(found)


def alike(weight: torch.Tensor, bit: int) -> tuple[int, int]:
    """A row and a column where two words, of the row and of the next but one, have the same value of a bit."""
    values = words(weight) >> bit & 1
    row, column = (values[:-2] == values[2:]).nonzero()[0].tolist()
    return row, column


class StrikeInPass:
    """The same bit of two rows flips once, after protections looked at the words before the pass."""

    def __init__(self, model: LoadedModel) -> None:
        self.weight, self.left = model.module.get_parameter(f"{DOWN}.weight"), 1
        model.module.register_forward_pre_hook(self)

    @torch.no_grad()
    def __call__(self, *_: object) -> None:
        if self.left:
            self.left -= 1
            row, column = alike(self.weight, 28)
            words(self.weight)[[row, row + 2], column] ^= 1 << 28


@pytest.mark.parametrize(
    "keepers",
    [
        [Backup((f"{DOWN}.weight",))],
        [Scrub(1000)],
        [Backup((f"{DOWN}.weight",)), Scrub(1000)],
        [Backup(("lm_head.weight",)), Scrub(1000)],
    ],
    ids=lambda keepers: "+".join(type(one).__name__ for one in keepers),
)
def test_two_equal_flips_in_a_column_come_back_from_a_keeper(keepers: list[Protection]) -> None:
    model = tiny_loaded("llama")
    clean, weight = logits(model), words(model.module.get_parameter(f"{DOWN}.weight"))
    kept = weight.clone()
    with protect(model, [Checksum(("down",)), *keepers]) as protected:
        StrikeInPass(model)
        assert torch.equal(logits(model), clean)
        (event,) = [one for one in protected.events if one.protection == "Checksum"]
    assert event.mended
    assert torch.equal(weight, kept)


def test_two_equal_flips_in_a_column_alone_are_told_and_left() -> None:
    model = tiny_loaded("llama")
    weight = words(model.module.get_parameter(f"{DOWN}.weight"))
    kept = weight.clone()
    with protect(model, [Checksum(("down",))]) as protected:
        StrikeInPass(model)
        for _ in range(2):
            logits(model)
            assert int((weight != kept).sum()) == 2
        assert [event.mended for event in protected.events] == [False, False]


def test_a_scrub_mends_once_all_words_are_as_they_were() -> None:
    model, events = tiny_loaded("llama"), []
    kept = ScrubbedWords(model.module, 1, events)
    assert not kept.mend()
    own, table = (words(model.module.get_parameter(f"{name}.weight").detach()) for name in (DOWN, "model.embed_tokens"))
    own[3, 5] ^= 1 << 20
    assert kept.mend()
    own[3, 5] ^= 1 << 20
    table[:] = torch.arange(table.numel(), dtype=table.dtype).view_as(table)
    assert not kept.mend()
    assert {event.site.module: event.mended for event in events[1:]} == {
        f"{DOWN}.weight": True,
        "model.embed_tokens.weight": False,
    }


def test_what_a_scrub_can_not_mend_is_told_once_until_it_changes() -> None:
    model, events = tiny_loaded("llama"), []
    kept = ScrubbedWords(model.module, 1, events)
    own, table = (words(model.module.get_parameter(f"{name}.weight").detach()) for name in (DOWN, "model.embed_tokens"))
    clean = table.clone()

    def told() -> list[bool | None]:
        events.clear()
        kept.before_pass()
        return [event.mended for event in events]

    table[:] = torch.arange(table.numel(), dtype=table.dtype).view_as(table)
    assert told() == [False]
    assert told() == []
    own[3, 5] ^= 1 << 20
    assert told() == [True]
    assert not kept.mend()
    table[0, 0] ^= 1
    assert told() == [False]
    kept.forget()
    assert told() == [False]
    table[:] = clean
    assert told() == []
    table[:] = torch.arange(table.numel(), dtype=table.dtype).view_as(table)
    assert told() == [False]


def test_rows_that_a_wrong_weight_touches_too_little_are_mended_too() -> None:
    random = generator(0, 0, "a layer")
    layer = torch.nn.Linear(16, 24, bias=False)
    values, weight = (torch.from_numpy(random.standard_normal(shape)).float() for shape in ((5, 16), (24, 16)))
    values[2, 7] = 1e-8
    with torch.no_grad():
        layer.weight.copy_(weight)
        clean = layer(values)
        events: list[Event] = []
        tally = Tally(Site("layer", "down", None), "Checksum", torch.device("cpu"))
        product = LinearProduct(layer, lambda: False)
        layer.weight[3, 7] += 500
        assert product.wrong((values,), layer(values)).tolist() == [True, True, False, True, True]
        assert not torch.equal(layer(values)[2], clean[2])
        layer.register_forward_hook(RowGuard(product, "recover", tally, events, Alarm(deferred=False)))
        assert torch.equal(words(layer(values)), words(clean))
    assert [event.mended for event in events] == [True]


def test_what_can_be_told_is_put_back_though_the_rest_can_not() -> None:
    weight = torch.zeros(8, 3)
    kept = KeptWords(weight, lambda: False)
    own = words(weight)
    own[2, 0] = own[1, 1] = own[3, 1] = 64
    assert kept.mend()
    assert [own[2, 0], own[1, 1], own[3, 1]] == [0, 64, 64]
    assert not kept.mend()
