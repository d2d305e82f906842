"""Case files name what exists, say what was measured, and lead to their targets."""

from functools import cache
from pathlib import Path

import pytest
import torch
from benchmarks.planting import is_detectable, recorded
from benchmarks.plants.building import clean_target
from benchmarks.plants.cases import FOLDER, Case, Measured, all_cases, read_case
from benchmarks.plants.vocabulary import CAUSES

from aftershock.errors import InputError

FILES = sorted(FOLDER.glob("*.toml"))


@cache
def cases() -> dict[Path, Case]:
    return all_cases()


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_a_case_file_says_what_it_is(path: Path) -> None:
    case = read_case(path)
    assert case.name == path.stem
    if case.measured is None:
        pytest.skip(f"not measured yet: python -m benchmarks.planting --record {case.name}")
    if case.is_control:
        assert (case.measured.effect_over_noise or 0.0) < 2.0
    else:
        assert case.detectable == is_detectable(case.measured)


def test_cases_cover_every_cause_and_are_mostly_independent() -> None:
    found = [one for case in cases().values() for one in (case.expected, case.also) if one is not None]
    assert {cause for one in found for cause in one.causes} == CAUSES
    independent = [case for case in cases().values() if case.author == "independent" and not case.is_control]
    assert sum("unknown" in case.expected.causes for case in independent) >= 10
    assert sum("unknown" not in case.expected.causes for case in independent) >= 15
    assert sum(case.is_control for case in cases().values()) >= 8


def test_a_case_leads_to_its_target(tmp_path: Path) -> None:
    case = read_case(FOLDER / "llama-interleaved-rope.toml")
    clean = clean_target(case)
    assert list(map(len, clean.prompts)) == list(case.prompts.lengths)
    assert clean.model.dtype == torch.bfloat16
    assert clean.prompts == clean_target(case, torch.float64).prompts


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('operation = "rotation"', 'operation = "rotate"', "no operation 'rotate'"),
        ('rotation = "interleaved"', 'rotation = "sideways"', "none of interleaved"),
        ('rotation = "interleaved"', 'rotation = "interleaved"\nshare = 0.5', "unexpected keyword argument 'share'"),
        ('"rope_layout"', '"rope_lay_out"', "no such component or cause: rope_lay_out"),
        ("lengths = [9", 'texts = ["a"]\nlengths = [9', "prompts need one of"),
        ("dtype =", "dtype ==", "is no case"),
    ],
)
def test_a_wrong_case_is_refused_in_words(tmp_path: Path, old: str, new: str, says: str) -> None:
    text = (FOLDER / "llama-interleaved-rope.toml").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "wrong.toml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(InputError, match=says):
        read_case(path)


def test_what_was_measured_is_written_once(tmp_path: Path) -> None:
    text = (FOLDER / "llama-interleaved-rope.toml").read_text(encoding="utf-8")
    weak, strong = Measured(effect_over_noise=0.25, largest_over_noise=0.5), Measured(tokens_changed=1.0)
    path = tmp_path / "case.toml"
    path.write_text(recorded(recorded(text, strong, True), weak, False), encoding="utf-8")
    case = read_case(path)
    assert (case.measured, case.detectable) == (weak, False)
    assert recorded(path.read_text(encoding="utf-8"), strong, True) == recorded(text, strong, True)
    assert not is_detectable(weak)
    assert is_detectable(strong)
