"""Files of prompts: what is read, and what is refused."""

import pytest

from aftershock.capture import read_prompts
from aftershock.errors import InputError


def test_a_text_a_line(tmp_path):
    (tmp_path / "p.txt").write_text('one two\n\n"three"\n')
    assert read_prompts(tmp_path / "p.txt") == ("one two", '"three"')


def test_json_a_line(tmp_path):
    (tmp_path / "p.jsonl").write_text('"one\\ntwo"\n[5, 6]\n[{"role": "user", "content": "x"}]\n')
    assert read_prompts(tmp_path / "p.jsonl") == ("one\ntwo", (5, 6), ({"role": "user", "content": "x"},))


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "[]",
        '""',
        "[1.5]",
        '[{"role": 3}]',
        "no json",
        "[" * 100_000,
        "3",
        '[{"role": "user"}]',
        '[{"content": "x"}]',
    ],
)
def test_a_line_that_is_no_prompt_is_refused(tmp_path, line):
    (tmp_path / "p.jsonl").write_text(f'"fine"\n{line}\n')
    with pytest.raises(InputError, match=r"p\.jsonl, line 2 is no prompt"):
        read_prompts(tmp_path / "p.jsonl")


def test_files_without_prompts_are_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\xff")
    for name, sentence in [
        ("empty.txt", "holds no prompt"),
        ("binary.txt", "can't be read"),
        ("none.txt", "can't be read"),
    ]:
        with pytest.raises(InputError, match=sentence):
            read_prompts(tmp_path / name)
