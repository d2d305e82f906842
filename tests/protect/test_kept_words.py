"""Words of a weight that are put back by their own sums, or from elsewhere where these do not tell."""

import pytest
import torch

from aftershock.models import LoadedModel
from aftershock.numerics import words
from aftershock.protect import Backup, Checksum, Protection, Scrub, protect
from aftershock.protect.products import KeptWords
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


@pytest.mark.parametrize("keeper", [Backup((f"{DOWN}.weight",)), Scrub(1000)], ids=lambda one: type(one).__name__)
def test_two_equal_flips_in_a_column_come_back_from_the_keeper(keeper: Protection) -> None:
    model = tiny_loaded("llama")
    clean, weight = logits(model), words(model.module.get_parameter(f"{DOWN}.weight"))
    kept = weight.clone()
    with protect(model, [Checksum(("down",)), keeper]) as protected:
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


def test_what_can_be_told_is_put_back_though_the_rest_can_not() -> None:
    weight = torch.zeros(8, 3)
    kept = KeptWords(weight, lambda: False)
    own = words(weight)
    own[2, 0] = own[1, 1] = own[3, 1] = 64
    assert kept.mend()
    assert [own[2, 0], own[1, 1], own[3, 1]] == [0, 64, 64]
    assert not kept.mend()
