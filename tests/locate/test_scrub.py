"""A resident model that is checked while it serves."""

import threading

import pytest
import torch

from aftershock.detect import take_fingerprint
from aftershock.errors import InputError
from aftershock.locate import Ambiguous, Scrubber, WordChanges
from aftershock.models import live_words
from tiny_models import tiny_model

UP = "model.layers.1.mlp.up_proj.weight"
IDS = torch.tensor([[1, 20, 30, 40, 50]])


@pytest.fixture
def module():
    return tiny_model("llama", torch.bfloat16, hidden_size=64, intermediate_size=80)


def generate(module):
    """Logits of twelve greedy steps."""
    ids, found = IDS, []
    with torch.inference_mode():
        for _ in range(12):
            found.append(module(input_ids=ids).logits[:, -1])
            ids = torch.cat([ids, found[-1].argmax(-1, keepdim=True)], 1)
    return torch.cat(found)


def scrubbed(module, **options):
    """A scrubber at full share, the list of its events, and a flag that is set at each."""
    events, seen = [], threading.Event()

    def on_event(event):
        events.append(event)
        seen.set()

    fingerprint = take_fingerprint(live_words(module), options.pop("profile", "exact"), options.get("key"))
    return Scrubber(module, fingerprint, on_event, **{"share": 1.0, **options}), events, seen


def corrupt(module, row=3, column=4, bit=14):
    with torch.inference_mode():
        module.get_parameter(UP).view(torch.int16)[row, column] ^= torch.tensor(1 << bit).to(torch.int16)


@pytest.mark.parametrize("options", [{}, {"profile": "small"}, {"key": bytes(range(32))}, {"share": 0.2}])
def test_a_corrupted_model_is_mended_while_it_generates(module, options):
    clean = generate(module)
    scrubber, events, seen = scrubbed(module, **options)
    with scrubber:
        assert torch.equal(generate(module), clean)
        corrupt(module)
        while not seen.is_set():
            generate(module)
        assert torch.equal(generate(module), clean)
    (event,) = events
    assert event.tensor == UP
    assert event.repaired
    assert isinstance(event.found, WordChanges)
    assert (event.found.rows.tolist(), event.found.columns.tolist(), event.found.bits) == ([3], [4], ((14,),))


def test_nothing_is_written_during_a_pass(module):
    scrubber, events, seen = scrubbed(module)
    inside, go_on, during = threading.Event(), threading.Event(), []

    def pause(*_):
        corrupt(module)
        inside.set()
        go_on.wait(0.3)
        during.append(module.get_parameter(UP).view(torch.int16)[3, 4].item())

    clean = module.get_parameter(UP).view(torch.int16)[3, 4].item()
    hook = module.model.layers[0].register_forward_hook(pause)
    with scrubber:
        module(input_ids=IDS)
        hook.remove()
        assert seen.wait(10)
    assert during == [clean ^ 1 << 14]
    assert events[0].repaired
    assert module.get_parameter(UP).view(torch.int16)[3, 4].item() == clean


def test_a_pass_that_fails_does_not_stop_repair(module):
    scrubber, events, seen = scrubbed(module)
    with scrubber:
        with pytest.raises(ValueError, match="exactly one of"):
            module(input_ids=None)
        corrupt(module)
        assert seen.wait(10)
    assert events[0].repaired


def test_what_cannot_be_told_is_reported_once(module):
    scrubber, events, seen = scrubbed(module)
    for row in (1, 5, 9):
        for column in (2, 3, 7):
            corrupt(module, row, column, 0)
    with scrubber:
        assert seen.wait(10)
        rounds = scrubber.rounds
        while scrubber.rounds < rounds + 3:
            generate(module)
    (event,) = events
    assert isinstance(event.found, Ambiguous)
    assert (event.found.rows, event.found.columns) == ((1, 5, 9), (2, 3, 7))
    assert not event.repaired


def test_a_bit_that_flips_again_is_mended_again(module):
    scrubber, events, seen = scrubbed(module)
    with scrubber:
        for _ in range(3):
            corrupt(module)
            assert seen.wait(10)
            seen.clear()
    assert [event.repaired for event in events] == [True] * 3


def test_without_repair_events_only_tell(module):
    scrubber, events, seen = scrubbed(module, repair=False)
    corrupt(module)
    broken = module.get_parameter(UP).clone()
    with scrubber:
        assert seen.wait(10)
    assert len(events) == 1
    assert not events[0].repaired
    assert torch.equal(module.get_parameter(UP), broken)


def test_errors_of_the_thread_come_to_light_at_the_end(module):
    seen = threading.Event()

    def on_event(_):
        seen.set()
        raise RuntimeError("no pager today")

    fingerprint = take_fingerprint(live_words(module), "exact")
    scrubber = Scrubber(module, fingerprint, on_event, share=1.0).start()
    corrupt(module)
    assert seen.wait(10)
    with pytest.raises(RuntimeError, match="no pager today"):
        scrubber.stop()
    assert not module._forward_hooks
    assert not module._forward_pre_hooks
    scrubber.stop()


def test_bad_shares_and_fingerprints_are_refused(module):
    fingerprint = take_fingerprint(live_words(module), "exact")
    for share in (0, -1, 1.5):
        with pytest.raises(InputError, match="share"):
            Scrubber(module, fingerprint, print, share=share)
    with pytest.raises(InputError, match="key"):
        Scrubber(module, fingerprint, print, key=bytes(32))
