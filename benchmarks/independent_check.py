"""Is the SDC rate right? `python -m benchmarks.independent_check --json` works it out a second time.

A study of single-bit weight faults runs on the command line. Then plain transformers and numpy repeat each of its
trials from the fault's text alone: flip the bit in the parameter's memory, ask each item on its own (no batch, no
padding, `generate` for texts), put the word back, and sort the answers by rules written from docs/outcomes.md.
Nothing of aftershock is imported here or in `benchmarks.independent_rules`.
"""

import hashlib
import json
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.arguments import parser
from benchmarks.environment import environment
from benchmarks.independent_rules import OUTCOMES, SDC, Answer, Item, is_right, outcome

MODEL = "smollm2-135m"
THREADS = 2
STUDY = """
[model]
spec = "demo:{model}"
dtype = "float32"
[task]
spec = "probe"
{limit}
[faults]
sites = ["weight"]
draw = "by_component"
bit_classes = ["sign", "exponent"]
[run]
trials = {trials}
seed = 20
items_per_fault = 8
batch_items = 8
noise = 2
traced = 0
threads = {threads}
"""
FAULT = re.compile(r"weight (?P<parameter>\S+)\[(?P<index>\d+(?:,\d+)*)\] flip (?P<bits>\d+(?:,\d+)*)(?: always)?")
ALL_BITS = 0xFFFF_FFFF


@dataclass(frozen=True)
class Flip:
    """Bits to invert in one element of one parameter."""

    parameter: str
    index: tuple[int, ...]
    bits: tuple[int, ...]

    @property
    def mask(self) -> int:
        """A word with those bits set."""
        return sum(1 << bit for bit in self.bits)


@dataclass(frozen=True)
class Model:
    """A module in evaluation mode and its tokenizer."""

    module: Any
    tokenizer: Any


def main() -> None:
    """Run the study, repeat it, and end with one JSON object on the last line."""
    options = parser(__doc__, "10 trials on 30 items")
    options.add_argument("--trials", type=int, default=100)
    options.add_argument(
        "--study", type=Path, help="check this study (weight faults, fp32, probe) instead of a new one"
    )
    arguments = options.parse_args()

    started = time.perf_counter()
    with TemporaryDirectory() as scratch:
        folder = arguments.study or run_study(Path(scratch), arguments.quick, arguments.trials)
        stored = read_study(folder)
    torch.set_num_threads(stored["settings"]["run"]["threads"])
    studied = time.perf_counter()
    pairs = []
    for trial in repeat(stored, load_model(), load_items()):
        pairs += trial
        if not arguments.json:
            print(f"trial {trial[0]['trial']}: {[pair['independent'] for pair in trial]}", flush=True)
    report = {
        "benchmark": "independent_check",
        "what": "outcomes of weight faults by plain transformers and numpy, one item at a time, beside a study's",
        "model": f"demo:{MODEL}",
        "dtype": "float32",
        "device": "cpu",
        **environment(),
        "quick": arguments.quick,
        "settings": stored["settings"],
        "seconds": {
            "study": round(studied - started, 1),
            "independent": round(time.perf_counter() - studied, 1),
        },
        **compared(pairs),
    }
    print(json.dumps(report))


def run_study(folder: Path, quick: bool, trials: int) -> Path:
    """A study on the command line; its folder."""
    settings = folder / "study.toml"
    settings.write_text(
        STUDY.format(
            model=MODEL,
            threads=THREADS,
            trials=10 if quick else trials,
            limit="limit = 30" if quick else "",
        ),
        encoding="utf-8",
    )
    aftershock("study", str(settings), "--out", str(folder / "study"), "--json")
    return folder / "study"


