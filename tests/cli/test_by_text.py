"""`locate --text` and `repair --text`: a flipped bit in a folder of safetensors, with nothing but some text."""

import json
from pathlib import Path

import pytest
import torch

from aftershock.cli import run
from aftershock.models import file_words, save
from learnt_model import TEXT, learnt, learnt_weights

NAME = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return learnt_weights(TEXT, 16, 128)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "some.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path, weights: dict[str, torch.Tensor]) -> Path:
    return save(learnt(weights, torch.float32), tmp_path / "model")[0].parent


def flip(folder: Path) -> None:
    words = file_words(str(folder))
    tensor = next(one for one in words.tensors if one.name == NAME)
    file, offset = tensor.place(tensor.rows // 2, 5)
    held = bytearray((folder / file).read_bytes())
    held[offset + 3] ^= 1 << 6
    (folder / file).write_bytes(held)


def test_a_healthy_model_is_clean(folder: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["locate", str(folder), "--text", str(text)]) == 0
    assert "no corruption found" in capsys.readouterr().out
    assert run(["repair", str(folder), "--text", str(text)]) == 0


def test_a_flip_is_found_and_the_file_is_the_clean_one_again(
    folder: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = (folder / "model.safetensors").read_bytes()
    flip(folder)
    assert run(["locate", str(folder), "--text", str(text), "--json"]) == 3
    verdict = json.loads(capsys.readouterr().out)
    assert [(bit["parameter"], bit["bit"]) for bit in verdict["bits"]] == [(NAME, 30)]
    assert verdict["recovery"] == "bits flipped back"
    assert verdict["layers"][0] == "layer 1"
    assert run(["repair", str(folder), "--text", str(text)]) == 0
    assert (folder / "model.safetensors").read_bytes() == clean
    assert not list(folder.glob(".repairing-*"))


def test_the_mended_model_goes_into_another_folder(folder: Path, text: Path, tmp_path: Path) -> None:
    clean = (folder / "model.safetensors").read_bytes()
    flip(folder)
    broken = (folder / "model.safetensors").read_bytes()
    assert run(["repair", str(folder), "--text", str(text), "-o", str(tmp_path / "mended")]) == 0
    assert (tmp_path / "mended" / "model.safetensors").read_bytes() == clean
    assert (folder / "model.safetensors").read_bytes() == broken


def test_a_model_in_another_dtype_is_not_patched(folder: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(folder)
    broken = (folder / "model.safetensors").read_bytes()
    assert run(["repair", str(folder), "--text", str(text), "--dtype", "bfloat16"]) == 2
    assert "output folder" in capsys.readouterr().err
    assert (folder / "model.safetensors").read_bytes() == broken


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--text", "missing.txt"], "can't be read"),
        (["--text", "short.txt"], "too short"),
        (["--text", "short.txt", "--reference", "."], "--text goes alone"),
        ([], "exactly one of --fingerprint, --reference and --text"),
        (["--reference", ".", "--device", "cuda"], "go with --text"),
    ],
)
def test_bad_input(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("Too short.", encoding="utf-8")
    assert run(["locate", str(folder), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_fingerprint_never_replaces_the_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = folder / "model.safetensors"
    before = weights.read_bytes()
    assert run(["fingerprint", str(weights), "-o", str(weights)]) == 2
    assert "a file of the model itself" in capsys.readouterr().err
    assert run(["fingerprint", str(folder), "-o", str(folder / "config.json")]) == 2
    assert weights.read_bytes() == before
