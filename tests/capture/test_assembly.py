"""From passes to a bundle: tokens in their places, rows that were never computed absent, equal words stored once."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aftershock.capture import CaptureRequest, read_bundle
from assembly import assemble
from wire import LOGITS, Asked, Recorder, Row, Share, Value, Words, read_request, weight

ASKED = Asked("a model", ([1, 2],), dtype="float32", threads=2, options={"window": 3})
WHOLE = Value("layers.0.q", type="Linear", source="here.py:3", layer=0, shares=(Share("q", 0, 4, 4),))


def value_of(row: Row, salt: int = 0) -> float:
    return 100 * row.request + row.index + 1000 * salt


def recorded(folder: Path, passes: Sequence[Sequence[Row]], asked: Asked = ASKED) -> Recorder:
    recorder = Recorder(folder, asked)
    recorder.header("an engine", "1.0", {"kernel": "k"}, [weight("w", Words("F32", np.ones((2, 2), "f4")), "q", 0)])
    for rows in passes:
        recorder.begin(rows)
        words = np.array([[value_of(row)] * 4 for row in rows], "f4")
        recorder.put(WHOLE, Words("F32", words))
    return recorder


def rows(request: int, start: int, end: int) -> list[Row]:
    return [Row(request, index, token=50 + index, position=index) for index in range(start, end)]


def test_tokens_of_several_passes_stand_where_they_belong(tmp_path):
    recorder = recorded(tmp_path, [rows(1, 0, 2) + rows(0, 0, 3), rows(0, 3, 5) + rows(1, 2, 3)])
    recorder.finish(
        [
            {"text": "one", "prompt": [50, 51, 52], "sampled": [53, 54, 7]},
            {"text": None, "prompt": [50, 51], "sampled": [52, 9]},
        ]
    )
    assemble(tmp_path)
    bundle = read_bundle(tmp_path)
    manifest = bundle.manifest
    (record,) = manifest.records
    assert bundle.output(record)[:, 0].tolist() == [0, 1, 2, 3, 4, 100, 101, 102]
    assert manifest.passes == ((5, 6, 0, 1, 2), (3, 4, 7))
    assert record.span == "all"
    assert (record.module, record.type, record.source, record.layer) == ("layers.0.q", "Linear", "here.py:3", 0)
    first, second = manifest.requests
    assert (first.tokens, first.prompt_tokens, first.sampled, first.text) == (
        (50, 51, 52, 53, 54),
        3,
        (53, 54, 7),
        "one",
    )
    assert (second.tokens, second.positions, second.text) == ((50, 51, 52), (0, 1, 2), None)
    assert manifest.settings == {"threads": 2, "batching": "one_by_one", "options": {"window": 3}, "kernel": "k"}
    assert manifest.complete
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["manifest.json", "tensors.safetensors"]


def test_rows_that_no_pass_computed_are_absent(tmp_path):
    recorder = recorded(tmp_path, [rows(0, 0, 2), rows(1, 3, 5)])
    recorder.finish([{"prompt": [50, 51], "sampled": []}, {"prompt": [60, 61, 62, 53, 54], "sampled": [1]}])
    assemble(tmp_path)
    bundle = read_bundle(tmp_path)
    (record,) = bundle.manifest.records
    assert bundle.manifest.tokens_of(record.span) == (0, 1, 5, 6)
    assert bundle.output(record)[:, 0].tolist() == [0, 1, 103, 104]
    assert bundle.manifest.requests[1].tokens == (60, 61, 62, 53, 54)
    assert bundle.manifest.requests[1].positions == (0, 1, 2, 3, 4)


def test_what_was_computed_twice_counts_as_it_was_last(tmp_path):
    recorder = recorded(tmp_path, [rows(0, 0, 3)])
    recorder.begin(rows(0, 1, 3))
    recorder.put(WHOLE, Words("F32", np.full((2, 4), 7, "f4")))
    recorder.finish([{"prompt": [50, 51, 52], "sampled": []}])
    assemble(tmp_path)
    bundle = read_bundle(tmp_path)
    assert bundle.output(bundle.manifest.records[0])[:, 0].tolist() == [0, 7, 7]


def test_equal_words_are_stored_once_and_an_input_goes_to_its_output(tmp_path):
    recorder = recorded(tmp_path, [rows(0, 0, 2)])
    norm, o = Words("F32", np.arange(6, dtype="f4").reshape(2, 3)), Words("F32", np.zeros((2, 3), "f4"))
    recorder.put(Value("norm"), norm)
    recorder.put(Value("o", "input", shares=(Share("sv", 0, 3, 3),)), norm)
    recorder.put(Value("o"), o)
    recorder.put(Value("p", "input"), norm)
    recorder.put(Value("p"), o)
    recorder.finish([{"prompt": [50, 51], "sampled": []}])
    assemble(tmp_path)
    records = {record.name: record for record in read_bundle(tmp_path).manifest.records}
    assert list(records) == ["layers.0.q", "norm", "o:input", "o", "p"]
    assert records["o"].input == records["p"].input == records["norm"].output == records["o:input"].output
    assert records["o"].output == records["p"].output
    assert records["norm"].input is None


def test_logits_of_some_rows_are_no_record(tmp_path):
    recorder = recorded(tmp_path, [rows(0, 0, 3), rows(0, 3, 4)])
    recorder.put(Value(LOGITS), Words("F32", np.full((1, 9), 4, "f4")), [0])
    recorder.begin(rows(1, 0, 2))
    recorder.put(Value(LOGITS), Words("F32", np.full((1, 9), 6, "f4")), [1])
    recorder.finish([{"prompt": [50, 51, 52], "sampled": [53]}, {"prompt": [50, 51], "sampled": [8]}])
    assemble(tmp_path)
    bundle = read_bundle(tmp_path)
    assert [record.module for record in bundle.manifest.records] == ["layers.0.q"]
    assert bundle.manifest.logits.span == "last"
    assert bundle.logits[:, 0].tolist() == [4, 6]


@pytest.mark.parametrize(("dtype", "kind"), [("BF16", "u2"), ("F16", "f2"), ("F64", "f8"), ("F32", "f4")])
def test_words_keep_every_bit(tmp_path, dtype, kind):
    width = np.dtype(kind).itemsize
    raw = np.frombuffer(bytes(range(8 * width)), f"u{width}").reshape(2, 4)
    recorder = recorded(tmp_path, [rows(0, 0, 2)])
    recorder.put(Value("odd"), Words(dtype, raw.view(kind)))
    recorder.finish([{"prompt": [50, 51], "sampled": []}])
    assemble(tmp_path)
    bundle = read_bundle(tmp_path)
    found = bundle.output(bundle.manifest.records[1])
    assert (
        found.contiguous().view(dtype=getattr(__import__("torch"), f"int{8 * width}")).numpy().tobytes()
        == raw.tobytes()
    )


def test_a_pass_that_was_cut_short_is_left_out(tmp_path):
    recorder = recorded(tmp_path, [rows(0, 0, 3), rows(0, 3, 4)])
    recorder.put(Value("later"), Words("F32", np.zeros((1, 2), "f4")))
    del recorder  # as if the process had died here: the second pass has no table yet
    assemble(tmp_path)
    bundle = read_bundle(tmp_path)
    assert not bundle.manifest.complete
    assert bundle.manifest.requests[0].tokens == (50, 51, 52)
    assert [record.module for record in bundle.manifest.records] == ["layers.0.q"]


def test_nothing_complete_is_no_bundle(tmp_path):
    recorded(tmp_path, [rows(0, 0, 3)])
    with pytest.raises(ValueError, match="not one pass"):
        assemble(tmp_path)


@given(data=st.data())
def test_any_cut_of_prompts_into_passes_gives_the_same_tensors(data, tmp_path_factory):
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    pieces = []
    for request, length in enumerate(lengths):
        cuts = sorted({0, length, *data.draw(st.lists(st.integers(0, length), max_size=3))})
        pieces.append([rows(request, start, end) for start, end in pairwise(cuts)])
    passes = []
    while any(pieces):
        chosen = data.draw(st.sets(st.sampled_from([n for n, rest in enumerate(pieces) if rest]), min_size=1))
        passes.append([row for number in sorted(chosen, reverse=True) for row in pieces[number].pop(0)])
    folder = tmp_path_factory.mktemp("cut")
    recorded(folder, passes).finish([{"prompt": [50 + n for n in range(length)], "sampled": []} for length in lengths])
    assemble(folder)
    bundle = read_bundle(folder)
    expected = [100 * request + index for request, length in enumerate(lengths) for index in range(length)]
    assert bundle.output(bundle.manifest.records[0])[:, 0].tolist() == expected


def test_values_of_other_shapes_are_refused(tmp_path):
    recorder = recorded(tmp_path, [rows(0, 0, 3)])
    with pytest.raises(ValueError, match=r"odd: \(2, 4\) where 3 tokens"):
        recorder.put(Value("odd"), Words("F32", np.zeros((2, 4), "f4")))


def test_patterns_choose_modules_and_components(tmp_path):
    asked = Asked("m", ([1],), record=("q", "*.mlp.*"))
    recorder = recorded(tmp_path, [rows(0, 0, 1)], asked)
    for module in ("layers.0.mlp.up", "layers.0.k"):
        recorder.put(Value(module), Words("F32", np.zeros((1, 2), "f4")))
    recorder.finish([{"prompt": [50], "sampled": []}])
    assemble(tmp_path)
    assert [record.module for record in read_bundle(tmp_path).manifest.records] == ["layers.0.q", "layers.0.mlp.up"]


def test_a_request_is_read_as_it_was_asked(tmp_path):
    prompts = ("a text", (1, 2), ({"role": "user", "content": "hello"},))
    request = CaptureRequest(model="m", prompts=prompts, dtype="bfloat16", options={"a": [1]}, batching="together")
    (tmp_path / "request.json").write_text(request.model_dump_json())
    asked = read_request(tmp_path / "request.json")
    assert asked.prompts == ("a text", [1, 2], [{"role": "user", "content": "hello"}])
    assert (asked.dtype, asked.options, asked.groups()) == ("bfloat16", {"a": [1]}, [[0, 1, 2]])
    assert Asked("m", ("a", "b")).groups() == [[0], [1]]
    assert set(json.loads(request.model_dump_json())) == set(Asked.__dataclass_fields__)
