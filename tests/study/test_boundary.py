"""Searching for the bit from which on a flip does harm."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aftershock.errors import InputError
from aftershock.numerics import FORMATS, NumberFormat, words
from aftershock.report import write_report
from aftershock.study import StoredStudy, load_study, make_plan, outlook, run_study, summarise
from aftershock.study.boundary import Ladder, exhaustive_values, ladders, next_probes, search
from aftershock.study.probes import is_harmful
from tiny_study import tiny_settings

LENGTHS = st.integers(0, 32)
QUICK = settings(max_examples=40)


def word_of(value: float, number_format: NumberFormat) -> int:
    return int(words(torch.tensor(value, dtype=number_format.dtype))) % (1 << number_format.bits)


def run(ladder: Ladder, harmful: dict[int, bool], seed: int = 0) -> tuple[dict[int, bool], int]:
    """Answer a search's probes from the whole truth; what was probed, and in how many rounds."""
    known: dict[int, bool] = {}
    rounds = 0
    while wanted := search(ladder, known, seed).wanted:
        known |= {bit: harmful[bit] for bit in wanted}
        rounds += 1
    return known, rounds


@QUICK
@given(st.sampled_from(FORMATS), st.floats(-4, 4, width=16, allow_subnormal=False), st.data())
def test_ladders_hold_every_bit_once_by_growing_change(number_format, value, data):
    bits = sorted(data.draw(st.sets(st.integers(0, number_format.bits - 1), min_size=1)))
    pair = ladders(3, word_of(value, number_format), number_format, bits)
    assert sorted(pair[0].bits + pair[1].bits) == bits
    old = torch.tensor(value, dtype=number_format.dtype)
    for ladder, sign in zip(pair, (1, -1), strict=True):
        masks = torch.tensor([1 << bit for bit in ladder.bits]).to(number_format.word)
        changes = sign * ((words(old) ^ masks).view(number_format.dtype).double() - old.double())
        finite = changes[changes.isfinite()]
        assert bool((finite >= 0).all())
        assert bool((finite.diff() >= 0).all())
        assert bool(changes[len(finite) :].isfinite().logical_not().all()), "infinities come last"


def test_a_flip_to_infinity_or_nan_is_the_largest_change_away_from_zero():
    fp32 = FORMATS[0]
    assert ladders(0, word_of(1.0, fp32), fp32, range(32))[0].bits[-1] == 30
    assert ladders(0, word_of(-1.5, fp32), fp32, range(32))[1].bits[-1] == 30


def test_the_sign_of_zero_is_the_smallest_change():
    for number_format in FORMATS:
        up, down = ladders(0, 0, number_format, range(number_format.bits))
        assert (up.bits[:2], down.bits) == ((number_format.bits - 1, 0), ())


@QUICK
@given(LENGTHS, st.data(), st.integers(0, 3))
def test_a_monotone_boundary_is_found_in_about_log2_probes(length, data, seed):
    boundary = data.draw(st.integers(0, length))
    bits = tuple(data.draw(st.permutations(range(length))))
    ladder = Ladder(7, "up", bits)
    known, rounds = run(ladder, {bit: place >= boundary for place, bit in enumerate(bits)}, seed)
    found = search(ladder, known, seed)
    assert found.boundary == boundary
    assert found.contradictions == ()
    assert set(found.asked) == set(known)
    assert len(found.asked) <= length.bit_length() + 2
    assert rounds <= length.bit_length() + 1


def needed(length: int, boundary: int) -> set[int]:
    """What a plain binary search looks at."""
    low, high, looked = -1, length, set()
    while high - low > 1:
        middle = (low + high) // 2
        looked.add(middle)
        low, high = (low, middle) if middle >= boundary else (middle, high)
    return looked


@QUICK
@given(LENGTHS, st.data(), st.integers(0, 3))
def test_either_side_is_verified_by_one_bit_that_the_search_did_not_need(length, data, seed):
    boundary = data.draw(st.integers(0, length))
    known, _ = run(Ladder(0, "down", tuple(range(length))), {bit: bit >= boundary for bit in range(length)}, seed)
    for side in (range(boundary), range(boundary, length)):
        free = set(side) - needed(length, boundary)
        assert len(free.intersection(known)) == min(1, len(free))


def test_a_verifying_probe_that_comes_out_wrong_is_reported():
    ladder = Ladder(0, "up", tuple(range(16)))
    truth = {bit: bit >= 12 for bit in range(16)}
    known, _ = run(ladder, truth)
    below = next(bit for bit in search(ladder, known, 0).asked[-2:] if bit < 12)
    known[below] = True
    found = search(ladder, known, 0)
    assert found.contradictions == (below,)
    assert found.boundary == 12


def test_outcomes_that_the_search_does_not_ask_for_change_nothing():
    ladder = Ladder(0, "up", tuple(range(20)))
    truth = {bit: bit >= 9 for bit in range(20)}
    known, _ = run(ladder, truth)
    assert search(ladder, truth, 0) == search(ladder, known, 0)


