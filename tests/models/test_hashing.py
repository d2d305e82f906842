import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aftershock.models import model_hash
from aftershock.numerics import words
from tiny_models import tiny_model

MODELS = {dtype: tiny_model("qwen3", dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)}


@settings(max_examples=40)
@given(dtype=st.sampled_from(sorted(MODELS, key=str)), data=st.data())
def test_any_flipped_bit_changes_the_hash_and_flipping_it_back_restores_it(dtype, data):
    module = MODELS[dtype]
    tensors = dict(module.named_parameters())
    stored = words(tensors[data.draw(st.sampled_from(sorted(tensors)))].data).view(-1)
    offset = data.draw(st.integers(0, stored.numel() - 1))
    bit = data.draw(st.integers(0, stored.element_size() * 8 - 1))
    mask = torch.tensor(1 << bit, dtype=torch.int64).to(stored.dtype)
    clean = model_hash(module)
    stored[offset] ^= mask
    assert model_hash(module) != clean
    stored[offset] ^= mask
    assert model_hash(module) == clean


@pytest.mark.parametrize(("before", "after"), [(0x7FC00000, 0x7FC00001), (0, -(2**31))])
def test_nan_payloads_and_the_sign_of_zero_count(before, after):
    module = tiny_model("llama")
    stored = words(module.model.norm.weight.data)
    stored[0] = before
    first = model_hash(module)
    assert model_hash(module) == first
    stored[0] = after
    assert model_hash(module) != first


def test_buffers_count():
    module = tiny_model("llama")
    clean = model_hash(module)
    module.model.rotary_emb.inv_freq[0] += 1
    assert model_hash(module) != clean


def test_names_types_and_shapes_count():
    def holder(name, tensor):
        module = torch.nn.Module()
        module.register_parameter(name, torch.nn.Parameter(tensor))
        return model_hash(module)

    zeros = torch.zeros(2, 3)
    kinds = [("a", zeros), ("b", zeros), ("a", zeros.T), ("a", zeros[:1]), ("a", zeros.half()), ("a", zeros.bfloat16())]
    assert len({holder(name, tensor) for name, tensor in kinds}) == len(kinds)


def test_untying_a_tensor_changes_the_hash():
    module = tiny_model("llama")
    tied = model_hash(module)
    module.lm_head.weight = torch.nn.Parameter(module.lm_head.weight.clone())
    assert model_hash(module) != tied


def test_values_in_another_order_of_memory_hash_alike():
    first, second = torch.nn.Linear(3, 4, bias=False), torch.nn.Linear(3, 4, bias=False)
    values = torch.arange(12.0).reshape(4, 3)
    first.weight = torch.nn.Parameter(values)
    second.weight = torch.nn.Parameter(values.T.contiguous().T)
    assert model_hash(first) == model_hash(second)
