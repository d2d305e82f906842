"""`locate --text` and `repair --text`: a flipped bit in a folder of safetensors, with nothing but some text."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from aftershock.cli import run
from aftershock.models import file_words, load, save
from learnt_model import TEXT, learnt, learnt_weights, trained
from tiny_gguf import write_gguf

NAME = "model.layers.1.self_attn.q_proj.weight"
CAPITALS = "".join(letter for letter in TEXT.upper() if 33 <= ord(letter) <= 93)
"""Text of letters that the tokenizer of the tiny GGUF model has."""


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


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a GGUF model of packed words that knows its text, and the text; not to be changed."""
    folder = tmp_path_factory.mktemp("packed")
    (folder / "some.txt").write_text(CAPITALS, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFTERSHOCK_CACHE", str(folder / "cache"))
        write_gguf(folder / "random.gguf")
        weights = trained(load(str(folder / "random.gguf")), CAPITALS, 16, 128)
    write_gguf(folder / "tiny.gguf", "proj|embed|lm_head", weights=weights)
    return folder


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


def flip_in_gguf(path: Path, name: str, byte: int) -> None:
    tensor = next(one for one in file_words(str(path)).tensors if one.name == name)
    held = bytearray(path.read_bytes())
    held[tensor.extents[0].offset + byte] ^= 1 << 6
    path.write_bytes(held)


@pytest.mark.parametrize("out", [None, "mended"])
@pytest.mark.parametrize("name", ["blk.1.attn_q.weight", "blk.0.ffn_down.weight"])
def test_a_block_of_a_gguf_file_is_the_clean_one_again(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, out: str | None
) -> None:
    """Rows of q lie in the file in another order than in memory."""
    monkeypatch.setenv("AFTERSHOCK_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    path = Path(shutil.copy(packed / "tiny.gguf", tmp_path / "broken.gguf"))
    flip_in_gguf(path, name, 20 * 9 + 1)
    broken = path.read_bytes()
    into = [] if out is None else ["-o", out]
    assert run(["repair", str(path), "--text", str(packed / "some.txt"), *into]) == 0
    mended = path if out is None else Path(out) / path.name
    assert mended.read_bytes() == (packed / "tiny.gguf").read_bytes()
    assert out is None or path.read_bytes() == broken


def test_what_is_no_word_of_a_gguf_file_is_mended_in_safetensors(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A norm is stored as float32 and loaded as bfloat16."""
    monkeypatch.setenv("AFTERSHOCK_CACHE", str(tmp_path / "cache"))
    path = Path(shutil.copy(packed / "tiny.gguf", tmp_path / "broken.gguf"))
    norm = load(str(path), "bfloat16").module.get_parameter("model.norm.weight")
    flip_in_gguf(path, "output_norm.weight", 4 * int(norm.argmin()) + 3)  # below 1, lest it become NaN
    broken = path.read_bytes()
    repair = ["repair", str(path), "--text", str(packed / "some.txt")]
    assert run(repair) == 2
    assert "give an output folder" in capsys.readouterr().err
    assert run([*repair, "-o", str(tmp_path / "mended")]) == 0
    assert path.read_bytes() == broken
    mended = load(str(tmp_path / "mended"), "bfloat16").module
    assert torch.equal(mended.get_parameter("model.norm.weight"), norm)


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
