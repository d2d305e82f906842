"""`aftershock capture`: what it prints, what it passes on, and what it refuses."""

import json
import sys

import pytest
import typer
from typer.main import get_command

from aftershock.capture import capturing, read_bundle
from aftershock.cli import capture
from aftershock.errors import InputError
from tiny_models import save_tiny

app = typer.Typer()
app.command("capture")(capture.command)


def run(*arguments: object) -> int:
    command = get_command(app)
    with command.make_context("aftershock", [str(argument) for argument in arguments]) as context:
        return command.invoke(context)


@pytest.fixture
def prompts(tmp_path, monkeypatch):
    monkeypatch.setenv("AFTERSHOCK_CACHE", str(tmp_path / "cache"))
    save_tiny(tmp_path / "model", "llama")
    (tmp_path / "prompts.jsonl").write_text("[5, 6, 7]\n[8, 9]\n")
    return tmp_path / "prompts.jsonl"


def test_capture_writes_a_bundle_and_says_what_is_in_it(prompts, tmp_path, capsys):
    options = ["--max-new-tokens", 2, "--batching", "together", "--dtype", "float64", "--record", "o", "--threads", 1]
    more = ["--option", "attention=eager", "--option", 'hf_overrides={"rms_norm_eps": 0.5}', "--python", sys.executable]
    out = tmp_path / "out"
    assert run(f"transformers:{tmp_path / 'model'}", "--prompts", prompts, "-o", out, *options, *more, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    manifest = read_bundle(out).manifest
    assert printed["path"] == str(out)
    assert (printed["requests"], printed["tokens"], printed["records"]) == (2, 7, len(manifest.records))
    assert printed["sampled"] == [list(request.sampled) for request in manifest.requests]
    assert manifest.dtype == "float64"
    assert {share.component for record in manifest.records for share in record.shares} == {"o"}
    assert manifest.settings["attention"] == "eager"
    assert manifest.settings["config"]["rms_norm_eps"] == 0.5
    assert manifest.settings["batching"] == "together"


def test_capture_tells_people(prompts, tmp_path, capsys, monkeypatch):
    asked = []

    def captured(engine, request, folder, python, timeout, progress):
        asked.append((engine, request.prompts, timeout))
        raise InputError("the engine is away")

    monkeypatch.setattr("aftershock.capture.capture", captured)
    with pytest.raises(InputError, match="the engine is away"):
        run(f"transformers:{tmp_path / 'model'}", "--prompts", prompts, "-o", tmp_path / "out", "--timeout", 7)
    assert asked == [("transformers", ((5, 6, 7), (8, 9)), 7.0)]


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("transformers", "is no ENGINE:MODEL"),
        ("sglang:MODEL", "engine sglang is not known"),
        ("transformers:/nowhere", "does not exist"),
        ("llamacpp:MODEL", r"is no \.gguf file"),
    ],
)
def test_what_can_not_be_captured_is_refused(prompts, tmp_path, what, sentence):
    with pytest.raises((InputError, typer.BadParameter), match=sentence):
        run(what.replace("MODEL", str(tmp_path / "model")), "--prompts", prompts, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_environment_is_told_with_its_line(prompts, tmp_path):
    with pytest.raises(InputError, match="make engines-vllm"):
        run(f"vllm:{tmp_path / 'model'}", "--prompts", prompts, "-o", tmp_path / "out")


def test_an_option_without_a_value_is_refused(prompts, tmp_path):
    with pytest.raises(InputError, match="option eager has no value"):
        run(f"transformers:{tmp_path / 'model'}", "--prompts", prompts, "-o", tmp_path / "out", "--option", "eager")


def test_every_engine_is_named_in_the_help():
    assert capturing.ENGINES == ("llamacpp", "onnxruntime", "openvino", "transformers", "vllm")
    (parameter,) = (one for one in get_command(app).params if one.name == "what")
    assert all(engine in parameter.help for engine in capturing.ENGINES)
