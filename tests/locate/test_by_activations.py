"""Two bundles of the same prompts, compared."""

import pytest
import torch

from aftershock.capture import Bundle, Engine, read_bundle, record, write_bundle
from aftershock.errors import InputError
from aftershock.locate.by_activations import locate_by_activations, noise_of
from aftershock.locate.live import LiveSuspect
from aftershock.numerics import generator
from tiny_models import tiny_loaded

PROMPTS = ["hello world, this is", "a prompt", "wxyz!"]
Q = "model.layers.1.self_attn.q_proj"


def noisy(bundle, number, size):
    """The bundle with every output and input shifted by up to `size`, relative to its largest value."""
    tensors = {}
    for place, (stored, tensor) in enumerate(bundle.tensors.items()):
        if tensor.is_floating_point():
            draws = generator(0, number * 1000 + place, "noise").uniform(-size, size, tuple(tensor.shape))
            tensor = tensor + torch.from_numpy(draws).to(tensor.dtype) * tensor.abs().max()
        tensors[stored] = tensor
    return Bundle(bundle.manifest, tensors)


def with_manifest(bundle, **changes):
    return Bundle(bundle.manifest.model_copy(update=changes), bundle.tensors)


@pytest.fixture
def pair():
    model = tiny_loaded("qwen3")
    reference = record(model, PROMPTS)
    with torch.no_grad():
        model.module.get_submodule(Q).weight[5, 9] += 0.75
    return reference, record(model, PROMPTS), model


def test_equal_bundles_show_no_divergence(pair):
    assert not locate_by_activations(pair[0], pair[0]).divergent


def test_bundles_on_disk_tell_block_tensor_row_and_column(pair, tmp_path):
    for name, bundle in zip(("clean", "suspect"), pair, strict=False):
        write_bundle(bundle, tmp_path / name)
    found = locate_by_activations(read_bundle(tmp_path / "clean"), read_bundle(tmp_path / "suspect"))
    assert (found.place, found.module, found.block, found.components) == ("output", Q, "layer 1", ("q",))
    assert (found.tensors, found.channels) == ((f"{Q}.weight",), (5,))
    (word,) = found.elements
    assert (word.tensor, word.index) == (f"{Q}.weight", (5, 9))
    assert word.change[0] <= 0.75 <= word.change[1]


def test_bundles_say_what_the_live_model_says(pair):
    reference, suspect, model = pair
    assert locate_by_activations(reference, suspect) == LiveSuspect(model, reference).locate()


def test_without_inputs_the_row_is_found_and_no_column(pair):
    def blind(bundle):
        records = tuple(one.model_copy(update={"input": None}) for one in bundle.manifest.records)
        return with_manifest(bundle, records=records)

    found = locate_by_activations(blind(pair[0]), blind(pair[1]))
    assert (found.module, found.tensors, found.channels) == (Q, (f"{Q}.weight",), (5,))
    assert found.elements == ()


def test_logits_alone_are_a_verdict():
    clean = record(tiny_loaded("gemma2"), PROMPTS)
    other = clean.logits.clone()
    other[2, 3] += 1
    found = locate_by_activations(clean, Bundle(clean.manifest, {**clean.tensors, clean.manifest.logits.stored: other}))
    assert (found.place, found.tensors) == ("logits", ())


@pytest.mark.parametrize("seed", range(4))
def test_beyond_the_noise_of_clean_recordings_the_fault_is_found_and_nothing_else(pair, seed):
    reference, suspect, _ = pair
    noise = noise_of([noisy(reference, number, 1e-4) for number in range(4)])
    first = noisy(reference, 100 + seed, 1e-4)
    assert not locate_by_activations(first, noisy(reference, 200 + seed, 1e-4), noise).divergent
    assert locate_by_activations(first, noisy(reference, 200 + seed, 1e-4)).divergent
    found = locate_by_activations(first, noisy(suspect, 300 + seed, 1e-4), noise)
    assert (found.module, found.tensors, found.channels) == (Q, (f"{Q}.weight",), (5,))
    assert [word.index for word in found.elements] in ([(5, 9)], [])


def test_a_nan_is_beyond_any_noise(pair):
    reference = pair[0]
    noise = noise_of([noisy(reference, number, 10.0) for number in range(3)])
    stored = next(one.output for one in reference.manifest.records if one.module == Q)
    spoilt = reference.tensors[stored].clone()
    spoilt[3, 4] = float("nan")
    found = locate_by_activations(reference, Bundle(reference.manifest, {**reference.tensors, stored: spoilt}), noise)
    assert (found.module, found.channels) == (Q, (4,))


@pytest.mark.parametrize("value", [float("nan"), 50.0])
def test_logits_are_beyond_the_noise_too(value):
    clean = record(tiny_loaded("gemma2"), PROMPTS)
    noise = noise_of([noisy(clean, number, 1e-4) for number in range(3)])
    other = clean.logits.clone()
    other[2, 3] += 1e-5
    stored = clean.manifest.logits.stored
    assert not locate_by_activations(clean, Bundle(clean.manifest, {**clean.tensors, stored: other}), noise).divergent
    other[2, 3] = value
    found = locate_by_activations(clean, Bundle(clean.manifest, {**clean.tensors, stored: other}), noise)
    assert (found.place, found.tensors) == ("logits", ())


def test_noise_takes_three_recordings(pair):
    with pytest.raises(InputError, match="three clean bundles at least, here are 2"):
        noise_of([pair[0]] * 2)


def test_other_prompts_models_and_types_are_refused(pair):
    reference = pair[0]
    others = {
        "different prompts": record(tiny_loaded("qwen3"), ["hello world, this iz", "a prompt", "wxyz!"]),
        "records: record the same modules": record(tiny_loaded("llama"), PROMPTS),
        "differ in what they hold": record(tiny_loaded("qwen3", torch.bfloat16), PROMPTS),
    }
    for sentence, other in others.items():
        with pytest.raises(InputError, match=sentence):
            locate_by_activations(reference, other)
        with pytest.raises(InputError, match=sentence):
            noise_of([reference, reference, other])


def test_words_of_unlike_engines_or_settings_are_not_compared(pair):
    reference = pair[0]
    changes = {"engine": Engine(name="other", version="1"), "settings": {"threads": 99}}
    for name, value in changes.items():
        with pytest.raises(InputError, match="differ by rounding"):
            locate_by_activations(reference, with_manifest(reference, **{name: value}))
    noise = noise_of([noisy(reference, number, 1e-4) for number in range(3)])
    assert not locate_by_activations(reference, with_manifest(reference, **changes), noise).divergent


def test_recordings_that_agree_to_the_bit_have_no_noise(pair):
    assert set(noise_of([pair[0]] * 3).limits.values()) == {0.0}


def test_noise_is_no_less_than_the_largest_deviation_seen(pair):
    clean = pair[0]
    bundles = [noisy(clean, number, 0.01) for number in range(3)]
    noise = noise_of(bundles, sigmas=0.0)
    for number, one in enumerate(clean.manifest.records):
        largest = max((first.output(one) - second.output(one)).abs().max() for first in bundles for second in bundles)
        assert noise.limit(clean.manifest.records[number], "output") == pytest.approx(float(largest))
