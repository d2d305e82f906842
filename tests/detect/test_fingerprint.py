"""Fingerprints: what is taken, what is written, what is refused when it is read."""

import dataclasses
import json
import shutil
from pathlib import Path

import blake3
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_words import TENSORS, flip, module_of, raw
from pydantic import ValidationError
from safetensors.torch import save_file

from aftershock.detect import (
    Fingerprint,
    checksum,
    line_sums,
    load_fingerprint,
    read_key,
    save_fingerprint,
    syndromes,
    take_fingerprint,
)
from aftershock.detect.saved import _NO_DIGEST, _own_digest, _Record
from aftershock.errors import InputError
from aftershock.models import file_words, live_words, load
from demo_model import SPEC, needs_demo_model
from tiny_models import save_tiny, tiny_model

KEY, OTHER = bytes(range(32)), bytes(32)


def same(first: Fingerprint, second: Fingerprint) -> bool:
    numbers = [
        (getattr(first.signatures[name], field.name), getattr(second.signatures[name], field.name))
        for name in first.signatures
        for field in dataclasses.fields(first.signatures[name])
    ]
    plain = [dataclasses.replace(one, signatures={}) for one in (first, second)]
    return (
        plain[0] == plain[1]
        and list(first.signatures) == list(second.signatures)
        and all(torch.equal(one, other) for one, other in numbers)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "llama", "llama", torch.bfloat16)


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("profile", ["exact", "small"])
def test_of_a_live_module(profile, key):
    words = live_words(module_of(**TENSORS))
    fingerprint = take_fingerprint(words, profile, key)
    assert (fingerprint.kind, fingerprint.profile, fingerprint.keyed) == ("module", profile, key is not None)
    assert fingerprint.files == {}
    assert [one.tensor for one in fingerprint.tensors] == list(words.tensors)
    for one in fingerprint.tensors:
        plain = blake3.blake3(raw(TENSORS[one.tensor.name]), **({"key": key} if key else {}))
        assert one.digest == plain.hexdigest()
        assert (one.checksum == checksum(words, one.tensor)) == (key is None or one.tensor.size == 0)
        signature = fingerprint.signatures[one.tensor.name]
        if profile == "exact":
            assert torch.equal(signature.rows, line_sums(words, one.tensor).rows)
        else:
            assert torch.equal(signature.values, syndromes(words, one.tensor).values)


def test_of_files(folder):
    words = file_words(str(folder))
    fingerprint = take_fingerprint(words)
    assert fingerprint.kind == "files"
    for name, file in fingerprint.files.items():
        data = (folder / name).read_bytes()
        assert (file.size, file.digest) == (len(data), blake3.blake3(data).hexdigest())
    for one in fingerprint.tensors:
        data = b"".join(
            (folder / extent.file).read_bytes()[extent.offset : extent.offset + extent.size]
            for extent in one.tensor.extents
        )
        assert one.digest == blake3.blake3(data).hexdigest()
    assert {"config.json", "model.safetensors: header", "model.norm.weight"} <= set(fingerprint.signatures)


