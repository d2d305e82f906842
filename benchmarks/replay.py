"""What does the fast executor gain, and is it exact? `python -m benchmarks.replay --json [--device cuda]`.

The same single-bit faults, half in weights, half in activations, drawn uniformly, on 16 prompts of 64 generated tokens
(and, with `--data`, on 16 questions of ARC easy):

- decoding: every trial decodes all prompts token by token under its fault, as existing tools do;
- verifying: a trial learns whether and where each answer leaves golden's, and no more;
- fast: every trial with the full text of every answer.

Trials per second of each over the decoding loop's, with the spread over trials; how many records equal the reference
executor's, and how many answers equal those of decoding, beside the share that decoding itself gives again when
the batch is cut in halves. On a GPU the ratios over a decoding loop captured as a CUDA graph stand beside.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aftershock.faults import Selection, sample_faults, select, splits
from aftershock.inject import Injection
from aftershock.models import LoadedModel, align, load, teacher_forced
from aftershock.replay import Batch, FastExecutor, Job, ModelCrashedError, ReferenceExecutor, Run, make_batches
from aftershock.replay.pending import Pending
from aftershock.tasks import Item, load_task, probe_items
from benchmarks.arguments import model_parser
from benchmarks.environment import environment
from benchmarks.graphed import graphed_decoding

PROMPTS, TOKENS, THREADS = 16, 64, 2
TARGETS = {
    ("cpu", "bfloat16"): {"fast": 4, "verifying": 7},
    ("cpu", "float32"): {"fast": 6},
    ("cuda", "bfloat16"): {"fast": 250, "verifying": 500},
}
CHOICE_TARGETS = {("cpu", "bfloat16"): 3, ("cpu", "float32"): 3, ("cuda", "bfloat16"): 10}


class Verifying(FastExecutor):
    """Stops where an answer leaves golden's: its text ends there."""

    def _forced(self, *arguments: Any) -> Run | Pending:
        begun = super()._forced(*arguments)
        return begun if isinstance(begun, Run) else self._decode(begun)

    def _confirmed(self, pending: Pending) -> bool:
        return True

    def _decode(self, pending: Pending) -> Run:
        return self._finished(pending, tuple((row.tokens, row.finite) for row in pending.rows))


def main() -> None:
    """Measure, print, and end with one JSON object on the last line."""
    options = model_parser(__doc__, "fewer trials")
    options.add_argument("--data", type=Path, help="folder with the task files, for multiple choice")
    arguments = options.parse_args()
    torch.set_num_threads(THREADS)
    trials = arguments.trials or (32 if arguments.quick else 300)
    decoded = 4 if arguments.quick else 20

    started = time.perf_counter()
    model = load(arguments.model, arguments.dtype, arguments.device)
    configuration: Any = model.module.generation_config
    configuration.eos_token_id = None
    (batch,) = make_batches(prompts(), model, PROMPTS, 0)
    figures = generation(model, batch, jobs_on(model, batch, trials), decoded)
    setting = (torch.device(arguments.device).type, arguments.dtype)
    targets = TARGETS.get(setting, {})
    checks = [
        check(f"{name} over decoding", figures[name]["over_decoding"], target, "times")
        for name, target in targets.items()
    ]
    if arguments.data is not None:
        items = load_task(str(arguments.data / "mc" / "arc_easy_500.jsonl"), PROMPTS).items
        (questions,) = make_batches(items, model, PROMPTS, 0)
        figures["multiple_choice"] = choices(model, jobs_on(model, questions, trials), decoded)
        if setting in CHOICE_TARGETS:
            ratio = figures["multiple_choice"]["ratio"]
            checks.append(check("multiple choice over full passes", ratio, CHOICE_TARGETS[setting], "times"))
        agreed = figures["multiple_choice"]["agreement"]
        checks.append(check("multiple choice equal to the reference executor's", agreed, 1.0, "share"))
    exact = figures["agreement"]
    checks.append(check("records equal to the reference executor's", exact["reference"], 1.0, "share"))
    if arguments.dtype == "float32":
        checks.append(check("answers equal to decoding", exact["decoding"], 1.0, "share"))
    report = {
        "benchmark": "replay",
        "what": f"{PROMPTS} prompts x {TOKENS} tokens, single-bit faults, half weights, half activations",
        "model": arguments.model,
        "dtype": arguments.dtype,
        "device": torch.cuda.get_device_name() if model.device.type == "cuda" else "cpu",
        **environment(),
        "quick": arguments.quick,
        "n": trials,
        "seconds": round(time.perf_counter() - started, 1),
        "figures": figures,
        "checks": checks,
    }
    print(json.dumps(report))


