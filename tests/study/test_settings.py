"""Study files: what is read, what is refused, and that settings survive being written."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aftershock.errors import InputError
from aftershock.study import StudySettings, check_settings, expand, is_campaign, read_settings, to_toml


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "model": st.fixed_dictionaries({}, optional={"spec": st.text(), "dtype": st.sampled_from(["bf16"])}),
            "task": st.fixed_dictionaries({}, optional={"limit": st.integers(1, 9), "spec": st.text()}),
            "fault_list": st.lists(st.text(), max_size=3),
            "run": st.fixed_dictionaries({}, optional={"seed": st.integers(0, 2**62), "threads": st.integers(1, 4)}),
            "faults": st.fixed_dictionaries(
                {}, optional={"bits": st.lists(st.integers(0, 31)), "tokens": st.just((0.25, 0.5))}
            ),
        },
    )
)
def test_written_settings_read_back_equal(tables):
    whole = check_settings(tables, "test")
    assert check_settings(tomllib.loads(to_toml(whole)), "test") == whole


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"modle": {}}, "unknown key 'modle': did you mean 'model'"),
        ({"run": {"trails": 3}}, "unknown key 'run.trails': did you mean 'trials'"),
        ({"run": {"trials": 0}}, "run.trials"),
        ({"run": {"trials": "many"}}, "run.trials"),
        ({"faults": {"components": ["mlp"]}}, "unknown component 'mlp'"),
        ({"faults": {"corruption": "replace"}}, "either value or uniform"),
        ({"faults": {"modules": "("}}, "not a regular expression"),
        ({"faults": {"xyzzy": 1}}, "known here"),
    ],
)
def test_what_is_wrong_is_named(tables, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(").replace(".", r"\.")):
        check_settings(tables, "study.toml")


def test_malformed_toml_names_file_and_line(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("[run]\ntrials = = 3\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"broken\.toml is not valid TOML.*line 2"):
        read_settings(path)


def test_defaults_are_a_whole_study():
    assert StudySettings().run.trials == 400


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).resolve().parents[2] / "studies").glob("*.toml")), ids=lambda file: file.name
)
def test_every_study_file_that_comes_along_is_one(file):
    tables = read_settings(file)
    studies = expand(tables, str(file)) if is_campaign(tables) else [(file.stem, tables)]
    assert all(check_settings(own, f"{file}, study {name}").trials for name, own in studies)
