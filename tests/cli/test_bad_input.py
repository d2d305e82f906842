"""What is wrong with the input is said in one sentence, with exit code 2, before anything is written."""

import json
import os
import pickle
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from aftershock.cli import run
from aftershock.cli.output import StudyProgress
from aftershock.study import Progress, load_study

Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must be refused; gives the sentence."""

    def run_refused(*arguments: object) -> str:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert code == 2, printed.err
        assert printed.out == ""
        assert "Traceback" not in printed.err
        *sayings, sentence = printed.err.splitlines()
        assert sentence.startswith("aftershock: ")
        assert not any(line.startswith("aftershock: ") for line in sayings)
        return sentence.removeprefix("aftershock: ")

    return run_refused


@pytest.fixture
def study(tiny: Path, tmp_path: Path, refused: Refused) -> Refused:
    """A `study` command on the tiny study that must be refused before it wrote anything."""

    def refuse(*options: object, file: Path = tiny / "study.toml") -> str:
        sentence = refused("study", file, "--out", tmp_path / "out", "--json", *options)
        assert not (tmp_path / "out").exists()
        return sentence

    return refuse


def holds(sentence: str, *parts: object) -> None:
    """The sentence says what, where and how to mend it: `parts`, in this order."""
    place = 0
    for part in map(str, parts):
        found = sentence.find(part, place)
        assert found >= 0, f"{part!r} is not in the rest of {sentence!r}"
        place = found + len(part)


# Models


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A model folder to damage."""
    return Path(shutil.copytree(tiny / "llama", tmp_path / "model"))


@pytest.mark.parametrize("name", ["missing", "folder/of/missing", "missing.gguf", "missing.safetensors"])
def test_missing_model(study, tmp_path, name):
    path = tmp_path / name
    holds(study("--model", path), path, "does not exist", "give demo:NAME, a folder, a .gguf file or a hub id")


def test_unknown_demo_model(study):
    holds(study("--model", "demo:gpt5"), "'gpt5' does not exist", "choose one of smollm2-135m")


def test_hub_model_that_cannot_be_had(study):
    holds(study("--model", "nobody/nothing"), "nobody/nothing", "check the name and the connection")


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.999])
def test_safetensors_cut_short(study, model, kept):
    weights = model / "model.safetensors"
    os.truncate(weights, int(kept * weights.stat().st_size))
    holds(study("--model", model), weights, "damaged or cut short", "copy or download it again")


