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
        ("[5] replace uniform[0.0,1.0] at first_token", "strikes one value"),
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


ATTENTION = "model.layers.0.self_attn"
OF_PRODUCTS = [
    # Rows have contexts of different lengths, which end in column 4; a key is counted from its row's first token.
    ("qk", "[2,0]", "first_token", [(0, 2, 4, 0), (1, 2, 4, 3), (2, 2, 4, 4), (3, 2, 4, 2)]),
    ("qk", "[3,0.5]", "decode:2", [(0, 3, 6, 3), (2, 3, 6, 5)]),
    ("qk", "[0,1]", "prefill:1", [(0, 0, 1, 1), (3, 0, 3, 3)]),
    ("sv", "[2,5]", "first_token", [(row, 2, 4, 5) for row in range(4)]),
    ("sv", "[3,7]", "decode:2", [(0, 3, 6, 7), (2, 3, 6, 7)]),
]


@pytest.mark.parametrize("bit", [3, 17, 30])
@pytest.mark.parametrize(("product", "place", "moment", "places"), OF_PRODUCTS)
def test_a_flip_in_a_product_of_attention_is_one_made_by_hand(
    model: LoadedModel, product: str, place: str, moment: str, places: list[tuple[int, ...]], bit: int
) -> None:
    logits, struck = forced(model, f"{product}_accumulator {ATTENTION}{place} flip {bit} at {moment}")

    def change(_: object, __: object, sums: torch.Tensor) -> None:
        sums[tuple(torch.tensor(places).unbind(1))] ^= 1 << bit

    hook = model.module.get_submodule(f"{ATTENTION}.{product}.accumulator").register_forward_hook(change)
    expected = teacher_forced(model, block_of(model), frozenset(), lambda call: None)
    hook.remove()
    clean = teacher_forced(model, block_of(model), frozenset(), lambda call: None)
    assert torch.equal(words(logits), words(expected))
    assert bit < 17 or not torch.equal(words(logits), words(clean))
    assert [one.row for one in struck] == [row for row, *_ in places]
    assert {one.tensor for one in struck} == {f"{ATTENTION}.{product}_accumulator"}
    assert {one.old_bits ^ one.new_bits for one in struck} == {1 << bit}
    assert all(one.old_value == int(one.old_value) for one in struck)


def test_scores_and_probabilities_are_struck_around_the_products(model: LoadedModel) -> None:
    """The products watch, and so does what strikes their operands and results."""
    for part in ("score", "probability"):
        _, struck = forced(
            model,
            f"{part} {ATTENTION}[2,0] replace 7.0 at first_token & qk_accumulator {ATTENTION}[2,0] flip 3 at decode:1",
        )
        assert {one.tensor.rpartition(".")[2] for one in struck} == {part, "qk_accumulator"}
        assert {one.new_value for one in struck if one.fault == 0} == {7.0}
    assert torch.overrides._get_current_function_mode() is None


def test_an_armed_fault_that_is_not_due_changes_nothing(model: LoadedModel) -> None:
    clean = teacher_forced(model, block_of(model), frozenset(), lambda call: None)
    logits, struck = forced(model, f"qk_accumulator {ATTENTION}[2,0] flip 30 at decode:40")
    assert struck == ()
    assert torch.equal(words(logits), words(clean))


@pytest.mark.parametrize("product", ["qk", "sv"])
def test_labels_of_a_product_of_attention(model: LoadedModel, product: str) -> None:
    line = f"{product}_accumulator {ATTENTION}[1,2] flip 31 at first_token"
    (fault,) = parse_faults(line)
    assert str(fault) == line
    found = labels((fault,), model.components, model.format)
    assert (found.site, found.component, found.bit_class) == ("accumulator", product, "sign")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sv_accumulator {0}[1,8] flip 3 at first_token", "4 heads of 8 channels"),
        ("sv_accumulator {0}[1,0.5] flip 3 at first_token", "channel 0.5"),
        ("qk_accumulator {0}[1,2] flip 32 at first_token", "bits 0 to 31"),
        ("qk_accumulator {0}[1,2] flip 3", "lives for one pass"),
        ("qk_accumulator {0}[1,2] add 0.5 at first_token", "holds whole numbers"),
    ],
)
def test_what_a_product_does_not_hold_is_refused(model: LoadedModel, line: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Injection(model, parse_faults(line.format(ATTENTION)))


def test_products_in_floating_point_have_no_sums() -> None:
    from live_models import model_of

    with pytest.raises(InputError, match='load the model with arithmetic = "w8a8"'):
        Injection(model_of("llama"), parse_faults(f"qk_accumulator {ATTENTION}[0,1] flip 3 at first_token"))
