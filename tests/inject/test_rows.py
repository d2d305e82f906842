"""Weight faults of several sets at once: each row gets the bits of a run under its own set alone."""

import pytest
import torch
from live_models import all_words, block_of, hooked, model_of, same_words

from aftershock.errors import ContractError, InputError
from aftershock.faults import Fault, parse_faults
from aftershock.inject import Injection, changes_one_channel, row_faults
from aftershock.models import LoadedModel, teacher_forced
from aftershock.numerics import words
from tiny_models import FAMILIES, tiny_loaded

NO_CUT: frozenset[int] = frozenset()
DENSE = [family for family in FAMILIES if family != "mixtral" and not family.endswith("moe")]
"""Rows of a mixture of experts share their experts' kernels."""


def logits_under(model: LoadedModel, faults: tuple[Fault, ...]) -> torch.Tensor:
    with Injection(model, faults) as injection:
        return teacher_forced(model, block_of(model), NO_CUT, injection.begin_pass)


def together(model: LoadedModel, sets: dict[tuple[int, ...], tuple[Fault, ...]]) -> torch.Tensor:
    with row_faults(model, sets, 4):
        return teacher_forced(model, block_of(model), NO_CUT, lambda call: None)


def faults_of(model: LoadedModel, row: int) -> tuple[Fault, ...]:
    """A set for each row: every parameter that one channel depends on, the same channel in rows 0 and 1."""
    faults = []
    for name, parameter in model.module.named_parameters():
        index = [min(row // 2 + 1, size - 1) for size in parameter.shape]
        index[-1] = min(index[-1] + row % 2 * (parameter.dim() > 1), parameter.shape[-1] - 1)
        (fault,) = parse_faults(f"weight {name}[{','.join(map(str, index))}] add 0.25")
        if changes_one_channel(model, fault):
            faults.append(fault)
    return tuple(faults)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", DENSE)
def test_each_row_has_the_bits_of_its_own_set(family: str, dtype: torch.dtype) -> None:
    model = model_of(family, dtype)
    before = all_words(model)
    sets = {(row,): faults_of(model, row) for row in range(4)}
    found = together(model, sets)
    clean = logits_under(model, ())
    for (row,), faults in sets.items():
        assert torch.equal(words(found[row]), words(logits_under(model, faults)[row]))
        assert not torch.equal(found[row], clean[row])
    assert same_words(model, before)
    assert hooked(model) == {}


def test_rows_without_faults_keep_the_clean_bits() -> None:
    model = model_of("llama")
    faults = parse_faults("weight model.layers.0.mlp.up_proj.weight[3,4] replace nan")
    found, clean = together(model, {(1, 2): faults}), logits_under(model, ())
    assert torch.equal(found[0], clean[0])
    assert torch.equal(found[3], clean[3])
    assert found[1:3].isnan().any(-1).all()


def test_faults_on_one_word_act_one_after_the_other() -> None:
    model = model_of("llama")
    faults = parse_faults(
        "weight model.norm.weight[3] replace 2.0 & weight model.norm.weight[3] flip 22 & "
        "weight model.norm.weight[4] add 1.0"
    )
    assert torch.equal(together(model, {(0, 1, 2, 3): faults}), logits_under(model, faults))


def test_words_are_put_back_when_the_model_fails() -> None:
    model = model_of("llama")
    before = all_words(model)
    with pytest.raises(ZeroDivisionError), row_faults(model, {(0,): faults_of(model, 0)}, 4):
        raise ZeroDivisionError
    assert same_words(model, before)
    assert hooked(model) == {}


def test_a_parameter_that_changes_several_channels_is_refused() -> None:
    model = model_of("mixtral")
    (name,) = {
        site.name for site in model.components.parameters if "layers.0" in site.name and "down_proj" in site.name
    }
    faults = parse_faults(f"weight {name}[1,2,3] flip 3")
    assert not changes_one_channel(model, faults[0])
    with pytest.raises(InputError, match="more than one channel"), row_faults(model, {(0,): faults}, 4):
        pass


FAULT = "weight model.layers.0.mlp.up_proj.weight[3,4] replace 7.0"


OTHER = FAULT.replace("[3,4]", "[3,5]")
"""Changes the same channel: it takes a run of its own."""


@pytest.mark.parametrize("place", [4, 5])
def test_a_module_that_writes_its_own_words_is_refused(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_loaded("llama")
    layer = model.module.get_submodule("model.layers.0.mlp.up_proj")
    plain = layer.forward

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        layer.weight.data[3, place] = 0.0
        return plain(hidden)

    sets = {(0,): parse_faults(FAULT), (1,): parse_faults(OTHER)}
    layer.weight.data[3, 4:6] = 0.0
    together(model, sets)
    monkeypatch.setattr(layer, "forward", forward)
    with pytest.raises(ContractError, match="could not be written"):
        together(model, sets)


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"])
def test_a_word_that_is_not_as_it_was_afterwards_is_told_of(name: str) -> None:
    model = tiny_loaded("llama")
    sets = {(0,): parse_faults(f"{FAULT} & {FAULT.replace('layers.0', 'layers.1')}")}
    with pytest.raises(ContractError, match="could not be written"), row_faults(model, sets, 4):
        model.module.get_parameter(f"{name}.weight").data[3, 4] = 1.0