def test_safetensors_with_a_corrupt_header(study, model):
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[8:40] = bytes(32)
    weights.write_bytes(content)
    holds(study("--model", model), weights, "damaged", "copy or download it again")


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickled_checkpoint_is_refused_and_not_run(study, model, tmp_path):
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    holds(study("--model", model), model, "pytorch_model.bin, a pickle", "convert it to safetensors")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\3\0\0\0" + bytes(40), b"GGUF" + b"\1" * 200, b"no" * 99])
def test_corrupt_gguf(study, tmp_path, monkeypatch, content):
    monkeypatch.setenv("AFTERSHOCK_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    holds(study("--model", path), path, "cannot be read as a GGUF model", "get the file again")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_model_with_a_broken_file(study, model, file):
    (model / file).write_text('{"broken": ', encoding="utf-8")
    holds(study("--model", model), model)


def test_unsupported_dtype(study):
    holds(study("--dtype", "float8"), "dtype 'float8' is not supported", "choose one of float32, float16, bfloat16")


def test_unsupported_device(study):
    holds(study("--device", "abacus"), "device 'abacus' is not supported", "choose cpu, cuda, cuda:N")


def test_search_of_other_faults_than_single_flips_of_weights(study):
    holds(study("--search", "3"), "a search for boundary bits flips one bit", 'set sites = ["weight"]')


def test_absent_device(study, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    holds(study("--device", "cuda"), "device cuda is not here (0 CUDA devices found)", "choose cpu")


# Study files


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[run\n", ["{file} is not valid TOML", "line 1"]),
        ("[run]\ntrials = \n", ["{file} is not valid TOML", "line 2"]),
        ("[run]\ntrails = 3", ["{file}", "unknown key 'run.trails'", "did you mean 'trials'?"]),
        ("[modle]", ["{file}", "unknown key 'modle'", "did you mean 'model'?"]),
        ("[faults]\nxyzzy = 1", ["{file}", "unknown key 'faults.xyzzy'", "known here: ", "components"]),
        ("model = 3", ["{file}: model: "]),
        ("[model]\nspec = 3", ["{file}: model.spec: ", "string"]),
        ("[run]\ntrials = 'many'", ["{file}: run.trials: ", "integer"]),
        ("[run]\nitems_per_fault = 0", ["{file}: run.items_per_fault: ", "greater than or equal to 1"]),
        ("[task]\nlimit = -1", ["{file}: task.limit: ", "greater than or equal to 1"]),
        ("[faults]\ncomponents = ['mlp']", ["{file}: faults: unknown component 'mlp'", "choose from", "down"]),
        ("[faults]\nsites = []", ["{file}: faults.sites: ", "at least 1"]),
        ("[faults]\nbit_classes = ['mantisa']", ["{file}: faults.bit_classes.0: ", "'mantissa'"]),
        ("[faults]\nrate = 2.0", ["{file}: faults.rate: ", "less than 1"]),
        ("[faults]\nmodules = '('", ["{file}: faults: modules = '(' is not a regular expression"]),
        ("[faults]\nlayers = '7'", ["layers '7'", "the model has layers 0 to 1"]),
        ("[faults]\nlayers = 'first'", ["layers 'first'", "last 4"]),
        ("[faults]\nbits = [32]", ["bit 32 is outside float32", "bits 0 to 31", "choose a bit in that range"]),
        ("[faults]\ncomponents = ['router']", ["'router'", "leaves no weight", "widen it"]),
        ("[faults]\nmodules = 'xyz'\nsites = ['activation']", ["'xyz'", "leaves no activation", "widen it"]),
        ("fault_list = ['weight nonsense']", ["fault 'weight nonsense' can't be read", "write SITE CORRUPTION"]),
    ],
)
def test_study_file(study, tiny, tmp_path, text, parts):
    file = tmp_path / "mine.toml"
    file.write_text(text, encoding="utf-8")
    sentence = study("--model", tiny / "llama", "--task", tiny / "task.jsonl", file=file)
    holds(sentence, *(part.format(file=file) for part in parts))


def test_bit_outside_a_smaller_dtype(study, tiny, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[faults]\nbits = [30]", encoding="utf-8")
    sentence = study("--model", tiny / "llama", "--task", tiny / "task.jsonl", "--dtype", "bfloat16", file=file)
    holds(sentence, "bit 30 is outside bfloat16", "bits 0 to 15")


def test_missing_study_file(study, tmp_path):
    holds(study(file=tmp_path / "none.toml"), tmp_path / "none.toml", "can't be read", "give a TOML file")


def test_study_file_that_is_no_text(study, tmp_path):
    file = tmp_path / "binary.toml"
    file.write_bytes(b"\xff\xfe\0")
    holds(study(file=file), file, "is not valid TOML")


# Tasks and fault lists

GOOD_ITEM = json.dumps({"id": "q-1", "question": "a", "choices": ["b", "c"], "answer": 0})
GOOD_FAULT = "weight model.norm.weight[3] flip 30 always"


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ('{"id": ', ["not valid JSON", "mend or remove the line"]),
        ('{"id": "q-2", "question": "a"}', ["choices", "mend or remove the line"]),
        ('{"id": "q-2", "question": "a", "choices": ["b", "c"], "answer": 7}', ["answer is 7", "0 to 1"]),
        (GOOD_ITEM, ["id 'q-1' was used on line 1", "give every item an id of its own"]),
    ],
)
def test_task_file_with_a_broken_line(study, tmp_path, line, parts):
    file = tmp_path / "mine.jsonl"
    file.write_text(f"{GOOD_ITEM}\n{line}\n", encoding="utf-8")
    holds(study("--task", file), f"{file} line 2", *parts)


def test_empty_task_file(study, tmp_path):
    file = tmp_path / "mine.jsonl"
    file.touch()
    holds(study("--task", file), file, "is empty", "give it at least one item")


def test_letters_for_a_text(study, tmp_path):
    text, file = tmp_path / "story.txt", tmp_path / "letters.toml"
    text.write_text("Once upon a time.", encoding="utf-8")
    file.write_text('[task]\nanswers = "letter"', encoding="utf-8")
    holds(study("--task", text, file=file), text, "is a text", "leave answers and shots out")


def test_missing_task(study, tmp_path):
    holds(study("--task", tmp_path / "none.jsonl"), tmp_path / "none.jsonl", "can't be read", "check the path")
    holds(study("--task", "nonsense"), "'nonsense' is not known", "give `probe`, a .jsonl file, a .txt file or")


