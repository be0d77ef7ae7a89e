"""What a run tells MLflow. Local files are the truth; MLflow is a mirror that may fail and be completed later."""

from medseg_diff.tracking.attaching import attach_evaluation, attach_page, attach_study, attach_to_run, attach_trials
from medseg_diff.tracking.entry import Entry
from medseg_diff.tracking.evaluations import record_evaluation
from medseg_diff.tracking.mirror import Mirror
from medseg_diff.tracking.store import address
from medseg_diff.tracking.sync import complete, complete_study

__all__ = [
    "Entry",
    "Mirror",
    "address",
    "attach_evaluation",
    "attach_page",
    "attach_study",
    "attach_to_run",
    "attach_trials",
    "complete",
    "complete_study",
    "record_evaluation",
]
