"""How fast are the tools that a user would pick, on the same faults? `python -m benchmarks.tools --json [--quick]`.

PyTorchFI and MRFI, each in an environment that this script makes and removes, with this environment's torch and
transformers, on the largest common work that they can run: the perplexity of 16 rows of text in one forward pass under
one single-bit fault, in a weight or in the output of a linear layer (the same token and channel in every row). The same
faults, in the same run, one tool after the other fault by fault: flipped by hand around the bare model, by each tool,
by the reference executor and by the fast executor. The losses under each fault have to agree, or the comparison is
void. Then what each tool does when more is asked of it, in its own words.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from aftershock.errors import InputError
from aftershock.faults import ActivationSite, Fault, Flip, Selection, WeightSite, sample_faults, select
from aftershock.models import LoadedModel, decode, load
from aftershock.replay import Batch, Executor, FastExecutor, Job, ModelCrashedError, ReferenceExecutor, Run
from aftershock.tasks import Item, probe_items, windows
from benchmarks.arguments import parser
from benchmarks.environment import environment

MODEL = "demo:smollm2-135m"
ROWS, TOKENS = 16, 64
COMPONENTS = ("q", "k", "v", "o", "gate", "up", "down")
REPOSITORY = Path(__file__).parents[1]
COMMON = tuple(f"{name}=={version(name).partition('+')[0]}" for name in ("torch", "transformers", "numpy"))
PACKAGES = {"pytorchfi": ("pytorchfi==0.6.0",), "mrfi": ("mrfi==2.1.0", "scipy==1.17.1", "PyYAML==6.0.3")}
ROUNDING = 1e-6
"""Difference of two mean losses, in nats, that rounding in fp32 explains; a fault that moves the loss by more shows."""

RELATIVE = 1e-3
"""What two runs of one fault may differ by beyond that, of the change that the fault makes to the loss."""

Runner = Callable[[Sequence[Fault]], list[float]]
"""Mean loss per token under each fault, in nats."""


def main() -> None:
    """Measure, print, and end with one JSON object on the last line."""
    options = parser(__doc__, "fewer faults")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--data", type=Path, help="a text file to take the rows from, in place of the probe set")
    arguments = options.parse_args()
    count, size = (2, 4) if arguments.quick else (4, 6)
    torch.set_num_threads(arguments.threads)

    started = time.perf_counter()
    model = load(MODEL, dtype="float32")
    batch = text_batch(model, arguments.data)
    faults = draw(model, batch, count * size)
    golden = loss_of(ReferenceExecutor(model).golden(batch))
    with ExitStack() as opened:
        scratch = Path(opened.enter_context(TemporaryDirectory()))
        pretrained: Any = model.module
        pretrained.save_pretrained(scratch / "model")
        setup = {"folder": str(scratch / "model"), "threads": arguments.threads, "tokens": tokens_of(batch)}
        pythons = {name: make_environment(scratch / name, packages) for name, packages in PACKAGES.items()}
        versions = {name: installed(name, python) for name, python in pythons.items()}
        tries = {name: attempts(name, python, scratch / "model") for name, python in pythons.items()}
        runners = {
            "by hand": opened.enter_context(served(sys.executable, "by_hand", setup)),
            "PyTorchFI": opened.enter_context(served(str(pythons["pytorchfi"]), "pytorchfi_tool", setup)),
            "MRFI": opened.enter_context(served(str(pythons["mrfi"]), "mrfi_tool", setup)),
            "aftershock, reference executor": executed(ReferenceExecutor(model), batch),
            "aftershock, fast executor": executed(FastExecutor(model), batch),
        }
        measured = measure(runners, [faults[begin : begin + size] for begin in range(0, len(faults), size)])
    figures = compared(measured, golden)
    report = {
        "benchmark": "tools",
        "what": f"perplexity of {ROWS} rows x {TOKENS} tokens, one forward pass and one single-bit fault a trial",
        "model": MODEL,
        "dtype": "float32",
        "device": "cpu",
        **environment(),
        "tools": versions,
        "quick": arguments.quick,
        "n": len(faults),
        "faults": list(map(str, faults)),
        "seconds": round(time.perf_counter() - started, 1),
        "golden_perplexity": round(math.exp(golden), 5),
        "figures": figures,
        "tries": tries,
        "checks": checks(figures, versions),
    }
    print(json.dumps(report))


def text_batch(model: LoadedModel, source: Path | None) -> Batch:
    """Windows of a text, or of the probe set's questions and answers, as one batch; each feeds TOKENS tokens."""
    if source is None:
        text = "\n".join(" ".join([item.contexts[0], *item.continuations[:1]]) for item in probe_items())
    else:
        text = source.read_text(encoding="utf-8")
    rows = windows(text, model.tokenizer, TOKENS + 1)[:ROWS]
    if len(rows) < ROWS or any(len(row.continuation) < TOKENS for row in rows):
        raise InputError(f"the text has fewer than {ROWS} x {TOKENS + 1} tokens: give a longer one")
    items = tuple(Item(f"row-{number}", "lm", "lm", ("",), ("",)) for number in range(ROWS))
    return Batch(0, items, tuple((row,) for row in rows))


