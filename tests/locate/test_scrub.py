"""A resident model that is checked while it serves."""

import threading
from itertools import count
from types import SimpleNamespace

import pytest
import torch

from aftershock.detect import take_fingerprint
from aftershock.errors import InputError
from aftershock.locate import Ambiguous, Scrubber, WordChanges, live_repair, mend_in_module, scrub
from aftershock.models import file_words, live_words
from tiny_models import save_tiny, tiny_model

UP = "model.layers.1.mlp.up_proj.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"
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


def corrupt(module, row=3, column=4, bit=14, name=UP):
    with torch.inference_mode():
        module.get_parameter(name).view(torch.int16)[row, column] ^= torch.tensor(1 << bit).to(torch.int16)


def waiting(scrubber, monkeypatch):
    """A flag that is set while the scrubber waits for passes to end, so that it can write."""
    found, closed = threading.Event(), scrubber._gate.closed
    monkeypatch.setattr(scrubber._gate, "closed", lambda given_up: closed(lambda: bool(found.set()) or given_up()))
    return found


def look_again(scrubber, module, ids=IDS):
    """Run passes until all tensors have been checked anew."""
    rounds = scrubber.rounds
    while scrubber.running and scrubber.rounds < rounds + 2:
        module(input_ids=ids)


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


def test_nothing_is_written_during_a_pass(module, monkeypatch):
    scrubber, events, seen = scrubbed(module)
    waits, during = waiting(scrubber, monkeypatch), []

    def pause(*_):
        corrupt(module)
        during.append(waits.wait(10))
        during.append(module.get_parameter(UP).view(torch.int16)[3, 4].item())

    clean = module.get_parameter(UP).view(torch.int16)[3, 4].item()
    hook = module.model.layers[0].register_forward_hook(pause)
    with scrubber:
        module(input_ids=IDS)
        hook.remove()
        assert seen.wait(10)
    assert during == [True, clean ^ 1 << 14]
    assert events[0].repaired
    assert module.get_parameter(UP).view(torch.int16)[3, 4].item() == clean


def test_no_pass_begins_while_words_are_written(module, monkeypatch):
    scrubber, events, seen = scrubbed(module)
    clean, began, passes = generate(module), threading.Event(), []

    def repair(*arguments):
        passes.append(threading.Thread(target=lambda: passes.append(generate(module))))
        passes[0].start()
        passes.append(began.wait(0.3))
        return mend_in_module(*arguments)

    monkeypatch.setattr(scrub, "mend_in_module", repair)
    module.model.layers[0].register_forward_pre_hook(lambda *_: began.set())
    corrupt(module)
    with scrubber:
        assert seen.wait(10)
        passes[0].join()
    assert events[0].repaired
    assert passes[1] is False
    assert torch.equal(passes[2], clean)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_pass_that_fails_does_not_stop_repair(module, error):
    def fail(*_):
        raise error

    scrubber, events, seen = scrubbed(module)
    hook = module.model.layers[1].register_forward_hook(fail)
    with scrubber:
        with pytest.raises(error):
            module(input_ids=IDS)
        hook.remove()
        corrupt(module)
        assert seen.wait(10)
    assert events[0].repaired


def test_it_stops_while_a_pass_runs(module, monkeypatch):
    """And puts nothing back in it, but once it runs again."""
    scrubber, events, seen = scrubbed(module)
    waits, during = waiting(scrubber, monkeypatch), []

    def stop(*_):
        corrupt(module)
        during.append(waits.wait(10))
        scrubber.stop()
        during.append(torch.equal(module.get_parameter(UP), clean))

    clean = module.get_parameter(UP).clone()
    hook = module.model.layers[0].register_forward_hook(stop)
    scrubber.start()
    module(input_ids=IDS)
    hook.remove()
    assert during == [True, False]
    assert [event.repaired for event in events] == [False]
    seen.clear()
    with scrubber:
        assert seen.wait(10)
    assert [event.repaired for event in events] == [False, True]
    assert torch.equal(module.get_parameter(UP), clean)


def test_what_cannot_be_told_is_reported_once(module):
    scrubber, events, seen = scrubbed(module)
    for row in (1, 5, 9):
        for column in (2, 3, 7):
            corrupt(module, row, column, 0)
    with scrubber:
        assert seen.wait(10)
        look_again(scrubber, module)
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


def test_a_fault_that_comes_back_is_told_again(module):
    scrubber, events, seen = scrubbed(module, repair=False)
    with scrubber:
        for number in (1, 2):
            corrupt(module)
            assert seen.wait(10)
            look_again(scrubber, module)
            assert len(events) == number
            corrupt(module)  # the operator mends it
            look_again(scrubber, module)
            seen.clear()
    assert len(events) == 2


