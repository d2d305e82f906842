"""Models over several devices: what a setting names, who gets which layer, and that nothing else changes."""

import accelerate
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aftershock.errors import InputError
from aftershock.faults import Selection, sample_faults, select
from aftershock.models import devices_of, load, model_hash, share_gpus
from aftershock.models.devices import split_over, spread
from aftershock.replay import FastExecutor, Job, ReferenceExecutor, make_batches, residual_error
from aftershock.tasks import load_task
from tiny_models import FAMILIES, save_tiny, tiny_loaded, tiny_model
from tiny_study import tiny_tables

TWO = (torch.device("cuda", 0), torch.device("cuda", 1))


@pytest.fixture
def four_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)


@pytest.mark.parametrize(
    ("setting", "devices"),
    [
        ("cpu", ["cpu"]),
        ("cuda", ["cuda"]),
        ("cuda:3", ["cuda:3"]),
        ("cuda:2,cuda:0", ["cuda:2", "cuda:0"]),
        ("auto", ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
    ],
)
def test_a_setting_names_devices(four_gpus, setting, devices):
    assert devices_of(setting) == tuple(map(torch.device, devices))


@pytest.mark.parametrize(
    "setting", ["cuda:0,cuda:0", "cpu,cuda:0", "cuda,cuda:1", "cuda:0,", "gpu", "", "cuda:0;cuda:1"]
)
def test_other_settings_are_refused(four_gpus, setting):
    with pytest.raises(InputError, match="is not supported: choose cpu, cuda"):
        devices_of(setting)


def test_devices_that_are_not_there_are_refused(four_gpus):
    with pytest.raises(InputError, match=r"device cuda:4 is not here \(4 CUDA devices found\)"):
        devices_of("cuda:0,cuda:4")


def test_every_device_of_none_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(InputError, match="device auto means every CUDA device, and none is here"):
        devices_of("auto")


@given(st.lists(st.integers(1, 100), min_size=1, max_size=40), st.integers(0, 300), st.integers(1, 8))
def test_layers_are_spread_in_order_and_evenly(sizes, begun, devices):
    numbers = spread(sizes, begun, devices)
    assert len(numbers) == len(sizes)
    assert list(numbers) == sorted(numbers)
    assert 0 <= numbers[0] <= numbers[-1] < devices
    share = (begun + sum(sizes)) / devices
    for device in range(devices):
        held = sum(size for size, number in zip(sizes, numbers, strict=True) if number == device)
        assert held + (begun if device == 0 else 0) <= max(share + max(sizes), begun + max(sizes))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_one_device_and_layers_are_whole(family):
    own = {"gpt2": {"n_layer": 4}, "gemma3": {"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4}}
    module = tiny_model(family, **own.get(family, {"num_hidden_layers": 4}))
    devices = split_over(module.config, torch.float32, TWO)
    for name, _ in (*module.named_parameters(), *module.named_buffers()):
        assert sum(name.startswith(f"{part}.") for part in devices) == 1, name
    layers = [device for part, device in devices.items() if part.rpartition(".")[2].isdigit()]
    assert len(layers) == 4
    assert (layers[0], layers[-1]) == TWO
    others = [device for part, device in devices.items() if not part.rpartition(".")[2].isdigit()]
    assert set(others) == {TWO[0]}


def test_several_devices_need_accelerate(monkeypatch):
    monkeypatch.setattr("aftershock.models.devices.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"accelerate, which is not installed here: install aftershock\[gpus\]"):
        split_over(tiny_model("llama").config, torch.float32, TWO)


def test_loading_by_a_device_map_gives_the_same_words(tmp_path, monkeypatch):
    spec = str(save_tiny(tmp_path / "llama", "llama"))
    whole = load(spec, "bfloat16")
    cpu = torch.device("cpu")
    monkeypatch.setattr("aftershock.models.loading.devices_of", lambda device: (cpu, cpu))
    spread_out = load(spec, "bfloat16", "as above")
    assert spread_out.device == cpu
    assert model_hash(spread_out.module) == model_hash(whole.module)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_trials_are_the_same_where_hooks_move_tensors_between_parts(tmp_path, family):
    """accelerate's hooks on every part, as they are where parts lie on several devices: here they move nothing."""
    plain, hooked = tiny_loaded(family), tiny_loaded(family)
    parts = dict.fromkeys(split_over(hooked.module.config, torch.float32, TWO), "cpu")
    accelerate.dispatch_model(hooked.module, parts, force_hooks=True)
    assert hasattr(hooked.module, "_hf_hook")
    items = load_task(tiny_tables(tmp_path)["task"]["spec"]).items
    selection = Selection(sites=("weight", "activation"), draw="uniform")
    for batch in make_batches(items, plain, 4, 0):
        faults = [
            sample_faults(selection, select(selection, plain.components), plain.format, batch.decode_passes, 0, index)
            for index in range(12)
        ]
        jobs = [Job(number, batch, one) for number, one in enumerate(faults)]
        expected = {job.key: run for job, run in ReferenceExecutor(plain).trials(jobs)}
        for executor in (ReferenceExecutor(hooked), FastExecutor(hooked)):
            for job, run in executor.trials(jobs):
                assert run.struck == expected[job.key].struck
                for one, other in zip(run.items, expected[job.key].items, strict=True):
                    assert repr(one.answer) == repr(other.answer)
                    assert repr(one.apart) == repr(other.apart)
        golden = ReferenceExecutor(hooked).golden(batch)
        assert residual_error(hooked, batch, faults[0], golden) == residual_error(plain, batch, faults[0], golden)
    assert model_hash(hooked.module) == model_hash(plain.module)


def test_processes_take_the_gpus_in_turn_and_share_their_memory(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", taken.append)
    for place in range(3):
        share_gpus(place, 5)
    assert taken == [0, 1 / 3, 1, 1 / 3, 0, 1 / 3]
    taken.clear()
    share_gpus(0, 2)
    assert taken == [0, 1.0]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    share_gpus(0, 2)
    assert taken == [0, 1.0]
