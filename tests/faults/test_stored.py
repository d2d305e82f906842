"""Faults in packed words: what they make of the weights, against files with the same bit flipped."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from aftershock.errors import ContractError, InputError
from aftershock.faults import (
    Fault,
    Flip,
    Selection,
    StoredWordSite,
    WeightSite,
    armed,
    check,
    element_faults,
    labels,
    parse_fault,
    parse_faults,
    sample_faults,
    select,
    stored_changes,
)
from aftershock.inject import Injection
from aftershock.models import LoadedModel, load
from aftershock.numerics import words
from tiny_gguf import write_gguf
from tiny_models import save_tiny

UP = "model.layers.0.mlp.up_proj.weight"
EVERY = "proj|embed|lm_head"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    before = os.environ.get("AFTERSHOCK_CACHE")
    os.environ["AFTERSHOCK_CACHE"] = str(folder / "cache")
    write_gguf(folder / "tiny.gguf", EVERY)
    for family in ("llama", "phi3", "gpt2", "mixtral"):
        save_tiny(folder / family, family)
    yield folder
    os.environ.pop("AFTERSHOCK_CACHE")
    if before is not None:
        os.environ["AFTERSHOCK_CACHE"] = before


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return load(str(folder / "tiny.gguf"), "bfloat16")


def drawn(model: LoadedModel, trials: int, /, **keys: object) -> list[tuple[Fault, ...]]:
    selection = Selection.model_validate({"sites": ("stored",), **keys})
    population = select(selection, model.components)
    return [sample_faults(selection, population, model.format, 4, 3, index) for index in range(trials)]


def under(model: LoadedModel, faults: tuple[Fault, ...]) -> dict[str, torch.Tensor]:
    """Words of all parameters while the faults are there."""
    with Injection(model, armed(model, faults)):
        return {name: words(parameter.detach()).clone() for name, parameter in model.module.named_parameters()}


def test_a_fault_is_the_file_with_that_bit_flipped(folder: Path, model: LoadedModel) -> None:
    """The whole way round: the byte in the file, transformers' conversion, every parameter of what is loaded."""
    assert model.stored is not None
    content = (folder / "tiny.gguf").read_bytes()
    shares = {share.name: share for share in model.components.parameters}
    for number, line in enumerate(
        (
            "stored model.layers.0.self_attn.q_proj.weight.quant[9,17] flip 2",
            "stored model.layers.1.self_attn.k_proj.weight.scale[5,0] flip 14",
            "stored model.layers.1.mlp.down_proj.weight.min[3,1] flip 9",
            "stored model.embed_tokens.weight.scale[12,0] flip 10",
        )
    ):
        fault = parse_fault(line)
        assert isinstance(fault.site, StoredWordSite)
        assert isinstance(fault.corruption, Flip)
        tensor = model.stored.tensor(shares[fault.site.parameter])
        field = tensor.form.fields[fault.site.field]
        block, inside = divmod(fault.site.number, field.words)
        place = int(field.places[inside, fault.corruption.bits[0]])
        # Random blocks occur once in the file.
        clean = tensor.blocks[fault.site.row, block].tobytes()
        assert content.count(clean) == 1
        flipped = bytearray(content)
        flipped[content.index(clean) + place // 8] ^= 1 << place % 8
        path = folder / f"flipped-{number}.gguf"
        path.write_bytes(flipped)
        other = load(str(path), "bfloat16")
        expected = {name: words(parameter.detach()) for name, parameter in other.module.named_parameters()}
        found = under(model, (fault,))
        assert all(torch.equal(found[name], expected[name]) for name in expected), line
        name = fault.site.parameter
        assert not torch.equal(words(model.module.get_parameter(name)), found[name])


@pytest.mark.parametrize("storage", ["int8", "int4", "fp8_e4m3", "fp8_e5m2"])
@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "mixtral"])
def test_the_weights_changed_are_those_of_dequantising_everything_again(
    folder: Path, family: str, storage: str
) -> None:
    model = load(str(folder / family), "bfloat16", storage=storage)
    assert model.stored is not None
    shares = {share.name: share for share in model.components.parameters}
    clean = {name: words(parameter.detach()).clone() for name, parameter in model.module.named_parameters()}
    for (fault,) in drawn(model, 25):
        site = fault.site
        assert isinstance(site, StoredWordSite)
        assert isinstance(fault.corruption, Flip)
        tensor = model.stored.tensor(shares[site.parameter])
        blocks = tensor.blocks.copy()
        block, inside = divmod(site.number, tensor.form.fields[site.field].words)
        place = int(tensor.form.fields[site.field].places[inside, fault.corruption.bits[0]])
        blocks[site.row, block, place // 8] ^= 1 << place % 8
        rows = torch.from_numpy(tensor.form.dequantise(blocks)).bfloat16().reshape(len(blocks), -1)
        parameter = model.module.get_parameter(site.parameter)
        expected = rows.T if tensor.transposed else rows.reshape(parameter.shape)
        found = under(model, (fault,))
        # A NaN is a NaN, whatever its payload.
        values = found[site.parameter].view(torch.bfloat16)
        assert torch.equal(values.isnan(), expected.isnan())
        assert torch.equal(words(values.nan_to_num(7)), words(expected.contiguous().nan_to_num(7))), str(fault)
        assert all(torch.equal(found[name], clean[name]) for name in clean if name != site.parameter)
    assert all(torch.equal(words(p.detach()), clean[name]) for name, p in model.module.named_parameters())


def test_one_fault_changes_one_weight_or_a_block_or_none(model: LoadedModel) -> None:
    quant, scale = parse_faults(f"stored {UP}.quant[3,17] flip 3 & stored {UP}.scale[4,0] flip 12 from decode:2")
    (element,) = element_faults(model, (quant,))
    assert element.fault.site == WeightSite(UP, (3, 17))
    assert element.of == 0
    elements = element_faults(model, (quant, scale))
    assert {one.of for one in elements} == {0, 1}
    of_scale = [one.fault for one in elements if one.of == 1]
    assert 28 <= len(of_scale) <= 32
    assert {fault.trigger for fault in of_scale} == {scale.trigger}
    # The lowest bit of a minimum is lost in bfloat16 for most of a block.
    (lost,) = parse_faults(f"stored {UP}.min[4,0] flip 0")
    assert len(element_faults(model, (lost,))) < 16


def test_faults_in_one_row_act_together(model: LoadedModel) -> None:
    both = parse_faults(f"stored {UP}.quant[3,17] flip 3 & stored {UP}.scale[3,0] flip 12")
    alone = under(model, both[:1]), under(model, both[1:])
    together = under(model, both)
    assert together[UP][3, 17] not in (alone[0][UP][3, 17], alone[1][UP][3, 17])
    assert torch.equal(together[UP][3, :17], alone[1][UP][3, :17])
    again = parse_faults(f"stored {UP}.quant[3,17] flip 3 & stored {UP}.quant[3,17] flip 3")
    assert torch.equal(under(model, again)[UP], words(model.module.get_parameter(UP)))
    apart = parse_faults(f"stored {UP}.quant[3,17] flip 3 & stored {UP}.scale[3,0] flip 12 from decode:2")
    with pytest.raises(InputError, match="shares a stored row with another"):
        element_faults(model, apart)


def test_a_change_that_rounding_swallows_still_has_its_moment(folder: Path) -> None:
    model = load(str(folder / "llama"), "bfloat16", storage="int8")
    (fault,) = parse_faults(f"stored {UP}.scale[3,0] flip 0 at decode:4")
    (element,) = element_faults(model, (fault,))
    assert element.fault.site == WeightSite(UP, (3, 0))
    assert element.fault.trigger == fault.trigger
    before = {name: words(parameter.detach()).clone() for name, parameter in model.module.named_parameters()}
    always = parse_faults(f"stored {UP}.scale[3,0] flip 0")
    assert all(torch.equal(found, before[name]) for name, found in under(model, always).items())


def test_a_weight_and_the_word_that_it_comes_from_are_not_struck_together(model: LoadedModel) -> None:
    line = f"weight {UP}[3,17] replace 9.0 & stored {UP}.quant[3,17] flip 3"
    with pytest.raises(InputError, match=r"fault 'stored .* and fault 'weight .* strike the same weight"):
        element_faults(model, parse_faults(line))


@pytest.mark.parametrize(("keys", "allowed"), [({}, {(0, 3), (3, 5), (0, 5)}), ({"bit_pattern": "adjacent"}, {(4, 5)})])
def test_several_bits_of_a_word_follow_the_selection(
    folder: Path, keys: dict[str, str], allowed: set[tuple[int, int]]
) -> None:
    model = load(str(folder / "llama"), storage="int8")
    bits = (4, 5, 7) if keys else (0, 3, 3, 5)
    found = drawn(model, 40, fields=("quant",), bits=bits, bits_per_word=2, **keys)
    assert {fault.corruption.bits for (fault,) in found} == allowed


def test_bits_are_those_of_the_words_not_of_the_model(folder: Path) -> None:
    model = load(str(folder / "llama"), "bfloat16", storage="int8")
    assert {fault.corruption.bits for (fault,) in drawn(model, 5, fields=("scale",), bits=(30,))} == {(30,)}
    with pytest.raises(InputError, match="bit 9 is in none of the stored words selected, which have up to 8"):
        drawn(model, 1, fields=("quant",), bits=(9,))


def test_words_before_and_after_are_told(model: LoadedModel) -> None:
    flip, stuck = parse_faults(f"stored {UP}.scale[3,0] flip 15 & stored {UP}.quant[3,17] stuck-at-1 0,1,2,3")
    scale, quant = stored_changes(model, (flip, stuck))
    assert (scale.fault, scale.new) == (0, scale.old ^ 0x8000)
    assert scale.new_value == -scale.old_value == -float(np.uint16(scale.old).view(np.float16))
    assert (quant.fault, quant.new, quant.new_value) == (1, 15, 15.0)


def test_weights_that_are_not_what_their_words_stand_for_are_an_error(folder: Path) -> None:
    model = load(str(folder / "tiny.gguf"))
    (fault,) = parse_faults(f"stored {UP}.quant[3,17] flip 3")
    with torch.no_grad():
        model.module.get_parameter(UP)[3, 4] += 1
    with pytest.raises(ContractError, match=r"row 3 of .* is not what its stored words stand for"):
        element_faults(model, (fault,))


def test_a_stored_word_is_armed_by_its_weights(model: LoadedModel) -> None:
    with pytest.raises(InputError, match="arm what `element_faults` makes of it"):
        Injection(model, parse_faults(f"stored {UP}.quant[3,17] flip 3"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("stored model.norm.weight.scale[0,0] flip 1", "comes from no packed words"),
        (f"stored {UP}.zero[0,0] flip 1", "is stored without a zero: choose from quant, scale, min"),
        (f"stored {UP}.quant[64,0] flip 1", "64 rows of 32 such words are stored"),
        (f"stored {UP}.scale[0,1] flip 1", "64 rows of 1 such words are stored"),
        (f"stored {UP}.quant[0,0] flip 4", "a quant has bits 0 to 3"),
        (f"stored {UP}.quant[0,0] replace 1.0", "a stored word has bits"),
        (f"stored {UP}.quant[0,0] flip 1 at prefill:3", "a stored word has no token"),
    ],
)
def test_what_is_not_stored_is_refused(model: LoadedModel, line: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check(parse_fault(line), model.components, model.format)


def test_labels_name_the_field(model: LoadedModel) -> None:
    found = [
        labels(parse_faults(f"stored {UP}.{word}"), model.components, model.format)
        for word in ("quant[0,0] flip 1", "scale[0,0] flip 14", "scale[0,0] flip 3,14")
    ]
    assert [(one.site, one.component, one.layer, one.bits, one.stage) for one in found] == [
        ("stored", "up", 0, (), "persistent")
    ] * 3
    assert [one.bit_class for one in found] == ["quant", "scale exponent", "several"]


def test_every_bit_of_the_memory_is_as_likely(model: LoadedModel) -> None:
    faults = [fault for (fault,) in drawn(model, 3000, draw="uniform", components=("up",), layers="0")]
    fields = Counter(fault.site.field for fault in faults)
    # A block of 32 has 128 bits of quants, 16 of scale, 16 of minimum.
    assert chisquare([fields[name] for name in ("quant", "scale", "min")], [2400, 300, 300]).pvalue > 1e-3
    bits = Counter(fault.corruption.bits for fault in faults if fault.site.field == "scale")
    assert len(bits) == 16
    assert chisquare(list(bits.values())).pvalue > 1e-3
    rows = Counter(fault.site.row for fault in faults)
    assert len(rows) == 64
    assert chisquare(list(rows.values())).pvalue > 1e-3
    columns = Counter(fault.site.number for fault in faults if fault.site.field == "quant")
    assert len(columns) == 32
    assert chisquare(list(columns.values())).pvalue > 1e-3


def test_draws_keep_to_fields_bits_and_components(model: LoadedModel) -> None:
    found = drawn(model, 200, fields=("scale", "min"), bits=(10, 14), bits_per_word=2)
    assert {fault.corruption for faults in found for fault in faults} == {Flip((10, 14))}
    assert {fault.site.field for faults in found for fault in faults} == {"scale", "min"}
    several = drawn(model, 50, count=3)
    assert all(len({(fault.site, fault.corruption) for fault in faults}) == 3 for faults in several)
    counts = Counter(
        labels(faults, model.components, model.format).component for faults in drawn(model, 800, fields=("quant",))
    )
    assert len(counts) == 8
    assert chisquare(list(counts.values())).pvalue > 1e-3
    for faults in found:
        for fault in faults:
            check(fault, model.components, model.format)


def test_fused_rows_keep_to_their_component(folder: Path) -> None:
    model = load(str(folder / "phi3"), storage="int8")
    for (fault,) in drawn(model, 60, components=("k",)):
        check(fault, model.components, model.format)
        assert labels((fault,), model.components, model.format).component == "k"
        # q, k and v have 32, 16 and 16 rows.
        assert 32 <= fault.site.row < 48


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"fields": ["scale"]}, "fields are those of stored words"),
        ({"sites": ["stored", "weight"]}, "study them apart"),
        ({"sites": ["stored"], "bit_classes": ["sign"]}, "give fields and bits"),
        ({"sites": ["stored"], "corruption": "replace", "value": 0.0}, "give fields and bits"),
        ({"sites": ["stored"], "pattern": "row", "span": 2}, "a pattern strikes values"),
        ({"sites": ["stored"], "count": 2, "bits_per_word": 2}, "give count or bits_per_word"),
    ],
)
def test_settings_that_do_not_fit_are_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Selection.model_validate(keys)


def test_a_model_without_packed_words_says_what_to_load(folder: Path) -> None:
    plain = load(str(folder / "llama"))
    with pytest.raises(InputError, match="load it with a storage, or choose a GGUF model"):
        drawn(plain, 1)
    with pytest.raises(InputError, match=r"fields \['zero'\]\) leaves no stored"):
        drawn(load(str(folder / "llama"), storage="int8"), 1, fields=("zero",))
    with pytest.raises(InputError, match="no word has 9 of the bits selected"):
        drawn(load(str(folder / "llama"), storage="int8"), 1, fields=("quant",), bits_per_word=9)
