"""Records to one self-contained HTML page, Markdown and CSV."""

from aftershock.report.joint import write_joint_report
from aftershock.report.markdown import markdown
from aftershock.report.page import page
from aftershock.report.tables import item_frame, trial_frame
from aftershock.report.write import write_report

__all__ = [
    "item_frame",
    "markdown",
    "page",
    "trial_frame",
    "write_joint_report",
    "write_report",
]
