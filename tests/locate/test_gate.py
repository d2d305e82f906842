"""Passes and writing, one after the other."""

import copy
import inspect
import threading

import pytest
import torch

from aftershock.locate.gate import Gate


class Doubling(torch.nn.Module):
    """Calls `during` in each pass, and doubles."""

    def __init__(self, during):
        super().__init__()
        self.during = during
        self.register_buffer("two", torch.tensor(2.0))

    def forward(self, values, shift=0):
        self.during()
        return self.two * values + shift


@pytest.fixture
def gate():
    return Gate()


def is_free(gate):
    """Whether no pass runs."""
    with gate.closed(lambda: True) as free:
        return free


@pytest.fixture
def passes(gate):
    """A module whose passes list whether the gate saw them, and the list."""
    seen = []
    return Doubling(torch.compiler.disable(lambda: seen.append(not is_free(gate)))), seen


ONE = torch.ones(1)


def test_the_gate_is_free_before_and_after_a_pass(gate, passes):
    module, seen = passes
    with gate.around(module):
        assert is_free(gate)
        assert module(ONE, shift=1) == 3
        assert is_free(gate)
    module(ONE)
    assert seen == [True, False]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_pass_ends_however_it_ends(gate, error):
    def fail():
        raise error

    module = Doubling(fail)
    with gate.around(module):
        with pytest.raises(error):
            module(ONE)
        assert is_free(gate)


def test_a_pass_within_a_pass_does_not_wait(gate):
    """Not even where the gate is being closed, and so waits for the outer one."""
    waits, found = threading.Event(), []

    def within():
        if not found:
            closing.start()
            found.append(waits.wait(10))
            found.append(module(ONE).item())

    def close():
        with gate.closed(lambda: bool(waits.set())) as free:
            found.append(free)

    module, closing = Doubling(within), threading.Thread(target=close, daemon=True)
    with gate.around(module):
        outer = threading.Thread(target=lambda: module(ONE), daemon=True)
        outer.start()
        for thread in (outer, closing):
            thread.join(10)
    assert found == [True, 2, True]


def test_what_is_given_up_waits_no_more(gate):
    waits, given_up, found = threading.Event(), threading.Event(), []

    def close():
        with gate.closed(lambda: bool(waits.set()) or given_up.is_set()) as free:
            found.append(free)

    closing = threading.Thread(target=close, daemon=True)
    with gate.passing():
        closing.start()
        assert waits.wait(10)
        given_up.set()
        gate.wake()
        closing.join(10)
        assert found == [False]
    with gate.passing():
        assert not is_free(gate)


@pytest.mark.parametrize("compiled", ["before", "after", "in place", "forward"])
def test_passes_that_are_compiled_are_seen(gate, passes, compiled):
    torch.compiler.reset()
    module, seen = passes
    call = torch.compile(module, backend="eager") if compiled == "before" else module
    if compiled == "in place":
        module.compile(backend="eager")
    if compiled == "forward":
        module.forward = torch.compile(module.forward, backend="eager")
    call(ONE)
    with gate.around(module):
        call = torch.compile(module, backend="eager") if compiled == "after" else call
        for _ in range(2):
            assert call(ONE) == 2
    call(ONE)
    assert seen == [False, True, True, False]


def test_a_forward_of_its_own_is_kept(gate, passes):
    module, seen = passes
    own = module.forward = lambda values: -Doubling.forward(module, values)
    with gate.around(module):
        assert module(ONE) == -2
    assert module.forward is own
    assert seen == [True]


def test_the_module_looks_as_it_did(gate, passes):
    """Its signature, by which libraries tell what it takes, and a copy, which has words of its own."""
    module, _seen = passes
    signature, names = inspect.signature(module.forward), set(vars(module))
    with gate.around(module):
        assert inspect.signature(module.forward) == signature
        other = copy.deepcopy(module)
    other.two.fill_(7)
    assert (module(ONE), other(ONE)) == (2, 7)
    assert set(vars(module)) == names