@pytest.mark.parametrize("name", ["fp32", "fp16", "int8", "packed", "line", "scalar", "flag", "fp64"])
def test_every_flip_changes_digest_checksum_and_signature(name):
    """Every bit of the first, a middle and the last bytes of a tensor."""
    module = module_of(tensor=TENSORS[name])
    words = live_words(module)
    clean = {profile: take_fingerprint(words, profile) for profile in ("exact", "small")}
    size = words.tensors[0].size
    for byte in sorted({0, 1 % size, size // 2, size - 1}):
        for bit in range(8):
            flip(module.tensor, byte, bit)
            now = {profile: take_fingerprint(words, profile) for profile in ("exact", "small")}
            flip(module.tensor, byte, bit)
            assert now["exact"].tensors[0].digest != clean["exact"].tensors[0].digest
            assert now["exact"].tensors[0].checksum != clean["exact"].tensors[0].checksum
            sums, before = now["exact"].signatures["tensor"], clean["exact"].signatures["tensor"]
            assert ((sums.rows != before.rows).any(1).sum(), (sums.columns != before.columns).any(1).sum()) == (1, 1)
            assert not torch.equal(now["small"].signatures["tensor"].values, clean["small"].signatures["tensor"].values)


def test_a_tied_tensor_is_there_once():
    module = tiny_model("llama")
    assert module.lm_head.weight is module.model.embed_tokens.weight
    names = [one.tensor.name for one in take_fingerprint(live_words(module)).tensors]
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


def test_a_module_without_words_is_refused():
    module = torch.nn.Linear(3, 4, device="meta")
    with pytest.raises(InputError, match="tensor weight of the module is on the meta device and holds no words"):
        take_fingerprint(live_words(module))


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("profile", ["exact", "small"])
def test_round_trip(tmp_path, folder, profile, key):
    for number, words in enumerate((live_words(module_of(**TENSORS)), file_words(str(folder)))):
        fingerprint = take_fingerprint(words, profile, key)
        save_fingerprint(fingerprint, tmp_path / f"{number}.fp", key)
        assert same(load_fingerprint(tmp_path / f"{number}.fp", key), fingerprint)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.fp", "1.fp"]


def test_of_no_tensors(tmp_path):
    for profile in ("exact", "small"):
        fingerprint = take_fingerprint(live_words(torch.nn.Module()), profile)
        save_fingerprint(fingerprint, tmp_path / "nothing.fp")
        assert same(load_fingerprint(tmp_path / "nothing.fp"), fingerprint)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("fingerprints") / "module.fp"
    save_fingerprint(take_fingerprint(live_words(module_of(**TENSORS))), path)
    return path


@settings(max_examples=300)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_every_flip_in_the_file_is_seen(written, place, bit):
    refuse_flip(written, int(place * written.stat().st_size), bit)


@settings(max_examples=300)
@given(place=st.integers(0, 700), bit=st.integers(0, 7))
def test_every_flip_in_its_head_is_seen(written, place, bit):
    refuse_flip(written, place, bit)


def refuse_flip(written: Path, place: int, bit: int) -> None:
    data = bytearray(written.read_bytes())
    data[place] ^= 1 << bit
    damaged = written.with_name("damaged.fp")
    damaged.write_bytes(data)
    with pytest.raises(InputError, match=r"damaged|taken with a key"):
        load_fingerprint(damaged)


@pytest.mark.parametrize("keep", [0, 4, 100, 700, 5000, -1])
def test_a_fingerprint_cut_short(tmp_path, written, keep):
    (tmp_path / "short.fp").write_bytes(written.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"damaged"):
        load_fingerprint(tmp_path / "short.fp")


def test_what_is_no_fingerprint(tmp_path, folder):
    for path in (folder / "model.safetensors", folder / "config.json"):
        with pytest.raises(InputError, match=r"is no fingerprint, or its head is damaged: give what"):
            load_fingerprint(path)
    for path in (tmp_path / "absent.fp", tmp_path):
        with pytest.raises(InputError, match=r"can't be read"):
            load_fingerprint(path)


def sealed_again(data: bytes, old: bytes, new: bytes, key: bytes | None = None) -> bytes:
    """A fingerprint's file in which something was replaced by as many bytes, with a digest that is right."""
    about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    bare = data.replace(about["digest"].encode(), _NO_DIGEST.encode(), 1)
    assert old in bare
    bare = bare.replace(old, new, 1)
    return bare.replace(_NO_DIGEST.encode(), _own_digest(bare, key).encode(), 1)


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        (b'"version":"3"', r"was made by a newer aftershock \(its format 3\): update"),
        (b'"version":"1"', r"was made by an older aftershock \(its format 1\)"),
        (b'"version":"x"', "tells no version"),
        (b'"versiom":"2"', "tells no version"),
    ],
)
def test_another_version(tmp_path, written, version, sentence):
    (tmp_path / "other.fp").write_bytes(sealed_again(written.read_bytes(), b'"version":"2"', version))
    with pytest.raises(InputError, match=sentence):
        load_fingerprint(tmp_path / "other.fp")


def test_a_record_that_contradicts_the_numbers(tmp_path, written):
    odd = sealed_again(written.read_bytes(), b'"sums":', b'"soms":')
    (tmp_path / "odd.fp").write_bytes(odd)
    with pytest.raises(InputError, match=r"contradicts itself .*: take it again from a good model"):
        load_fingerprint(tmp_path / "odd.fp")


def test_a_key_is_asked_for(tmp_path, written):
    fingerprint = take_fingerprint(live_words(module_of(**TENSORS)), key=KEY)
    path = tmp_path / "keyed.fp"
    with pytest.raises(InputError, match="was taken with a key: give the same key"):
        save_fingerprint(fingerprint, path)
    save_fingerprint(fingerprint, path, KEY)
    with pytest.raises(InputError, match="was taken with a key: give the same key"):
        load_fingerprint(path)
    with pytest.raises(InputError, match="has another key: give the right key"):
        load_fingerprint(path, OTHER)
    with pytest.raises(InputError, match="was taken without a key, so anyone can have made it"):
        load_fingerprint(written, KEY)


def test_who_lacks_the_key_can_not_forge(tmp_path):
    """Neither a fingerprint sealed without the key, nor one with a tensor's digest, which is keyed, as its own."""
    path = tmp_path / "keyed.fp"
    save_fingerprint(take_fingerprint(live_words(module_of(**TENSORS)), key=KEY), path, KEY)
    forged = sealed_again(path.read_bytes(), b'"keyed":"yes"', b'"keyed":"yes"')
    path.write_bytes(forged)
    with pytest.raises(InputError, match="has another key"):
        load_fingerprint(path, KEY)
    bare = forged.replace(_own_digest(forged, None).encode(), _NO_DIGEST.encode())
    assert _own_digest(bare, KEY) != blake3.blake3(bare, key=KEY).hexdigest()


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33])
def test_key_files_of_another_length(tmp_path, content):
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(InputError, match="is not 32 bytes long: make one by 'head -c 32"):
        read_key(tmp_path / "key")


