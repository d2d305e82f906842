"""What one corrupted bit does to a large language model's inference.

The names below are what the command line is made of. They load on first use, so that `import aftershock` and
`aftershock --help` are instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aftershock.errors import ContractError, InputError
    from aftershock.faults import Fault, Selection, parse_fault, sample_faults
    from aftershock.inject import Injection
    from aftershock.models import load
    from aftershock.report import write_report
    from aftershock.study import (
        StudySettings,
        compare_studies,
        load_study,
        make_plan,
        replay_trial,
        run_study,
        summarise,
    )

_HOMES = {
    "ContractError": "errors",
    "Fault": "faults",
    "InputError": "errors",
    "Injection": "inject",
    "Selection": "faults",
    "StudySettings": "study",
    "compare_studies": "study",
    "load": "models",
    "load_study": "study",
    "make_plan": "study",
    "parse_fault": "faults",
    "replay_trial": "study",
    "run_study": "study",
    "sample_faults": "faults",
    "summarise": "study",
    "write_report": "report",
}

__all__ = [
    "ContractError",
    "Fault",
    "Injection",
    "InputError",
    "Selection",
    "StudySettings",
    "compare_studies",
    "load",
    "load_study",
    "make_plan",
    "parse_fault",
    "replay_trial",
    "run_study",
    "sample_faults",
    "summarise",
    "write_report",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(f"aftershock.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'aftershock' has no attribute {name!r}")