def tokens_of(batch: Batch) -> list[list[int]]:
    """Token ids of every row."""
    return [[*row.context, *row.continuation] for (row,) in batch.rows]


def draw(model: LoadedModel, batch: Batch, count: int) -> list[Fault]:
    """Flips of sign and exponent bits, uniform over the weights and over the outputs of the linear layers, in turn.

    Mantissa flips cost the tools the same and move the loss too little to tell whether they struck the same word.
    """
    faults: list[Fault] = []
    for number in range(count):
        selection = Selection(
            sites=(("weight", "activation")[number % 2],),
            components=COMPONENTS,
            draw="uniform",
            bit_classes=("sign", "exponent"),
            stages=("decode",),
        )
        population = select(selection, model.components)
        faults += sample_faults(selection, population, model.format, batch.decode_passes, seed=3, index=number)
    return faults


def described(fault: Fault) -> dict[str, Any]:
    """A fault as the tools' processes read it. Rows have one context token, so pass number and token are one apart."""
    assert isinstance(fault.corruption, Flip)
    (bit,) = fault.corruption.bits
    if isinstance(fault.site, WeightSite):
        module = fault.site.parameter.removesuffix(".weight")
        return {"kind": "weight", "module": module, "index": fault.site.index, "bit": bit}
    assert isinstance(fault.site, ActivationSite)
    token = fault.trigger.first - decode(0)
    return {"kind": "activation", "module": fault.site.module, "index": (token, fault.site.channel), "bit": bit}


def make_environment(folder: Path, packages: Sequence[str]) -> Path:
    """The Python of a new environment with this one's torch and transformers, and with the packages.

    These come without what they ask for beside it: MRFI asks for torchvision, whose general build does not load next to
    a torch for CPUs alone, and runs a language model without it.
    """
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", str(python)]
    # pip's own setting for local wheels holds for the faster installer too.
    places = {"UV_FIND_LINKS": os.environ["PIP_FIND_LINKS"]} if "PIP_FIND_LINKS" in os.environ else {}
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([*install, *COMMON], check=True, env=os.environ | places)
    subprocess.run([*install, "--no-deps", *packages], check=True, env=os.environ | places)
    return python


def installed(name: str, python: Path) -> dict[str, str]:
    """Versions in the environment of a tool, as the environment itself tells them."""
    code = (
        "import sys, json, importlib.metadata as m; print(json.dumps({name: m.version(name) for name in sys.argv[1:]}))"
    )
    found: dict[str, str] = json.loads(last_line(str(python), "-c", code, name, "torch", "transformers", "numpy"))
    return found


def attempts(name: str, python: Path, model: Path) -> dict[str, str]:
    """What the tool does when more is asked of it."""
    found: dict[str, str] = json.loads(last_line(str(python), "-m", f"benchmarks.foreign.{name}_tool", str(model)))
    return found


def last_line(*command: str) -> str:
    """The last line that a command prints."""
    done = subprocess.run(command, cwd=REPOSITORY, env=quiet(), check=True, text=True, stdout=subprocess.PIPE)
    return done.stdout.splitlines()[-1]


