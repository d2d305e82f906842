"""`aftershock locate` and `aftershock repair`."""

import json
import shutil

import pytest
import torch
import typer

from aftershock.cli import locate, repair, run
from aftershock.detect import save_fingerprint, take_fingerprint
from aftershock.models import file_words
from tiny_models import save_tiny

UP = "model.layers.1.mlp.up_proj.weight"
KEY = bytes(range(32))


@pytest.fixture(autouse=True)
def commands(monkeypatch):
    app = typer.Typer()
    app.command("locate")(locate.command)
    app.command("repair")(repair.command)
    monkeypatch.setattr("aftershock.cli.app", app)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A folder with a model, its fingerprints and a key beside it; not to be changed."""
    folder = tmp_path_factory.mktemp("clean")
    save_tiny(folder / "model", "llama", torch.bfloat16)
    words = file_words(str(folder / "model"))
    for profile in ("exact", "small"):
        save_fingerprint(take_fingerprint(words, profile), folder / profile)
    (folder / "key").write_bytes(KEY)
    save_fingerprint(take_fingerprint(words, "small", KEY), folder / "keyed", KEY)
    return folder


@pytest.fixture
def broken(clean, tmp_path):
    """A copy of the model with one word's bits 14 and 3 flipped."""
    folder = shutil.copytree(clean / "model", tmp_path / "model")
    flip(folder, 2, 20, 0x40)
    return folder


def flip(folder, row, column, mask):
    words = file_words(str(folder))
    tensor = next(tensor for tensor in words.tensors if tensor.name == UP)
    name, offset = tensor.place(row, column)
    data = bytearray((folder / name).read_bytes())
    data[offset + 1] ^= mask
    (folder / name).write_bytes(data)


def ways(clean):
    return {
        "exact": ["--fingerprint", str(clean / "exact")],
        "small": ["--fingerprint", str(clean / "small")],
        "keyed": ["--fingerprint", str(clean / "keyed"), "--key", str(clean / "key")],
        "reference": ["--reference", str(clean / "model")],
    }


WAYS = ("exact", "small", "keyed", "reference")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("way", WAYS)
def test_a_clean_model_is_clean(clean, way, capsys):
    assert run(["locate", str(clean / "model"), *ways(clean)[way]]) == 0
    assert capsys.readouterr().out == "no corruption found\n"
    assert run(["repair", str(clean / "model"), *ways(clean)[way], "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"files": [], "words": 0}


@pytest.mark.parametrize("way", WAYS)
def test_the_word_is_found_and_put_back(clean, broken, way, capsys):
    assert run(["locate", str(broken), *ways(clean)[way], "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    (word,) = report["words"]
    assert not report["clean"]
    assert (word["tensor"], word["component"], word["layer"], word["bits"]) == (UP, "up", 1, [14])
    assert word["element"] == list(divmod(2 * 40 + 20, 32))
    assert word["clean"] ^ word["found"] == 1 << 14
    assert run(["locate", str(broken), *ways(clean)[way]]) == 3
    table = capsys.readouterr().out
    assert f"{UP} (up, layer 1)" in table
    assert f"{word['clean']:#x}" in table
    assert run(["repair", str(broken), *ways(clean)[way]]) == 0
    assert "1 word put back" in capsys.readouterr().out
    assert contents(broken) == contents(clean / "model")
    assert run(["locate", str(broken), *ways(clean)[way]]) == 0


@pytest.mark.parametrize("way", WAYS)
def test_a_mended_copy_goes_elsewhere(clean, broken, way, tmp_path, capsys):
    before = contents(broken)
    assert run(["repair", str(broken), *ways(clean)[way], "-o", str(tmp_path / "new"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["words"] == 1
    assert contents(tmp_path / "new") == contents(clean / "model")
    assert contents(broken) == before


def test_another_model_is_not_mixed_with_a_mended_one(clean, broken, tmp_path, capsys):
    there = save_tiny(tmp_path / "there", "opt", torch.bfloat16)
    before = contents(there)
    assert run(["repair", str(broken), *ways(clean)["exact"], "-o", str(there)]) == 2
    assert "is there already: give an empty folder" in " ".join(capsys.readouterr().err.split())
    assert contents(there) == before


def test_what_cannot_be_told_is_said_and_nothing_is_written(clean, broken, capsys):
    for row in (3, 6, 9):
        for column in (1, 5, 7):
            flip(broken, row, column, 1)
    before = contents(broken)
    assert run(["repair", str(broken), *ways(clean)["exact"]]) == 3
    said = " ".join(capsys.readouterr().out.split())
    assert "rows 3, 6, 9; columns 1, 5, 7" in said
    assert "nothing was written" in said
    assert run(["repair", str(broken), *ways(clean)["exact"], "--json"]) == 3
    (unclear,) = json.loads(capsys.readouterr().out)["ambiguous"]
    assert (unclear["tensor"], unclear["rows"]) == (UP, [3, 6, 9])
    assert contents(broken) == before
    assert run(["repair", str(broken), *ways(clean)["reference"]]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "exactly one of --fingerprint"),
        (["--fingerprint", "exact", "--reference", "model"], "exactly one of --fingerprint"),
        (["--fingerprint", "nothing"], "can't be read"),
        (["--reference", "nothing"], "does not exist"),
        (["--fingerprint", "keyed"], "key"),
        (["--fingerprint", "model/config.json"], "no fingerprint"),
    ],
)
def test_bad_use_is_one_sentence(clean, arguments, said, capsys, monkeypatch):
    monkeypatch.chdir(clean)
    for command in ("locate", "repair"):
        assert run([command, "model", *arguments]) == 2
        assert said in capsys.readouterr().err
    assert run(["locate", "nowhere", "--fingerprint", "exact"]) == 2
