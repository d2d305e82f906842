"""Faults of many kinds, found and undone with nothing but a fingerprint."""

from itertools import product

import pytest
import torch
from flipped import as_read, equal

from aftershock.detect import take_fingerprint
from aftershock.locate import (
    locate_by_fingerprint,
    locate_in_tensor,
    repair_module,
)
from aftershock.models import live_words, load
from aftershock.numerics import generator
from demo_model import SPEC, needs_demo_model
from tiny_models import tiny_model

PROFILES = ("exact", "small")
UP = "model.layers.1.mlp.up_proj.weight"
INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}


def wide_model(dtype):
    return tiny_model("llama", dtype, hidden_size=96, intermediate_size=160)


def up(module):
    parameter = module.get_parameter(UP)
    return parameter.view(INTEGERS[parameter.dtype])


def random_flips(count):
    def corrupt(module):
        draws = generator(count, 0, "threat")
        parameters = dict(module.named_parameters())
        for name in draws.choice(sorted(parameters), count):
            flat = parameters[name].view(-1).view(torch.uint8)
            flat[int(draws.integers(len(flat)))] ^= 1 << int(draws.integers(8))

    return corrupt


def sign_bits(module):
    up(module)[5, 3:9] ^= torch.iinfo(up(module).dtype).min


def whole_line(module):
    up(module).view(-1)[320:].view(torch.uint8)[:64] = 0x55


def stuck_column(module):
    up(module)[:, 17] |= 1 << 14


def row_and_column(module):
    up(module)[9, :] ^= 1 << 3
    up(module)[:, 4] ^= 1 << 6


def rectangle(rows, columns, deltas):
    def corrupt(module):
        for (row, column), delta in zip(product(rows, columns), deltas, strict=True):
            up(module)[row, column] += delta

    return corrupt


def twice_in_a_word(module):
    up(module)[7, 7] ^= 1 << 2 | 1 << 9


def not_finite(module):
    module.get_parameter(UP)[3, 4] = float("nan")
    module.get_parameter(UP)[6, 4] = float("-inf")
    module.get_parameter("model.norm.weight")[2] = float("inf")


FEW = {
    **{f"{count} random flips": random_flips(count) for count in (1, 2, 8, 24)},
    "sign bits": sign_bits,
    "64 bytes": whole_line,
    "2 x 2 equal": rectangle((3, 80), (5, 90), [1] * 4),
    "2 x 2 cancelling": rectangle((3, 80), (5, 90), [1, -1, -1, 1]),
    "2 x 5": rectangle((3, 80), (1, 2, 40, 60, 95), [1, -1] * 5),
    "twice in a word": twice_in_a_word,
    "not finite": not_finite,
}
MANY = {"64 random flips": random_flips(64), "stuck column": stuck_column, "row and column": row_and_column}
THREE_BY_THREE = rectangle((3, 80, 81), (5, 90, 91), [1] * 9)


@pytest.fixture(scope="module")
def prints():
    """Fingerprints of the clean models, by dtype and profile."""
    words = {dtype: live_words(wide_model(dtype)) for dtype in INTEGERS}
    return {key: take_fingerprint(words[key[0]], key[1]) for key in product(INTEGERS, PROFILES)}


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize(
    ("profile", "corrupt"),
    [
        pytest.param(profile, corrupt, id=f"{profile} {name}")
        for profile in PROFILES
        for name, corrupt in {**FEW, **(MANY if profile == "exact" else {})}.items()
    ],
)
def test_live_models_are_repaired_bit_for_bit(prints, dtype, profile, corrupt):
    module = wide_model(dtype)
    words = live_words(module)
    clean = as_read(words)
    corrupt(module)
    assert not equal(as_read(words), clean)
    located = locate_by_fingerprint(words, prints[dtype, profile])
    assert not located.ambiguous
    repair_module(module, located)
    assert equal(as_read(words), clean)
    assert locate_by_fingerprint(words, prints[dtype, profile]).clean


@pytest.mark.parametrize("profile", PROFILES)
def test_a_clean_model_is_clean(prints, profile):
    assert locate_by_fingerprint(live_words(wide_model(torch.bfloat16)), prints[torch.bfloat16, profile]).clean


def test_what_the_exact_profile_cannot_tell_is_ambiguous_and_the_rest_is_found(prints):
    module = wide_model(torch.bfloat16)
    THREE_BY_THREE(module)
    module.get_parameter("model.norm.weight")[2] = -5
    located = locate_by_fingerprint(live_words(module), prints[torch.bfloat16, "exact"])
    assert [changes.tensor.name for changes in located.changes] == ["model.norm.weight"]
    (ambiguous,) = located.ambiguous
    assert (ambiguous.tensor.name, ambiguous.rows, ambiguous.columns) == (UP, (3, 80, 81), (5, 90, 91))
    module = wide_model(torch.bfloat16)
    THREE_BY_THREE(module)
    located = locate_by_fingerprint(live_words(module), prints[torch.bfloat16, "small"])
    assert len(located.changes[0]) == 9


def test_what_the_small_profile_cannot_tell_is_ambiguous(prints):
    module = wide_model(torch.bfloat16)
    stuck_column(module)
    located = locate_by_fingerprint(live_words(module), prints[torch.bfloat16, "small"])
    assert [one.tensor.name for one in located.ambiguous] == [UP]
    assert not located.changes


def test_sums_that_agree_with_wrong_words_are_caught_by_the_digest(prints):
    """Words whose sums nothing tells from clean ones: here the signature is taken after the change."""
    module = wide_model(torch.bfloat16)
    fingerprint = prints[torch.bfloat16, "exact"]
    up(module)[3, 3] ^= 1
    later = take_fingerprint(live_words(module), "exact")
    clean = next(one for one in fingerprint.tensors if one.tensor.name == UP)
    found = locate_in_tensor(live_words(module), clean, later.signatures[UP])
    assert "do not restore it" in found.why


@needs_demo_model
def test_the_demo_model_is_repaired_in_memory():
    module = load(SPEC, "bfloat16").module
    words = live_words(module)
    fingerprint = take_fingerprint(words, "exact")
    random_flips(16)(module)
    module.get_parameter("model.layers.29.mlp.down_proj.weight").view(torch.int16)[:, 700] |= 1 << 14
    located = locate_by_fingerprint(words, fingerprint)
    assert not located.ambiguous
    repair_module(module, located)
    assert locate_by_fingerprint(words, fingerprint).clean
