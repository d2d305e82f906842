"""`aftershock fingerprint` and `aftershock verify`: what they print and their exit codes."""

import json
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from aftershock.cli import fingerprint, verify
from aftershock.errors import InputError
from tiny_gguf import write_gguf
from tiny_models import save_tiny

app = typer.Typer()
app.command("fingerprint")(fingerprint.command)
app.command("verify")(verify.command)


def run(*arguments: object) -> int:
    command = get_command(app)
    with command.make_context("aftershock", [str(argument) for argument in arguments]) as context:
        return command.invoke(context)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_gguf(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def corrupt(model: Path) -> None:
    data = bytearray(model.read_bytes())
    data[-5] ^= 4
    model.write_bytes(data)


def test_take_and_check(model, tmp_path, capsys):
    assert run("fingerprint", model, "-o", tmp_path / "a.fp") == 0
    assert "a.fp: exact fingerprint of 1 file, " in capsys.readouterr().out
    assert run("verify", model, "--fingerprint", tmp_path / "a.fp") == 0
    assert capsys.readouterr().out.startswith("clean: 20 tensors and 1 header, ")
    corrupt(model)
    assert run("verify", model, "--fingerprint", tmp_path / "a.fp") == 3
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith(" differs")
    assert printed[1].startswith("CORRUPTED: ")


@pytest.mark.parametrize("profile", ["exact", "small"])
def test_json(model, tmp_path, capsys, profile):
    key = tmp_path / "key"
    key.write_bytes(bytes(32))
    out = tmp_path / "a.fp"
    assert run("fingerprint", model, "-o", out, "--profile", profile, "--key", key, "--json") == 0
    taken = json.loads(capsys.readouterr().out)
    assert (taken["path"], taken["profile"], taken["keyed"]) == (str(out), profile, True)
    assert (taken["size"], taken["bytes"]) == (out.stat().st_size, model.stat().st_size)
    assert (taken["tensors"], taken["files"]) == (20, 1)
    corrupt(model)
    assert run("verify", model, "--fingerprint", out, "--key", key, "--json") == 3
    found = json.loads(capsys.readouterr().out)
    assert (found["clean"], len(found["differing"])) == (False, 1)
    assert (found["checked"], found["headers"], found["settings"]) == (20, 1, 0)


def test_a_folder_is_told_by_what_is_in_it(tmp_path, capsys):
    folder = save_tiny(tmp_path / "model", "llama")
    for number, settings in ((4, "4 settings files"), (1, "1 settings file")):
        run("fingerprint", folder, "-o", tmp_path / "a.fp")
        assert f"of {number + 1} files, " in capsys.readouterr().out
        assert run("verify", folder, "--fingerprint", tmp_path / "a.fp") == 0
        assert capsys.readouterr().out.startswith(f"clean: 20 tensors, 1 header and {settings}, ")
        for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
            (folder / name).unlink(missing_ok=True)


def test_a_fingerprint_replaces_a_fingerprint_alone(model, tmp_path, capsys):
    out = tmp_path / "a.fp"
    run("fingerprint", model, "-o", out)
    first = out.read_bytes()
    corrupt(model)
    assert run("fingerprint", model, "-o", out) == 0
    second = out.read_bytes()
    assert second != first
    notes, others = tmp_path / "notes.txt", [b"", b"dear diary", bytes(8), second[:40], b"\xff" * 100]
    for data in others:
        notes.write_bytes(data)
        capsys.readouterr()
        with pytest.raises(InputError, match=r"notes\.txt is there already and is no fingerprint: give another file"):
            run("fingerprint", model, "-o", notes)
        assert "reading" not in capsys.readouterr().err
        assert notes.read_bytes() == data


def test_a_key_is_asked_for(model, tmp_path):
    key = tmp_path / "key"
    key.write_bytes(bytes(32))
    run("fingerprint", model, "-o", tmp_path / "a.fp", "--key", key)
    with pytest.raises(InputError, match="was taken with a key"):
        run("verify", model, "--fingerprint", tmp_path / "a.fp")


def test_a_header_that_is_broken(model, tmp_path, capsys):
    run("fingerprint", model, "-o", tmp_path / "a.fp")
    model.write_bytes(b"FUGG" + model.read_bytes()[4:])
    capsys.readouterr()
    assert run("verify", model, "--fingerprint", tmp_path / "a.fp") == 3
    assert capsys.readouterr().out.startswith("tiny.gguf: header differs\n")
    run("verify", model.rename(tmp_path / "mine.gguf"), "--fingerprint", tmp_path / "a.fp")
    assert capsys.readouterr().out.startswith("mine.gguf: header differs\n")


def test_an_unknown_profile(model, tmp_path):
    with pytest.raises(typer.TyperException, match="exact"):
        run("fingerprint", model, "-o", tmp_path / "a.fp", "--profile", "tiny")
