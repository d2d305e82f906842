"""Passes that are run once more."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

from aftershock.errors import InputError
from aftershock.models import LoadedModel
from aftershock.protect import Action, CorruptionError
from aftershock.protect.guards import RowGuard
from aftershock.protect.passes import Alarm, Passes, RepeatedPasses
from aftershock.protect.products import LinearProduct
from aftershock.protect.tally import Event, Site, Tally
from tiny_models import tiny_loaded

TOKENS = torch.arange(4, 28).view(2, 12)


class Struck:
    """An output that is wrong in one pass, with a check that tells the alarm, as on an accelerator."""

    def __init__(self, alarm: Alarm, passes: tuple[int, ...]) -> None:
        self._alarm, self._passes, self._count = alarm, passes, 0

    def __call__(self, module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        wrong = self._count in self._passes
        self._count += 1
        if wrong:
            output[0, -1, 3] = 1e5
        assert self._alarm.deferred or not wrong
        self._alarm.tell(torch.tensor([False, wrong]))


def watched(model: LoadedModel, *wrong: int) -> list[Event]:
    passes, alarm, events = Passes(), Alarm(deferred=True), []
    model.module.register_forward_pre_hook(passes.before_pass, with_kwargs=True)
    model.module.register_forward_pre_hook(alarm.clear)
    repeated = RepeatedPasses(passes, alarm, events)
    model.module.register_forward_hook(repeated.after_pass, with_kwargs=True)
    model.module.get_submodule("model.layers.0.mlp.down_proj").register_forward_hook(Struck(alarm, wrong))
    return events


@pytest.mark.parametrize("wrong", [(), (0,), (3,), (0, 4)])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_wrong_pass_is_repeated_from_what_was_cached_before_it(family: str, wrong: tuple[int, ...]) -> None:
    plain, model = tiny_loaded(family), tiny_loaded(family)
    events = watched(model, *wrong)
    asked = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.module.generate(TOKENS, **asked), plain.module.generate(TOKENS, **asked))
    assert len(events) == len(wrong)


def test_passes_without_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, model = tiny_loaded("llama"), tiny_loaded("llama")
    events = watched(model, 0)
    asked = {"input_ids": TOKENS, "use_cache": False}
    with torch.inference_mode():
        assert torch.equal(model.module(**asked).logits, plain.module(**asked).logits)
    assert [(event.site.component, event.action) for event in events] == [("pass", "recover")]


@pytest.mark.parametrize("wrong", [(0,), (3,)])
def test_sliding_windows_that_are_full(wrong: tuple[int, ...]) -> None:
    plain, model = tiny_loaded("gemma3"), tiny_loaded("gemma3")
    watched(model, *wrong)
    tokens, asked = TOKENS.repeat(1, 2), {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.module.generate(tokens, **asked), plain.module.generate(tokens, **asked))


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("wrong", [(0,), (1,), (0, 2)])
def test_static_caches_are_taken_back(family: str, wrong: tuple[int, ...]) -> None:
    plain, model = tiny_loaded(family), tiny_loaded(family)
    watched(model, *wrong)
    asked = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "cache_implementation": "static"}
    tokens = TOKENS[:, :8]
    for _ in range(2):
        assert torch.equal(model.module.generate(tokens, **asked), plain.module.generate(tokens, **asked))


def test_a_static_window_is_taken_back_until_it_is_full() -> None:
    plain, model = tiny_loaded("gemma3"), tiny_loaded("gemma3")
    # The third pass, and the one that fills the window's 16 columns: the tenth, as one was run twice before it.
    events = watched(model, 2, 9)
    asked = {"max_new_tokens": 14, "do_sample": False, "pad_token_id": 0, "cache_implementation": "static"}
    tokens = TOKENS[:, :8]
    assert torch.equal(model.module.generate(tokens, **asked), plain.module.generate(tokens, **asked))
    assert len(events) == 2


def test_what_cannot_be_taken_back_is_told() -> None:
    model = tiny_loaded("gemma3")
    watched(model, 1)
    cache = StaticCache(config=model.module.config, max_cache_len=40)
    with torch.inference_mode():
        model.module(input_ids=TOKENS.repeat(1, 2), past_key_values=cache)
        with pytest.raises(InputError, match="sliding window is full"):
            model.module(input_ids=TOKENS[:, :1], past_key_values=cache)


@pytest.mark.parametrize("layers", ["known", "made in the first pass"])
def test_a_cache_that_is_given_by_position(layers: str) -> None:
    model = tiny_loaded("llama")
    watched(model, 0)
    cache = DynamicCache(config=model.module.config) if layers == "known" else DynamicCache()
    with torch.inference_mode():
        model.module(TOKENS, None, None, cache)
    assert cache.get_seq_length() == 12


@pytest.mark.parametrize("static", [False, True])
def test_which_pass_is_the_first(static: bool) -> None:
    model, passes, first = tiny_loaded("llama"), Passes(), []
    model.module.register_forward_pre_hook(passes.tell_first, with_kwargs=True)
    model.module.register_forward_hook(lambda *_: first.append(passes.first))
    kind = {"cache_implementation": "static"} if static else {}
    for _ in range(2):
        model.module.generate(TOKENS, max_new_tokens=3, do_sample=False, pad_token_id=0, **kind)
    assert first == [True, False, False] * 2


def test_an_alarm_of_a_pass_that_failed_is_forgotten() -> None:
    model = tiny_loaded("llama")
    events = watched(model)
    alarm = Alarm(deferred=True)
    alarm.tell(torch.tensor([True]))
    alarm.clear()
    assert not alarm.taken()
    assert not events


def test_an_alarm_first_told_in_inference_mode_works_outside() -> None:
    alarm = Alarm(deferred=True)
    with torch.inference_mode():
        alarm.tell(torch.tensor([True]))
    assert alarm.taken()
    alarm.tell(torch.tensor([True]))
    assert alarm.taken()


@pytest.mark.parametrize("action", ["recover", "log", "zero", "raise"])
def test_only_recovery_is_put_off(action: Action) -> None:
    alarm, events = Alarm(deferred=True), []
    layer, values = torch.nn.Linear(16, 24), torch.ones(3, 16)
    product = LinearProduct(layer, lambda: False)
    tally = Tally(Site("layer", "down", None), "Checksum", torch.device("cpu"))
    guard = RowGuard(product, action, tally, events, alarm)
    output = layer(values).detach()
    output[1, 2] = 1e6
    if action == "raise":
        with pytest.raises(CorruptionError):
            guard(layer, (values,), output)
    else:
        guard(layer, (values,), output)
    assert alarm.taken() is (action == "recover")
    assert len(events) == (action in ("log", "zero"))


def test_an_alarm_is_told_once() -> None:
    alarm = Alarm(deferred=True)
    assert not alarm.taken()
    alarm.tell(torch.tensor([False, True]))
    alarm.tell(torch.tensor([False]))
    assert alarm.taken()
    assert not alarm.taken()
