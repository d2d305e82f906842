"""Clean words put back into live modules."""

import numpy as np
import pytest
import torch

from aftershock.detect import take_fingerprint
from aftershock.errors import ContractError, InputError
from aftershock.locate import Located, live_repair, locate_by_words, repair_module, word_changes
from aftershock.models import live_words
from tiny_models import tiny_model

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("dtype", "width"),
    [
        (torch.float32, 4),
        (torch.bfloat16, 2),
        (torch.float16, 2),
        (torch.int8, 1),
        (torch.uint8, 1),
        (torch.bool, 1),
        (torch.float8_e4m3fn, 1),
        (torch.float64, 4),
        (torch.int64, 4),
    ],
)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "expanded view"])
def test_live_words_are_put_back_in_place(dtype, width, layout):
    values = torch.arange(70 * 66 * dtype.itemsize, dtype=torch.int64).to(torch.uint8) % 2
    whole = values.view(70, -1).view(dtype)
    tensor = {"contiguous": whole, "transposed": whole.T, "expanded view": whole[:, 1:60:3]}[layout]
    module = torch.nn.Module()
    module.register_buffer("weight", tensor)
    words = live_words(module)
    (listed,) = words.tensors
    assert listed.width == width
    clean = words.read(listed, 0, listed.rows).clone()
    rows, columns = np.array([0, 0, 5, listed.rows - 1]), np.array([0, 1, 7, 0])
    right = clean[rows, columns].long().numpy()
    wrong = right ^ np.array([1, 1, 0, 1])
    back = repair_module(module, Located((word_changes(listed, rows, columns, right, wrong),), ()))
    assert back[0].found.tolist() == right.tolist()
    assert words.read(listed, 0, listed.rows)[rows, columns].tolist() == wrong.tolist()
    repair_module(module, Located((word_changes(listed, rows, columns, wrong, right),), ()))
    assert torch.equal(words.read(listed, 0, listed.rows), clean)
    assert module.weight.data_ptr() == tensor.data_ptr()


def test_live_words_are_put_back_whatever_they_hold_now():
    """NaN, inference tensors, gradients: words are words."""
    with torch.inference_mode():
        module = tiny_model("llama", torch.bfloat16)
    reference = live_words(tiny_model("llama", torch.bfloat16))
    words = live_words(module)
    with torch.inference_mode():
        module.get_parameter(UP)[3, 4] = float("nan")
        module.get_parameter(UP)[7, 1] = -float("inf")
    repair_module(module, locate_by_words(words, reference).located)
    assert locate_by_words(words, reference).equal
    learning = torch.nn.Linear(4, 4)
    other = live_words(torch.nn.Linear(4, 4))
    repair_module(learning, locate_by_words(live_words(learning), other).located)
    assert locate_by_words(live_words(learning), other).equal


@pytest.mark.parametrize("key", [None, bytes(range(32))])
def test_live_repair_is_proved_and_undone_where_it_fails(key):
    module = tiny_model("llama", torch.bfloat16)
    reference, words = live_words(tiny_model("llama", torch.bfloat16)), live_words(module)
    fingerprint = take_fingerprint(reference, "exact", key)
    weight, norm = module.get_parameter(UP).view(torch.int16), module.model.norm.weight.view(torch.int16)
    weight[3, 4] ^= 1 << 14
    norm[1] ^= 1
    located = locate_by_words(words, reference).located
    weight[7, 4] ^= 1 << 14  # after the search
    before = {name: parameter.clone() for name, parameter in module.named_parameters()}
    with pytest.raises(InputError, match=r"up_proj\.weight with the words put back is still not the clean tensor"):
        repair_module(module, located, fingerprint, key)
    assert all(torch.equal(parameter, before[name]) for name, parameter in module.named_parameters())
    repair_module(module, locate_by_words(words, reference).located, fingerprint, key)
    assert locate_by_words(words, reference).equal


def test_words_that_do_not_read_back_leave_all_as_it_was(monkeypatch):
    module = tiny_model("llama", torch.bfloat16)
    reference, words = live_words(tiny_model("llama", torch.bfloat16)), live_words(module)
    weight, norm = module.get_parameter(UP).view(torch.int16), module.model.norm.weight.view(torch.int16)
    weight[3, 4] ^= 1 << 14
    norm[1] ^= 1
    located = locate_by_words(words, reference).located
    assert [changes.tensor.name for changes in located.changes] == [UP, "model.norm.weight"]
    before = {name: parameter.clone() for name, parameter in module.named_parameters()}
    flip, stuck = live_repair._flip, module.model.norm.weight
    monkeypatch.setattr(
        live_repair, "_flip", lambda tensor, changes: None if tensor is stuck else flip(tensor, changes)
    )
    with pytest.raises(ContractError, match=r"words of model\.norm\.weight do not read back"):
        repair_module(module, located)
    assert all(torch.equal(parameter, before[name]) for name, parameter in module.named_parameters())


def test_scalars_are_put_back():
    module = torch.nn.Module()
    module.register_buffer("scale", torch.tensor(1.5))
    words = live_words(module)
    clean = words.read(words.tensors[0], 0, 1).clone()
    module.scale.neg_()
    zero = np.zeros(1, np.int64)
    wrong = word_changes(words.tensors[0], zero, zero, zero, clean[0].long().numpy())
    repair_module(module, Located((wrong,), ()))
    assert module.scale == 1.5
