"""The script that captures transformers: the bundle that `record` makes in this process, and more passes."""

from hashlib import blake2b
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch

import transformers_engine
from aftershock.capture import Bundle, CaptureRequest, read_bundle, record
from aftershock.numerics import words
from tiny_models import save_tiny, tiny_loaded
from wire import read_request

PROMPTS = ((5, 6, 7, 8, 9, 10), (20, 21, 22), (30, 31, 32, 33))

FAMILIES = ["llama", "qwen3", "gemma3", "opt", "phi3"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Captures of tiny models in this process, each set of arguments once."""
    folder = tmp_path_factory.mktemp("captured")
    done: dict[str, Bundle] = {}

    def captured(family: str, prompts=PROMPTS, **changes) -> Bundle:
        key = repr((family, prompts, changes))
        if key not in done:
            model = folder / family
            if not model.exists():
                save_tiny(model, family)
            request = CaptureRequest(model=str(model), prompts=prompts, **changes)
            own = Path(mkdtemp(dir=folder))
            (own / "request.json").write_text(request.model_dump_json())
            transformers_engine.capture(read_request(own / "request.json"), own / "bundle")
            done[key] = read_bundle(own / "bundle")
        return done[key]

    threads = torch.get_num_threads()
    yield captured
    torch.set_num_threads(threads)


def outputs(bundle: Bundle) -> dict[str, torch.Tensor]:
    """The whole outputs of modules, heads and all, by module."""
    return {one.module: bundle.output(one).flatten(1) for one in bundle.manifest.records if one.name == one.module}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bundle_is_the_one_of_record(run, family):
    """One prompt, so that both run one pass of the same shape."""
    ours = record(tiny_loaded(family), PROMPTS[:1])
    theirs = run(family, PROMPTS[:1])
    mine, found = outputs(ours), outputs(theirs)
    assert mine.keys() <= found.keys()
    for module, values in mine.items():
        assert torch.equal(words(values), words(found[module])), module
    assert torch.equal(words(ours.logits), words(theirs.logits))
    expected = {one.module: (one.layer, one.operation, one.shares) for one in ours.manifest.records}
    shown = {
        one.module: (one.layer, one.operation, one.shares) for one in theirs.manifest.records if one.module == one.name
    }
    assert {module: shown[module] for module in expected} == expected


@pytest.mark.parametrize("family", ["llama", "gemma3", "opt"])
def test_padded_prompts_that_run_on_are_those_that_run_alone(run, family):
    alone = run(family, max_new_tokens=4)
    together = run(family, max_new_tokens=4, batching="together")
    assert alone.manifest.requests == together.manifest.requests
    assert len(alone.manifest.passes) > len(together.manifest.passes)
    ours, theirs = outputs(alone), outputs(together)
    assert ours.keys() == theirs.keys()
    for module in ours:
        assert theirs[module].shape == ours[module].shape
        torch.testing.assert_close(theirs[module], ours[module], rtol=1e-3, atol=1e-4)


def test_tokens_are_fed_and_sampled(run):
    manifest = run("llama", max_new_tokens=4).manifest
    for prompt, request in zip(PROMPTS, manifest.requests, strict=True):
        assert request.tokens[: len(prompt)] == prompt
        assert request.prompt_tokens == len(prompt)
        assert request.tokens[len(prompt) :] == request.sampled[:-1]
        assert request.positions == tuple(range(len(request.tokens)))
    assert [len(one) for one in manifest.passes[:4]] == [6, 1, 1, 1]


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_heads_are_told_from_tokens_where_both_are_as_many(run, family):
    heads = tiny_loaded(family).module.config.num_attention_heads
    prompt = (tuple(range(5, 5 + heads)),)
    ours, theirs = outputs(record(tiny_loaded(family), prompt)), outputs(run(family, prompt))
    name = "model.layers.0.self_attn.q_norm"
    assert torch.equal(words(ours[name]), words(theirs[name]))


def test_what_lies_between_modules_is_there(run):
    bundle = run("llama")
    shown = {share.component: one for one in bundle.manifest.records for share in one.shares}
    assert {"q_rotated", "k_rotated", "sv", "activation"} <= shown.keys()
    first = [one for one in bundle.manifest.records if one.layer == 0]
    before, after = (
        next(one for one in first if one.shares and one.shares[0].component == name) for name in ("q", "q_rotated")
    )
    positions = torch.tensor([place for one in bundle.manifest.requests for place in one.positions])
    same = (bundle.output(before) == bundle.output(after)).all(dim=1)
    assert torch.equal(same, positions == 0)


def test_sources_and_weights_are_told(run):
    manifest = run("llama").manifest
    record = next(one for one in manifest.records if one.module == "model.layers.1.mlp.up_proj")
    assert record.type == "Linear"
    assert record.source.startswith("torch/nn/modules/linear.py:")
    module = tiny_loaded("llama").module
    assert {one.name for one in manifest.weights} == {name for name, _ in module.named_parameters()}
    assert manifest.settings["config"]["num_attention_heads"] == module.config.num_attention_heads


def test_weights_can_be_rounded_before_they_are_widened(run):
    plain, rounded = run("llama"), run("llama", options={"round_weights_to": "bfloat16"}, dtype="float64")
    assert rounded.logits.dtype == torch.float64
    gap = (rounded.logits - plain.logits).norm() / plain.logits.norm()
    assert 1e-5 < gap < 0.1


def test_a_configuration_can_be_overridden(run):
    changed = run("llama", options={"hf_overrides": {"rms_norm_eps": 1.0}})
    assert changed.manifest.settings["config"]["rms_norm_eps"] == 1.0
    assert not torch.equal(changed.logits, run("llama").logits)


def test_weights_that_are_stored_inputs_first_are_said_to_be(run):
    own = tiny_loaded("gpt2").module.transformer.h[0].mlp.c_fc.weight
    manifest = run("gpt2").manifest
    linear = {one.module: one.parameters for one in manifest.records if one.operation == "linear"}
    weight = next(one for one in linear["transformer.h.0.mlp.c_fc"] if one.role == "weight")
    assert (weight.output_dim, weight.shape) == (1, tuple(own.shape))
    held = next(one for one in manifest.weights if one.name == weight.name)
    assert held.shape == tuple(own.T.shape)
    assert held.digest == blake2b(own.T.contiguous().numpy().tobytes(), digest_size=16).hexdigest()
