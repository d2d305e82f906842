"""Where a point is wrong, in words: tokens by request, position and pass; channels by head."""

import pytest
import torch
from given_ratios import deviation
from hypothesis import given
from hypothesis import strategies as st

from aftershock.diagnose.functions import Tokens
from aftershock.diagnose.replay import Deviation
from aftershock.diagnose.signatures import channels_of, positions_of, struck

LENGTHS = (40, 24, 8)

TOKENS = Tokens(
    ids=torch.arange(72),
    positions=torch.cat([torch.arange(length) for length in LENGTHS]),
    lengths=LENGTHS,
    prompts=(32, 20, 8),
    passes=(tuple(range(16)), (*range(16, 32), *range(40, 60)), *((32 + step, 60 + step) for step in range(4))),
)


def struck_at(wrong: torch.Tensor) -> Deviation:
    return deviation(torch.where(wrong, 50.0, 0.9), torch.ones(8))


POSITIONS = TOKENS.positions
REQUESTS = torch.repeat_interleave(torch.arange(3), torch.tensor(LENGTHS))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (torch.ones(72, dtype=torch.bool), "all tokens"),
        (POSITIONS > 0, "all tokens"),
        (POSITIONS >= 17, "from position 17 on"),
        (REQUESTS == 1, "requests 1 alone"),
        ((REQUESTS == 0) & (POSITIONS >= 8) & (POSITIONS < 16), "positions 8 to 15 of request 0"),
        (torch.cat([torch.arange(length) >= own for length, own in zip(LENGTHS, (32, 20, 8), strict=True)]),
         "tokens after the prompts alone"),
        (torch.isin(torch.arange(72), torch.tensor([3, 11, 12, 50])), "4 tokens of requests 0, 1"),
    ],
)  # fmt: skip
def test_the_tokens_at_which_a_point_is_wrong(wrong: torch.Tensor, said: str) -> None:
    assert str(positions_of(struck_at(wrong), TOKENS)) == said


def test_the_first_tokens_of_passes() -> None:
    chunked = Tokens(
        TOKENS.ids, POSITIONS, LENGTHS, passes=(tuple(range(16)), tuple(range(16, 32)), tuple(range(32, 72)))
    )
    wrong = torch.isin(torch.arange(72), torch.tensor([16, 32]))
    assert str(positions_of(struck_at(wrong), chunked)) == "the first tokens of passes"


def test_an_error_that_grows_with_the_position() -> None:
    assert str(positions_of(deviation(2 + POSITIONS.double() ** 2, torch.ones(8)), TOKENS)) == (
        "all tokens, the later the more"
    )


def test_rows_are_tokens_by_the_numbers_that_are_shown() -> None:
    own = deviation(torch.tensor([1.0, 1.0, 60.0]), torch.ones(8), torch.tensor([39, 63, 71]))
    assert positions_of(own, TOKENS).requests == (2,)


@pytest.mark.parametrize(
    ("wrong", "head", "said"),
    [
        (range(16), 4, "all channels"),
        (range(4, 8), 4, "heads 1 alone"),
        ((*range(4), *range(12, 16)), 4, "heads 0, 3 alone"),
        ((5, 9), 4, "channels 5, 9 alone"),
        (range(4, 8), None, "channels 4, 5, 6, 7 alone"),
    ],
)
def test_the_channels_in_which_a_point_is_wrong(wrong: range, head: int | None, said: str) -> None:
    ratios = torch.ones(16).index_fill(0, torch.tensor(list(wrong)), 30.0)
    assert str(channels_of(deviation(torch.ones(4), ratios), head)) == said


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_something_is_always_struck_and_nothing_that_is_healthy_but_for_the_largest(ratios: list[float]) -> None:
    own = torch.tensor(ratios, dtype=torch.float64)
    found = struck(own)
    assert found[own.argmax()]
    assert not found[(own <= 1.5) & (own < own.max())].any()
