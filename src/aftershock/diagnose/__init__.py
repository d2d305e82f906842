"""Why an engine answers worse than its reference: the first component that is wrong, and the reason."""

from aftershock.diagnose.alignment import Alignment, load_alignment
from aftershock.diagnose.comparable import check_checkpoint
from aftershock.diagnose.declared import reference_dtype
from aftershock.diagnose.diagnosis import CurvePoint, Diagnosis, Finding, Picture, Rung, State, Subject, Suspect
from aftershock.diagnose.ladder import diagnose
from aftershock.diagnose.prompts import default_prompts
from aftershock.diagnose.replaying import alignment_with

__all__ = [
    "Alignment",
    "CurvePoint",
    "Diagnosis",
    "Finding",
    "Picture",
    "Rung",
    "State",
    "Subject",
    "Suspect",
    "alignment_with",
    "check_checkpoint",
    "default_prompts",
    "diagnose",
    "load_alignment",
    "reference_dtype",
]
