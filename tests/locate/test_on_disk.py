"""From bits found in a running model to the words of its files, and back by loading the files."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from aftershock.locate import FlippedBit, TextVerdict, located_in_files, patch_files, stored_dtype
from aftershock.locate.by_text import PackedWords, PlainWords
from aftershock.locate.by_text.words import words_in_use
from aftershock.models import LoadedModel, file_words, load
from aftershock.numerics import generator, words
from tiny_gguf import write_gguf
from tiny_models import save_tiny

UP, Q = "model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERSHOCK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    write_gguf(tmp_path / "tiny.gguf", "proj")
    return tmp_path / "tiny.gguf"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model", "llama", torch.bfloat16)


def struck(model: LoadedModel, flips: Sequence[tuple[str, int, int]]) -> TextVerdict:
    """Flip bits in a model, and the verdict that tells of them."""
    found = []
    for name, place, bit in flips:
        own = words_in_use(model)[name]
        assert isinstance(own, PackedWords | PlainWords)
        own.flip(place, bit)
        found.append(
            FlippedBit(
                parameter=name,
                component=own.site.component,
                layer=own.site.layer,
                element=own.element(place),
                stored=own.describe(place, bit) if isinstance(own, PackedWords) else None,
                bit=bit,
                found=None,
                clean=None,
                gain=1.0,
                error=0.0,
                implausible=0.0,
            )
        )
    return TextVerdict(
        clean=False,
        bits=tuple(found),
        branches=(),
        measure=None,
        recovery="bits flipped back",
        loss=2.0,
        loss_after=1.0,
        layers=(),
        passes=1.0,
    )


def same(first: LoadedModel, second: LoadedModel) -> bool:
    pairs = zip(first.module.parameters(), second.module.parameters(), strict=True)
    return all(torch.equal(words(one), words(other)) for one, other in pairs)


def places(model: LoadedModel, name: str) -> list[tuple[str, int, int]]:
    """The first bit, the last one, and some between."""
    own = words_in_use(model)[name]
    count = len(own.blocks) if isinstance(own, PackedWords) else model.module.get_parameter(name).numel()
    bits, draws = len(own.bits(0)), generator(3, 0, name)
    some = [(int(draws.integers(1, count - 1)), int(draws.integers(bits))) for _ in range(6)]
    return [(name, place, bit) for place, bit in [(0, 0), (count - 1, bits - 1), *some]]


@pytest.mark.parametrize("name", [UP, Q])
def test_bits_of_blocks_are_words_of_the_gguf_file(packed: Path, tmp_path: Path, name: str) -> None:
    """Rows of q lie in the file in another order than in memory."""
    model, files = load(str(packed), "bfloat16"), file_words(str(packed))
    before = packed.read_bytes()
    for number, flip in enumerate(places(model, name)):
        model = load(str(packed), "bfloat16")
        located = located_in_files(struck(model, [flip]), model, files)
        assert located is not None
        (path,) = patch_files(files, located, tmp_path / str(number)).files
        changed = [one ^ other for one, other in zip(path.read_bytes(), before, strict=True) if one != other]
        assert [mask.bit_count() for mask in changed] == [1]
        assert same(load(str(path), "bfloat16"), model)


def test_bits_of_safetensors_are_their_words(plain: Path, tmp_path: Path) -> None:
    model, files = load(str(plain), "bfloat16"), file_words(str(plain))
    flips = [*places(model, UP), *places(model, NORM)]
    located = located_in_files(struck(model, flips), model, files)
    assert located is not None
    assert {changes.tensor.name for changes in located.changes} == {UP, NORM}
    patch_files(files, located, tmp_path / "patched")
    assert same(load(str(tmp_path / "patched"), "bfloat16"), model)


def test_a_bit_that_was_flipped_and_flipped_back_is_no_change(plain: Path) -> None:
    model, files = load(str(plain), "bfloat16"), file_words(str(plain))
    located = located_in_files(struck(model, [(UP, 3, 5), (NORM, 2, 1), (UP, 3, 5)]), model, files)
    assert located is not None
    assert [changes.tensor.name for changes in located.changes] == [NORM]


def test_bits_that_the_files_have_in_no_word_of_their_own(packed: Path, plain: Path) -> None:
    model = load(str(packed), "bfloat16")
    both = struck(model, [(UP, 3, 5), (NORM, 2, 1)])
    assert located_in_files(both, model, file_words(str(packed))) is None
    for settings in ({"dtype": "float32"}, {"dtype": "bfloat16", "storage": "int8"}):
        model = load(str(plain), **settings)
        assert located_in_files(struck(model, [(UP, 3, 5)]), model, file_words(str(plain))) is None


def test_a_model_is_read_in_the_dtype_of_most_of_its_bytes(packed: Path, tmp_path: Path) -> None:
    tensors = {"a": torch.ones(3), "b": torch.ones(5).half(), "c": torch.ones(5).half(), "d": torch.ones(99).bool()}
    save_file(tensors, tmp_path / "x.safetensors")
    assert stored_dtype(file_words(str(tmp_path / "x.safetensors"))) == "float16"
    save_file({"d": tensors["d"]}, tmp_path / "y.safetensors")
    assert stored_dtype(file_words(str(tmp_path / "y.safetensors"))) == "bfloat16"
    assert stored_dtype(file_words(str(packed))) == "bfloat16"
