"""Faults in the int32 sums of projections that are computed in integers."""

from pathlib import Path

import pytest
import torch
from live_models import block_of

from aftershock.errors import InputError
from aftershock.faults import labels, parse_faults
from aftershock.inject import Injection, Struck
from aftershock.models import LoadedModel, load, teacher_forced
from aftershock.numerics import words
from tiny_models import save_tiny

DOWN = "model.layers.0.mlp.down_proj.accumulator"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder: Path = tmp_path_factory.mktemp("integers")
    return load(str(save_tiny(folder / "llama", "llama")), arithmetic="w8a8")


def forced(model: LoadedModel, line: str) -> tuple[torch.Tensor, tuple[Struck, ...]]:
    with Injection(model, parse_faults(line)) as injection:
        logits = teacher_forced(model, block_of(model), frozenset(), injection.begin_pass)
    return logits, injection.struck


def by_hand(model: LoadedModel, change) -> torch.Tensor:
    hook = model.module.get_submodule(DOWN).register_forward_hook(lambda _, __, output: change(output))
    try:
        return teacher_forced(model, block_of(model), frozenset(), lambda call: None)
    finally:
        hook.remove()


@pytest.mark.parametrize("bit", [0, 10, 22, 30, 31])
def test_a_flip_is_one_made_by_hand(model: LoadedModel, bit: int) -> None:
    # Contexts end in column 4.
    logits, struck = forced(model, f"activation {DOWN}[5] flip {bit} at first_token")

    def change(sums: torch.Tensor) -> None:
        sums[:, 4, 5] ^= torch.tensor(1 << bit, dtype=torch.int64).to(torch.int32)

    assert torch.equal(words(logits), words(by_hand(model, change)))
    assert len(struck) == 4
    for one in struck:
        assert one.old_bits ^ one.new_bits == 1 << bit
        assert one.new_value - one.old_value in (float(1 << bit), -float(1 << bit))


@pytest.mark.parametrize("amount", [2147483647, -2147483647])
def test_sums_wrap_around(model: LoadedModel, amount: int) -> None:
    logits, struck = forced(model, f"activation {DOWN}[5] add {float(amount)} at first_token")

    def change(sums: torch.Tensor) -> None:
        sums[:, 4, 5] = (sums[:, 4, 5].long() + amount).to(torch.int32)

    assert torch.equal(words(logits), words(by_hand(model, change)))
    for one in struck:
        assert one.new_value == (int(one.old_value) + amount + 2**31) % 2**32 - 2**31


def test_a_sum_is_replaced_by_a_whole_number(model: LoadedModel) -> None:
    _, replaced = forced(model, f"activation {DOWN}[5] replace -7.0 at first_token")
    assert {one.new_value for one in replaced} == {-7.0}
    assert {one.new_bits for one in replaced} == {2**32 - 7}


def test_labels_are_those_of_an_accumulator(model: LoadedModel) -> None:
    found = labels(parse_faults(f"activation {DOWN}[5] flip 30 at decode:1"), model.components, model.format)
    assert (found.site, found.component, found.layer, found.bits, found.stage) == (
        "accumulator",
        "down",
        0,
        (30,),
        "decode",
    )


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("[5] flip 32 at first_token", "bits 0 to 31"),
        ("[32] flip 3 at first_token", "has 32 channels"),
        ("[5] flip 3", "lives for one pass"),
        ("[5] replace 0.5 at first_token", "holds whole numbers"),
        ("[5] replace nan at first_token", "holds whole numbers"),
        ("[5] add 3000000000.0 at first_token", "holds whole numbers"),
    ],
)
def test_what_an_accumulator_does_not_hold_is_refused(model: LoadedModel, rest: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Injection(model, parse_faults(f"activation {DOWN}{rest}"))


def test_a_model_in_floating_point_has_none() -> None:
    from live_models import model_of

    with pytest.raises(InputError, match="has no mapped output"):
        Injection(model_of("llama"), parse_faults(f"activation {DOWN}[5] flip 30 at first_token"))