def test_a_cell_that_is_stuck_is_told_and_the_others_are_mended(module, monkeypatch):
    flip, stuck = live_repair._flip, module.get_parameter(UP)
    monkeypatch.setattr(
        live_repair, "_flip", lambda tensor, changes: None if tensor is stuck else flip(tensor, changes)
    )
    scrubber, events, seen = scrubbed(module)
    with scrubber:
        corrupt(module)
        assert seen.wait(10)
        seen.clear()
        corrupt(module, name=DOWN)
        assert seen.wait(10)
        look_again(scrubber, module)
        assert scrubber.running
    assert [(event.tensor, event.repaired) for event in events] == [(UP, False), (DOWN, True)]


def test_words_that_change_before_they_are_put_back(module, monkeypatch):
    """They are proved after, and left as they were if they are not the clean ones; the next round mends them all."""
    scrubber, events, seen = scrubbed(module)
    clean, strikes = module.get_parameter(UP).clone(), [True]

    def repair(*arguments):
        if strikes:
            strikes.pop()
            corrupt(module, 7, 8)
        return mend_in_module(*arguments)

    monkeypatch.setattr(scrub, "mend_in_module", repair)
    with scrubber:
        corrupt(module)
        while not (events and events[-1].repaired):
            generate(module)
        seen.clear()
        corrupt(module)
        assert seen.wait(10)
    assert [event.repaired for event in events] == [False, True, True]
    assert torch.equal(module.get_parameter(UP), clean)


def test_what_a_model_itself_rewrites_is_left_alone():
    """Its rotary frequencies, once a prompt is longer than those before."""
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    module = tiny_model("llama", max_position_embeddings=16, rope_parameters=scaled)
    before = module.model.rotary_emb.inv_freq.clone()
    scrubber, events, _seen = scrubbed(module)
    with scrubber:
        module(input_ids=torch.arange(10, 50)[None])
        look_again(scrubber, module, torch.arange(10, 50)[None])
    assert events == []
    assert not torch.equal(module.model.rotary_emb.inv_freq, before)


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
    scrubber._thread.join()
    assert not scrubber.running
    assert "forward" not in vars(module)
    with pytest.raises(RuntimeError, match="no pager today"):
        scrubber.start()
    scrubber.stop()


def test_one_thread_however_often_it_starts(module):
    scrubber, events, seen = scrubbed(module)
    before = threading.active_count()
    with scrubber.start() as same:
        assert same is scrubber
        assert threading.active_count() == before + 1
        assert scrubber.running
        corrupt(module)
        assert seen.wait(10)
    assert [event.repaired for event in events] == [True]
    assert not scrubber.running
    assert threading.active_count() == before


def test_an_event_may_stop_it(module):
    events = []

    def on_event(event):
        events.append(event)
        scrubber.stop()

    fingerprint = take_fingerprint(live_words(module), "exact")
    scrubber = Scrubber(module, fingerprint, on_event, share=1.0)
    corrupt(module)
    scrubber.start()._thread.join()
    assert "forward" not in vars(module)
    scrubber.stop()
    assert [event.repaired for event in events] == [True]


def test_bad_shares_and_fingerprints_are_refused(module, tmp_path):
    fingerprint = take_fingerprint(live_words(module), "exact")
    for share in (0, -1, 1.5):
        with pytest.raises(InputError, match="share"):
            Scrubber(module, fingerprint, print, share=share)
    with pytest.raises(InputError, match="key"):
        Scrubber(module, fingerprint, print, key=bytes(32))
    folder = save_tiny(tmp_path / "model", "llama")
    with pytest.raises(InputError, match="is of files: take one of the live module"):
        Scrubber(module, take_fingerprint(file_words(str(folder))), print)


def test_it_starts_again_after_it_stopped(module):
    scrubber, events, seen = scrubbed(module)
    for _ in range(2):
        with scrubber:
            corrupt(module)
            assert seen.wait(10)
            seen.clear()
    assert [event.repaired for event in events] == [True] * 2


@pytest.mark.parametrize(("share", "pause"), [(1.0, 0), (0.5, 2), (0.05, 38)])
def test_it_rests_as_its_share_says(module, monkeypatch, share, pause):
    """After each tensor, whose check takes two seconds by this clock."""
    scrubber, _events, _seen = scrubbed(module, share=share)
    clock, pauses = count(0, 2), []
    monkeypatch.setattr(scrub, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(scrubber._done, "wait", lambda seconds: pauses.append(seconds) or len(pauses) == 3)
    scrubber.start()._thread.join()
    scrubber.stop()
    assert pauses == pytest.approx([pause] * 3)
