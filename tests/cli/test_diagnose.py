"""`aftershock diagnose`: what it prints, what it writes, its exit codes and its refusals."""

import json
from pathlib import Path
from shutil import copytree

import pytest
import torch

from aftershock.capture import record, write_bundle
from aftershock.cli import run
from aftershock.models import load
from tiny_models import save_tiny

PROMPTS = [list(range(5, 49)), list(range(20, 28)), list(range(7, 51))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The model, bundles of it and of one with another attention scale, and the prompts of both."""
    made = tmp_path_factory.mktemp("diagnose")
    save_tiny(made / "model", "llama")
    model = load(str(made / "model"))
    write_bundle(record(model, PROMPTS), made / "clean")
    model.module.model.layers[1].self_attn.scaling *= 1.2
    write_bundle(record(model, PROMPTS), made / "suspect")
    (made / "prompts.jsonl").write_text("".join(f"{json.dumps(prompt)}\n" for prompt in PROMPTS))
    return made


def diagnosed(folder: Path, target: object, *options: object) -> int:
    return run(["diagnose", "--reference", str(folder / "model"), "--target", str(target), *map(str, options)])


def test_a_clean_target_is_told_with_exit_code_0(folder, capsys):
    assert diagnosed(folder, folder / "clean", "--prompts", folder / "prompts.jsonl") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("no divergence: tokens, positions, activations, logits agree; look at stop")
    assert "activations  agrees" in printed
    assert "can't be seen here: errors of decoding alone" in printed


def test_a_divergent_target_is_told_with_its_cause_and_exit_code_3(folder, capsys, tmp_path):
    assert diagnosed(folder, folder / "suspect", "-o", tmp_path / "out") == 3
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "attention is wrong in layer 1: attention_scale, scale 0.424264 in place of 0.353553"
    assert printed[1] == "attention: attention_scale, layers 1"
    assert (tmp_path / "out" / "report.html").is_file()
    assert "attention\\_scale" in (tmp_path / "out" / "report.md").read_text("utf-8")


def test_json_prints_one_object_and_nothing_else(folder, capsys):
    assert diagnosed(folder, folder / "suspect", "--json") == 3
    found = json.loads(capsys.readouterr().out)
    assert found["divergent"] is True
    assert found["findings"][0]["cause"] == "attention_scale"
    assert found["subject"]["tokens"] == 96
    assert [rung["name"] for rung in found["rungs"]][:3] == ["tokens", "positions", "stop"]


def test_a_map_is_written_and_read_back(folder, capsys, tmp_path):
    assert diagnosed(folder, folder / "clean", "--save-map", tmp_path / "map.json") == 0
    written = json.loads((tmp_path / "map.json").read_text("utf-8"))
    points = [one for one in written["points"] if one["point"] != "logits"]
    own = {**written, "points": [{**one, "evidence": "user"} for one in points]}
    (tmp_path / "own.json").write_text(json.dumps(own))
    capsys.readouterr()
    assert diagnosed(folder, folder / "suspect", "--map", tmp_path / "own.json", "--json") == 3
    assert f"{len(points)} by user" in json.loads(capsys.readouterr().out)["alignment"]


def test_an_engine_is_captured_on_the_way(folder, capsys, tmp_path):
    target = f"transformers:{folder / 'model'}"
    assert diagnosed(folder, target, "--dtype", "bfloat16", "-o", tmp_path / "out", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["subject"]["dtype"] == "bfloat16"
    assert found["subject"]["requests"] > 4
    states = {rung["name"]: rung["state"] for rung in found["rungs"]}
    assert states == dict.fromkeys(states, "agrees")
    assert (tmp_path / "out" / "bundle" / "manifest.json").is_file()


def cut_short(folder: Path, into: Path) -> Path:
    model = load(str(folder / "model"))
    write_bundle(record(model, PROMPTS), into)
    file = into / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return into


def of_another_shape(folder: Path, into: Path) -> Path:
    save_tiny(into / "model", "llama", num_hidden_layers=4)
    write_bundle(record(load(str(into / "model")), PROMPTS), into / "bundle")
    return into / "bundle"


def of_no_replica(folder: Path, into: Path) -> Path:
    save_tiny(into / "model", "gpt_neox", torch.float32)
    return into / "model"


def refusal(capsys: pytest.CaptureFixture[str], folder: Path, target: object, *options: object) -> str:
    capsys.readouterr()
    assert diagnosed(folder, target, *options) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    return printed.err.splitlines()[-1]


def test_a_bundle_that_was_cut_short_is_one_sentence(folder, capsys, tmp_path):
    assert "damaged or cut short" in refusal(capsys, folder, cut_short(folder, tmp_path / "bundle"))


def test_prompts_that_are_not_the_bundles_are_one_sentence(folder, capsys, tmp_path):
    (tmp_path / "other.txt").write_text("one\ntwo\n")
    assert "there are 2 prompts" in refusal(capsys, folder, folder / "clean", "--prompts", tmp_path / "other.txt")


def test_another_model_is_one_sentence(folder, capsys, tmp_path):
    assert "not the same model" in refusal(capsys, folder, of_another_shape(folder, tmp_path))


def test_a_family_that_is_not_known_is_named(folder, capsys, tmp_path):
    model = of_no_replica(folder, tmp_path)
    capsys.readouterr()
    assert run(["diagnose", "--reference", str(model), "--target", str(folder / "clean")]) == 2
    assert "is of the family gpt_neox" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", [("--dtype", "bfloat16"), ("--option", "attention=eager"), ("--timeout", "7"), ("--python", "python")]
)
def test_options_of_a_capture_do_not_go_with_a_bundle(folder, capsys, option):
    assert "go with ENGINE:MODEL" in refusal(capsys, folder, folder / "clean", *option)


@pytest.mark.parametrize("target", ["sglang:model", "vllm:"])
def test_an_engine_that_is_not_known_is_told_from_a_bundle(folder, capsys, target):
    said = refusal(capsys, folder, target)
    assert f"target {target} is neither the folder of a bundle nor ENGINE:MODEL" in said
    assert "llamacpp, onnxruntime, openvino, transformers, vllm" in said


def test_a_model_of_another_shape_is_refused_before_it_is_captured(folder, capsys, tmp_path):
    save_tiny(tmp_path / "deep", "llama", num_hidden_layers=4)
    capsys.readouterr()
    assert diagnosed(folder, f"transformers:{tmp_path / 'deep'}") == 2
    printed = capsys.readouterr().err
    assert "has num_hidden_layers 4, the reference 2" in printed
    assert "capturing with" not in printed


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("AFTERSHOCK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_log_of_an_engine_that_failed_stays_where_the_sentence_says(folder, capsys, cache):
    target = f"transformers:{folder / 'model'}"
    options = ("--prompts", folder / "prompts.jsonl", "--option", "attention=abacus")
    log = Path(refusal(capsys, folder, target, *options).partition("(its log is ")[2].partition(")")[0].split(",")[0])
    assert cache in log.parents
    assert "abacus" in log.read_text("utf-8")


def test_a_time_that_an_engine_may_take_is_passed_on(folder, capsys, cache):
    assert "took longer than 1 s" in refusal(capsys, folder, f"transformers:{folder / 'model'}", "--timeout", "1")


def test_what_is_captured_in_float64_is_diagnosed_and_then_gone(folder, capsys, cache):
    otherwise = 'hf_overrides={"rms_norm_eps": 0.001}'
    options = ("--prompts", folder / "prompts.jsonl", "--dtype", "float64", "--option", otherwise)
    assert diagnosed(folder, f"transformers:{folder / 'model'}", *options, "--json") == 3
    found = json.loads(capsys.readouterr().out)
    assert found["subject"]["dtype"] == "float64"
    assert found["findings"][0]["cause"] == "norm_eps"
    assert next(rung["state"] for rung in found["rungs"] if rung["name"] == "weights") == "agrees"
    assert not list(cache.glob("diagnose-*"))


def test_a_bundle_that_is_incomplete_is_told_to_people(folder, capsys, tmp_path):
    partial = Path(copytree(folder / "clean", tmp_path / "partial"))
    manifest = json.loads((partial / "manifest.json").read_text("utf-8"))
    (partial / "manifest.json").write_text(json.dumps({**manifest, "complete": False}))
    assert diagnosed(folder, partial) == 0
    assert "would have computed after it failed: its bundle is incomplete" in capsys.readouterr().out


def test_what_is_no_bundle_is_one_sentence(folder, capsys, tmp_path):
    assert "give the folder of a capture bundle" in refusal(capsys, folder, tmp_path / "absent")
