"""The parts of benchmarks that a wrong figure could come from."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.flips import Memory, Part, flipped, memory_of
from benchmarks.locate import checks
from benchmarks.locate_faults import Suspect, fault_of, several, single, stuck_column
from benchmarks.locate_records import figures
from benchmarks.locate_words import llama_8b
from benchmarks.nonfinite import monte_carlo, outputs, predictor
from benchmarks.published import PUBLISHED
from benchmarks.sweeps import member

from aftershock.faults import combinations, sweep_name, sweep_value
from aftershock.models import live_words, model_hash
from aftershock.numerics import FORMATS, NumberFormat, format_of, generator, storage_format, words
from aftershock.study import check_settings, expand, read_settings
from swept_study import swept_study
from tiny_models import tiny_loaded

FP8 = storage_format("fp8_e4m3", 4).fields["quant"].number, storage_format("fp8_e5m2", 4).fields["quant"].number


def small_memory(number: NumberFormat) -> Memory:
    """Two tensors with weights in [1, 2), far below, and at the format's largest."""
    random = generator(0, 0, "small memory")
    parts = []
    for size in (700, 300):
        drawn = np.concatenate([random.normal(size=size) * 0.05, random.uniform(1, 2, size // 4)])
        values = torch.from_numpy(drawn * (1 if number.bits > 8 else 200)).to(number.dtype)
        values[0] = torch.finfo(number.dtype).max
        if number.bits > 8:
            parts.append(Part(words(values), values))
        else:
            parts.append(Part(values.view(torch.uint8), values.float()))
    return Memory(number, tuple(parts))


@pytest.mark.parametrize("number", [*FORMATS, *FP8], ids=lambda number: number.name)
def test_corrupted_words_are_nan_as_often_as_the_formula_says(number: NumberFormat) -> None:
    memory, rate = small_memory(number), 0.03
    before = [part.words.clone() for part in memory.parts]
    found = monte_carlo(memory, rate, 400, generator(1, 0, "copies"))
    expected = predictor(memory)(rate)
    for figure, one in found.items():
        chance = getattr(expected, figure)
        assert one.low <= chance <= one.high
    assert found["parameter_nan"].estimate * found["parameter_nan"].n > 100
    assert found["parameter"].estimate >= found["parameter_nan"].estimate
    if number.name == "fp8_e4m3":  # has no infinity
        assert found["parameter"] == found["parameter_nan"]
    if number.name == "fp8_e5m2":
        assert found["parameter"].estimate > found["parameter_nan"].estimate
    assert all(torch.equal(part.words, old) for part, old in zip(memory.parts, before, strict=True))


def test_every_bit_of_every_copy_flips_on_its_own() -> None:
    memory = small_memory(format_of("float16"))
    size, copies, rate = int(memory.ends[-1]), 50, 0.1
    struck = flipped(memory, rate, copies, generator(2, 0, "copies"))
    flips = (struck.mask[:, None] >> np.arange(16)) & 1
    spread = np.sqrt(rate * (1 - rate))
    assert abs(flips.sum() / (size * copies * 16) - rate) < 5 * spread / np.sqrt(size * copies * 16)
    by_bit = flips.sum(axis=0) / (size * copies)
    assert (np.abs(by_bit - rate) < 5 * spread / np.sqrt(size * copies)).all()
    by_copy = np.bincount(struck.copy, weights=flips.sum(axis=1), minlength=copies) / (16 * size)
    assert (np.abs(by_copy - rate) < 5 * spread / np.sqrt(16 * size)).all()
    assert len(np.unique(struck.copy * size + struck.place)) == len(struck.place)


def test_places_are_found_in_the_part_they_lie_in() -> None:
    memory = small_memory(format_of("float32"))
    first = memory.parts[0].words.numel()
    places = np.array([0, first - 1, first, first + 3])
    found = [(part, inside.tolist()) for part, _, inside in memory.split(places)]
    assert found == [(memory.parts[0], [0, first - 1]), (memory.parts[1], [0, 3])]


def test_corrupted_models_really_run_and_are_put_back() -> None:
    model = tiny_loaded("llama", torch.float32)
    memory, before = memory_of(model), model_hash(model.module)
    assert int(memory.ends[-1]) == sum(parameter.numel() for parameter in model.module.parameters())
    always = outputs(model, memory, 0.01, 4, generator(3, 0, "runs"))
    never = outputs(model, memory, 1e-9, 4, generator(3, 0, "runs"))
    assert always["not_finite"].estimate + always["one_value"].estimate == 1
    assert never["not_finite"].estimate == never["one_value"].estimate == 0
    assert model_hash(model.module) == before


def test_published_figures_stand_beside_what_the_study_files_sweep() -> None:
    names: dict[str, set[str]] = {}
    for file in ("realm.toml", "fragile.toml"):
        source = str(Path(__file__).parents[1] / "studies" / file)
        for name, tables in expand(read_settings(Path(source)), source):
            settings = check_settings(tables, source)
            for values, _ in combinations(settings.faults, settings.sweep):
                written = {key: sweep_value(value) for key, value in values.items()}
                curve = {key: value for key, value in written.items() if key != "rate"}
                names.setdefault(name, set()).update((sweep_name(written), sweep_name(curve)))
    assert {(study, at) for study, figures in PUBLISHED.items() for at in figures if at not in names[study]} == set()


def test_a_curve_that_never_falls_is_json_too() -> None:
    sweep = {"components": [["q", "k", "v", "o"], ["norm"]], "rate": [1e-6, 1e-5, 1e-4]}
    study = swept_study({"sites": ["weight"], "draw": "uniform"}, sweep, lambda values: (0.01, 1e6 * values["rate"]))
    found = json.loads(json.dumps(member("value", study), allow_nan=False))
    assert found["curves"][1]["by_rate"]["half_lost"][0] == "Infinity"
    assert found["curves"][1]["published"] == PUBLISHED["value"]["components = norm"]
    assert len(found["rows"]) == 6


def test_a_struck_model_has_the_fault_that_was_drawn_and_is_put_back() -> None:
    module = tiny_loaded("llama", torch.bfloat16).module
    held, before = live_words(module), model_hash(module)
    struck, draw = Suspect(held, held), generator(4, 0, "faults")
    for fault in (single(struck.weights, 3, draw), several(struck.weights, 64, draw)):
        struck.strike(fault)
        assert model_hash(module) != before
        struck.strike(fault)
        assert model_hash(module) == before
    assert sum(mask.bit_count() for changes in fault.values() for mask in changes.values()) == 64
    tensor = struck.matrices[1]
    stuck = stuck_column(struck, tensor, draw)
    struck.strike(stuck)
    ((name, changes),) = stuck.items()
    assert name == tensor.name
    assert len(set(changes.values())) == 1
    assert tensor.rows / 2 <= len(changes) <= tensor.rows
    assert len({offset % tensor.row_bytes for offset in changes}) == 1
    offset = next(iter(changes))
    bytes_now = held.tensor(name).view(-1).view(torch.uint8)[offset % tensor.row_bytes :: tensor.row_bytes]
    assert len((bytes_now & changes[offset]).unique()) == 1
    struck.strike(stuck)
    assert model_hash(module) == before


def test_flips_of_one_byte_are_one_mask() -> None:
    tensor = live_words(torch.nn.Linear(4, 4)).tensors[0]
    assert fault_of([(tensor, 17), (tensor, 23), (tensor, 8)]) == {"weight": {2: 0b10000010, 1: 1}}


def test_an_8b_model_has_8b_parameters() -> None:
    assert sum(tensor.size for tensor in llama_8b()) == 2 * 8_030_261_248


def test_records_of_text_come_to_ratios_of_sums() -> None:
    def fault(cell: str, loss: list[float], accuracy: list[float], found: bool) -> dict[str, object]:
        flags = dict.fromkeys(("block", "block_top3", "tensor", "exact", "trivial"), found)
        record = {"cell": cell, "kind": "natural q", "flips": [["w", 1, 14]], "passes": 20.0, "layers": 10}
        return {**record, **flags, "loss": loss, "accuracy": accuracy}

    records = [
        fault("a", [1.0, 5.0, 1.0], [0.5, 0.1, 0.5], True),
        fault("a", [1.0, 2.0, 2.0], [0.5, 0.4, 0.4], False),
        {"cell": "a", "kind": "healthy", "alarm": False, "flips": [], "passes": 5.0},
        {"cell": "b", "kind": "healthy", "alarm": True, "flips": [], "passes": 5.0},
    ]
    found = figures(records, 0)
    natural = found["over_all"]["natural"]
    assert found["left_out"] == {"b": "model not finite in this format"}
    assert found["over_all"]["false_alarms"]["n"] == 1
    assert natural["recovered_loss"]["estimate"] == pytest.approx(4 / 5)
    assert natural["recovered_accuracy"]["estimate"] == pytest.approx(0.4 / 0.5)
    assert natural["block"]["estimate"] == 0.5
    assert natural["passes_per_layer_of_one_flip"]["estimate"] == 2
    met = {check["name"]: check["met"] for check in checks({"text": found})}
    assert met["text: natural, block"] is False
    assert met["text: natural, passes per layer of one flip, mean"] is True
    assert met["text: false alarms"] is True
    assert not any(name.startswith(("words", "speed", "text: hard")) for name in met)