def test_rounds_ask_nothing_twice_and_every_bit_of_the_exhaustive_values():
    pairs = [(Ladder(value, "up", tuple(range(9))), Ladder(value, "down", tuple(range(9, 16)))) for value in range(4)]
    known: dict[int, dict[int, bool]] = {}
    seen: set[tuple[int, int]] = set()
    while probes := next_probes(pairs, known, frozenset({2}), 0):
        assert seen.isdisjoint(probes)
        seen.update(probes)
        for value, bit in probes:
            known.setdefault(value, {})[bit] = bit in (7, 8, 15)
    assert sorted(bit for value, bit in seen if value == 2) == list(range(16))
    assert len(seen) < 4 * 16
    for up, down in pairs:
        assert search(up, known[up.value], 0).boundary == 7
        assert search(down, known[up.value], 0).boundary == 6


@QUICK
@given(st.integers(1, 60), st.sampled_from((0.0, 0.1, 0.25, 0.5, 1.0)), st.integers(0, 5))
def test_the_exhaustive_values_are_a_share_of_all(values, share, seed):
    chosen = exhaustive_values(values, share, seed)
    assert chosen <= set(range(values))
    assert share * values <= len(chosen) < share * values + 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("search")


def searching(folder: Path):
    # Clozes of a random model are wrong without a fault; texts are eligible whatever they say.
    return tiny_settings(
        folder,
        faults={"sites": ["weight"], "components": ["v", "o", "up"]},
        search={"values": 4, "exhaustive": 0.25},
        run={"noise": 2, "traced": 0, "audit": 0.0},
    )


@pytest.fixture(scope="module")
def study(folder: Path) -> StoredStudy:
    return run_study(make_plan(searching(folder)), folder / "study")


def test_a_search_is_a_study_of_ordinary_trials(folder, study):
    plan = make_plan(searching(folder))
    summary = summarise(study)
    assert summary.search.values
    records = {record.trial: record for record in study.trials}
    assert len(records) < plan.trials == 4 * 32
    assert abs(len(records) - outlook(plan).trials) <= 4 * 4
    for value in summary.search.values:
        trials = [trial for trial in records if trial // 32 == value.value]
        assert len({records[trial].strikes[0].old_bits for trial in trials}) == 1
        assert all(records[trial].bits == (trial % 32,) for trial in trials)
        assert len({tuple(item.item for item in records[trial].items) for trial in trials}) == 1
        for side in value.sides:
            verdicts = [
                is_harmful(records[value.value * 32 + bit]) for bit in side.bits if value.value * 32 + bit in records
            ]
            if not side.contradictions and value.harmful is None:
                assert verdicts == sorted(verdicts)
        if value.harmful is not None:
            assert len(trials) == 32
            assert set(value.harmful) == {trial % 32 for trial in trials if is_harmful(records[trial])}


def test_a_search_that_was_stopped_goes_on_to_the_same_records(folder, study):
    class StopError(Exception):
        pass

    def stop(progress):
        if progress.phase == "trials" and progress.done == 41:
            raise StopError

    plan = make_plan(searching(folder))
    with pytest.raises(StopError):
        run_study(plan, folder / "stopped", watch=stop)
    assert len(load_study(folder / "stopped").trials) == 41
    resumed = run_study(plan, folder / "stopped", resume=True)
    assert resumed.records_digest == study.records_digest
    assert summarise(resumed).search == summarise(study).search


def test_trust_compares_the_search_with_every_bit(study):
    found = summarise(study).search
    (tried,) = [value for value in found.values if value.harmful is not None]
    assert found.trust.values == 1
    assert (found.trust.harmful, found.trust.implied) == (len(tried.harmful), len(tried.implied))
    assert found.trust.agreeing == len(tried.implied.intersection(tried.harmful))
    assert found.probes < found.flips
    assert "recall" in found.text()


@pytest.mark.parametrize(
    "faults",
    [
        {"sites": ["weight", "activation"]},
        {"sites": ["weight"], "count": 2},
        {"sites": ["weight"], "corruption": "stuck-at-1"},
    ],
)
def test_a_search_takes_single_flips_of_weights_only(folder, faults):
    with pytest.raises(InputError, match="a search for boundary bits flips one bit"):
        tiny_settings(folder, faults=faults, search={"values": 3})


def test_the_report_says_what_the_search_found(study, tmp_path):
    write_report(study, tmp_path)
    found = summarise(study).search
    for name in ("report.html", "report.md"):
        page = (tmp_path / name).read_text(encoding="utf-8")
        assert "What the search found" in page
        assert f"{len(found.values)} values took {found.probes:,} probes" in page
        assert "How far the search can be trusted" in page
        assert all(value.component in page for value in found.values)
