"""Tasks of lm-evaluation-harness: its own results on the same model, document by document."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: make test-lm-eval")

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from aftershock.errors import InputError
from aftershock.models import LoadedModel, load
from aftershock.replay import FastExecutor, make_batches
from aftershock.tasks import Answer, Item, RowResult, classify, encode, judge, load_task
from demo_model import SPEC, needs_demo_model
from harness_tasks import ANIMALS, CHOICE, CLOZE, ROLLING, TEXT, mean, write_task
from tiny_models import tiny_loaded, tiny_tokenizer

LONGEST = 40
"""Tokens that the tiny model is said to take, so that windows roll and contexts are cut."""

SHOTS = {"num_fewshot": 2, "fewshot_split": "test", "fewshot_config": {"sampler": "first_n"}}

TASKS: dict[str, dict[str, Any]] = {
    "choice": CHOICE | {"metric_list": [mean("acc"), mean("acc_norm")]},
    "choice by characters": CHOICE | {"metric_list": [mean("acc_norm"), mean("acc")]},
    "choice by bytes": CHOICE | {"metric_list": [mean("acc_bytes")]},
    "choice, some right": CHOICE | {"doc_to_target": "{{[right, 0]}}", "metric_list": [mean("acc")]},
    "choice of contexts": CHOICE | {"doc_to_text": "{{right}}", "doc_to_target": "{{q}}", "metric_list": [mean("acc")]},
    "choice scored all at once": CHOICE | {"metric_list": [mean("mcc", aggregation="matthews_corrcoef")]},
    "choice with examples": CHOICE | SHOTS | {"metric_list": [mean("acc")]},
    "choice without context": CHOICE | {"doc_to_text": "", "target_delimiter": "", "metric_list": [mean("acc")]},
    "cloze": CLOZE | {"metric_list": [mean("perplexity"), mean("acc")]},
    "rolling": ROLLING,
    "text": TEXT,
    "text, filtered by nothing": TEXT | {"filter_list": None, "metric_list": [mean("exact_match")]},
}


@pytest.fixture(scope="module", params=["without BOS", "with BOS"])
def model(request: pytest.FixtureRequest) -> LoadedModel:
    loaded = tiny_loaded("llama")
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = LONGEST
    if request.param == "with BOS":
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
        )
    return LoadedModel(**{**vars(loaded), "tokenizer": tokenizer})


def golden(path: Path, model: LoadedModel, limit: int | None = None) -> list[tuple[Item, Answer]]:
    """Items in order and their fault-free answers."""
    task = load_task(f"lm_eval:{path}", limit)
    found = {
        item.id: run.answer
        for batch in make_batches(task.items, model, 2, seed=0)
        for item, run in zip(batch.items, FastExecutor(model).golden(batch, ()).items, strict=True)
    }
    return [(item, found[item.id]) for item in task.items]


def harness(
    path: Path, model: LoadedModel, monkeypatch: pytest.MonkeyPatch, limit: int | None = None, **settings: Any
) -> list[dict[str, Any]]:
    """What the harness itself finds, document by document, through its first filter."""
    # It would ask git, pip and the operating system for their versions.
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)
    lm = HFLM(pretrained=model.module, tokenizer=model.tokenizer, batch_size=1, **settings)
    found = simple_evaluate(
        lm, tasks=[str(path)], limit=limit, task_manager=TaskManager(include_defaults=False), bootstrap_iters=0
    )
    (samples,) = found["samples"].values()
    return [sample for sample in samples if sample["filter"] == samples[0]["filter"]]


def assert_equal(item: Item, answer: Answer, sample: dict[str, Any], metric: str) -> None:
    """The same outcome of a document, from the same log-likelihoods within fp32's rounding, or the same text."""
    found = [responses[0] for responses in sample["resps"]]
    if item.kind == "generation":
        assert answer.output == found[0]
    elif item.kind == "lm":
        assert -float(answer.output) * len(answer.tokens) == pytest.approx(found[0], rel=1e-4)
    elif item.kind == "cloze":
        assert answer.score * len(answer.tokens) == pytest.approx(found[0][0], rel=1e-4)
    elif metric == "acc" and item.answer is not None:
        likelihoods = [likelihood for likelihood, _ in found]
        best_wrong = max(value for option, value in enumerate(likelihoods) if option != item.answer)
        assert answer.score == pytest.approx(likelihoods[int(item.answer)] - best_wrong, rel=1e-4, abs=1e-4)
    if metric == "mcc":
        right, found_option = sample[metric]
        assert (answer.output, answer.right) == (str(found_option), right == found_option)
    else:
        assert answer.right == (None if item.kind == "lm" else bool(sample[metric]))


