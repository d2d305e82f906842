"""Layouts: channels picked, scaled, put back from heads before tokens; their text read back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aftershock.diagnose.layouts import PLAIN, Layout, Transposed, channels_text, parse_channels
from aftershock.numerics import generator

RANGES = st.builds(
    lambda start, count, step: range(start, start + count * step, step),
    st.integers(0, 50),
    st.integers(1, 20),
    st.integers(1, 5),
)


def values(*shape: int) -> torch.Tensor:
    return torch.from_numpy(generator(0, 0, "values").standard_normal(shape))


@given(st.lists(RANGES, max_size=6))
def test_channels_are_read_as_they_are_written(channels: list[range]) -> None:
    text = channels_text(channels)
    assert [list(own) for own in parse_channels(text)] == [list(own) for own in channels]
    assert channels_text(parse_channels(text)) == text


@given(st.lists(RANGES, min_size=1, max_size=4))
def test_channels_are_picked_in_their_order(channels: list[range]) -> None:
    own = values(3, 200)
    picked = Layout(tuple(channels)).of(own, ())
    assert torch.equal(picked, torch.cat([own[:, list(part)] for part in channels], -1))


def test_channels_that_are_next_to_each_other_are_not_copied() -> None:
    own = values(3, 8)
    assert Layout((range(2, 6),)).of(own, ()).data_ptr() == own[:, 2:].data_ptr()
    assert PLAIN.of(own, ()) is own


@pytest.mark.parametrize("blocks", [[5], [2, 3], [2, 0, 3]])
def test_heads_before_tokens_are_put_back(blocks: list[int]) -> None:
    own = values(5, 12)
    rows = torch.split(torch.arange(5), blocks)
    stored = torch.cat([own[part].unflatten(-1, (3, 4)).transpose(0, 1).reshape(len(part), 12) for part in rows])
    layout = Layout(scale=2.0, transposed=Transposed(3, "request"))
    assert torch.equal(layout.of(stored, rows), 2 * own)


@pytest.mark.parametrize("text", ["1", "a:b", "3:3", "5:2", "-2:4", "0:8:0", "0:8:2:1"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        parse_channels(text)


def test_what_could_hide_an_error_is_not_plain() -> None:
    assert PLAIN.is_plain
    assert Layout((range(8, 16),)).is_plain
    assert not Layout((range(0, 8, 2),)).is_plain
    assert not Layout((range(8), range(16, 24))).is_plain
    assert not Layout(scale=0.5).is_plain
    assert not Layout(transposed=Transposed(2, "all")).is_plain