def test_key_files(tmp_path):
    (tmp_path / "key").write_bytes(KEY)
    assert read_key(tmp_path / "key") == KEY
    with pytest.raises(InputError, match="can't be read"):
        read_key(tmp_path / "absent")


def test_places_that_can_not_be_written(tmp_path, written):
    fingerprint = load_fingerprint(written)
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "absent" / "x.fp", tmp_path / "file" / "x.fp", tmp_path):
        with pytest.raises(InputError, match="can't be written"):
            save_fingerprint(fingerprint, path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_other_files_are_not_replaced(tmp_path, written):
    fingerprint = load_fingerprint(written)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is there already and is no fingerprint"):
        save_fingerprint(fingerprint, tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


GOOD = {"name": "weight", "format": "I8", "shape": [8], "size": 8, "rows": 3, "columns": 3, "width": 1}


@pytest.mark.parametrize(
    ("tensor", "extent", "file"),
    [
        ({"size": 10}, {}, "x"),
        ({"size": -1}, {}, "x"),
        ({"width": 8}, {}, "x"),
        ({}, {"file": "y"}, "x"),
        ({}, {"offset": -1}, "x"),
        ({}, {"size": -1}, "x"),
        ({}, {"file": "../x"}, "../x"),
    ],
)
def test_records_that_make_no_sense(tensor, extent, file):
    def record(tensor, extent, file):
        extents = [{"file": "x", "offset": 0, "size": 8, **extent}]
        files = {file: {"size": 8, "digest": "0" * 64}}
        return {
            "profile": "exact",
            "kind": "files",
            "files": files,
            "tensors": [{**GOOD, **tensor, "extents": extents}],
        }

    assert _Record.model_validate(record({}, {}, "x")).tensors[0].size == 8
    with pytest.raises(ValidationError):
        _Record.model_validate(record(tensor, extent, file))


def test_two_shards_and_their_settings(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "model", max_shard_size="40KB")
    fingerprint = take_fingerprint(file_words(str(tmp_path / "model")))
    shards = [name for name in fingerprint.files if name.endswith(".safetensors")]
    assert len(shards) >= 2
    assert {"config.json", "model.safetensors.index.json"} <= set(fingerprint.files)
    covered = sum(one.tensor.size for one in fingerprint.tensors)
    assert covered == sum(file.size for file in fingerprint.files.values())


def test_tensors_of_one_name_are_refused(tmp_path, folder):
    shutil.copytree(folder, tmp_path / "model")
    shutil.copy(folder / "model.safetensors", tmp_path / "model" / "again.safetensors")
    with pytest.raises(InputError, match="two tensors of the model have the same name"):
        take_fingerprint(file_words(str(tmp_path / "model")))


def test_progress_is_told(folder):
    said: list[str] = []
    take_fingerprint(file_words(str(folder)), progress=said.append)
    assert any(line.startswith("reading model.safetensors (") for line in said)


@needs_demo_model
@pytest.mark.parametrize(("profile", "most"), [("exact", 0.07), ("small", 0.002)])
def test_sizes_of_the_demo_model(tmp_path, profile, most):
    words = file_words(SPEC)
    save_fingerprint(take_fingerprint(words, profile), tmp_path / "demo.fp")
    assert (tmp_path / "demo.fp").stat().st_size <= most * sum(words.files.values())


@needs_demo_model
@pytest.mark.parametrize(("profile", "most"), [("exact", 0.025), ("small", 0.002)])
def test_sizes_of_the_live_demo_model(tmp_path, profile, most):
    words = live_words(load(SPEC, "bfloat16").module)
    save_fingerprint(take_fingerprint(words, profile), tmp_path / "demo.fp")
    assert (tmp_path / "demo.fp").stat().st_size <= most * sum(tensor.size for tensor in words.tensors)


@pytest.mark.parametrize("profile", ["exact", "small"])
def test_every_kind_of_tensor_in_a_file(tmp_path, profile):
    save_file(TENSORS, tmp_path / "x.safetensors")
    fingerprint = take_fingerprint(file_words(str(tmp_path / "x.safetensors")), profile)
    live = take_fingerprint(live_words(module_of(**TENSORS)), profile)
    digests = {one.tensor.name: (one.digest, one.checksum) for one in fingerprint.tensors}
    assert {one.tensor.name: (one.digest, one.checksum) for one in live.tensors}.items() <= digests.items()