def quiet() -> dict[str, str]:
    """The environment variables of the tools' processes: no hub, no bars."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}


@contextmanager
def served(python: str, module: str, setup: dict[str, Any]) -> Iterator[Runner]:
    """Trials by a module of `benchmarks.foreign` in a process of its own, one at a time."""
    command = [python, "-m", f"benchmarks.foreign.{module}"]
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=quiet(), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asked, answered = process.stdin, process.stdout

        def ask(content: dict[str, Any]) -> Any:
            print(json.dumps(content), file=asked, flush=True)
            return json.loads(answered.readline())

        ask(setup)
        yield lambda faults: [float(ask(described(fault))) for fault in faults]


def executed(executor: Executor, batch: Batch) -> Runner:
    """Trials by one of aftershock's executors, which may take many of them at once."""

    def run(faults: Sequence[Fault]) -> list[float]:
        jobs = [Job(number, batch, (fault,)) for number, fault in enumerate(faults)]
        losses = {job.key: loss_of(run) for job, run in executor.trials(jobs)}
        return [losses[job.key] for job in jobs]

    executor.golden(batch)
    return run


def loss_of(run: Run | ModelCrashedError) -> float:
    """Mean loss per token over rows of equal length, in nats."""
    if not isinstance(run, Run):
        raise run
    return float(np.mean([-item.answer.score for item in run.items]))


@dataclass(frozen=True)
class Measured:
    """Losses of all faults, and seconds a trial in each block."""

    losses: tuple[float, ...]
    seconds: tuple[float, ...]


def measure(runners: dict[str, Runner], blocks: Sequence[Sequence[Fault]]) -> dict[str, Measured]:
    """Every block by every runner, in turn, so that a change of the machine's load falls on all of them."""
    measured = {name: Measured((), ()) for name in runners}
    for block in blocks:
        for name, runner in runners.items():
            begin = time.perf_counter()
            losses = runner(block)
            seconds = (time.perf_counter() - begin) / len(block)
            before = measured[name]
            measured[name] = Measured((*before.losses, *losses), (*before.seconds, seconds))
    return measured


def compared(measured: dict[str, Measured], golden: float) -> dict[str, dict[str, Any]]:
    """Trials per second of each, over those by hand, and how its losses agree with those found by hand."""
    hand = measured["by hand"]
    means = {name: float(np.mean(one.seconds)) for name, one in measured.items()}
    figures = {}
    for name, one in measured.items():
        pairs = list(zip(one.losses, hand.losses, strict=True))
        figures[name] = {
            "trials_per_second": round(1 / means[name], 4),
            "slowest_and_fastest_block": [round(1 / max(one.seconds), 4), round(1 / min(one.seconds), 4)],
            "over_by_hand": round(means["by hand"] / means[name], 3),
            "losses_that_agree": sum(agree(loss, by_hand, golden) for loss, by_hand in pairs),
            "largest_difference": max(abs(loss - by_hand) for loss, by_hand in pairs if math.isfinite(loss - by_hand)),
            "faults_that_moved_the_loss": sum(not abs(loss - golden) <= ROUNDING for loss in one.losses),
            "not_finite": sum(not math.isfinite(loss) for loss in one.losses),
            "losses": [loss if math.isfinite(loss) else None for loss in one.losses],
            "n": len(one.losses),
        }
    return figures


def agree(one: float, other: float, golden: float) -> bool:
    """Whether two losses show the same fault: equal but for rounding, or neither of them finite."""
    if not (math.isfinite(one) and math.isfinite(other)):
        return math.isfinite(one) == math.isfinite(other)
    return abs(one - other) <= ROUNDING + RELATIVE * abs(other - golden)


def checks(figures: dict[str, dict[str, Any]], versions: dict[str, dict[str, str]]) -> list[dict[str, Any]]:
    """That the comparison is one: the same torch, the same losses."""
    torches = {found["torch"] for found in versions.values()} | {torch.__version__}
    found = [
        {"name": "versions of torch", "value": len(torches), "target": 1, "unit": "count", "met": len(torches) == 1}
    ]
    for name, figure in figures.items():
        agreeing, n = figure["losses_that_agree"], figure["n"]
        found.append(
            {
                "name": f"{name}: losses equal to those by hand",
                "value": agreeing,
                "target": n,
                "unit": "faults",
                "met": agreeing == n,
            }
        )
    return found


if __name__ == "__main__":
    main()
