"""Parameters kept safe first: the choice from records, and check words that put flipped bits right."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aftershock.errors import InputError
from aftershock.models import LoadedModel
from aftershock.numerics import generator, words
from aftershock.protect import Ecc, Fragility, fragile_backup, fragile_ecc, fragile_parameters, most_fragile, protect
from aftershock.protect.error_correcting import CHECKS, COLUMNS, DATA, CorrectingWords, check_words, correct
from aftershock.study import ItemRecord, Strike, TrialRecord
from tiny_models import tiny_loaded

TOKENS = torch.arange(4, 28).view(2, 12)
UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"


def record(trial: int, parameter: str, harmful: bool) -> TrialRecord:
    item = ItemRecord(
        item="one",
        outcome="subtle" if harmful else "masked",
        eligible=True,
        right=None,
        output=None,
        score_change=0.0,
        first_difference=None,
        rmse=None,
        kl=None,
    )
    strike = Strike(
        fault=0, tensor=parameter, index=(0, 0), item=None, old_bits=0, new_bits=1, old_value=0.0, new_value=1.0
    )
    return TrialRecord(
        trial=trial,
        faults=(f"weight {parameter}[0,0] flip 0 always",),
        fault_count=1,
        site="weight",
        component="any",
        layer=0,
        bits=(0,),
        bit_class="mantissa",
        stage="always",
        strikes=(strike,),
        strikes_digest="",
        items=(item,),
    )


@pytest.fixture
def model() -> LoadedModel:
    return tiny_loaded("llama")


def logits(model: LoadedModel) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.module(input_ids=TOKENS, use_cache=False).logits
    return words(found)


def flip(model: LoadedModel, name: str, places: list[tuple[int, int]]) -> None:
    """Flip bits, each given by its word and its number, and leave them so."""
    own = words(model.module.get_parameter(name).detach()).view(-1)
    for place, bit in places:
        own[place] ^= torch.tensor(1 << bit, dtype=torch.int64).to(own.dtype) if bit < 31 else -(1 << 31)


def test_every_column_is_odd_and_its_own() -> None:
    assert len(set(COLUMNS)) == DATA
    assert all(column.bit_count() % 2 == 1 and column.bit_count() >= 3 for column in COLUMNS)
    loads = [sum(column >> check & 1 for column in COLUMNS) for check in range(CHECKS)]
    assert max(loads) - min(loads) <= 1


@given(st.integers(0, DATA + CHECKS - 1), st.integers(0, DATA + CHECKS - 1), st.integers(0, 63), st.integers(0, 2**32))
def test_one_error_is_corrected_and_two_are_seen(first: int, second: int, bit: int, seed: int) -> None:
    random = generator(seed, 0, "blocks")
    clean = torch.from_numpy(random.integers(-(2**63), 2**63 - 1, (DATA, 3)))
    checks = check_words(clean)
    kept = torch.cat([clean, checks])
    mask = torch.tensor(-(2**63) if bit == 63 else 1 << bit)
    struck = kept.clone()
    struck[first, 1] ^= mask
    blocks, own = struck[:DATA].clone(), struck[DATA:].clone()
    assert correct(blocks, own) == (1, True)
    assert torch.equal(torch.cat([blocks, own]), kept)
    if first != second:
        struck[second, 1] ^= mask
        assert correct(struck[:DATA].clone(), struck[DATA:].clone()) == (0, False)


@pytest.mark.parametrize("bit", [0, 23, 30, 31])
def test_a_flip_is_mended_before_the_pass(model: LoadedModel, bit: int) -> None:
    clean, before = logits(model), words(model.module.get_parameter(DOWN).detach()).clone()
    with protect(model, [Ecc((UP, DOWN))]) as protected:
        flip(model, DOWN, [(17, bit)])
        assert torch.equal(logits(model), clean)
        assert torch.equal(words(model.module.get_parameter(DOWN).detach()), before)
        assert [(one.site.module, one.wrong, one.mended) for one in protected.events] == [(DOWN, 1, True)]
        assert 0 < protected.extra_bytes <= (2 * model.module.get_parameter(UP).nbytes) / 8 + 2 * 512


def test_a_whole_wrong_word_is_mended_and_two_flips_of_a_code_word_are_told(model: LoadedModel) -> None:
    clean = logits(model)
    own = words(model.module.get_parameter(DOWN).detach()).view(-1)
    apart = 2 * (len(own) * own.element_size() // 512)  # 32-bit words from one row of a block to the next
    with protect(model, [Ecc((DOWN,))]) as protected:
        flip(model, DOWN, [(6, bit) for bit in range(20, 31)])
        assert torch.equal(logits(model), clean)
        protected.reset()
        flip(model, DOWN, [(6, 30), (6 + apart, 30)])
        assert not torch.equal(logits(model), clean)
        assert [event.mended for event in protected.events] == [False]


def test_words_are_mended_once_all_of_them_are(model: LoadedModel) -> None:
    own = words(model.module.get_parameter(DOWN).detach()).view(-1)
    apart = 2 * (len(own) * own.element_size() // 512)
    kept = CorrectingWords(model.module, (DOWN, UP), [])
    assert not kept.mend()
    flip(model, UP, [(3, 20)])
    assert kept.mend()
    flip(model, UP, [(3, 20)])
    flip(model, DOWN, [(6, 30), (6 + apart, 30)])
    assert not kept.mend()


def test_what_fills_no_block_is_mended_too(model: LoadedModel) -> None:
    name = "model.norm.weight"
    clean = logits(model)
    with protect(model, [Ecc((name,))]):
        flip(model, name, [(model.module.get_parameter(name).numel() - 1, 30)])
        assert torch.equal(logits(model), clean)


def test_harm_by_parameter_is_drawn_towards_its_component(model: LoadedModel) -> None:
    records = [record(number, DOWN, number % 2 == 0) for number in range(8)]
    records += [record(number, UP, False) for number in range(8, 12)]
    found = {one.parameter: one for one in fragile_parameters(model, records)}
    other = DOWN.replace("1", "0")
    assert found[DOWN].harm == found[other].harm == 0.5
    assert (found[DOWN].faults, found[other].faults) == (8, 0)
    assert found[UP].harm == 0
    assert not any("q_proj" in name for name in found)


def test_backups_and_check_words_keep_to_the_budget(model: LoadedModel) -> None:
    records = [record(number, DOWN, True) for number in range(4)]
    size = model.module.get_parameter(DOWN).nbytes
    # Both are as fragile, by their component: the first one that fits.
    assert fragile_backup(model, records, size).parameters == (DOWN.replace("1", "0"),)
    ecc = fragile_ecc(model, records, size // 4)
    assert set(ecc.parameters) == {DOWN, DOWN.replace("1", "0")}
    with protect(model, [ecc]) as protected:
        assert protected.extra_bytes <= size // 4 + 2 * 512
    with pytest.raises(InputError, match="give more"):
        fragile_backup(model, records, size - 1)
    with pytest.raises(InputError, match="no fault in a single weight"):
        fragile_backup(model, [], size)


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 50)), min_size=1, max_size=12), st.integers(50, 200))
def test_the_choice_fits_and_takes_harm_in_order(found: list[tuple[float, int]], budget: int) -> None:
    fragilities = sorted(
        (Fragility(str(number), harm, size, 1) for number, (harm, size) in enumerate(found)), key=lambda one: -one.harm
    )
    if not any(one.harm for one in fragilities):
        return
    chosen = most_fragile(fragilities, budget)
    kept = [one for one in fragilities if one.parameter in chosen]
    assert sum(one.nbytes for one in kept) <= budget
    left = [one for one in fragilities if one.parameter not in chosen and one.harm > 0]
    assert all(sum(other.nbytes for other in kept if other.harm >= one.harm) + one.nbytes > budget for one in left)


def test_most_harm_comes_first_and_none_is_left_out(model: LoadedModel) -> None:
    records = [record(number, UP, harmful=number < 3) for number in range(4)]
    records += [record(number, DOWN, harmful=False) for number in range(4, 8)]
    found = fragile_parameters(model, records)
    harms = [one.harm for one in found]
    assert harms == sorted(harms, reverse=True)
    assert found[0].parameter == UP
    assert harms[-1] == 0 < harms[0]
    kept = most_fragile(found, 10**9)
    assert kept == tuple(one.parameter for one in found if one.harm > 0)


def test_faults_in_anything_but_a_single_weight_are_left_out(model: LoadedModel) -> None:
    own = record(0, UP, harmful=True)
    others = [own.model_copy(update={"site": "stored"}), own.model_copy(update={"strikes": own.strikes * 2})]
    with pytest.raises(InputError, match="no fault in a single weight"):
        fragile_parameters(model, others)


def test_a_name_that_is_none(model: LoadedModel) -> None:
    with pytest.raises(InputError, match="no parameter nowhere"):
        protect(model, [Ecc(("nowhere",))])