def check(name: str, value: float, target: float, unit: str) -> dict[str, Any]:
    """One figure beside its target."""
    return {"name": name, "value": value, "target": target, "unit": unit, "met": value >= target}


def prompts() -> list[Item]:
    """Questions of the probe set, answered with a fixed number of tokens."""
    asked = [item for item in probe_items() if item.kind == "generation"][:PROMPTS]
    return [replace(item, answer=None, max_new_tokens=TOKENS, stop=()) for item in asked]


def jobs_on(model: LoadedModel, batch: Batch, trials: int) -> list[Job]:
    """Single-bit faults in weights and in activations, in turn."""
    jobs = []
    for number in range(trials):
        selection = Selection(sites=(("weight", "activation")[number % 2],), draw="uniform")
        population = select(selection, model.components)
        faults = sample_faults(selection, population, model.format, batch.decode_passes, seed=1, index=number)
        jobs.append(Job(number, batch, faults))
    return jobs


def generation(model: LoadedModel, batch: Batch, jobs: Sequence[Job], decoded: int) -> dict[str, Any]:
    """All three ways, and how their answers agree; `decoded` trials are decoded and run by the reference executor."""
    reference, fast, verifying = ReferenceExecutor(model), FastExecutor(model), Verifying(model)
    for executor in (reference, fast, verifying):
        executor.golden(batch)
    some = spread_out(jobs, decoded)
    reference.decoded(batch, ())
    answers, decoding = timed(lambda job: reference.decoded(batch, job.faults), model, some)
    runs, changes, fast_seconds = together(fast, jobs, some)
    _, _, verifying_seconds = together(verifying, jobs, ())
    _, _, empty_seconds = together(fast, [replace(job, faults=()) for job in jobs], ())
    expected = {job.key: run for job, run in reference.trials(some)}
    tokens = {job.key: found.tokens for job, found in zip(some, answers, strict=True)}
    same = [
        item.answer.tokens == theirs
        for job in some
        for item, theirs in zip(runs[job.key].items, tokens[job.key], strict=True)
    ]
    mean = float(np.mean(decoding))
    return {
        "decoding": {"seconds_per_trial": round(mean, 4), "spread": quartiles(decoding), "n": len(some)},
        "fast": per_trial(fast_seconds, mean, len(jobs)),
        "verifying": per_trial(verifying_seconds, mean, len(jobs)),
        "trials_with_another_answer": round(changes / len(jobs), 4),
        "agreement": {
            "reference": round(float(np.mean([equal(runs[key], run) for key, run in expected.items()])), 4),
            "decoding": round(float(np.mean(same)), 4),
            "decoding_with_itself_in_half_batches": halves(model, batch, some, tokens),
            "trials": len(some),
            "answers": len(same),
        },
        "graphed": None
        if model.device.type != "cuda"
        else graphed(model, batch, fast_seconds, verifying_seconds, len(jobs)),
        "without_faults": {"seconds_per_trial": round(empty_seconds / len(jobs), 6)},
        "golden_bytes": fast.held,
        "peak_bytes": torch.cuda.max_memory_allocated() if model.device.type == "cuda" else None,
    }


def graphed(model: LoadedModel, batch: Batch, fast: float, verifying: float, trials: int) -> dict[str, Any]:
    """Both ways, in seconds of all trials, over fault-free decoding by a captured CUDA graph."""
    action = graphed_decoding(model, batch, TOKENS)
    plain = ReferenceExecutor(model).decoded(batch, ()).tokens
    found, seconds = timed(lambda _: action().tolist(), model, range(10))
    mean = float(np.mean(seconds))
    return {
        "decoding": {"seconds_per_trial": round(mean, 4), "spread": quartiles(seconds), "n": len(seconds)},
        "fast": per_trial(fast, mean, trials),
        "verifying": per_trial(verifying, mean, trials),
        "answers_as_decoding": float(np.mean([tuple(a) == b for a, b in zip(found[0], plain, strict=True)])),
    }


