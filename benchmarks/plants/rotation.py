"""Rotary position embeddings that turn by something else.

Two kinds of functions: of the angles' cosines and sines, shape (rows, tokens, channels of a head), with the positions
they were made from, shape (rows or 1, tokens); and of queries or keys, shape (rows, heads, tokens, channels), with
those cosines and sines. They need torch alone.
"""

from collections.abc import Callable

import torch

Table = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines."""

Turn = Callable[..., Table]
"""From (table, positions) and named parameters to a table of the same shape."""

Rotate = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""From (queries, keys, table, positions) and named parameters to rotated queries and keys."""


def table_of(positions: torch.Tensor, inverse: torch.Tensor, like: torch.Tensor) -> Table:
    """Cosines and sines of positions x inverse frequencies, halves repeated, in the dtype of `like`."""
    angles = positions[..., None].float() * inverse.float()
    both = torch.cat((angles, angles), -1)
    return both.cos().to(like.dtype), both.sin().to(like.dtype)


def inverse_frequencies(theta: float, channels: int) -> torch.Tensor:
    """theta^(-2i / channels) for each pair i of channels (Su et al., 2021)."""
    return 1.0 / (theta ** (torch.arange(0, channels, 2, dtype=torch.float32) / channels))


def other_theta(table: Table, positions: torch.Tensor, theta: float) -> Table:
    """Another base, without any scaling."""
    return table_of(positions, inverse_frequencies(theta, table[0].shape[-1]), table[0])


def squeezed(table: Table, positions: torch.Tensor, theta: float, factor: float) -> Table:
    """Positions divided by a factor (linear scaling)."""
    return table_of(positions / factor, inverse_frequencies(theta, table[0].shape[-1]), table[0])


def no_turn(table: Table, positions: torch.Tensor) -> Table:
    """No rotation."""
    return torch.ones_like(table[0]), torch.zeros_like(table[1])


def backwards(table: Table, positions: torch.Tensor) -> Table:
    """The other sense of rotation."""
    return table[0], -table[1]


def enlarged(table: Table, positions: torch.Tensor, factor: float) -> Table:
    """Rotation with a factor, on queries and keys each."""
    return table[0] * factor, table[1] * factor


def later(table: Table, positions: torch.Tensor, theta: float, by: int, first: int) -> Table:
    """Tokens from position `first` on take themselves for `by` later."""
    moved = torch.where(positions >= first, positions + by, positions)
    return table_of(moved, inverse_frequencies(theta, table[0].shape[-1]), table[0])


def starting_over(table: Table, positions: torch.Tensor, theta: float, every: int) -> Table:
    """Positions begin at 0 again in every chunk."""
    return table_of(positions % every, inverse_frequencies(theta, table[0].shape[-1]), table[0])


def coarse(table: Table, positions: torch.Tensor, theta: float, dtype: str) -> Table:
    """Positions, frequencies and angles in a narrow format."""
    narrow = getattr(torch, dtype)
    inverse = inverse_frequencies(theta, table[0].shape[-1]).to(narrow)
    angles = positions[..., None].to(narrow) * inverse
    both = torch.cat((angles, angles), -1)
    return both.cos().to(table[0].dtype), both.sin().to(table[0].dtype)


TURNS: dict[str, Turn] = {
    each.__name__: each for each in (other_theta, squeezed, no_turn, backwards, enlarged, later, starting_over, coarse)
}


def interleaved(
    query: torch.Tensor, key: torch.Tensor, table: Table, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Neighbouring channels make a pair, in place of channels half a head apart."""

    def turned(states: torch.Tensor) -> torch.Tensor:
        cosine, sine = (part[:, None, :, : part.shape[-1] // 2] for part in table)
        even, odd = states[..., 0::2], states[..., 1::2]
        return torch.stack((even * cosine - odd * sine, odd * cosine + even * sine), -1).flatten(-2)

    return turned(query), turned(key)


def first_channels(
    query: torch.Tensor, key: torch.Tensor, table: Table, positions: torch.Tensor, theta: float, share: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Only the first share of a head's channels is rotated."""
    count = int(query.shape[-1] * share)
    part = table_of(positions, inverse_frequencies(theta, count), table[0])

    def turned(states: torch.Tensor) -> torch.Tensor:
        return torch.cat((by_halves(states[..., :count], part), states[..., count:]), -1)

    return turned(query), turned(key)


def queries_alone(
    query: torch.Tensor, key: torch.Tensor, table: Table, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys go into the cache as they are."""
    return by_halves(query, table), key


def by_halves(states: torch.Tensor, table: Table) -> torch.Tensor:
    """The right one: channels half a head apart make a pair."""
    cosine, sine = (part[:, None] for part in table)
    first, second = states.chunk(2, -1)
    return states * cosine + torch.cat((-second, first), -1) * sine


ROTATIONS: dict[str, Rotate] = {each.__name__: each for each in (interleaved, first_channels, queries_alone)}
