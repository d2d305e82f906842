"""Records to one self-contained HTML page, Markdown and CSV."""

from aftershock.report.diagnosis import diagnosis_markdown, diagnosis_page, layer_list, write_diagnosis
from aftershock.report.joint import write_joint_report
from aftershock.report.markdown import markdown
from aftershock.report.page import page
from aftershock.report.tables import item_frame, trial_frame
from aftershock.report.write import write_report

__all__ = [
    "diagnosis_markdown",
    "diagnosis_page",
    "item_frame",
    "layer_list",
    "markdown",
    "page",
    "trial_frame",
    "write_diagnosis",
    "write_joint_report",
    "write_report",
]