@pytest.mark.parametrize("name", TASKS)
def test_every_document_comes_out_as_in_the_harness(name, model, tmp_path, monkeypatch):
    path = write_task(tmp_path, TASKS[name])
    ours, theirs = golden(path, model), harness(path, model, monkeypatch, max_length=LONGEST)
    assert len(ours) == len(theirs) == len(ANIMALS)
    metric = {"cloze": "acc", "rolling": "word_perplexity"}.get(name) or TASKS[name]["metric_list"][0]["metric"]
    for (item, answer), sample in zip(ours, theirs, strict=True):
        assert item.id == f"animals-{sample['doc_id']}"
        assert_equal(item, answer, sample, metric)


@needs_demo_model
def test_arc_easy_on_a_real_model(shared_data, tmp_path, monkeypatch):
    path = write_task(
        tmp_path,
        {
            **CHOICE,
            "dataset_kwargs": {"data_files": {"test": str(shared_data / "mc" / "arc_easy_500.jsonl")}},
            "doc_to_text": "Question: {{question}}\nAnswer:",
            "doc_to_target": "answer",
            "doc_to_choice": "choices",
            "metric_list": [mean("acc"), mean("acc_norm")],
        },
    )
    loaded = load(SPEC, "float32", "cpu")
    ours = golden(path, loaded, limit=20)
    assert 5 < sum(bool(answer.right) for _, answer in ours) < 20
    for (item, answer), sample in zip(ours, harness(path, loaded, monkeypatch, limit=20), strict=True):
        assert_equal(item, answer, sample, "acc")


def responses(item: Item, values: list[list[float]]) -> tuple[RowResult, ...]:
    """Results with given log-probabilities (over and over); the tokens are the continuation's own."""
    rows = encode(item, tiny_tokenizer())
    return tuple(
        RowResult(row.continuation, tuple(own[n % len(own)] for n in range(len(row.continuation))), True)
        for row, own in zip(rows, values, strict=True)
    )


@pytest.fixture(scope="module")
def animals(tmp_path_factory) -> dict[str, Item]:
    """The first document, judged by one metric and another."""
    folder = tmp_path_factory.mktemp("animals")
    return {
        metric: load_task(f"lm_eval:{write_task(folder / metric, CHOICE | {'metric_list': [mean(metric)]})}").items[0]
        for metric in ("acc", "acc_norm", "acc_bytes")
    }


@given(
    metric=st.sampled_from(["acc", "acc_norm", "acc_bytes"]),
    values=st.lists(
        st.lists(st.floats(-30, 0) | st.just(float("nan")), min_size=1, max_size=3), min_size=3, max_size=3
    ),
)
def test_the_chosen_option_is_the_one_that_the_metric_means(animals, metric, values):
    item = animals[metric]
    answer = judge(item, responses(item, values), tiny_tokenizer())
    assert answer.right == (answer.output == str(item.answer))
    assert answer.score <= 0 or answer.right


METRICS = """
def scored(doc, results):
    return {"length": float(len(results[0])), "even": len(results[0]) % 2, "both": (1, 2)}

def unscored(doc, results):
    return {"length": float(len(results[0])), "both": (1, 2)}

def nothing(doc, results):
    return {"both": (1, 2)}

def broken(doc, results):
    raise KeyError("colour")
"""


def text_item(folder: Path, function: str) -> Item:
    """The first document, whose texts are scored by a function of METRICS."""
    metrics = [mean(name) for name in ("length", "even", "both")]
    (folder / "own.py").write_text(METRICS, encoding="utf-8")
    settings = TEXT | {"metric_list": metrics, "filter_list": None}
    path = write_task(folder, settings, functions={"process_results": f"own.{function}"})
    return load_task(f"lm_eval:{path}", 1).items[0]


def written(item: Item, text: str) -> Answer:
    tokenizer = tiny_tokenizer()
    return judge(item, (RowResult(tuple(tokenizer.encode(text, add_special_tokens=False)), (), True),), tokenizer)


def test_the_first_metric_of_0_or_1_decides(tmp_path):
    item = text_item(tmp_path, "scored")
    assert (written(item, "ab").right, written(item, "ab").score) == (False, 0.0)
    assert (written(item, "abc").right, written(item, "abc").score) == (True, 1.0)


def test_a_metric_of_degrees_leaves_right_and_wrong_open(tmp_path):
    item = text_item(tmp_path, "unscored")
    assert (written(item, "abc").right, written(item, "abc").score) == (None, 3.0)
    assert classify(item, written(item, "a dog barks"), written(item, "a dog barks!")) == "benign"


def test_what_leaves_no_room_for_a_context_is_refused(tmp_path):
    item = load_task(f"lm_eval:{write_task(tmp_path, TEXT)}", 1, max_new_tokens=LONGEST).items[0]
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = LONGEST
    with pytest.raises(InputError, match=f"leaves no room for a context in the tokenizer's {LONGEST} tokens"):
        encode(item, tokenizer)


def test_a_task_that_only_scores_all_documents_at_once_is_compared_with_golden(tmp_path):
    item = text_item(tmp_path, "nothing")
    assert (written(item, "what").right, written(item, "what").score) == (None, 0.0)


def test_scoring_that_fails_is_said_in_one_sentence(tmp_path):
    item = text_item(tmp_path, "broken")
    with pytest.raises(InputError, match=r"scoring of document animals-0 fails on the answer .*KeyError: 'colour'"):
        written(item, "abc")


