"""The folder that a bundle is: what is read back, and what is refused."""

import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from aftershock.capture import BUNDLE_VERSION, Bundle, Manifest, Record, Stored, read_bundle, record, write_bundle
from aftershock.capture import bundle as bundle_module
from aftershock.errors import InputError
from aftershock.locate.by_activations import locate_by_activations
from aftershock.numerics import words
from tiny_models import tiny_loaded


@pytest.fixture(scope="module")
def recorded():
    return record(tiny_loaded("qwen2", torch.bfloat16), ["one two", "three", "a longer one"])


@pytest.fixture
def folder(recorded, tmp_path):
    write_bundle(recorded, tmp_path / "bundle")
    return tmp_path / "bundle"


def rewritten(folder, change):
    """The folder, its manifest changed in place."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    return folder


def test_what_is_written_is_read_back(recorded, folder):
    found = read_bundle(folder)
    assert found.manifest == recorded.manifest
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "tensors.safetensors"]
    for number, own in enumerate(recorded.manifest.records):
        theirs = found.manifest.records[number]
        assert torch.equal(words(found.output(theirs)), words(recorded.output(own)))
    assert torch.equal(words(found.logits), words(recorded.logits))
    assert len(found.tensors) == len(recorded.tensors)


def test_nan_payloads_and_the_sign_of_zero_are_kept(recorded, tmp_path):
    stored = recorded.manifest.records[3].output
    odd = recorded.tensors[stored].clone()
    words(odd)[0, :3] = torch.tensor([0x7FC1, -0x8000, 0x7F80], dtype=torch.int32).to(torch.int16)
    write_bundle(Bundle(recorded.manifest, {**recorded.tensors, stored: odd}), tmp_path / "odd")
    assert torch.equal(words(read_bundle(tmp_path / "odd").tensors[stored]), words(odd))


def test_json_and_safetensors_are_all_that_is_needed(tmp_path):
    save_file({"q": np.ones((3, 4), np.float32)}, tmp_path / "outputs.safetensors")
    manifest = {
        "format": "aftershock-bundle",
        "version": 1,
        "engine": {"name": "mine", "version": "1"},
        "model": "model",
        "dtype": "float32",
        "requests": [{"id": "a", "tokens": [5, 6, 7], "positions": [0, 1, 2]}],
        "records": [
            {
                "module": "layers.0.q",
                "output": {"file": "outputs.safetensors", "key": "q", "dtype": "F32", "shape": [3, 4]},
            }
        ],
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    found = read_bundle(tmp_path)
    (only,) = found.manifest.records
    assert found.output(only).sum() == 12
    assert found.input(only) is None
    assert found.logits is None


def test_keys_that_are_not_known_are_ignored(folder):
    def change(manifest):
        manifest["mood"] = "good"
        manifest["records"][0]["kernel"] = "cublas"

    assert len(read_bundle(rewritten(folder, change)).manifest.records) > 10


def _newer(manifest):
    manifest["version"] = BUNDLE_VERSION + 1
    manifest["records"] = "in a way not known yet"


CHANGES = {
    "made by a newer aftershock": _newer,
    "is no capture bundle": lambda manifest: manifest.pop("format"),
    "requests": lambda manifest: manifest.pop("requests"),
    "is missing, which the manifest lists": lambda m: m["records"][1]["output"].update(file="other.safetensors"),
    "records.1.output.file": lambda manifest: manifest["records"][1]["output"].update(file="../tensors.safetensors"),
    "lacks elsewhere": lambda manifest: manifest["records"][1]["output"].update(key="elsewhere"),
    "where the manifest says F16": lambda manifest: manifest["records"][1]["output"].update(dtype="F16"),
    "where the requests have": lambda manifest: manifest["requests"].pop(),
    "positions": lambda manifest: manifest["requests"][0]["positions"].pop(),
    "negative token": lambda manifest: manifest["requests"][0]["tokens"].__setitem__(0, -1),
    "has a negative token": lambda manifest: manifest["requests"][0].update(sampled=[-1]),
    "has not one value for each of": lambda manifest: manifest["records"][2]["parameters"][1].update(shape=[7]),
    "only the input of an embedding is I64": lambda manifest: manifest["records"][0].update(operation="linear"),
    "not of the same tokens": lambda manifest: manifest["records"][2]["input"].update(shape=[20, 1, 32]),
    "is neither": lambda manifest: manifest["records"][1].update(span="some"),
    "are not numbers of the": lambda manifest: manifest.update(rows={"some": [3, 2]}),
    "passes hold numbers of no token": lambda manifest: manifest.update(passes=[[0], [99]]),
    "has several records": lambda manifest: manifest["records"].append(manifest["records"][1]),
    "records.1.point": lambda manifest: manifest["records"][1].update(point="elsewhere"),
    "prompt tokens among": lambda manifest: manifest["requests"][0].update(prompt_tokens=99),
    "output channels along axis": lambda manifest: manifest["records"][2]["parameters"][0].update(shape=[7, 32]),
}


def test_rows_that_are_absent_are_told_by_their_span(recorded, tmp_path):
    manifest = json.loads(recorded.manifest.model_dump_json())
    kept = list(range(1, recorded.manifest.tokens))
    entry = manifest["records"][1]
    entry["span"], entry["input"] = "computed", None
    entry["output"] = {**entry["output"], "key": "part", "shape": [len(kept), *entry["output"]["shape"][1:]]}
    manifest |= {"rows": {"computed": kept}, "passes": [kept], "complete": False}
    partial = Manifest.model_validate(manifest)
    first = recorded.manifest.records[1]
    tensors = {**recorded.tensors, partial.records[1].output: recorded.output(first)[1:].clone()}
    write_bundle(Bundle(partial, tensors), tmp_path / "bundle")
    found = read_bundle(tmp_path / "bundle")
    assert found.manifest.tokens_of("computed") == tuple(kept)
    assert torch.equal(words(found.output(found.manifest.records[1])), words(recorded.output(first)[1:]))
    assert list(found.manifest.tokens_of("all")) == list(range(found.manifest.tokens))
    with pytest.raises(InputError, match="lack rows of different tokens"):
        locate_by_activations(recorded, found)


def test_the_last_rows_are_those_of_each_request(recorded):
    manifest = recorded.manifest
    lengths = [len(request.tokens) for request in manifest.requests]
    assert manifest.tokens_of("last") == [sum(lengths[: number + 1]) - 1 for number in range(len(lengths))]


def test_several_values_of_one_call_have_names():
    place = Stored(file="t.safetensors", key="k", dtype="F32", shape=(1, 2))
    names = [
        Record(module="m", output=place, **more).name
        for more in ({}, {"point": "output.1"}, {"call": 2}, {"call": 2, "point": "residual"})
    ]
    assert names == ["m", "m:output.1", "m#2", "m#2:residual"]


def test_an_older_bundle_is_read(folder):
    def change(manifest):
        manifest["version"] = 1
        for key in ("rows", "passes", "weights", "complete"):
            del manifest[key]

    found = read_bundle(rewritten(folder, change)).manifest
    assert (found.rows, found.passes, found.complete) == ({}, (), True)


@pytest.mark.parametrize("sentence", CHANGES)
def test_a_manifest_that_is_wrong_is_one_sentence(folder, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        read_bundle(rewritten(folder, CHANGES[sentence]))
    assert "\n" not in str(caught.value)


def nodes(tree):
    """Every container and key in a JSON tree."""
    keys = tree.keys() if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in list(keys):
        yield tree, key
        yield from nodes(tree[key])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_stands_in_a_manifest_is_read_or_refused_in_one_sentence(recorded, folder, data):
    manifest = json.loads(recorded.manifest.model_dump_json())
    places = list(nodes(manifest))
    holder, key = places[data.draw(st.integers(0, len(places) - 1))]
    holder[key] = data.draw(st.sampled_from([None, -1, 0, 1, 10**30, "", "I64", "embedding", "norm", [], [0], {}, 1.5]))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    refusal = ""
    try:
        found = read_bundle(folder)
        locate_by_activations(recorded, found)
        locate_by_activations(found, recorded)
    except InputError as error:
        refusal = str(error)
    assert "\n" not in refusal


def test_a_shape_that_is_not_the_files_is_refused(folder):
    def change(manifest):
        channels = manifest["records"][-2]["output"]
        channels["shape"][1] += 1
        manifest["records"][-2]["parameters"] = []

    with pytest.raises(InputError, match="where the manifest says BF16 of shape"):
        read_bundle(rewritten(folder, change))


@pytest.mark.parametrize("kept", [0, 7, 100, 5000])
def test_a_file_cut_short_is_refused(folder, kept):
    path = folder / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match="damaged or cut short"):
        read_bundle(folder)


@pytest.mark.parametrize("kept", [0, 50, -1])
def test_a_manifest_cut_short_is_refused(folder, kept):
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match="is no JSON"):
        read_bundle(folder)


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"manifest\.json can't be read"):
        read_bundle(tmp_path)


def test_a_tensor_that_goes_later_is_one_sentence_too(folder):
    found = read_bundle(folder)
    (folder / "tensors.safetensors").unlink()
    with pytest.raises(InputError, match="is missing"):
        found.output(found.manifest.records[0])


def test_an_existing_folder_is_left_alone(recorded, folder):
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(InputError, match="exists already"):
        write_bundle(recorded, folder)
    assert (folder / "manifest.json").read_bytes() == before


def test_a_disk_that_is_full_leaves_nothing(recorded, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle_module, "save_file", full)
    with pytest.raises(InputError, match="No space left"):
        write_bundle(recorded, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []
