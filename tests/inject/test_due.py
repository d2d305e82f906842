"""Where a fault is due, and faults that are in each other's way."""

from contextlib import nullcontext

import pytest
from live_models import CONTEXTS, block_of, model_of

from aftershock.errors import InputError
from aftershock.faults import Entry, parse_faults, splits
from aftershock.inject import Injection
from aftershock.inject.due import Due, due_rows
from aftershock.models import Pass, align, decode, teacher_forced

SITE = "value model.layers.0.self_attn[1,3]"
OVERLAPPING = (
    f"{SITE} of prefill:2 replace 111.0 from first_token to decode:2",
    f"{SITE} of prefill:0.5 replace 222.0 from decode:1 to decode:3",
)


def test_rows_that_are_over_or_have_no_token_are_not_due() -> None:
    # Contexts of 5, 2, 1 and 3 tokens, answers of 3, 1, 2 and none.
    block = block_of(model_of("llama"))
    call = Pass(block, decode(1), decode(2), 5, 7, 2, (True, True, False, True), (0, 1, 2))
    columns = range(5, 7)
    assert due_rows(0, Entry(decode(1)), range(9), call, call.rows, columns) == Due(0, [0, 1], [0, 1], [5, 5])
    assert due_rows(0, Entry(decode(2)), range(9), call, call.rows, columns) == Due(0, [0], [0], [6])
    assert due_rows(0, Entry(decode(1)), range(1, 9), call, call.rows, columns) == Due(0, [1], [1], [5])
    # Of tokens before the call, those of rows that read them.
    assert due_rows(0, Entry(0, 0), range(9), call, range(4), range(5)) == Due(0, [0, 1], [0, 1], [0, 3])
    assert due_rows(0, Entry(0, 0), range(9), call, range(4), range(3, 5)) == Due(0, [1], [1], [3])


@pytest.mark.parametrize("lines", [OVERLAPPING, OVERLAPPING[::-1]])
def test_a_word_spelt_in_two_ways_is_one_word(lines: tuple[str, str]) -> None:
    model, faults = model_of("llama"), parse_faults(" & ".join(lines))
    # The third token is the middle one of the first prompt's four in prefill, and none of the other's.
    for context, one_word in ((CONTEXTS[0], True), (CONTEXTS[3], False)):
        block = align([context], [(20, 21, 22)], model.device)
        expected = pytest.raises(InputError, match="overlaps in time") if one_word else nullcontext()
        with expected, Injection(model, faults) as injection:
            teacher_forced(model, block, splits(faults), injection.begin_pass)


def test_faults_on_one_word_in_rows_apart_are_no_hindrance() -> None:
    model = model_of("llama")
    faults = parse_faults(f"{SITE} of first_token replace 9.0 & {SITE} of first_token replace 7.0 at first_token")
    with Injection(model, faults, [range(1), range(1, 4)]) as injection:
        teacher_forced(model, block_of(model), frozenset({decode(1)}), injection.begin_pass)
    assert [(one.fault, one.row) for one in injection.struck] == [(0, 0), (1, 1), (1, 2), (1, 3)]
    with pytest.raises(InputError, match="overlaps in time"):
        Injection(model, faults, [range(2), range(2)])
