"""Arming, striking and undoing allocate a few words, however large the tensor is."""

import pytest
import torch
from live_models import CONTEXTS, AllocatedBytes, block_of

from aftershock.faults import parse_faults
from aftershock.inject import Injection
from aftershock.models import LoadedModel, align, teacher_forced
from tiny_models import tiny_loaded

UP = "model.layers.1.mlp.up_proj.weight"
LINES = [
    f"weight {UP}[3,4] flip 30",
    f"weight {UP}[3,4] add 1.0 & weight {UP}[5,4] stuck-at-1 3",
    f"weight {UP}[3,4] replace nan & weight {UP}[3,4] flip 2",
]


@pytest.mark.parametrize("line", LINES)
def test_weights_allocate_the_same_few_bytes_at_any_size(line: str) -> None:
    allocated = []
    for width in (48, 48 * 64):
        model = tiny_loaded("llama", intermediate_size=width)
        injection = Injection(model, parse_faults(line))
        with AllocatedBytes() as counted, torch.inference_mode(), injection:
            pass
        allocated.append(counted.total)
    assert allocated[0] == allocated[1]
    assert 0 < allocated[0] < 2_000


@pytest.mark.parametrize("where", ["layers.1.mlp.up_proj", "layers.0", "norm"])
def test_activations_allocate_the_same_few_bytes_at_any_size(where: str) -> None:
    extra = []
    for length in (1, 24):
        model = tiny_loaded("llama")
        contexts = [context * length for context in CONTEXTS]
        faults = parse_faults(f"activation model.{where}[3] flip 30 at first_token")
        bytes_of = [_bytes(model, contexts, each) for each in ((), faults)]
        extra.append(bytes_of[1] - bytes_of[0])
    assert extra[0] == extra[1]
    assert 0 < extra[0] < 2_000


def _bytes(model: LoadedModel, contexts, faults) -> int:
    block = align(contexts, [()] * len(contexts), model.device)
    with AllocatedBytes() as counted, Injection(model, faults) as injection:
        teacher_forced(model, block, frozenset(), injection.begin_pass)
    return counted.total


def test_the_counter_sees_a_copy_of_a_tensor() -> None:
    values = torch.zeros(1000)
    with AllocatedBytes() as counted:
        values.view(10, 100).t()
        assert counted.total == 0
        values.clone()
    assert counted.total == 4000


def test_the_test_block_is_what_the_tests_say() -> None:
    block = block_of(tiny_loaded("llama"))
    assert block.context_lengths == (5, 2, 1, 3)
    assert block.answer_lengths == (3, 1, 2, 0)
    assert tuple(block.tokens.shape) == (4, 8)