def test_a_task_of_a_harness_that_is_not_installed(study, monkeypatch):
    monkeypatch.setattr("aftershock.tasks.load.find_spec", lambda name: None)
    holds(study("--task", "lm_eval:arc_easy"), "'lm_eval:arc_easy'", 'pip install "aftershock[lm-eval]"')


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("weight model.norm.weight[3] flop 30", ["can't be read", "write SITE CORRUPTION TRIGGER"]),
        ("weight model.norm.weight[3] flip 3,3", ["bits [3, 3]", "each once"]),
        ("weight model.norm.weight[3] replace x", ["replace takes a number, not 'x'"]),
        ("weight model.norm.weight[3] flip 3 at never", ["trigger 'at never' can't be read", "write 'always'"]),
    ],
)
def test_fault_list_with_a_broken_line(study, tmp_path, line, parts):
    file = tmp_path / "mine.txt"
    file.write_text(f"# mine\n{GOOD_FAULT}\n{line}\n", encoding="utf-8")
    holds(study("--faults", file), f"{file}, line 3", *parts)


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("weight model.norm.weight[3] flip 32 always", ["bit 32 is outside float32", "choose a bit in that range"]),
        ("weight model.norm.weight[32] flip 3 always", ["shape [32]", "outside"]),
        ("weight model.layers.9.mlp.up_proj.weight[3,3] flip 3 always", ["no parameter", "did you mean model.layers."]),
        ("activation model.norms[1] flip 3 at first_token", ["no mapped output", "did you mean model.norm?"]),
        (
            "head_output model.layers.0.self_attn[0,1] flip 3 always",
            ["lives for one pass", "give it a transient trigger"],
        ),
        ("weight model.norm.weight[3] flip 3 at decode:40", ["can never strike", "raise max_new_tokens"]),
    ],
)
def test_fault_list_that_does_not_fit_the_model(study, tmp_path, line, parts):
    file = tmp_path / "mine.txt"
    file.write_text(f"{GOOD_FAULT}\n{line}\n", encoding="utf-8")
    holds(study("--faults", file), f"fault '{line}'", *parts)


@pytest.mark.parametrize("content", [b"", b"# nothing but a comment\n", b"\xff\xfe"])
def test_fault_list_without_faults(study, tmp_path, content):
    file = tmp_path / "mine.txt"
    file.write_bytes(content)
    holds(study("--faults", file), file)


def test_missing_fault_list(study, tmp_path):
    holds(study("--faults", tmp_path / "none.txt"), tmp_path / "none.txt", "can't be read", "UTF-8 text file")


# Usage


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["study", "demo", "--out", "x", "--trails", "3"], ["--trails", "--trials"]),
        (["study", "demo", "--out", "x", "--trials", "many"], ["--trials", "integer"]),
        (["study", "demo", "--out", "x", "--trials"], ["--trials", "argument"]),
        (["study", "demo", "--out", "x", "--trials", "0"], ["the command line: run.trials"]),
        (["study", "demo", "--out", "x", "--seed", "-1"], ["the command line: run.seed"]),
        (["study", "demo"], ["--out", "give a folder"]),
        (["studdy"], ["'studdy'", "'study'"]),
        (["replay", "x", "first"], ["trial", "integer"]),
        (["replay", "x"], ["trial"]),
        (["diff", "x"], ["'DIR'"]),
        (["models", "pull", "gpt5"], ["'gpt5' does not exist", "choose one of smollm2-135m"]),
    ],
)
def test_usage(refused, tmp_path, monkeypatch, arguments, parts):
    monkeypatch.chdir(tmp_path)
    holds(refused(*arguments), *parts)
    assert not list(tmp_path.iterdir())


# Stores


@pytest.mark.parametrize("arguments", [["report", "{}"], ["replay", "{}", "3"], ["diff", "{}", "{}"]])
def test_folder_without_a_study(refused, tmp_path, arguments):
    sentence = refused(*(argument.format(tmp_path) for argument in arguments))
    holds(sentence, tmp_path, "holds no study", "give the --out folder of one")
    assert not list(tmp_path.iterdir())


def test_resume_where_there_is_no_study(study):
    holds(study("--resume"), "holds no study")


def test_diff_names_the_folder_that_holds_no_study(refused, finished, tmp_path):
    holds(refused("diff", finished, tmp_path), tmp_path, "holds no study")


def test_out_that_holds_a_study(refused, tiny, finished):
    sentence = refused("study", tiny / "study.toml", "--out", finished, "--json")
    holds(sentence, finished, "holds a study already", "add --resume", "choose another --out")


