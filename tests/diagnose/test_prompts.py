"""Prompts as the reference would read them: chats that its template refuses, and prompts in another order."""

import pytest

from aftershock.capture import Request, record
from aftershock.diagnose import diagnose
from aftershock.diagnose.prompts import expected
from aftershock.errors import InputError
from tiny_models import tiny_loaded, tiny_tokenizer

CHAT = ({"role": "user", "content": "x"},)
REQUEST = Request(id="0", tokens=(5,), positions=(0,))


def test_a_chat_that_there_is_no_template_for_is_refused():
    with pytest.raises(InputError, match="tokenizer has no chat template for prompts that are messages"):
        expected(tiny_tokenizer(), CHAT, REQUEST)


def test_a_chat_that_the_template_refuses_is_refused_with_its_words():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('turns must alternate') }}"
    with pytest.raises(InputError, match=r"chat template refuses a prompt .*turns must alternate"):
        expected(tokenizer, CHAT, REQUEST)


def test_prompts_in_another_order_are_told_from_a_wrong_tokenizer():
    reference = tiny_loaded("llama")
    prompts = [tuple(range(5, 25)), tuple(range(30, 38)), tuple(range(40, 48))]
    bundle = record(reference, prompts)
    with pytest.raises(InputError, match="request 1 has read what is prompt 2 of those given"):
        diagnose(reference, bundle, [prompts[0], prompts[2], prompts[1]])
    assert diagnose(reference, bundle, [*prompts[:2], tuple(range(60, 68))]).component == "tokens"
