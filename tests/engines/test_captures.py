"""Real engines on real weights: what each captures is what transformers computes, component by component."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from matching import components, gaps

from aftershock.capture import Bundle, CaptureRequest, Prompt, capture, engine_model, engine_python
from aftershock.errors import InputError
from demo_model import SPEC, needs_demo_model

pytestmark = [pytest.mark.engines, needs_demo_model]

LIST = " ".join(f"Item {number} of the list is described here in some words." for number in range(8))
PROMPTS: tuple[Prompt, ...] = (
    "The capital of France is",
    f"{LIST} First question?",
    f"{LIST} Second, longer question about the items?",
    (504, 3575, 282),
)
CHAT: tuple[Prompt, ...] = (({"role": "user", "content": "Name a colour."},),)

# All of them hide the rotation of queries, or of both, in a fused kernel, or name their logits otherwise.
UNSEEN = {"vllm": {"lm_head"}, "onnxruntime": {"q_rotated"}, "openvino": {"q_rotated"}, "llamacpp": set()}
OPTIONS = {"llamacpp": {"cache_type": "f32"}}

Run = Callable[..., Bundle]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Captures with an engine, once for each set of arguments; skips where its environment is missing."""
    folder = tmp_path_factory.mktemp("captures")
    cache = tmp_path_factory.mktemp("cache")
    done: dict[str, Bundle] = {}

    def captured(engine: str, prompts: tuple[Prompt, ...] = PROMPTS, **changes: object) -> Bundle:
        try:
            engine_python(engine)
        except InputError as error:
            pytest.skip(str(error))
        settings = {"max_new_tokens": 3, "options": OPTIONS.get(engine, {}), **changes}
        key = json.dumps([engine, prompts, settings])
        if key not in done:
            model = str(engine_model(engine, SPEC))
            request = CaptureRequest(model=model, prompts=prompts, cache=str(cache), **settings)
            done[key] = capture(engine, request, folder / str(len(done)))
        return done[key]

    return captured


@pytest.mark.parametrize("engine", ["vllm", "onnxruntime", "llamacpp", "openvino"])
def test_an_engine_computes_what_transformers_does(run, engine):
    reference, found = run("transformers", batching="one_by_one"), run(engine, batching="together")
    for ours, theirs in zip(reference.manifest.requests, found.manifest.requests, strict=True):
        assert (ours.tokens, ours.positions, ours.sampled) == (theirs.tokens, theirs.positions, theirs.sampled)
    missing = {name[1] for name in components(reference).keys() - components(found).keys()}
    assert missing == UNSEEN[engine]
    worst = dict(gaps(reference, found))
    assert len(worst) > 30 * 12
    assert max(worst.values()) < 2e-5, sorted(worst.items(), key=lambda item: -item[1])[:5]


@pytest.mark.parametrize("engine", ["vllm", "onnxruntime", "llamacpp", "openvino"])
def test_an_engine_holds_the_words_of_the_file(run, engine):
    reference, found = run("transformers", batching="one_by_one"), run(engine, batching="together")
    ours, theirs = (
        {(one.layer, one.component, one.digest) for one in bundle.manifest.weights if one.component != "lm_head"}
        for bundle in (reference, found)
    )
    tied = {one for one in ours if one[1] == "embedding"}
    assert ours - tied <= theirs


def test_chunks_of_a_prompt_are_put_together(run):
    whole = run("transformers", batching="one_by_one")
    options = {"max_num_batched_tokens": 64, "max_num_seqs": 8, "enable_prefix_caching": False}
    chunked = run("vllm", batching="together", options=options)
    assert max(map(len, chunked.manifest.passes)) == 64
    assert max(gap for _, gap in gaps(whole, chunked)) < 2e-5
    assert chunked.manifest.tokens == whole.manifest.tokens


def test_a_cached_prefix_is_absent(run):
    whole = run("transformers", batching="one_by_one")
    cached = run("vllm", batching="one_by_one", options={"enable_prefix_caching": True, "block_size": 32})
    computed = {token for numbers in cached.manifest.passes for token in numbers}
    absent = set(range(cached.manifest.tokens)) - computed
    starts = cached.manifest.starts
    assert absent == set(range(starts[2], starts[2] + len(absent)))
    assert len(absent) % 32 == 0
    assert len(absent) >= 32
    tokens, values = components(cached)[3, "q", 0]
    assert set(tokens.tolist()) == computed
    assert len(values) == len(tokens)
    assert max(gap for _, gap in gaps(whole, cached)) < 2e-5
    assert [one.tokens for one in cached.manifest.requests] == [one.tokens for one in whole.manifest.requests]


def test_passes_of_few_tokens_are_put_together(run):
    whole = run("transformers", batching="one_by_one")
    small = run("llamacpp", batching="together", options={"cache_type": "f32", "ubatch": 32, "logits": "last"})
    assert max(map(len, small.manifest.passes)) == 32
    assert max(gap for _, gap in gaps(whole, small)) < 2e-5
    assert small.manifest.logits.span != "all"


@pytest.mark.parametrize("engine", ["vllm", "onnxruntime", "llamacpp", "openvino"])
def test_messages_become_the_same_tokens(run, engine):
    ours = run("transformers", CHAT, max_new_tokens=1).manifest.requests[0]
    theirs = run(engine, CHAT, max_new_tokens=1).manifest.requests[0]
    assert theirs.tokens == ours.tokens
    assert len(ours.tokens) > 20


def test_padding_changes_nothing(run):
    alone, padded = run("transformers", batching="one_by_one"), run("transformers", batching="together")
    assert alone.manifest.requests == padded.manifest.requests
    assert max(gap for _, gap in gaps(alone, padded)) < 2e-5


def test_a_planted_error_shows_where_it_is(run, tmp_path):
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "def change(model):\n"
        "    norm = model.model.layers[5].post_attention_layernorm\n"
        "    norm.variance_epsilon = norm.variance_epsilon * 1e4\n"
    )
    clean = run("transformers", batching="one_by_one")
    wrong = dict(gaps(clean, run("vllm", batching="together", options={"plugin": str(plugin)})))
    assert wrong[4, "residual", 0] < 2e-5
    assert wrong[5, "o", 0] < 2e-5
    assert wrong[5, "norm", 1] > 1e-3


def test_one_component_can_be_captured_alone(run):
    found = run("vllm", PROMPTS[:1], max_new_tokens=1, record=("o", "*.norm"))
    shown = {share.component for record in found.manifest.records for share in record.shares}
    assert shown == {"o", "norm"}


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_transformers_runs_in_other_types(run, dtype):
    reference = run("transformers", PROMPTS[:1], max_new_tokens=1)
    found = run("transformers", PROMPTS[:1], max_new_tokens=1, dtype=dtype, options={"attention": "eager"})
    worst = max(gap for _, gap in gaps(reference, found))
    assert found.output(found.manifest.records[-1]).dtype == getattr(torch, dtype)
    assert 1e-9 < worst < (0.2 if dtype == "bfloat16" else 2e-5)


def test_the_log_lies_in_the_bundle(run, tmp_path):
    request = CaptureRequest(model=str(engine_model("transformers", SPEC)), prompts=PROMPTS[:1], record=("o",))
    capture("transformers", request, tmp_path / "bundle")
    assert sorted(path.name for path in Path(tmp_path / "bundle").iterdir()) == [
        "log.txt",
        "manifest.json",
        "tensors.safetensors",
    ]