def test_resume_of_another_study(refused, tiny, finished):
    before = load_study(finished).records_digest
    sentence = refused("study", tiny / "study.toml", "--out", finished, "--resume", "--seed", "7", "--json")
    holds(sentence, finished, "holds another study", "choose another --out")
    assert load_study(finished).records_digest == before
    # Nothing holds the store open.
    assert not list(finished.glob("study.sqlite-*"))


def test_trial_that_is_not_there(refused, finished):
    holds(refused("replay", finished, 99), finished, "has no trial 99", "0 to 11")


def test_store_of_a_newer_version(refused, tiny, edited):
    folder = edited("UPDATE meta SET value = '99' WHERE key = 'version'")
    for arguments in (["report", folder], ["study", tiny / "study.toml", "--out", folder, "--resume", "--json"]):
        holds(refused(*arguments), folder, "has record version 99", "use the release that wrote it")


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM meta WHERE key = 'version'",
        "DELETE FROM meta WHERE key = 'planned'",
        "UPDATE meta SET value = '{' WHERE key = 'version'",
        "UPDATE meta SET value = '{}' WHERE key = 'environment'",
        "UPDATE meta SET value = '{' WHERE key = 'settings'",
        "UPDATE trials SET record = '{}' WHERE trial = 2",
        "UPDATE golden SET record = 'x'",
        "DROP TABLE noise",
    ],
)
def test_store_with_broken_content(refused, edited, statement):
    folder = edited(statement)
    holds(refused("report", folder), folder)
    holds(refused("replay", folder, 2), folder)


@pytest.mark.parametrize("content", [b"", b"hello" * 1000, None])
def test_store_that_is_no_database(refused, tiny, edited, content):
    folder = edited()
    store = folder / "study.sqlite"
    store.write_bytes(store.read_bytes()[: store.stat().st_size // 2] if content is None else content)
    for arguments in (["report", folder], ["study", tiny / "study.toml", "--out", folder, "--resume", "--json"]):
        holds(refused(*arguments), store)


def a_file(folder: Path) -> Path:
    (folder / "taken").touch()
    return folder / "taken"


def below_a_file(folder: Path) -> Path:
    return a_file(folder) / "results"


def read_only(folder: Path) -> Path:
    (folder / "read-only").mkdir(mode=0o500)
    return folder / "read-only" / "results"


# Nothing is read-only to root.
@pytest.mark.parametrize("place", [a_file, below_a_file, *([read_only] if os.geteuid() else [])])
def test_out_that_cannot_be_written(refused, tiny, tmp_path, place):
    out = place(tmp_path)
    sentence = refused("study", tiny / "study.toml", "--out", out, "--json")
    holds(sentence, out, "can't be made", "choose another --out")


def test_number_of_trials_beside_a_fault_list(tiny, tmp_path, capsys):
    (tmp_path / "faults.txt").write_text("weight model.norm.weight[3] flip 14 always\n", encoding="utf-8")
    options = ["--faults", str(tmp_path / "faults.txt"), "--trials", "3", "--out", str(tmp_path / "out")]
    assert run(["study", str(tiny / "study.toml"), *options]) == 2
    holds(capsys.readouterr().err, "a fault list runs one trial a line", "leave one")
    assert not (tmp_path / "out").exists()


@contextmanager
def full_disk() -> Iterator[Callable[[int], None]]:
    """Gives what sets how large a file may grow, as on a disk that is full: writing beyond fails.

    Lifted within the test: the limit holds for every file of this process, so also for one that pytest prints to.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_keeps_what_was_stored(refused, tiny, finished, tmp_path, monkeypatch):
    out = tmp_path / "out"
    command = ["study", str(tiny / "study.toml"), "--out", str(out), "--json"]
    with full_disk() as allow, monkeypatch.context() as patched:

        def fill_disk(_: StudyProgress, progress: Progress) -> None:
            if progress.phase == "trials" and progress.done == 5:
                allow((out / "study.sqlite-wal").stat().st_size)

        patched.setattr(StudyProgress, "__call__", fill_disk)
        sentence = refused(*command)
    holds(sentence, out, "can't be read or written", "space left", "go on with --resume")
    whole = load_study(finished)
    kept = load_study(out).trials
    assert len(kept) == 5
    assert set(kept) < set(whole.trials)
    assert run([*command, "--resume"]) == 0
    assert load_study(out).records_digest == whole.records_digest


def test_full_disk_at_the_very_beginning(refused, tiny, tmp_path):
    out = tmp_path / "out"
    with full_disk() as allow:
        allow(1024)
        sentence = refused("study", tiny / "study.toml", "--out", out, "--json")
    holds(sentence, out, "can't be read or written", "space left")
    holds(refused("report", out), out, "was never filled", "remove it and start again")