def choices(model: LoadedModel, jobs: Sequence[Job], slow: int) -> dict[str, Any]:
    """Fast trials of multiple choice over full passes, every option with its whole context, as existing tools run."""
    reference, fast = ReferenceExecutor(model), FastExecutor(model)
    for executor in (reference, fast):
        executor.golden(jobs[0].batch)
    some = spread_out(jobs, slow)
    runs, _, seconds = together(fast, jobs, some)
    expected = [run for _, run in reference.trials(some)]
    full_pass(model, jobs[0])
    _, each = timed(lambda job: full_pass(model, job), model, some)
    mean = float(np.mean(each))
    return {
        "full_pass": {"seconds_per_trial": round(mean, 4), "spread": quartiles(each), "n": len(some)},
        "ratio": round(mean * len(jobs) / seconds, 2),
        "agreement": round(float(np.mean([equal(runs[j.key], r) for j, r in zip(some, expected, strict=True)])), 4),
    }


def full_pass(model: LoadedModel, job: Job) -> torch.Tensor:
    """Log-probabilities of all fed answer tokens, the whole batch run once under the faults."""
    contexts, answers = zip(*job.batch.sequences, strict=True)
    block = align(contexts, answers, model.device)
    with Injection(model, job.faults) as injection:
        logits = teacher_forced(model, block, splits(job.faults), injection.begin_pass)
    following = block.tokens[:, block.context_width :]
    return logits[:, : following.shape[1]].float().log_softmax(-1).gather(-1, following[..., None])


def spread_out(jobs: Sequence[Job], count: int) -> list[Job]:
    """Evenly spread ones, as many in weights as in activations."""
    pairs = [jobs[place : place + 2] for place in range(0, len(jobs) - 1, 2)]
    places = np.linspace(0, len(pairs) - 1, max(1, count // 2)).astype(int)
    return [job for place in places for job in pairs[place]]


def timed(action: Callable[[Any], Any], model: LoadedModel, jobs: Sequence[Any]) -> tuple[list[Any], list[float]]:
    """Results of jobs one by one, and the seconds of each."""
    results, seconds = [], []
    for job in jobs:
        begin = now(model)
        results.append(action(job))
        seconds.append(now(model) - begin)
    return results, seconds


def together(executor: FastExecutor, jobs: Sequence[Job], kept: Sequence[Job]) -> tuple[dict[Any, Run], int, float]:
    """The runs of the jobs to be kept, the number of all runs with a changed answer, and the seconds that all took.

    A model that crashed under a fault ends this with its error.
    """
    wanted = {job.key for job in kept}
    begin = now(executor.model)
    runs, changes = {}, 0
    for job, run in executor.trials(jobs):
        if not isinstance(run, Run):
            raise run
        changes += changed(run, executor.golden(job.batch))
        if job.key in wanted:
            runs[job.key] = run
    return runs, changes, now(executor.model) - begin


def now(model: LoadedModel) -> float:
    """Seconds, once the device has done all it was given."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def per_trial(seconds: float, baseline: float, trials: int) -> dict[str, float]:
    """Seconds of a trial, and how many times less that is than the baseline's."""
    return {"seconds_per_trial": round(seconds / trials, 5), "over_decoding": round(baseline * trials / seconds, 2)}


def quartiles(values: Sequence[float]) -> list[float]:
    """Minimum, quartiles and maximum."""
    return [round(float(value), 4) for value in np.quantile(values, [0, 0.25, 0.5, 0.75, 1])]


def changed(run: Run, golden: Run) -> bool:
    """Whether some answer is not golden's."""
    return any(a.answer.tokens != b.answer.tokens for a, b in zip(run.items, golden.items, strict=True))


def equal(one: Run, other: Run | ModelCrashedError) -> bool:
    """Whether two runs agree in their answers, in the words struck and in how far their logits lie from golden's."""
    return (
        isinstance(other, Run)
        and repr(one.struck) == repr(other.struck)
        and all(
            repr((a.answer, a.forced, a.reached, a.apart)) == repr((b.answer, b.forced, b.reached, b.apart))
            for a, b in zip(one.items, other.items, strict=True)
        )
    )


def halves(model: LoadedModel, batch: Batch, jobs: Sequence[Job], tokens: dict[Any, Any]) -> float:
    """Share of answers that decoding gives again when the batch is cut in two."""
    same: list[bool] = []
    for job in jobs:
        found: list[tuple[int, ...]] = []
        for part in (slice(None, PROMPTS // 2), slice(PROMPTS // 2, None)):
            half = replace(batch, items=batch.items[part], rows=batch.rows[part])
            found += ReferenceExecutor(model).decoded(half, job.faults).tokens
        same += [one == other for one, other in zip(found, tokens[job.key], strict=True)]
    return round(float(np.mean(same)), 4)


if __name__ == "__main__":
    main()
