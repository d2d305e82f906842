"""Plan, run, store, resume, summarise, compare and repeat studies."""

from aftershock.study.again import Replay, replay_trial
from aftershock.study.compare import StudyComparison, compare_studies
from aftershock.study.outlook import Outlook, estimate_seconds, outlook
from aftershock.study.plan import Plan, make_plan
from aftershock.study.records import (
    DUE,
    RECORD_VERSION,
    SDC,
    Environment,
    GoldenRecord,
    ItemRecord,
    NoiseRecord,
    Strike,
    TrialRecord,
)
from aftershock.study.run import Progress, run_study
from aftershock.study.searched import Searched, SearchedValue, SearchSummary, summarise_study
from aftershock.study.settings import StudySettings, check_settings, read_settings, to_toml
from aftershock.study.store import Store, StoredStudy, load_study
from aftershock.study.summary import Rate, SdcRate, Summary, summarise

__all__ = [
    "DUE",
    "RECORD_VERSION",
    "SDC",
    "Environment",
    "GoldenRecord",
    "ItemRecord",
    "NoiseRecord",
    "Outlook",
    "Plan",
    "Progress",
    "Rate",
    "Replay",
    "SdcRate",
    "SearchSummary",
    "Searched",
    "SearchedValue",
    "Store",
    "StoredStudy",
    "Strike",
    "StudyComparison",
    "StudySettings",
    "Summary",
    "TrialRecord",
    "check_settings",
    "compare_studies",
    "estimate_seconds",
    "load_study",
    "make_plan",
    "outlook",
    "read_settings",
    "replay_trial",
    "run_study",
    "summarise",
    "summarise_study",
    "to_toml",
]