def test_a_text_ends_at_its_stop_string_and_at_the_end_of_text(tmp_path):
    item = load_task(f"lm_eval:{write_task(tmp_path, TEXT | {'filter_list': None})}").items[0]
    assert written(item, " 0z0").output == " 0"
    assert written(item, "0<eos>1").output == "0"
    assert written(item, "0<eos>1").right
    assert not written(item, " 0").right


def test_limits(tmp_path):
    path = write_task(tmp_path, TEXT)
    task = load_task(f"lm_eval:{path}", limit=2, max_new_tokens=7)
    assert [item.id for item in task.items] == ["animals-0", "animals-1"]
    assert {item.max_new_tokens for item in task.items} == {7}


def test_the_digest_covers_documents_and_settings_and_no_places(tmp_path):
    def digest(name: str, settings: dict[str, Any], documents: tuple[dict[str, Any], ...] = ANIMALS) -> str:
        return load_task(f"lm_eval:{write_task(tmp_path / name, settings, documents)}").digest

    acc = CHOICE | {"metric_list": [mean("acc")]}
    assert digest("here", acc) == digest("there", acc)
    # What is not asked may be scored.
    noted = ({**ANIMALS[0], "note": "loud"}, *ANIMALS[1:])
    assert (
        len({digest("a", acc), digest("b", acc, noted), digest("c", CHOICE | {"metric_list": [mean("acc_norm")]})}) == 3
    )


def test_another_process_makes_the_same_task(tmp_path):
    text_item(tmp_path, "scored")
    spec = f"lm_eval:{tmp_path / 'animals.yaml'}"
    code = f"from aftershock.tasks import load_task; print(load_task({spec!r}).digest)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == load_task(spec).digest


def test_a_task_that_shuffles_is_always_the_same_and_leaves_other_draws_alone(tmp_path):
    path = write_task(tmp_path, CHOICE, functions={"process_docs": "own.shuffled"})
    (tmp_path / "own.py").write_text(
        "import random\n\ndef shuffled(docs):\n"
        "    return docs.map(lambda doc: {**doc, 'right': random.randrange(3)}, load_from_cache_file=False)\n",
        encoding="utf-8",
    )
    # What others draw from the global generator is not to change by loading a task.
    random.seed(5)
    wanted = random.random()
    random.seed(5)
    first = [item.answer for item in load_task(f"lm_eval:{path}").items]
    assert random.random() == wanted
    assert [item.answer for item in load_task(f"lm_eval:{path}").items] == first


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (CHOICE | {"metric_list": [mean("acc"), mean("acc_mutual_info")]}, "mutual information"),
        (CHOICE | {"doc_to_choice": "{{options[:1]}}", "doc_to_target": "0"}, "one option only"),
        (TEXT | {"generation_kwargs": {"until": [], "do_sample": True, "temperature": 0.7}}, "answers here are greedy"),
        (TEXT | {"generation_kwargs": {"until": [], "num_beams": 4}}, "num_beams, but answers here are greedy"),
        (CHOICE | {"unsafe_code": True}, "runs the programs that the model writes"),
        (CHOICE | {"doc_to_image": "q"}, "images or sound"),
        (CHOICE | {"dataset_kwargs": {"data_files": "absent.jsonl"}}, "can't make requests .*absent"),
        (CHOICE | {"doc_to_text": "{{ q"}, "can't make requests"),
        ({"task": ["one", "two"], "group": "both"}, "stands for several tasks|can't make requests"),
    ],
)
def test_what_cannot_be_asked_is_refused(settings, said, tmp_path):
    path = write_task(tmp_path, settings)
    with pytest.raises(InputError, match=said) as refusal:
        load_task(f"lm_eval:{path}")
    assert "\n" not in str(refusal.value)


def test_names_of_the_harness(tmp_path, monkeypatch):
    write_task(tmp_path, CHOICE | {"tag": "farm"})
    monkeypatch.setattr(
        "aftershock.tasks.harness.TaskManager",
        lambda include_defaults: TaskManager(include_defaults=not include_defaults, include_path=tmp_path),
    )
    assert len(load_task("lm_eval:animals").items) == len(ANIMALS)
    with pytest.raises(InputError, match="knows no task 'animal': did you mean 'animals'"):
        load_task("lm_eval:animal")
    with pytest.raises(InputError, match="lm_eval:farm stands for several tasks"):
        load_task("lm_eval:farm")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"task file .*none\.yaml can't be read"):
        load_task(f"lm_eval:{tmp_path / 'none.yaml'}")


def test_an_item_that_is_not_finite_is_no_number_for_the_harness(animals):
    item = animals["acc"]
    broken = tuple(RowResult(one.tokens, one.logprobs, False) for one in responses(item, [[-1.0]] * 3))
    answer = judge(item, broken, tiny_tokenizer())
    assert not answer.finite
    assert answer.score == float("-inf")
