import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aftershock.errors import InputError
from aftershock.tasks import Item, load_task, probe_items, text_items


@given(st.text(max_size=6000), st.sampled_from(["", "\n", " ", "word "]))
def test_chunks_cover_the_text_in_order(text, separator):
    text = separator.join(text[i : i + 40] for i in range(0, len(text), 40))
    chunks = [item.continuations[0] for item in text_items("t", text)]
    place = 0
    for chunk in chunks:
        found = text.index(chunk, place)
        assert not text[place:found].strip()
        assert 0 < len(chunk) <= 2000
        place = found + len(chunk)
    assert not text[place:].strip()


def test_chunks_end_at_line_ends():
    chunks = text_items("t", ("x" * 99 + "\n") * 50)
    assert [len(item.continuations[0]) for item in chunks] == [2000, 2000, 1000]
    assert (chunks[0].kind, chunks[0].contexts, chunks[0].id) == ("lm", ("",), "t-0")


def test_text_file(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text("One line.\n", encoding="utf-8")
    task = load_task(str(path))
    assert task.name == "story"
    assert task.items == (Item("text-0", "lm", "lm", ("",), ("One line.\n",)),)


def test_digest_tells_content_and_order_alone(tmp_path):
    lines = [json.dumps({"id": f"s-{n}", "context": "a", "answer": "b"}) for n in range(3)]

    def digest(name, content, **options):
        path = tmp_path / name
        path.write_text("\n".join(content))
        return load_task(str(path), **options).digest

    whole = digest("a.jsonl", lines)
    assert digest("b.jsonl", lines) == whole
    assert digest("c.jsonl", lines[::-1]) != whole
    assert digest("d.jsonl", lines, limit=2) == digest("e.jsonl", lines[:2]) != whole


def test_limit_spreads_over_the_groups_of_the_probe_set():
    everything = probe_items()
    groups = Counter(item.group for item in everything)
    for limit in (1, len(groups), 2 * len(groups), 10_000):
        items = load_task("probe", limit).items
        taken = Counter(item.group for item in items)
        assert len(items) == min(limit, groups.total())
        assert all(taken[group] >= min(limit // len(groups), groups[group]) for group in groups)
        places = [everything.index(item) for item in items]
        assert places == sorted(places)


def test_max_new_tokens_changes_generation_alone():
    plain, longer = load_task("probe").items, load_task("probe", max_new_tokens=3).items
    for before, after in zip(plain, longer, strict=True):
        limit = 3 if before.kind == "generation" else before.max_new_tokens
        assert after == replace(before, max_new_tokens=limit)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("task.csv", b"a,b", "give `probe`, a .jsonl file, a .txt file or lm_eval:NAME"),
        ("task.jsonl", b"\n\n", "is empty"),
        ("task.txt", b"  \n", "is empty"),
        ("task.txt", b"ab\xff", r"not UTF-8 text \(byte 2\)"),
        ("task.jsonl", None, "can't be read"),
    ],
)
def test_files_that_can_not_be_tasks(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_task(str(path))


@pytest.mark.parametrize("options", [{"limit": 0}, {"max_new_tokens": -1}])
def test_limits_below_one_are_refused(options):
    with pytest.raises(InputError, match="choose 1 or more"):
        load_task("probe", **options)


@pytest.mark.parametrize(
    ("file", "count", "kind"),
    [
        ("mc/arc_easy_500.jsonl", 500, "choice"),
        ("mc/winogrande_500.jsonl", 500, "choice"),
        ("mc/boolq_500.jsonl", 500, "choice"),
        ("mc/mmlu_mini_570.jsonl", 570, "choice"),
        ("multilingual/xcopa_zh_250.jsonl", 250, "choice"),
        ("multilingual/belebele_deu_400.jsonl", 400, "choice"),
        ("gen/gsm8k_test_500.jsonl", 500, "generation"),
        ("gen/math_500.jsonl", 500, "generation"),
        ("lm/lambada_openai_1000.jsonl", 1000, "cloze"),
    ],
)
def test_published_task_files_load_whole(shared_data, file, count, kind):
    items = load_task(str(shared_data / file)).items
    assert len(items) == count
    assert {item.kind for item in items} == {kind}


def test_wikitext_is_cut_without_loss(shared_data):
    path = shared_data / "lm/wikitext2_test.raw.txt"
    text = "".join(item.continuations[0] for item in load_task(str(path)).items)
    assert text.split() == path.read_text(encoding="utf-8").split()
