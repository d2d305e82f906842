"""A synthetic study and its page, made once for all tests of the room."""

from pathlib import Path

import pytest
from synthetic_study import study

from aftershock.report import page
from aftershock.study import StoredStudy, Summary, summarise


@pytest.fixture(scope="session")
def stored() -> StoredStudy:
    return study(Path("a study"), trials=160)


@pytest.fixture(scope="session")
def summary(stored: StoredStudy) -> Summary:
    return summarise(stored)


@pytest.fixture(scope="session")
def html(stored: StoredStudy, summary: Summary) -> str:
    return page(stored, summary)
