"""Records to one self-contained HTML page, Markdown and CSV."""

from aftershock.report.diagnosis import diagnosis_markdown, diagnosis_page, layer_list, write_diagnosis
from aftershock.report.joint import write_joint_report
from aftershock.report.markdown import markdown
from aftershock.report.page import page
from aftershock.report.plan_text import plan_text
from aftershock.report.protection import protection_page, write_protection_plan
from aftershock.report.regions import VoltageLoss, region_chart, voltage_chart, write_charts
from aftershock.report.tables import item_frame, trial_frame
from aftershock.report.write import require_writable, write_report

__all__ = [
    "VoltageLoss",
    "diagnosis_markdown",
    "diagnosis_page",
    "item_frame",
    "layer_list",
    "markdown",
    "page",
    "plan_text",
    "protection_page",
    "region_chart",
    "require_writable",
    "trial_frame",
    "voltage_chart",
    "write_charts",
    "write_diagnosis",
    "write_joint_report",
    "write_protection_plan",
    "write_report",
]
