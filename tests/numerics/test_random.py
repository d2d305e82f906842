"""Randomness is a function of (seed, index, purpose) and of nothing else."""

import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from aftershock.numerics import generator

keys = st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.text(max_size=20))


def draws(seed: int, index: int, purpose: str) -> list[int]:
    return generator(seed, index, purpose).integers(2**63, size=8).tolist()


@given(keys)
def test_the_same_key_gives_the_same_numbers(key: tuple[int, int, str]):
    assert draws(*key) == draws(*key)


@given(keys, keys)
def test_different_keys_give_different_numbers(one: tuple[int, int, str], other: tuple[int, int, str]):
    assert (draws(*one) == draws(*other)) == (one == other)


def test_every_part_of_the_key_matters():
    assert len({tuple(draws(*key)) for key in [(1, 2, "a"), (2, 2, "a"), (1, 3, "a"), (1, 2, "b"), (2, 1, "a")]}) == 5


@given(st.permutations(range(6)))
def test_the_order_of_making_and_drawing_does_not_matter(order: list[int]):
    expected = {index: draws(5, index, "faults") for index in range(6)}
    made = {index: generator(5, index, "faults") for index in order}
    halves = {index: made[index].integers(2**63, size=4).tolist() for index in order}
    assert {
        index: halves[index] + made[index].integers(2**63, size=4).tolist() for index in reversed(order)
    } == expected


def test_streams_of_neighbouring_indices_do_not_overlap():
    drawn = np.concatenate([generator(0, index, "items").integers(2**63, size=4096) for index in range(8)])
    assert np.unique(drawn).size == drawn.size


def test_global_generators_are_not_moved():
    before = random.getstate(), torch.get_rng_state().tolist()
    draws(3, 4, "items")
    assert before == (random.getstate(), torch.get_rng_state().tolist())


def test_numbers_stay_what_they_are():
    """Written down once: a change of these numbers would change the trials of every study."""
    assert generator(1, 2, "faults").integers(1000, size=4).tolist() == [65, 415, 334, 17]