def aftershock(*arguments: str) -> str:
    """What a command prints to stdout; its progress goes to stderr."""
    command = [sys.executable, "-m", "aftershock.cli", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def read_study(folder: Path) -> dict[str, Any]:
    """Settings, golden answers by item, and trials of a study's store."""
    connection = sqlite3.connect(folder / "study.sqlite")
    try:
        (settings,) = connection.execute("SELECT value FROM meta WHERE key = 'settings'").fetchone()
        golden = [json.loads(record) for (record,) in connection.execute("SELECT record FROM golden ORDER BY number")]
        trials = [json.loads(record) for (record,) in connection.execute("SELECT record FROM trials ORDER BY trial")]
    finally:
        connection.close()
    return {
        "settings": json.loads(settings),
        "golden": {record["item"]: record for record in golden},
        "trials": trials,
    }


def load_model() -> Model:
    """The demo model as transformers loads it from the safetensors that its GGUF file was dequantised to.

    transformers reads GGUF itself only beside accelerate, which nothing else here needs.
    """
    file = Path(aftershock("models", "pull", MODEL).strip())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    folder = file.parent.parent / "converted" / digest
    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    return Model(module, AutoTokenizer.from_pretrained(folder))


def load_items() -> dict[str, Item]:
    """The probe set by id, read as plain JSON lines."""
    package = find_spec("aftershock")
    assert package is not None
    assert package.submodule_search_locations is not None
    text = (Path(package.submodule_search_locations[0]) / "tasks" / "probe.jsonl").read_text(encoding="utf-8")
    return {item["id"]: item for item in map(json.loads, text.splitlines())}


def repeat(stored: dict[str, Any], model: Model, items: dict[str, Item]) -> Iterator[list[dict[str, Any]]]:
    """Every (trial, item) pair with both outcomes, one list a trial."""
    golden = {name: answer(items[name], model) for name in stored["golden"]}
    for trial in stored["trials"]:
        (line,) = trial["faults"]
        names = [record["item"] for record in trial["items"]]
        with flipped(parse(line), model.module) as words:
            faulty = {name: answer(items[name], model) for name in names}
        strikes = [(strike["old_bits"], strike["new_bits"]) for strike in trial["strikes"]]
        yield [
            {
                "trial": trial["trial"],
                "fault": line,
                "words_agree": strikes == [words],
                "item": record["item"],
                "stored": record["outcome"],
                "independent": outcome(items[record["item"]], golden[record["item"]], faulty[record["item"]]),
                "stored_eligible": record["eligible"],
                "independent_eligible": is_right(items[record["item"]], golden[record["item"]]) is not False,
                "stored_golden": stored["golden"][record["item"]]["output"],
                "independent_golden": golden[record["item"]].output,
                "stored_output": record["output"],
                "independent_output": faulty[record["item"]].output,
                "golden_margin": golden[record["item"]].margin,
                "faulty_margin": faulty[record["item"]].margin,
            }
            for record in trial["items"]
        ]


def parse(line: str) -> Flip:
    """A fault from its line."""
    match = FAULT.fullmatch(line)
    if match is None:
        raise SystemExit(f"'{line}' is no bit flip of a weight for the whole trial, which is all that this check knows")
    index, bits = (tuple(map(int, match[name].split(","))) for name in ("index", "bits"))
    return Flip(match["parameter"], index, bits)


@contextmanager
def flipped(flip: Flip, module: Any) -> Iterator[tuple[int, int]]:
    """The word before and after, while the bits are flipped in the parameter's own memory."""
    words = dict(module.named_parameters())[flip.parameter].detach().numpy().view(np.uint32)
    old = int(words[flip.index])
    words[flip.index] = old ^ flip.mask
    try:
        yield old, int(words[flip.index])
    finally:
        words[flip.index] = old


@torch.inference_mode()
def answer(item: Item, model: Model) -> Answer:
    """What the model makes of an item that is asked on its own."""
    if item["kind"] == "generation":
        return write(item, model)
    rows = [
        continuation_logits(context, continuation, model)
        for context, continuation in zip(item["contexts"], item["continuations"], strict=True)
    ]
    finite = all(bool(logits.isfinite().all()) for logits, _ in rows)
    if item["kind"] == "cloze":
        ((logits, tokens),) = rows
        greedy = logits.argmax(-1).tolist()
        written = item["continuations"][0] if greedy == tokens else model.tokenizer.decode(greedy)
        return Answer(written, len(tokens), finite, smallest_gap(logits))
    likelihoods = torch.stack(
        [logits.log_softmax(-1)[torch.arange(len(tokens)), tokens].sum() for logits, tokens in rows]
    )
    return Answer(str(int(likelihoods.argmax())), 0, finite, smallest_gap(likelihoods[None]))


def continuation_logits(context: str, continuation: str, model: Model) -> tuple[torch.Tensor, list[int]]:
    """fp32 logits of shape (tokens, vocabulary) that predict a continuation, and its tokens."""
    kept = context.rstrip(" ")
    before = model.tokenizer(kept)["input_ids"]
    tokens = model.tokenizer(context[len(kept) :] + continuation, add_special_tokens=False)["input_ids"]
    logits = model.module(torch.tensor([before + tokens[:-1]])).logits[0, len(before) - 1 :]
    return logits.float(), tokens


def write(item: Item, model: Model) -> Answer:
    """The greedy text, cut at the first of the item's stop strings, without white space at its ends."""
    prompt = model.tokenizer(item["contexts"][0], return_tensors="pt")
    result = model.module.generate(
        **prompt,
        do_sample=False,
        max_new_tokens=item["max_new_tokens"],
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=model.module.generation_config.eos_token_id,
    )
    tokens = result.sequences[0, prompt["input_ids"].shape[1] :].tolist()
    ended = tokens[-1] == model.module.generation_config.eos_token_id
    tokens, text, read = tokens[: len(tokens) - ended], "", len(tokens)
    for count in range(1, len(tokens) + 1):
        text = model.tokenizer.decode(tokens[:count], skip_special_tokens=True)
        found = [text.index(stop) for stop in item["stop"] if stop in text]
        if found:
            tokens, text, read = tokens[:count], text[: min(found)], count
            break
    logits = torch.cat(result.logits[:read]).float()
    return Answer(text.strip(), len(tokens), bool(logits.isfinite().all()), smallest_gap(logits))


def smallest_gap(rows: torch.Tensor) -> float:
    """The smallest difference between the two largest values of each row; infinite where there is none to tell."""
    best = rows.topk(2, dim=-1).values
    return float((best[:, 0] - best[:, 1]).nan_to_num(nan=inf).min())


def compared(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Agreement pair by pair, both SDC rates, and the checks."""
    differing = [pair for pair in pairs if pair["stored"] != pair["independent"]]
    trials = {pair["trial"] for pair in pairs}
    rates = {side: sdc_rate(pairs, side) for side in ("stored", "independent")}
    shares = {
        "outcomes that agree": [pair["stored"] == pair["independent"] for pair in pairs],
        "items that agree on eligibility": [pair["stored_eligible"] == pair["independent_eligible"] for pair in pairs],
        "fault-free answers that agree": [pair["stored_golden"] == pair["independent_golden"] for pair in pairs],
        "struck words that agree": [pair["words_agree"] for pair in pairs],
    }
    return {
        "trials": len(trials),
        "pairs": len(pairs),
        "agreements": len(pairs) - len(differing),
        "outcomes": {name: [pair["independent"] for pair in pairs].count(name) for name in OUTCOMES},
        "sdc_rate": rates,
        "disagreements": differing,
        "checks": [
            {
                "name": name,
                "value": sum(agree) / len(agree),
                "target": 1.0,
                "unit": "share",
                "met": all(agree),
            }
            for name, agree in shares.items()
        ],
    }


def sdc_rate(pairs: list[dict[str, Any]], side: str) -> float:
    """Mean over faults of the share of eligible items with silent data corruption."""
    shares = []
    for trial in {pair["trial"] for pair in pairs}:
        counted = [pair[side] in SDC for pair in pairs if pair["trial"] == trial and pair[f"{side}_eligible"]]
        if counted:
            shares.append(sum(counted) / len(counted))
    return sum(shares) / len(shares)


if __name__ == "__main__":
    main()
