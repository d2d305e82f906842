"""Plan, run, store, resume, summarise, compare and repeat studies."""

from aftershock.study.advice import Advice, advise
from aftershock.study.again import Replay, replay_trial
from aftershock.study.against_generate import AgainstGenerate, SdcTest
from aftershock.study.campaign import (
    CampaignSummary,
    Member,
    MemberState,
    MemberSummary,
    is_campaign_folder,
    load_members,
    run_campaign,
    summarise_campaign,
)
from aftershock.study.compare import StudyComparison, compare_studies
from aftershock.study.crew import Crew
from aftershock.study.curves import SEVERITIES, Curve, Fragility, rising, severity_text
from aftershock.study.degradation import DegradationModel
from aftershock.study.hiring import process_crew, ray_crew, require_ray
from aftershock.study.kept import Measure
from aftershock.study.members import expand, is_campaign, table_of
from aftershock.study.outlook import Outlook, estimate_seconds, outlook
from aftershock.study.plan import Plan, Trial, make_plan
from aftershock.study.rates import Rate
from aftershock.study.records import (
    DUE,
    RECORD_VERSION,
    SDC,
    UNUSED,
    Environment,
    GeneratedAnswer,
    GeneratedItem,
    GeneratedTrial,
    GoldenRecord,
    ItemRecord,
    NoiseRecord,
    Strike,
    TrialRecord,
)
from aftershock.study.rounds import Block, next_block
from aftershock.study.rules import Rule, parse_rule
from aftershock.study.run import Progress, run_study
from aftershock.study.searched import Searched, SearchedValue, Trust
from aftershock.study.sensitivity import Sensitivity
from aftershock.study.settings import StudySettings, check_settings, read_settings, to_toml
from aftershock.study.store import Store, StoredStudy, load_study
from aftershock.study.summary import SdcRate, Summary, summarise
from aftershock.study.swept import SweptRate
from aftershock.study.takeaways import Takeaway, takeaways
from aftershock.study.trial import trial_records
from aftershock.study.verdict import Ranked, Verdict, verdict

__all__ = [
    "DUE",
    "RECORD_VERSION",
    "SDC",
    "SEVERITIES",
    "UNUSED",
    "Advice",
    "AgainstGenerate",
    "Block",
    "CampaignSummary",
    "Crew",
    "Curve",
    "DegradationModel",
    "Environment",
    "Fragility",
    "GeneratedAnswer",
    "GeneratedItem",
    "GeneratedTrial",
    "GoldenRecord",
    "ItemRecord",
    "Measure",
    "Member",
    "MemberState",
    "MemberSummary",
    "NoiseRecord",
    "Outlook",
    "Plan",
    "Progress",
    "Ranked",
    "Rate",
    "Replay",
    "Rule",
    "SdcRate",
    "SdcTest",
    "Searched",
    "SearchedValue",
    "Sensitivity",
    "Store",
    "StoredStudy",
    "Strike",
    "StudyComparison",
    "StudySettings",
    "Summary",
    "SweptRate",
    "Takeaway",
    "Trial",
    "TrialRecord",
    "Trust",
    "Verdict",
    "advise",
    "check_settings",
    "compare_studies",
    "estimate_seconds",
    "expand",
    "is_campaign",
    "is_campaign_folder",
    "load_members",
    "load_study",
    "make_plan",
    "next_block",
    "outlook",
    "parse_rule",
    "process_crew",
    "ray_crew",
    "read_settings",
    "replay_trial",
    "require_ray",
    "rising",
    "run_campaign",
    "run_study",
    "severity_text",
    "summarise",
    "summarise_campaign",
    "table_of",
    "takeaways",
    "to_toml",
    "trial_records",
    "verdict",
]
